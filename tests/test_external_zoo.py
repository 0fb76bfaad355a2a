"""The zoo: its nets, its rate rule, its judge, and a table in which what failed is said to fail."""

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from marks import slow_but
from torch import nn

from benchmarks.external import choices, originals, rows
from benchmarks.external.__main__ import main
from benchmarks.external.arms import ARMS, Outcome
from benchmarks.external.bars import (
    MET,
    NOT_MEASURED,
    NOT_MET,
    all_bars,
    drifts,
    falsely_reached,
    lost_bars,
    time_bars,
    unseen_bars,
)
from benchmarks.external.choices import VARIANTS, run_variant
from benchmarks.external.controls import control
from benchmarks.external.measures import Judge
from benchmarks.external.nets import CONFIRMATION, DEVELOPMENT, NETS, LeNet, Net
from benchmarks.external.old import Child, finite
from benchmarks.external.old import main as answer_jobs
from benchmarks.external.table import choices_page, page, stage_table, with_recorded, write_choices, write_table
from zspag import proxies, zero_shot_unlearn
from zspag.calibration import trials
from zspag.config import ProxyConfig, to_dict
from zspag.lab.data.splits import Dataset, Split
from zspag.outcome import Trial
from zspag.profiles import TrainConfig
from zspag.report.files import read_json, write_json

ROOT = Path(__file__).parents[1]
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "digits": (1, 8, 8), "orl-faces": (1, 48, 48)}
GOAL = 0.01


# --- nets -----------------------------------------------------------------------------------------------------------


SMALL = [name for name in NETS if "cifar10" not in name and "vit" not in name]  # quickly built, of no library


@pytest.mark.parametrize("name", slow_but(SMALL, NETS))
def test_a_net_maps_images_to_logits_and_its_twin_is_the_same_function(name):
    net = NETS[name]
    model, twin = (originals.untrained(net, twin=twin).eval() for twin in (False, True))
    images = torch.rand(2, *SHAPES[net.data])
    with torch.no_grad():
        output, plain = model(images), twin(images.contiguous(memory_format=torch.channels_last))
    logits = output if isinstance(output, torch.Tensor) else output.logits
    assert logits.shape == (2, 39 if net.data == "orl-faces" else 10)
    torch.testing.assert_close(plain, logits, atol=1e-5, rtol=1e-4)
    assert list(twin.state_dict()) == list(model.state_dict())


def test_lenet_needs_its_twin():
    maps = torch.rand(2, 64, 7, 7).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        LeNet().flat(maps)


def test_the_zoo_holds_every_kind_and_keeps_confirmation_apart():
    assert {net.norm for net in NETS.values()} == {"none", "batch", "group", "layer"}
    assert sum(net.counts == (20, 50, 200, None) for net in NETS.values()) == 4
    for net in NETS.values():
        assert len(set(net.classes)) == 3
        if net.data == "cifar10":
            assert net.test_half == {DEVELOPMENT: "first", CONFIRMATION: "second"}[net.role]


# --- originals ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A zoo of one linear net on random images, in a repository of its own.

    Yields:
        The trained net.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    images = (labels[:, None, None, None] * 80 + torch.randint(0, 40, (30, 1, 2, 2), generator=generator)).to(
        torch.uint8
    )
    dataset = Dataset(
        "tiny",
        ("a", "b", "c"),
        Split(images, labels),
        Split(images[:12], labels[:12]),
        augment_hint="none",
        data_source="-",
    )
    recipe = TrainConfig(epochs=20, batch_size=6, lr=0.5)
    net = Net(
        "tiny",
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
        "none",
        "tiny",
        DEVELOPMENT,
        recipe,
        images=15,
        counts=(4,),
        classes=(1,),
    )
    monkeypatch.setitem(NETS, "tiny", net)
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setattr(originals, "dataset_of", lambda _name, _size: dataset)
    rows._known.cache_clear()
    yield originals.original("tiny")
    rows._known.cache_clear()


def test_an_original_is_trained_once_and_comes_back_bit_for_bit(tiny, monkeypatch):
    monkeypatch.setattr(originals, "train", None)
    again = originals.original("tiny")
    assert again.sha256 == tiny.sha256
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), tiny.model.parameters(), strict=True))
    assert not list(originals.runs().rglob("*.state"))


def test_another_recipe_is_another_checkpoint(tiny, monkeypatch):
    dataset = originals.dataset_of("tiny", None)
    path = originals.checkpoint_of("tiny", dataset)
    assert path.exists()
    monkeypatch.setitem(NETS, "tiny", Net(**(vars(tiny.net) | {"images": 12})))
    assert originals.checkpoint_of("tiny", dataset) != path


def test_forget_images_are_training_images_of_the_class(tiny):
    assert len(tiny.train) == 15
    forget = originals.forget_set(tiny, 1, 4)
    assert forget.labels.tolist() == [1] * 4
    assert all(any(torch.equal(image, own) for own in tiny.train.images) for image in forget.images)
    assert len(originals.forget_set(tiny, 1, None)) == 5


# --- the controls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["head_only", "delete"])
def test_a_control_forgets_at_a_rate_from_which_the_search_went_both_ways(tiny, method):
    forget = originals.forget_set(tiny, 1, 4)
    images, before = originals.on("cpu", forget.images), originals.weights_hash(tiny.model.state_dict())
    made = control(method, tiny.model, images, forget.labels, num_classes=3, seed=0, goal=GOAL)
    assert made.run.reached(GOAL)
    tried = {trial.lr: trial for trial in made.trials}
    assert min(tried) < made.run.lr < max(tried)
    assert not tried[min(tried)].forgot
    assert originals.weights_hash(tiny.model.state_dict()) == before


# --- the judge ------------------------------------------------------------------------------------------------------


def test_the_masked_original_loses_nothing_and_damage_counts(tiny):
    judge = Judge(tiny, "cpu")
    free = judge.masked(1)
    assert (free.lost_points, free.forget_unseen, free.drift) == (0.0, 0.0, 0.0)
    assert (free.retained_images, free.forget_images) == (8, 4)
    damaged = judge.judge(judge.original.roll(1, dims=1), 1)
    assert damaged.lost_points > 50
    assert damaged.drift > 0.1
    assert judge(tiny.model, 1).forget_unseen == judge.masked(1).original_forget > 0.5


def test_a_model_that_is_not_finite_recognizes_nothing_and_has_no_drift(tiny):
    judge = Judge(tiny, "cpu")
    broken = judge.judge(torch.full_like(judge.original, math.nan), 1)
    assert broken.drift is None
    assert broken.lost_points == 100 * broken.masked_retained


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_row_is_made_once_per_code_and_a_failure_is_a_row(tiny, monkeypatch):
    job = rows.Job("tiny", 1, 4, "zs_pag", "cpu", 1)
    monkeypatch.setattr(rows, "run_arm", lambda *_, **__: Outcome(tiny.model, None, True, 1.5, {"lr": 1.0}))
    assert rows.make_row(job)
    assert not rows.make_row(job)
    row = read_json(job.path)
    assert (row["samples"], row["error"], row["report"]) == (4, None, {"lr": 1.0})
    assert row["measures"]["forget_unseen"] == row["measures"]["original_forget"]

    def broken(*_, **__):
        raise ValueError("no layer to project")

    monkeypatch.setattr(rows, "run_arm", broken)
    assert not rows.make_row(job)  # still there
    monkeypatch.setattr(rows, "code_of", lambda _arm: "another state")
    assert rows.make_row(job)
    row = read_json(job.path)
    assert (row["error"], row["measures"]) == ("ValueError: no layer to project", None)
    assert row["where"][-1].startswith("test_external_zoo.py:")  # no path of a machine


def test_the_command_makes_rows_of_cheap_arms_and_a_page(tiny, capsys):
    arms = ["masked", "original_closed", "head_only", "delete"]
    assert main(["rows", "--nets", "tiny", "--arms", ",".join(arms), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count(": made") == len(arms)
    found = {row["arm"]: row for row in rows.load_rows()}
    assert found["original_closed"]["measures"]["lost_points"] == 0
    assert found["original_closed"]["measures"]["forget_unseen"] == 0
    assert [found[arm]["reached"] for arm in ("head_only", "delete")] == [True, True]
    assert all(found[arm]["report"]["tried"] for arm in ("head_only", "delete"))


def test_the_code_of_an_arm_is_all_that_it_imports():
    assert rows.code_of("delete") != rows.code_of("masked") != rows.code_of("fa40f86")


# --- the child ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_child_answers_a_failure_and_goes_on():
    child = Child(ROOT, ROOT, threads=1)
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="KeyError: 'no such net'"):
                child({"side": "ours", "net": "no such net"})
    finally:
        child.close()
    assert child.process.returncode == 0


def test_a_child_refuses_another_package(tmp_path):
    with pytest.raises(SystemExit, match="zspag was imported from"):
        answer_jobs(str(tmp_path), "1")


def test_what_is_not_finite_becomes_none():
    assert finite({"a": (1.0, math.inf), "b": [{"c": math.nan}], "d": "inf"}) == {
        "a": [1.0, None],
        "b": [{"c": None}],
        "d": "inf",
    }


# --- bars and table -------------------------------------------------------------------------------------------------


def row(
    net="mnist-mlp",
    *,
    label=0,
    samples=200,
    arm="zs_pag",
    lost=0.05,
    unseen=0.01,
    drift=0.001,
    reached=True,
    error=None,
):
    """A row as ``make_row`` writes it."""
    measures = {"lost_points": lost, "forget_unseen": unseen, "drift": drift}
    return {
        "key": {"code": "c0de", "torch": "2", "device": "cpu", "threads": 1},
        "provenance": {"commit": "c0ffee0"},
        "net": net,
        "title": NETS[net].title,
        "norm": NETS[net].norm,
        "role": NETS[net].role,
        "label": label,
        "count": samples,
        "samples": samples,
        "arm": arm,
        "original_accuracy": 0.99,
        "reached": None if error else reached,
        "error": error,
        "measures": None if error else measures,
        "seconds": None if error else 2.0,
        "mended": "",
    }


def zoo(**changes):
    """Two nets, three classes, 20, 50 and 200 images, all arms; ``changes`` are of our first row of 200 images."""
    made = []
    for net in ("mnist-mlp", "mnist-group"):
        for samples in (20, 50, 200):
            for label in NETS[net].classes:
                own = {"samples": samples, "label": label}
                made += [row(net, arm=arm, drift=0.002, **own) for arm in ("head_only", "delete", "fa40f86")]
                made.append(row(net, **own))
    first = next(index for index, one in enumerate(made) if one["arm"] == "zs_pag" and one["samples"] == 200)
    made[first] = row(label=made[first]["label"], **changes)
    return made


def verdicts(made):
    return {bar.name: bar.verdict for bar in all_bars(made, goal=GOAL)}


def test_every_bar_can_be_met():
    assert set(verdicts(zoo()).values()) == {MET}


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"lost": 1.2}, ["points lost, worst", "points lost beyond fa40f86, worst net"]),
        ({"unseen": 0.021}, ["forget unseen, 200 images or more, worst"]),
        ({"unseen": 0.12}, ["forget unseen, 200 images or more, worst", "false 'reached' by over 10 points"]),
        ({"unseen": 0.12, "reached": False}, ["forget unseen, 200 images or more, worst"]),
        (
            {"error": "ValueError: no"},
            [
                "points lost, median",
                "points lost, worst",
                "forget unseen, 200 images or more, worst",
                "false 'reached' by over 10 points",
            ],
        ),
    ],
)
def test_a_single_bad_row_breaks_its_bars_and_no_others(changes, broken):
    found = verdicts(zoo(**changes))
    if "lost" in changes:  # 1.15 points on one of nine cases lie within two standard errors of those nine
        broken = broken[:1]
    assert sorted(name for name, verdict in found.items() if verdict == NOT_MET) == sorted(broken)


def test_a_net_that_loses_more_than_before_is_found():
    worse = [
        one | {"measures": one["measures"] | {"lost_points": 0.35}} if one["arm"] == "zs_pag" else one for one in zoo()
    ]
    assert verdicts(worse)["points lost beyond fa40f86, worst net"] == NOT_MET


def test_drift_is_judged_net_by_net_on_the_cases_that_all_three_have():
    made = [
        one | {"measures": one["measures"] | {"drift": 0.004}}
        if (one["arm"], one["net"]) == ("zs_pag", "mnist-mlp")
        else one
        for one in zoo()
        if (one["arm"], one["samples"]) != ("delete", 20)
    ]
    found = {one.net: one for one in drifts(made)}
    assert {net: (one.verdict, one.lowest, one.n) for net, one in found.items()} == {
        "mnist-mlp": (NOT_MET, 0, 6),
        "mnist-group": (MET, 6, 6),
    }
    endless = [
        one | {"measures": one["measures"] | {"drift": None}} if one["arm"] == "zs_pag" else one for one in zoo()
    ]
    assert {one.verdict for one in drifts(endless)} == {NOT_MET}


def test_what_was_not_run_is_not_measured():
    assert set(verdicts([row(arm="masked")]).values()) == {NOT_MEASURED}
    assert [bar.verdict for bar in lost_bars([]) + unseen_bars([row(samples=20)])] == [NOT_MEASURED] * 4
    assert {bar.verdict for bar in time_bars(None)} == {NOT_MEASURED}
    assert not falsely_reached(row(error="x"), goal=GOAL)


def timed(net="mnist-lenet", *, ours=2.0, ratio=4.0, share=None):
    """An entry of ``timing.json``."""
    return {
        "net": net,
        "title": net,
        "norm": NETS[net].norm,
        "samples": 50,
        "ours_seconds": ours,
        "ratio": ratio,
        "fa40f86_seconds": None if ratio is None else ratio * ours,
        "seconds": {"ours": [ours], "fa40f86": [1.0]},
        "training_share": share,
        "training_seconds": None if share is None else ours / share,
        "stages": {"proxies": 0.5, "update": 1.5},
        "useful_share": 0.5,
        "peak_mib": 12.0,
        "threads": 2,
        "device": "cpu",
        "load_before": 0.1,
        "commit": "abc",
    }


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            [timed(), timed("cifar10-conv7", ratio=1.1), timed("cifar10-resnet18", share=1 / 21)],
            [MET] * 4,
        ),
        (
            [
                timed(ours=11.0, ratio=2.5),
                timed("cifar10-conv7", ratio=0.9),
                timed("cifar10-resnet18", share=1 / 19),
            ],
            [NOT_MET] * 4,
        ),
        ([timed(ratio=None)], [NOT_MET, NOT_MET, NOT_MEASURED, MET]),
    ],
)
def test_time_is_judged_against_the_old_defaults_and_a_training(entries, expected):
    assert [bar.verdict for bar in time_bars({"nets": entries})] == expected


def test_the_page_says_where_the_time_goes():
    lines = stage_table({"nets": [timed(share=1 / 50)]}).splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[2:] == ["2.0", "25 %", "75 %", "50 %", "12", "1/50 of 100 s"]


def test_the_page_names_what_failed_and_says_which_bar_is_not_met(tmp_path):
    made = zoo(error="ValueError: the attack | found\nnothing")
    text = write_table(made, timing={"nets": [timed()]}, target=tmp_path)
    assert text == (tmp_path / "README.md").read_text()
    assert "ValueError: the attack / found nothing" in text
    bar = next(line for line in text.splitlines() if line.startswith("| points lost, worst"))
    assert bar.split(" | ")[-2] == "not met"
    assert "1 failed" in bar
    stored = read_json(tmp_path / "zoo.json")
    assert sum(one["error"] is not None for one in stored["rows"]) == 1
    assert len(stored["rows"]) == len(made)
    assert {bar["name"]: bar["verdict"] for bar in stored["bars"]["all"]} == verdicts(made)


def test_the_page_says_where_rows_of_different_code_stand_together():
    made = zoo()
    warning = "stand together in"
    assert warning not in page(made)
    made[0] = made[0] | {"key": made[0]["key"] | {"code": "other"}}
    assert f"{warning}: {ARMS[made[0]['arm']]}" in page(made)


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run `python -m benchmarks.external rows` first"):
        write_table([], target=tmp_path)


# --- variants -------------------------------------------------------------------------------------------------------

SAID = pytest.mark.filterwarnings("ignore:not reached", "ignore:the search for a rate ended", "ignore:not forgotten")


def options(config, prefix=""):
    """All options of a configuration, by their full name."""
    found = {}
    for name, value in config.items():
        found |= options(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "defaults"])
def test_a_variant_differs_in_one_thing(name):
    variant, beside = VARIANTS[name], VARIANTS[VARIANTS[name].against]
    own, other = options(to_dict(variant.config)), options(to_dict(beside.config))
    things = [key for key in own if own[key] != other[key]]
    things += [variant.method] if variant.method != beside.method else list(variant.swaps)
    assert len(things) == 1


@SAID
def test_the_defaults_are_the_call_itself(tiny):
    forget = originals.forget_set(tiny, 1, 4)
    ours = zero_shot_unlearn(tiny.model, originals.on("cpu", forget.images), forget.labels, progress=False)
    made = run_variant("defaults", tiny, forget, device="cpu")
    assert originals.weights_hash(made.model.state_dict()) == originals.weights_hash(ours.open_model.state_dict())
    assert made.report["lr"] == ours.report.lr
    assert made.report["processor_seconds"] > 0


@pytest.mark.parametrize("name", ["last_iterate", "least_radius", "confident", "one_layer", "first_rate", "fixed"])
@SAID
def test_what_is_exchanged_is_in_use_and_put_back(tiny, monkeypatch, name):
    (place, stand_in), *others = VARIANTS[name].swaps.items()
    assert not others
    module, attribute = place.rsplit(".", 1)
    before = getattr(import_module(module), attribute)
    used = []
    if callable(stand_in):
        noted = {place: lambda *args, **options: (used.append(1), stand_in(*args, **options))[1]}
        monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], swaps=noted))
    made = run_variant(name, tiny, originals.forget_set(tiny, 1, 4), device="cpu")
    assert made.model is not tiny.model
    assert bool(used) == callable(stand_in)
    assert getattr(import_module(module), attribute) is before
    if name == "fixed":
        assert [trial["lr"] for trial in made.report["tried"]] == list(choices.LADDER)[: len(made.report["tried"])]


def test_proxies_of_the_least_radius_and_confident_judges_are_one_set(tiny):
    images = originals.on("cpu", originals.forget_set(tiny, 1, 4).images)
    asked = {"retained": [0, 2], "config": ProxyConfig(per_class=4)}
    plain, least, sure = (
        make(tiny.model, images, generator=torch.Generator().manual_seed(0), **asked)
        for make in (proxies.generate, choices.least_radius, choices.confident)
    )
    assert torch.equal(least.images, plain.barely)
    assert torch.equal(sure.barely, plain.images)
    assert not torch.equal(plain.images, plain.barely)


def test_the_old_attack_stays_in_its_ball_and_ends_where_its_last_step_leads(tiny):
    images = originals.on("cpu", originals.forget_set(tiny, 1, 4).images)
    targets, asked = torch.zeros(4, dtype=torch.long), {"eps": 0.2, "config": ProxyConfig(steps=7)}
    old, new = (
        attack(tiny.model, images, targets, generator=torch.Generator().manual_seed(0), **asked)
        for attack in (choices.last_iterate, proxies.attack)
    )
    assert (old.images - images).flatten(1).norm(dim=1).max() <= 0.2 * math.sqrt(4) + 1e-6
    assert ((old.images >= 0) & (old.images <= 1)).all()
    assert not torch.equal(old.images, new.images)
    torch.testing.assert_close(old.margins, proxies.margins_of(tiny.model(old.images), targets).detach())


def test_folds_of_the_same_sources_exchange_what_they_are_judged_by(monkeypatch):
    folds = [
        trials.Fold(torch.zeros(1), torch.zeros(1), torch.zeros(1), None, torch.full((1,), own), torch.zeros(1))
        for own in (0.0, 1.0)
    ]
    monkeypatch.setattr(choices, "make_folds", lambda: folds)
    assert [fold.barely.item() for fold in choices.same_sources()] == [1.0, 0.0]


def test_the_first_rate_that_forgets_ends_the_climb():
    def attempt(lr):
        return Trial(layers="all", lr=lr, forget_accuracy=0.0, drift=0.0, forgot=lr >= 0.01, seconds=0.0)

    found = choices.first_rate(attempt, start=0)
    assert [trial.lr for trial in found.trials] == [0.001, 0.003, 0.01]
    assert (found.best, found.at_edge) == (2, False)


@SAID
def test_the_command_makes_rows_of_variants_and_a_page(tiny, capsys, monkeypatch):
    monkeypatch.setattr(choices, "code_of", lambda _arm: "c0de")
    asked = ["choices", "--nets", "tiny", "--variants", "fixed,closed", "--device", "cpu"]
    assert main(asked) == 0
    assert capsys.readouterr().out.count(": made") == 2
    assert main(asked) == 0
    assert ": made" not in capsys.readouterr().out
    found = {one["arm"]: one for one in rows.load_rows(choices.folder())}
    assert {arm: one["error"] for arm, one in found.items()} == {"fixed": None, "closed": None}
    assert found["closed"]["measures"]["lost_points"] == 0
    assert found["fixed"]["report"]["tried"]


def choice(variant, label=0, *, lost=0.0, drift=0.001, unseen=0.0, error=None, processor=2.0):
    """A row of a variant as ``make_choice`` writes it."""
    report = {
        "hits": {"1": 1.0, "2": 0.9},
        "seconds": {"proxies": 1.0, "calibration": 3.0},
        "drift": 0.0005,
        "chosen": "all",
        "lr": 0.03,
        "at_edge": False,
        "processor_seconds": processor,
    }
    made = row(arm=variant, label=label, samples=20, lost=lost, drift=drift, unseen=unseen, error=error)
    return made | {"report": {} if error else report}


def test_the_page_of_variants_compares_case_by_case_and_names_failures(tmp_path):
    made = [
        choice("defaults"),
        choice("defaults", 3),
        choice("margin_1", lost=2.0, drift=0.002, processor=1.0),
        choice("margin_1", 3, lost=-1.0, drift=0.008, processor=1.0),
        choice("last_iterate", lost=7.0, drift=0.02),
        choice("linf", error="ValueError: no | sample reached class 2"),
    ]
    text = write_choices(made, target=tmp_path)
    assert text == (tmp_path / "CHOICES.md").read_text() == choices_page(made)
    lines = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in text.splitlines()[10:20]}
    assert lines["margin 1"][1:6] == ["defaults", "2", "0", "+0.50", "+2.00"]
    assert lines["margin 1"][9:11] == ["4", "0.5"]  # sqrt(2 * 8) times the drift, half of the time
    assert lines["constant steps, last iterate, margin 1"][9] == "10"  # beside margin 1, in the case that both have
    assert "**margin 1** beside defaults, 2 cases: more points lost in 1 and fewer in 1;" in text
    assert "ValueError: no / sample reached class 2" in text
    planned = len(choices.CHOSEN) * choices.CLASSES * len(VARIANTS)
    assert f"Rows that were not made: {planned - len(made)} of {planned}." in text
    assert len(read_json(tmp_path / "choices.json")["rows"]) == len(made)


def test_a_table_of_few_rows_keeps_the_recorded_ones_of_other_cases(tmp_path):
    def one(label, arm="zs_pag", **changes):
        return {"key": {"net": "mnist-mlp", "label": label, "count": 20, "seed": 0}, "arm": arm} | changes

    write_json(tmp_path / "zoo.json", {"rows": [one(0, seconds=1.0), one(1, seconds=1.0), one(0, "delete")]})
    assert with_recorded([one(0, seconds=2.0)], tmp_path / "zoo.json") == [
        one(0, seconds=2.0),
        one(1, seconds=1.0),
        one(0, "delete"),
    ]
    assert with_recorded([one(0)], tmp_path / "none.json") == [one(0)]
