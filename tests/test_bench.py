"""Benchmarks run, count right and compare; no test looks at a time, except at one that was slept."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import reference
import torch
from torch import nn

from benchmarks import stages
from benchmarks.__main__ import main
from benchmarks.stages import machine, peers, precision, report, settings, startup, step, timing, trace, whole
from benchmarks.stages.findings import Finding, compared
from zspag.config import SubspaceConfig
from zspag.influence import gauss_newton_product, label_scores, weights_of
from zspag.lab.evaluation import captured
from zspag.process import allocator
from zspag.profiles import PROFILES
from zspag.report import provenance
from zspag.report.files import read_json, write_json
from zspag.subspaces import Moments, Subspace, by_rank, merged, projector, second_moments

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
HERE = machine.Machine("a machine", 1, {"float32": 2e9, "float64": 1e9}, 1e9)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path / "data"))
    (tmp_path / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("00_*.ipynb")):
        (tmp_path / "notebooks" / path.name).write_bytes(path.read_bytes())


# ---- Every line runs


@pytest.mark.parametrize(
    "stage", [pytest.param(one, marks=() if one == "influence" else pytest.mark.slow) for one in stages.STAGES]
)
@pytest.mark.filterwarnings("ignore")  # a kernel's own
def test_every_stage_runs_on_tiny_sizes_and_finds_something(stage):
    found = stages.measure(stage, settings.TINY, HERE, CPU)
    failed = [one["note"] for one in found if one["what"] == "the stage"]
    assert not failed
    measured = [one for one in found if "is not installed" not in one["note"] and one["note"] != "it takes a GPU"]
    assert measured
    assert all(one["value"] is not None and one["value"] >= 0 for one in measured if "exponent" not in one["what"])
    for one in found:
        assert one["stage"]
        assert one["case"]


def test_a_gpu_leaves_out_what_measures_the_cpu():
    assert stages.stages_of(CPU) == tuple(stages.STAGES)
    assert set(stages.STAGES) - set(stages.stages_of(torch.device("cuda"))) == {"start-up", "growth", "throttles"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:retained classes may have lost")  # hardly trained
def test_a_gpu_races_the_large_net_too_and_a_cpu_says_that_it_does_not(monkeypatch):
    tiny = PROFILES["smoke"]
    monkeypatch.setattr(whole, "profile_of", lambda sizes: tiny)
    monkeypatch.setattr(whole, "LARGE", replace(tiny, width=6))
    monkeypatch.setattr(whole, "_retraining", lambda profile, label, device: 100.0)  # the one line that asks for it
    sizes, gpu = replace(settings.TINY, tiny=False), torch.device("cuda")
    raced, *beside = (one for one in whole.measure(sizes, HERE, gpu) if "width 6" in one.case)
    assert raced.value == pytest.approx(100 / raced.seconds[whole.OURS][0])
    assert raced.at_least == 20
    assert len(beside) == 7  # time over two peers, what three leave recognized, retained loss over two
    (told,) = (one for one in whole.measure(settings.TINY, HERE, CPU) if "width 6" in one.case)
    assert (told.value, told.at_least, told.note) == (None, 20, "it takes a GPU")


def test_a_run_writes_a_file_that_is_drawn_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "STAGES", {"influence": stages.STAGES["influence"], "broken": _broken})
    assert main(["--tiny"]) == 0
    out = capsys.readouterr().out
    path = tmp_path / "runs" / "bench" / "cpu.json"
    content = json.loads(path.read_text())
    assert "influence: forward passes' time" in out
    assert f"wrote {path}" in out
    assert [row["stage"] for row in content["data"]["found"]] == ["influence"] * 4 + ["broken"]
    assert content["data"]["found"][-1]["note"] == "RuntimeError: no such thing"
    assert content["data"]["found"][-1]["verdict"] == "not measured"
    assert content["data"]["machine"]["threads"] == torch.get_num_threads()
    assert content["provenance"]["config"]["trial"] is True
    assert provenance.read_record(path) == content["provenance"]
    assert main(["--compare", str(path)]) == 0
    assert "x 1.00  influence" in capsys.readouterr().out


def _broken(*_):
    raise RuntimeError("no such thing")
    yield


def test_a_run_that_was_interrupted_goes_on_and_a_whole_one_measures_anew(capsys, monkeypatch):
    calls = []

    def first(*_):
        calls.append("first")
        yield Finding("first", "", "a number", 1.0, rounds=(1.0, 1.0))

    def second(*_):
        calls.append("second")
        if calls.count("second") == 1:
            raise KeyboardInterrupt
        yield Finding("second", "", "a number", 2.0)

    monkeypatch.setattr(stages, "STAGES", {"first": first, "second": second})
    monkeypatch.setitem(stages.STAGES, "third", lambda *_: iter([Finding("third", "", "a number", 3.0)]))
    with pytest.raises(KeyboardInterrupt):
        main(["--tiny"])
    assert main(["--tiny", "--only", "third"]) == 0  # another run in between takes nothing away
    assert main(["--tiny"]) == 0
    assert calls == ["first", "second", "second"]
    out = capsys.readouterr().out
    assert "first: a number: 1" in out
    assert "second: a number: 2" in out
    assert main(["--tiny"]) == 0
    assert calls[3:] == ["first", "second"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "tea"], "there is no stage tea; stages are subspaces, proxies, "),
        (["--tiny", "--record"], "only a whole run of the usual sizes is recorded"),
        (["--only", "step", "--record"], "only a whole run of the usual sizes is recorded"),
        (["--compare", "nowhere.json"], "there is no nowhere.json: name a file"),
        (["--table"], "results/bench holds no benchmark: run `make bench RECORD=1` first"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(arguments, message, capsys):
    assert main([*arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_another_kind_is_not_compared(tmp_path, capsys):
    write_json(tmp_path / "other.json", {"data": {}})
    assert main(["--compare", str(tmp_path / "other.json")]) == 2
    assert "other.json holds no benchmark" in capsys.readouterr().err


# ---- What is counted


def test_ways_are_run_in_turns_after_a_warm_up_and_told_apart():
    called = []
    ways = {"slow": lambda: (called.append("slow"), time.sleep(0.02)), "fast": lambda: called.append("fast")}
    found = timing.interleaved(ways, repeats=3)
    assert called == ["slow", "fast"] * 4
    median, low, high = found["slow"].spread
    assert 0.02 <= low <= median <= high
    assert median > found["fast"].median
    assert len(found["slow"].seconds) == 3


def test_a_ratio_is_taken_round_by_round():
    timings = {"ours": timing.Timing((1.0, 20.0, 3.0)), "theirs": timing.Timing((2.0, 40.0, 3.0))}
    found = compared("stage", "case", "what", timings, "ours", "theirs", factor=10, at_most=5)
    assert (found.value, found.rounds) == (5.0, (5.0, 5.0, 10.0))
    assert found.seconds == {"ours": (3.0, 1.0, 20.0), "theirs": (3.0, 2.0, 40.0)}
    missing = compared("stage", "case", "what", timings, "ours", "a peer", at_most=5)
    assert (missing.value, missing.note) == (None, "a peer is not installed: make bench fetches it")


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_an_exponent_is_that_of_the_power_law(power):
    x = [3.0, 5.0, 11.0, 40.0]
    assert timing.exponent(x, [7 * one**power for one in x]) == pytest.approx(power, abs=1e-12)


@pytest.mark.slow
def test_a_process_of_its_own_has_its_own_threads_and_peak():
    assert timing.alone(torch.get_num_threads, threads=2) == 2
    least, most = (timing.alone(_peak_of, size, threads=1) for size in (1, 2**28))
    assert 0.9 * 2**28 < most - least < 1.5 * 2**28


def _peak_of(size):
    torch.zeros(size, dtype=torch.uint8).fill_(1)
    return allocator.peak_bytes()


def test_the_counted_cost_of_a_step_is_that_of_its_products():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 20, 4))
    found = second_moments(model, torch.rand(5, 2, 4, 5))
    keep_out = projector([found], config=SubspaceConfig())
    ranks = {name: matrix.shape[-1] for name, (_, matrix) in keep_out.factors.items()}
    plain = 6 * 7 * (20 * 18 * 3 + 60 * 4)
    added = 4 * (ranks["0.weight"] * 18 * 3 + ranks["2.weight"] * 60 * 4)
    assert step._counted(model, found, keep_out, batch=7) == pytest.approx(1 + added / plain)


def test_rows_of_the_other_ways_are_our_rows():
    layer, x = nn.Conv2d(2, 3, 3, padding=1, stride=2), torch.rand(3, 2, 5, 4)
    rows = peers.rows_of(layer, x).double()
    torch.testing.assert_close(rows.T @ rows / len(rows), second_moments(layer, x).second["weight"][0])
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(18, 4))
    before = reference.state_of(model)
    assert [tuple(peers.rows_of(*one).shape) for one in peers.entering(model, x)] == [(18, 18), (3, 18)]
    reference.assert_same_state(before, reference.state_of(model))


# ---- Peers come to the same answers


def test_unsc_projects_out_of_the_merged_subspace_of_its_classes():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)).double()
    classes = [torch.randn(count, 2, 4, 5, dtype=torch.float64) for count in (5, 6, 7)]
    projectors = peers.unsc_projectors(model, classes, energy=0.9, merge_energy=0.8)
    ours = merged((second_moments(model, images) for images in classes), energy=0.9, merge_energy=0.8)
    other = merged((second_moments(model, images) for images in classes), energy=0.9, merge_energy=0.4)
    assert len(projectors) == len(ours.bases)
    for projector_, (name, (basis,)) in zip(projectors, ours.bases.items(), strict=True):
        torch.testing.assert_close(projector_, torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T)
        assert other.ranks[name] != ours.ranks[name]


def _directed():
    model = settings.net("digits", 4, settings.TINY, device=CPU).double()
    x = settings.images(5, settings.TINY, device=CPU).double()
    weights = weights_of(model, settings.weight_names(model))
    return model, x, {name: torch.randn_like(weight) for name, weight in weights.items()}


def test_scores_by_gradients_and_by_jvp_are_ours():
    model, x, direction = _directed()
    ours = label_scores(model, x, direction)
    torch.testing.assert_close(peers.scores_by_gradients(model, x, direction), ours)
    torch.testing.assert_close(peers.scores_by_jvp(model, x, direction), ours)
    turned = {name: part.flip(0) for name, part in direction.items()}
    assert not torch.allclose(peers.scores_by_jvp(model, x, turned), ours)


@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_curvlinops_product_is_ours():
    pytest.importorskip("curvlinops", reason="make bench fetches it")
    model, x, direction = _directed()
    theirs = peers.curvlinops_product(model, x, list(direction))(direction)
    for name, part in gauss_newton_product(model, x, direction, damping=0.0).items():
        torch.testing.assert_close(theirs[name], part)


def test_the_machines_rates_are_operations_and_bytes_per_second(monkeypatch):
    def slept(ways, *, repeats):
        assert repeats == 4
        return {name: timing.Timing((0.5,) * 4) for name in ways}

    monkeypatch.setattr(machine, "interleaved", slept)
    found = machine.measure(CPU, side=10, copied=4000, repeats=4)
    assert found.products == {"float32": 4000.0, "float64": 4000.0}
    assert found.copy == 16000.0
    assert found.name


def test_imports_of_a_notebook_are_those_at_the_top_of_its_cells():
    cells = [
        {"cell_type": "markdown", "source": ["import nothing"]},
        {"cell_type": "code", "source": ["import math\n", "x = 1\n", "from os import path"]},
        {"cell_type": "code", "source": "def late():\n    import json\nimport re"},
    ]
    assert startup.imports_of({"cells": cells}) == "import math\nfrom os import path\nimport re"


# ---- What is said


@pytest.mark.parametrize(
    ("rounds", "bounds", "wanted", "verdict"),
    [
        ((5.0,), {"at_least": 5}, "at least 5", "met"),
        ((4.9,), {"at_least": 5}, "at least 5", "missed"),
        ((4.9, 5.1, 5.2), {"at_least": 5}, "at least 5", "within noise"),
        ((0.0,), {"at_most": 0}, "at most 0", "met"),
        ((1.2, 1.1), {"at_most": 1}, "at most 1", "missed"),
        ((1.2, 0.9, 1.1), {"at_most": 1}, "at most 1", "within noise"),
        ((None,), {"at_most": 1}, "at most 1", "not measured"),
        ((3.0, 4.0), {}, "", ""),
    ],
)
def test_a_finding_knows_whether_it_reached_what_was_wanted_in_every_round(rounds, bounds, wanted, verdict):
    found = Finding("stage", "case", "what", rounds[0], **bounds, rounds=rounds[len(rounds) == 1 :])
    assert (found.wanted, found.verdict) == (wanted, verdict)
    assert found.to_dict()["verdict"] == verdict


ONE = Finding("stage", "a net", "number", 4.0, at_least=2)


def _content(*found, name="a machine"):
    return {"data": {"machine": {"name": name}, "found": [one.to_dict() for one in found]}}


def test_a_regression_is_visible():
    gone, new = replace(ONE, what="gone"), replace(ONE, what="new")
    lines = list(report.compare(_content(ONE, gone), _content(replace(ONE, value=1.0), new)))
    assert [line.strip() for line in lines] == [
        "x 0.25  stage: number -- a net (at least 2: met then, missed now)",
        "gone  stage: gone -- a net",
        "new  stage: new -- a net",
    ]
    assert list(report.compare(_content(ONE), _content(ONE, name="another")))[0].startswith("different machines: a ")


def test_the_table_and_the_bars_say_what_was_found():
    some = (ONE, replace(ONE, value=8.0, at_least=None, at_most=16, rounds=(7.0, 9.0, 8.0)), replace(ONE, value=None))
    found = [one.to_dict() for one in some]
    assert report.table(found).splitlines()[2:] == [
        "| stage | a net | number | at least 2 | 4 |  | 1 | met |",
        "| stage | a net | number | at most 16 | 8 | 7 – 9 | 3 | met |",
        "| stage | a net | number | at least 2 |  |  |  | not measured |",
    ]
    (panel,) = report.panels(found[:1])
    assert panel["values"] == [2.0]
    assert report.panels(found[1:2])[0]["values"] == [2.0]
    far = replace(ONE, case="another net", value=2e9).to_dict()
    assert report.panels([*found[:1], far])[0]["values"] == [2.0, report.FAR]  # and the near one can be seen


def test_the_page_of_the_recorded_benchmarks_is_written_from_their_files(tmp_path, capsys):
    recorded = {path.name: read_json(path) for path in sorted((ROOT / "results" / "bench").glob("*.json"))}
    for name, content in recorded.items():
        write_json(tmp_path / "results" / "bench" / name, content)
    assert main(["--table"]) == 0
    assert "README.md" in capsys.readouterr().out
    written = (tmp_path / "results" / "bench" / "README.md").read_text(encoding="utf-8")
    kept = (ROOT / "results" / "bench" / "README.md").read_text(encoding="utf-8")
    assert written == kept, "results/bench/README.md is stale: run `python -m benchmarks --table`"
    rows = [row for content in recorded.values() for row in content["data"].get("found", ())]
    assert written.count("\n| ") == len(rows) + 2 * written.count("\n## ")


def test_curves_of_one_axis_share_a_panel_time_before_memory():
    curve = {"axis": "samples n", "x": [1, 2], "y": [3, 6]}
    found = [
        replace(ONE, what=f"exponent of {kind}", value=power, curve=curve | {"name": name}).to_dict()
        for name in ("labels", "update")
        for kind, power in (("peak memory", 0.0), ("time", 1.0))
    ]
    time_panel, memory_panel = report.curves([*found, ONE.to_dict()])
    assert time_panel["title"] == "labels: exponent 1.00\nupdate: exponent 1.00"
    assert time_panel["ylabel"] == "seconds"
    assert time_panel["ylim"][0] == 0
    assert memory_panel["series"]["labels"] == {"x": [1, 2], "y": [3, 6], "exponent": 0.0}
    assert not report.curves([ONE.to_dict()])


# ---- Traces


@pytest.mark.parametrize(("work", "low", "high"), [("products", 0.9, 1.0), ("sines", 0.0, 0.1)])
def test_a_trace_tells_products_from_what_only_reads_and_writes(work, low, high):
    x = torch.rand(400, 400)
    ways = {"products": lambda: [x @ x for _ in range(20)], "sines": lambda: [x.sin() for _ in range(20)]}
    ways[work]()
    seconds = trace.traced(ways[work])
    useful = sum(spent for name, spent in seconds.items() if trace.is_useful(name))
    assert low <= useful / sum(seconds.values()) <= high


# ---- Precision


def test_exact_moments_are_those_of_the_same_rows_in_float64():
    net, images = settings.net("digits", 4, settings.TINY, device=CPU), settings.images(5, settings.TINY, device=CPU)
    ours, exact = second_moments(net, images), second_moments(net, images, precision=precision.EXACT)
    rows = images.flatten(1).double()  # what enters a linear layer, as it is
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(rows.shape[1], 3))
    torch.testing.assert_close(
        second_moments(linear, images, precision=precision.EXACT).second["1.weight"][0],
        rows.T @ rows / 5,
        rtol=1e-14,
        atol=1e-14,
    )
    for name, second in exact.second.items():
        torch.testing.assert_close(ours.second[name], second, rtol=1e-5, atol=1e-6 * float(second.max()))
    assert any((ours.second[name] != second).any() for name, second in exact.second.items())  # not the same products


def test_captured_energy_is_the_share_of_the_trace_in_the_basis():
    moments = Moments({"w": torch.diag(torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64))[None]}, {"w": 1.0}, {})
    for rank, share in ((1, 0.6), (2, 0.9), (3, 1.0)):
        assert captured(by_rank(moments, ranks={"w": (rank,)}), moments)["w"] == pytest.approx(share)
    tilted = Subspace({"w": torch.tensor([[[0.5**0.5], [0.0], [0.5**0.5]]], dtype=torch.float64)}, {"w": (1,)})
    assert captured(tilted, moments)["w"] == pytest.approx(0.35)
