"""The grid goes on where it stopped, computes the same on any number of workers, and knows what made every file."""

import importlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from laboratory import TINY, rooted, small

import zspag
from zspag import zero_shot_unlearn
from zspag.config import Ladders, SubspaceConfig
from zspag.lab import checkpoints, experiment
from zspag.lab.cluster import spread_over
from zspag.lab.data import load
from zspag.lab.evaluation import score
from zspag.lab.experiment import (
    REFERENCES,
    TITLES,
    Case,
    compute_grid,
    references_of,
    statistics_of,
    subspace_table,
    trained,
    training_key,
    whole_ladder,
)
from zspag.lab.experiment.cases import forget_set
from zspag.lab.experiment.grid import run_method
from zspag.lab.methods import METHODS
from zspag.profiles import PROFILES
from zspag.report import files, provenance, reproducible
from zspag.runtime import logits_of, pool_map, threads

pytestmark = pytest.mark.usefixtures("own_data")
PROFILE = replace(TINY, classes=(3, 5), ladders=Ladders(low=(0.003, 0.03), middle=(0.01, 0.1), high=(0.03, 0.3)))
METHODS_HERE = ("delete", "head_only")
CASE = Case(PROFILE, 0, 3)


def at(monkeypatch, folder):
    monkeypatch.setenv("ZSPAG_ROOT", str(folder))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    """A finished grid of two classes, computed once; tests that change it work on a copy."""
    with rooted(tmp_path_factory.mktemp("finished"), data_folder) as folder:
        frame = compute_grid(PROFILE, METHODS_HERE)
    return folder, frame


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A copy of the finished grid, as hard links: files are replaced as a whole, never written into."""
    source, _ = finished
    for path in source.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    return at(monkeypatch, tmp_path)


@pytest.fixture
def no_computing(monkeypatch):
    def explode(*_args, **_options):
        raise AssertionError("this would compute")

    for module, name in (("cases", "train"), ("grid", "run_method"), ("materials", "prepare")):
        monkeypatch.setattr(getattr(experiment, module), name, explode)


def grid_files(root):
    return sorted((root / "runs" / "tiny" / "grid").iterdir())


def comparable(frame):
    """Rows in a fixed order, without wall-clock times."""
    frame = frame.drop(columns="seconds").fillna(-1.0)
    return frame.sort_values(["method", "forget", "seed", "lr"], ignore_index=True)


# What a grid holds


def test_grid_has_a_row_per_reference_and_per_run(finished):
    _, frame = finished
    for forget in PROFILE.classes:
        own = frame[frame["forget"] == forget]
        assert own[own["lr"].isna()]["method"].tolist() == list(REFERENCES)
        for method in METHODS_HERE:
            runs = own[own["method"] == method]
            assert runs["lr"].tolist() == list(getattr(PROFILE.ladders, METHODS[method].ladder))
            assert runs["chosen"].sum() == 1
            assert (runs["retain_samples_read"] == 0).all()
    assert len(frame) == 2 * (3 + len(METHODS_HERE) * len(PROFILE.ladders.low))


def test_references_are_what_they_are_called(finished):
    _, frame = finished
    masked, retrained = (frame[frame["method"] == name] for name in ("masked", "retrained"))
    assert (masked["acc_forget"] == 0).all()
    assert masked["drift"].abs().max() < 1e-9
    assert (masked["over_unlearning"] == 0).all()
    assert (retrained["gap"] == 0).all()
    assert (retrained["acc_forget"] == 0).all()
    assert (frame[frame["method"] == "original"]["acc_forget"] > 0.3).all()


def test_every_file_of_the_grid_carries_its_provenance(finished):
    root, _ = finished
    for path in grid_files(root):
        record = provenance.read_record(path)
        assert record["config"]["ladders"]["low"] == list(PROFILE.ladders.low)
        assert record["threads"] == 1
        assert record["data_sha256"] == load("digits").sha256
    assert len(grid_files(root)) == 2 * (1 + len(METHODS_HERE))


def test_every_method_has_a_title():
    assert set(TITLES) == {*REFERENCES, *METHODS}


@pytest.mark.parametrize(("method", "where"), [("zs_pag", "high"), ("head_only", "middle"), ("delete", "low")])
def test_whole_ladder_runs_every_rate_of_the_methods_own_ladder(method, where):
    update = whole_ladder(PROFILE, method).update
    assert (update.lr, update.ladder, update.whole_ladder) == (None, getattr(PROFILE.ladders, where), True)
    assert replace(update, ladder=PROFILE.unlearn.update.ladder, whole_ladder=False) == PROFILE.unlearn.update


# It goes on where it stopped


def test_second_call_computes_nothing(copied, finished, no_computing):
    pd.testing.assert_frame_equal(compute_grid(PROFILE, METHODS_HERE), finished[1])


def test_new_grid_would_compute(tmp_path, monkeypatch, no_computing):
    at(monkeypatch, tmp_path)
    with pytest.raises(RuntimeError, match=r"^1 job of the grid failed.*\n  seed 0: .*this would compute$"):
        compute_grid(PROFILE, METHODS_HERE)


def test_deleted_file_is_recomputed_alone(copied, finished, monkeypatch):
    (lost,) = [path for path in grid_files(copied) if path.name.startswith("delete-class5")]
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    ran = []
    real = experiment.run_method
    monkeypatch.setattr(experiment.cases, "train", None)
    monkeypatch.setattr(
        experiment.grid,
        "run_method",
        lambda case, name, **rest: ran.append((case.forget, name)) or real(case, name, **rest),
    )
    frame = compute_grid(PROFILE, METHODS_HERE)
    assert ran == [(5, "delete")]
    assert lost.exists()
    assert times == {path: path.stat().st_mtime_ns for path in times}
    pd.testing.assert_frame_equal(comparable(frame), comparable(finished[1]))


def test_a_row_that_was_changed_by_hand_is_refused(copied, no_computing):
    path = experiment.grid._run_path(CASE, "delete")
    text = path.read_text()
    assert compute_grid(PROFILE, METHODS_HERE) is not None
    path.unlink()  # a hard link: the file of the others stays as it is
    path.write_text(text.replace('"chosen": true', '"chosen": false', 1))
    with pytest.raises(ValueError, match=r"delete-class3-seed0-.*was changed after it was written"):
        compute_grid(PROFILE, METHODS_HERE)


def test_failing_job_leaves_the_others_and_is_named(copied, monkeypatch):
    for path in grid_files(copied):
        path.unlink()
    real = experiment.run_method

    def fails_on_five(case, name, **rest):
        if (case.forget, name) == (5, "head_only"):
            raise ArithmeticError("out of luck")
        return real(case, name, **rest)

    monkeypatch.setattr(experiment.grid, "run_method", fails_on_five)
    with pytest.raises(RuntimeError, match=r"1 job of .*\n  seed 0, class 5, head_only: ArithmeticError: out of"):
        compute_grid(PROFILE, METHODS_HERE)
    kept = {path.name.rpartition("-")[0] for path in grid_files(copied)}
    methods = {f"{name}-class{label}-seed0" for name in ("references", *METHODS_HERE) for label in PROFILE.classes}
    assert kept == methods - {"head_only-class5-seed0"}

    monkeypatch.setattr(experiment.grid, "run_method", real)
    assert len(compute_grid(PROFILE, METHODS_HERE)) == 2 * (3 + len(METHODS_HERE) * len(PROFILE.ladders.low))


def test_class_that_cannot_be_prepared_costs_its_own_methods_only(copied, monkeypatch):
    for path in grid_files(copied):
        path.unlink()
    real = experiment.statistics_of

    def fails_on_five(case):
        if case.forget == 5:
            raise ArithmeticError("out of reach")
        return real(case)

    monkeypatch.setattr(experiment.grid, "statistics_of", fails_on_five)
    with pytest.raises(RuntimeError, match=r"^1 job of .*\n  seed 0, class 5: ArithmeticError: out of reach$"):
        compute_grid(PROFILE, METHODS_HERE)
    kept = {path.name.rpartition("-")[0] for path in grid_files(copied)}
    others = set(PROFILE.classes) - {5}
    assert {f"{name}-class{label}-seed0" for name in METHODS_HERE for label in others} <= kept
    assert not [name for name in kept if "class5" in name and not name.startswith("references")]


def test_cheat_in_a_grid_writes_no_file(copied, monkeypatch):
    def cheat(problem, config):
        load("digits")
        return METHODS["delete"].run(problem, config)

    monkeypatch.setitem(METHODS, "cheat", replace(METHODS["delete"], run=cheat))
    with pytest.raises(RuntimeError, match="class 3, cheat: RetainDataRead: cheat read 1797 samples"):
        compute_grid(replace(PROFILE, classes=(3,)), ("cheat",))
    assert not [path for path in grid_files(copied) if path.name.startswith("cheat")]


def test_unknown_method_is_named_before_anything_runs(tmp_path, monkeypatch, no_computing):
    at(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="unknown method magic; known are zs_pag, zs_pag_fixed"):
        compute_grid(PROFILE, ("delete", "magic"))


@pytest.mark.parametrize("spreading", ["pool", "dask"])
def test_two_workers_give_the_rows_of_one(copied, finished, spreading):
    """Spawned processes, one thread each; from the same trained models, which other tests need too."""
    for path in grid_files(copied):
        path.unlink()
    for path in (copied / "runs" / "tiny" / "checkpoints" / "material").iterdir():
        path.unlink()
    open_one = nullcontext(pool_map) if spreading == "pool" else spread_over(None, workers=2, threads_each=1)
    with open_one as spread:
        frame = compute_grid(replace(PROFILE, workers=2), METHODS_HERE, spread=spread)
    pd.testing.assert_frame_equal(comparable(frame), comparable(finished[1]), check_exact=True)


def test_names_of_results_are_file_names_whatever_the_classes_are_called(monkeypatch):
    classes = ("T-shirt/top", "Ankle boot", *map(str, range(2, 10)))
    named = replace(experiment.data_of(PROFILE), classes=classes)
    monkeypatch.setattr(experiment.cases, "data_of", lambda _profile: named)
    profile = replace(PROFILE, dataset="fashion", arch="conv7", classes=(0, 1))
    assert experiment.case_name(profile) == "fashion_conv7_T-shirt-top-Ankleboot"
    fewer = replace(PROFILES["cpu"], classes=(2,), test_half="first", forget_samples=7)
    assert experiment.case_name(fewer) == "cifar10_conv7_2_first-half_7-forget-images"


def test_a_method_that_stops_at_the_rate_it_takes_ends_in_the_same_model(copied):
    given = {"model": trained(PROFILE, 0), "statistics": statistics_of(CASE)}
    (short, _), (long, _) = (experiment.run_method(CASE, "delete", **given, whole=whole) for whole in (False, True))
    assert len(short.runs) < len(long.runs)
    assert short.kept.lr == long.kept.lr
    ours, theirs = short.kept.model.state_dict(), long.kept.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_untrained_model_is_the_original_before_its_first_step():
    blank, again, original = experiment.untrained(PROFILE, 0), experiment.untrained(PROFILE, 0), trained(PROFILE, 0)
    images = experiment.data_of(PROFILE).test.float()
    assert torch.equal(logits_of(blank, images), logits_of(again, images))
    assert not torch.equal(logits_of(blank, images), logits_of(experiment.untrained(PROFILE, 1), images))
    labels = experiment.data_of(PROFILE).test.labels
    assert (logits_of(blank, images).argmax(1) == labels).double().mean() < 0.3
    assert (logits_of(original, images).argmax(1) == labels).double().mean() > 0.6


# Keys


def keys_of(profile, *, seed=0, forget=3, name="delete"):
    return {
        "model": provenance.digest(training_key(profile, seed, None)),
        "retrained": provenance.digest(training_key(profile, seed, forget)),
        "run": experiment.grid._run_path(Case(profile, seed, forget), name).name.rpartition("-")[2],
    }


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"train": replace(PROFILE.train, lr=0.11)}, {"model", "retrained", "run"}),
        ({"width": 5}, {"model", "retrained", "run"}),
        ({"threads": 2}, {"model", "retrained", "run"}),
        ({"arch": "conv7"}, {"model", "retrained", "run"}),
        ({"ladders": Ladders((0.03,), (0.03,), (0.03,))}, {"run"}),
        ({"forget_samples": 20}, {"run"}),
        ({"test_half": "first"}, {"run"}),
        ({"retrained": False}, {"run"}),
        ({"retain_samples": 5}, set()),  # a forget-only method is handed none
        ({"share": 0.5}, {"model", "retrained", "run"}),
        ({"unlearn": replace(PROFILE.unlearn, labels=replace(PROFILE.unlearn.labels, beta=0.7))}, {"run"}),
        ({"unlearn": replace(PROFILE.unlearn, proxies=replace(PROFILE.unlearn.proxies, steps=11))}, {"run"}),
        ({"classes": (3,), "seeds": (0, 1), "workers": 2, "methods": ("delete",), "demonstration": False}, set()),
    ],
)
def test_key_moves_with_what_determines_the_result_and_with_nothing_else(change, moved):
    before, after = keys_of(PROFILE), keys_of(replace(PROFILE, **change))
    assert {name for name in before if before[name] != after[name]} == moved


def test_key_of_an_oracle_moves_with_the_retain_images_it_is_handed():
    keys = [keys_of(replace(PROFILE, retain_samples=count), name="fine_tune")["run"] for count in (None, 5, 6)]
    assert len(set(keys)) == 3


def test_key_moves_with_seed_class_and_method():
    assert len({keys_of(PROFILE, seed=seed)["model"] for seed in (0, 1, 2)}) == 3
    assert len({keys_of(PROFILE, forget=label)["retrained"] for label in (3, 5)}) == 2
    assert len({keys_of(PROFILE, forget=label, name=name)["run"] for label in (3, 5) for name in METHODS_HERE}) == 4
    assert keys_of(PROFILE, forget=3)["model"] == keys_of(PROFILE, forget=5)["model"]


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A function that edits a file in a copy of the package's code and returns which keys that moves.

    Yields:
        The function.
    """
    top, copy = Path(zspag.__file__).parent, tmp_path / "code"
    shutil.copytree(top, copy, ignore=shutil.ignore_patterns("__pycache__"))
    place = provenance._file_of
    monkeypatch.setattr(provenance, "_file_of", lambda name: (path := place(name)) and copy / path.relative_to(top))

    def keys():
        experiment.cases._code_hash.cache_clear()
        return (
            {"material": experiment.materials._key(CASE)}
            | keys_of(PROFILE)
            | {
                "references": experiment.grid._run_path(CASE, "references"),
                "zs_pag": experiment.grid._run_path(CASE, "zs_pag"),
                "audit": experiment.grid._run_path(CASE, "audit", ("zspag.lab.audit.running",)),
            }
        )

    def edit(file, old, new):
        before, text = keys(), (copy / file).read_text()
        assert text.count(old) >= 1
        (copy / file).write_text(text.replace(old, new, 1))
        after = keys()
        return {name for name in before if before[name] != after[name]}

    yield edit
    experiment.cases._code_hash.cache_clear()


EVERY = {"model", "retrained", "material", "run", "zs_pag", "references", "audit"}


@pytest.mark.parametrize(
    ("file", "old", "new", "moved"),
    [
        ("runtime.py", '"/".join', '"+".join', EVERY),
        ("runtime.py", "Return a 63-bit seed that is", "Give a seed that is", set()),
        ("lab/training.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", EVERY),
        ("lab/models/small.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", EVERY),
        ("lab/models/vit.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", set()),
        ("speedups/conv_bn.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", EVERY - {"model", "retrained"}),
        ("calibration/cross_fitting.py", "STEPS = 10", "STEPS = 11", {"zs_pag", "audit"}),
        ("lab/methods/targets.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", {"run", "audit"}),
        ("lab/methods/gated.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", {"audit"}),
        ("lab/audit/measures.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", {"audit"}),
        ("report/plots.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", set()),
        ("outcome_plot.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", set()),
        ("__main__.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", set()),
        ("report/claims/verdicts.py", "\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ", set()),
    ],
)
def test_keys_move_with_all_the_code_that_is_imported_and_with_no_other(edited, file, old, new, moved):
    assert edited(file, old, new) == moved


@pytest.mark.parametrize("arch", [*experiment.cases.models.ARCHITECTURES, "somebody/net.py:build"])
def test_the_code_of_every_training_is_known_again_without_torch(arch):
    assert experiment.code_of(replace(PROFILE, arch=arch)) in reproducible._training_hashes()
    assert provenance.closure_hash(["zspag.proxies"]) not in reproducible._training_hashes()


def test_key_moves_with_the_profiles_own_architecture_and_with_no_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_net.py").write_text("def net():\n    return 1\n")
    factory = importlib.import_module("own_net").net
    monkeypatch.setitem(experiment.cases.models.ARCHITECTURES, "own", factory)
    keys = {}
    for when, source in (("before", "return 1"), ("after", "return 2")):
        (tmp_path / "own_net.py").write_text(f"def net():\n    {source}\n")
        experiment.cases._code_hash.cache_clear()
        keys[when] = [training_key(replace(PROFILE, arch=arch), 0, None) for arch in ("own", "conv7")]
    experiment.cases._code_hash.cache_clear()
    assert keys["before"][0] != keys["after"][0]
    assert keys["before"][1] == keys["after"][1]


def test_path_of_a_run_moves_with_the_methods_own_family_and_with_no_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_family.py").write_text("def run():\n    return 1\n")
    run = importlib.import_module("own_family").run
    monkeypatch.setitem(METHODS, "own", replace(METHODS["delete"], run=run))
    paths = {}
    for when, source in (("before", "return 1"), ("after", "return 2")):
        (tmp_path / "own_family.py").write_text(f"def run():\n    {source}\n")
        experiment.cases._code_hash.cache_clear()
        paths[when] = [experiment.grid._run_path(CASE, name) for name in ("own", "delete", "references")]
    experiment.cases._code_hash.cache_clear()
    assert paths["before"][0] != paths["after"][0]
    assert paths["before"][1:] == paths["after"][1:]


def test_key_holds_the_content_of_a_factory_and_not_its_place(tmp_path):
    def key_at(folder, source):
        folder.mkdir()
        (folder / "net.py").write_text(source)
        return training_key(replace(PROFILE, arch=f"{folder / 'net.py'}:make"), 0, None)

    here, there = (key_at(tmp_path / name, "def make(): ...") for name in ("here", "there"))
    assert here == there
    assert str(tmp_path) not in json.dumps(here)
    assert key_at(tmp_path / "new", "def make(): return 1") != here


# Models and material, stored and found


def test_stored_model_comes_back_bit_for_bit_and_in_eval_mode(copied, no_computing):
    first, second = trained(PROFILE, 0), trained(PROFILE, 0)
    assert not first.training
    assert first is not second
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    retrained = trained(PROFILE, 0, 3)
    assert any(not torch.equal(t, retrained.state_dict()[n]) for n, t in first.state_dict().items())


def test_retrained_model_never_saw_the_class(copied, monkeypatch):
    seen = []

    def spy(model, images, labels, **_options):
        seen.append(set(labels.tolist()))
        raise InterruptedError

    monkeypatch.setattr(experiment.cases, "train", spy)
    for without in (7, None):
        with pytest.raises(InterruptedError):
            trained(replace(PROFILE, width=6), 0, without)
    assert seen == [set(range(10)) - {7}, set(range(10))]


def test_material_survives_the_store_bit_for_bit(copied, no_computing):
    statistics = small().statistics
    tensors, facts = experiment.materials._pack(statistics)
    record = json.loads(json.dumps({"material": facts}))  # as a file would hold it
    path = copied / "material.safetensors"
    checkpoints.save(path, tensors, record)
    again = experiment.materials._unpack(*checkpoints.load(path))
    for name in ("images", "labels", "sources"):
        assert torch.equal(getattr(again.proxies, name), getattr(statistics.proxies, name))
    assert again.proxies.hits == statistics.proxies.hits
    assert (again.proxies.eps, again.seconds) == (statistics.proxies.eps, statistics.seconds)
    assert len(again.moments) == len(statistics.moments) == 9
    for ours, theirs in zip(again.moments, statistics.moments, strict=True):
        assert list(ours.second) == list(theirs.second)  # the last one is the head
        assert ours.rows_per_sample == theirs.rows_per_sample
        for name, second in ours.second.items():
            assert torch.equal(second, theirs.second[name])
            assert second.dtype == torch.float64
    assert not torch.equal(again.moments[0].second[name], again.moments[1].second[name])


def test_material_without_single_classes_survives_the_store_with_and_without_votes_for_a_merge():
    whole = small().statistics
    for votes in (None, (0.9, whole.moments[2])):  # any moments will do for votes
        means = replace(whole, moments=replace(whole.moments, per_class=None, votes=votes))
        tensors, facts = experiment.materials._pack(means)
        stored = [means.moments.pooled, means.moments.averaged, *means.halves, *([] if votes is None else [votes[1]])]
        assert len(tensors) == 7 + sum(len(part.second) + len(part.factors) for part in stored)
        again = experiment.materials._unpack(tensors, {"material": facts})
        assert (again.moments.per_class, len(again.moments), again.frozen) == (None, 9, whole.frozen)
        assert (again.moments.votes is None) == (votes is None)
        kept = [(again.moments.pooled, whole.moments.pooled), (again.moments.averaged, whole.moments.averaged)]
        if votes is not None:
            assert again.moments.votes[0] == 0.9
            kept.append((again.moments.votes[1], votes[1]))
        for ours, theirs in kept:
            assert again.names == whole.names
            assert ours.rows_per_sample == theirs.rows_per_sample
            assert all(torch.equal(ours.second[name], theirs.second[name]) for name in whole.names)
            assert ours.factors.keys() == theirs.factors.keys()
            assert all(torch.equal(ours.factors[name], theirs.factors[name]) for name in theirs.factors)
    assert whole.moments.votes is None
    assert any(part.factors for part in whole.moments)  # the head of a class has fewer rows than dimensions


def test_single_classes_are_made_again_where_they_were_not_kept(copied, monkeypatch):
    whole = statistics_of(CASE)
    assert experiment.statistics_with_classes(CASE).moments.per_class is not None
    means = replace(whole, moments=replace(whole.moments, per_class=None))
    monkeypatch.setattr(experiment.materials, "statistics_of", lambda _case: means)
    again = experiment.statistics_with_classes(CASE)
    assert again.proxies is means.proxies
    for ours, theirs in zip(again.moments, whole.moments, strict=True):
        for name, second in ours.second.items():  # products in float32, added up here at once and there by halves
            largest = float(second.abs().max())
            torch.testing.assert_close(second, theirs.second[name], rtol=1e-5, atol=1e-6 * largest)


def test_material_for_a_pool_is_no_answer_to_a_merge(copied, no_computing):
    statistics_of(CASE)
    merging = replace(PROFILE, unlearn=replace(PROFILE.unlearn, subspace=SubspaceConfig(combine="merge")))
    with pytest.raises(AssertionError, match="this would compute"):
        statistics_of(replace(CASE, profile=merging))


def test_material_is_found_again(copied, no_computing):
    first, second = statistics_of(CASE), statistics_of(CASE)
    assert torch.equal(first.proxies.images, second.proxies.images)


def recorded(root, key):
    """Commit the stored original under ``key`` and empty the store."""
    (source,) = (root / "runs" / "tiny" / "checkpoints" / "original").glob("*.safetensors")
    tensors, record = checkpoints.load(source)
    checkpoints.save(
        root / "results" / "tiny" / "checkpoints" / "original.safetensors", tensors, record | {"config": key}
    )
    source.unlink()
    return tensors


def test_recorded_checkpoint_is_taken_although_the_code_has_changed(copied, no_computing):
    key = json.loads(json.dumps(training_key(PROFILE, 0, None)))
    tensors = recorded(copied, key | {"code": "older", "torch": "2.0", "threads": 7, "device": "cuda"})
    model = trained(replace(PROFILE, recorded_models=True), 0)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(AssertionError, match="would compute"):
        trained(PROFILE, 0)  # only who asks for recorded models gets them


def test_recorded_checkpoint_is_taken_although_the_recipe_has_a_new_option(copied, no_computing):
    key = json.loads(json.dumps(training_key(PROFILE, 0, None)))
    del key["train"]["optimizer"], key["train"]["mixup"]  # as in the files of before there was a choice
    tensors = recorded(copied, key)
    model = trained(replace(PROFILE, recorded_models=True), 0)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", [{"seed": 1}, {"without": 4}, {"data": "other"}, {"width": 5}])
def test_recorded_checkpoint_of_another_recipe_is_not_taken(copied, no_computing, change):
    recorded(copied, json.loads(json.dumps(training_key(PROFILE, 0, None))) | change)
    with pytest.raises(AssertionError, match="would compute"):
        trained(replace(PROFILE, recorded_models=True), 0)


def test_panel_holds_forget_and_retained_samples_apart(copied, no_computing):
    references = references_of(CASE)
    data = load("digits")
    assert set(references.labels.forget_train.tolist()) == set(references.labels.forget_test.tolist()) == {3}
    assert set(references.labels.retain_test.tolist()) == set(range(10)) - {3}
    assert len(references.labels.forget_test) + len(references.labels.retain_test) == len(data.test)
    assert references.original.retain_test.shape == (len(references.labels.retain_test), 10)


# Subspaces compared


def test_subspace_table_compares_at_equal_rank_and_the_oracle_is_the_best(copied, no_computing):
    table = subspace_table(CASE)
    assert set(table["subspace"]) == {"proxies", "forget", "noise", "random", "oracle"}
    assert (table.groupby("weight")[["rank", "free"]].nunique() == 1).all(axis=None)
    assert (table[table["subspace"] == "oracle"]["of_oracle"] == 1).all()
    assert (table["of_oracle"] <= 1 + 1e-9).all()
    free = table[table["free"] > 0]
    assert len(free) > 0
    means = free.groupby("subspace")["capture"].mean()
    assert means["random"] < means["proxies"] < means["oracle"]


def test_forget_samples_of_a_profile_are_the_ones_handed_out(copied, monkeypatch):
    handed = []

    def run(problem, _config):
        handed.append(len(problem.forget_images))

    monkeypatch.setitem(METHODS, "delete", replace(METHODS["delete"], run=run))
    case = Case(replace(PROFILE, forget_samples=17), 0, 5)
    experiment.run_method(case, "delete", model=None, statistics=None)
    assert handed == [17]


@pytest.mark.parametrize(("count", "expected"), [(4, 9 * 4), (None, 1438 - 146)])
def test_retain_samples_of_a_profile_are_all_that_an_oracle_is_handed(copied, monkeypatch, count, expected):
    def oracle(problem, _config):
        assert len(problem.retain_images) == len(problem.retain_labels)
        assert 5 not in problem.retain_labels
        return len(problem.retain_images)

    monkeypatch.setitem(METHODS, "fine_tune", replace(METHODS["fine_tune"], run=oracle))
    case = Case(replace(PROFILE, retain_samples=count), 0, 5)
    handed, guard = experiment.run_method(case, "fine_tune", model=None, statistics=None)
    assert handed == guard.retain_samples_read == expected


def test_files_of_the_grid_are_json_without_paths_of_this_machine(finished):
    root, _ = finished
    text = grid_files(root)[0].read_text()
    assert files.read_json(grid_files(root)[0])["schema"] == 2
    assert str(root) not in text


# Times and the noise floor


def test_update_costs_what_the_rates_up_to_the_chosen_one_cost(copied, finished, no_computing):
    frame = finished[1].replace({"method": {"delete": "zs_pag"}})
    frame = frame[frame["method"] == "zs_pag"].sort_values(["forget", "lr"], ignore_index=True)
    frame["seconds"] = [1.0, 2.0, 4.0, 8.0]
    frame["chosen"] = [True, False, False, True]  # class 3 stops at its first rate, class 5 tries both
    seconds = experiment.stage_seconds(PROFILE, frame)
    assert seconds["update"] == pytest.approx((1 + 4 + 8) / 2)
    assert set(seconds) == {"proxies", "subspaces", "update", "retraining"}
    assert all(value > 0 for value in seconds.values())


def test_noise_floor_needs_two_seeds(copied, monkeypatch, no_computing):
    assert len(experiment.retraining_noise(PROFILE)) == 0
    panels = {case: references_of(case) for case in (Case(PROFILE, 0, label) for label in PROFILE.classes)}
    monkeypatch.setattr(experiment.findings, "references_of", lambda case: panels[Case(PROFILE, 0, case.forget)])
    floor = experiment.retraining_noise(replace(PROFILE, seeds=(0, 1, 2)))
    assert floor["forget"].tolist() == [3, 3, 5, 5]
    assert (floor[["agreement_forget", "agreement_retain"]] == 1).all(axis=None)  # the same model stands for all seeds
    assert floor[["js_forget", "js_retain"]].abs().max(axis=None) < 1e-12


# Half of the test set, and no retrained models


def test_a_half_changes_what_is_judged_on_and_nothing_that_a_method_is_handed(copied, monkeypatch):
    monkeypatch.setattr(experiment.cases, "train", None)  # trained models and material are found again
    monkeypatch.setattr(experiment.materials, "prepare", None)
    halves = [replace(CASE, profile=replace(PROFILE, test_half=name)) for name in ("first", "second")]
    whole, first, second = (references_of(case) for case in (CASE, *halves))
    for part in ("forget_test", "retain_test"):
        counts = [len(getattr(references.labels, part)) for references in (whole, first, second)]
        assert counts[0] == counts[1] + counts[2]
        assert min(counts) > 0
    for case, references in zip(halves, (first, second), strict=True):
        assert torch.equal(references.images.forget_train, whole.images.forget_train)
        images, _ = experiment.forget_set(case, experiment.guard_of(case))
        assert torch.equal(images, experiment.forget_set(CASE, experiment.guard_of(CASE))[0])
        assert torch.equal(experiment.statistics_of(case).proxies.images, experiment.statistics_of(CASE).proxies.images)


def test_rows_of_a_half_are_those_of_the_half(copied, monkeypatch):
    monkeypatch.setattr(experiment.cases, "train", None)
    whole, first, second = (
        by_method(compute_grid(replace(PROFILE, classes=(3,), seeds=(0,), test_half=name), ("head_only",)))
        for name in (None, "first", "second")
    )
    counts = [len(references_of(Case(replace(PROFILE, test_half=name), 0, 3)).labels.forget_test)
              for name in ("first", "second")]  # fmt: skip
    own = [part["acc_forget"].to_numpy() for part in (whole, first, second)]
    assert own[0] == pytest.approx((counts[0] * own[1] + counts[1] * own[2]) / sum(counts))
    assert not (first["drift"].to_numpy() == second["drift"].to_numpy()).all()


def by_method(frame):
    return frame[frame["method"] != "retrained"].sort_values(["method", "lr"])


def test_without_retrained_models_none_is_trained_and_what_needs_them_is_empty(copied, monkeypatch):
    trainings = []
    for module in (experiment.cases, experiment.grid):
        monkeypatch.setattr(module, "trained", lambda *job: trainings.append(job) or trained(*job))
    profile = replace(PROFILE, classes=(3,), seeds=(0,))
    frame = compute_grid(replace(profile, retrained=False), ("head_only",))
    assert {job[2:] for job in trainings} == {()}
    beside = ["gap", "agreement_forget", "agreement_retain", "js_forget", "js_retain"]
    assert set(frame["method"]) == {"original", "masked", "head_only"}
    assert frame[beside].isna().all(axis=None)
    references_of(CASE)
    assert {job[2:] for job in trainings} == {(), (3,)}
    whole = compute_grid(profile, ("head_only",))
    assert not whole[beside].isna().any(axis=None)
    same = ["acc_forget", "acc_retain", "drift", "nll_retain"]
    ours, theirs = (one[one["method"] == "head_only"][same].to_numpy() for one in (frame, whole))
    assert (ours == theirs).all()
    with pytest.raises(ValueError, match="leaves retrained models out"):
        experiment.retraining_noise(replace(PROFILE, retrained=False, seeds=(0, 1)))


# A look into one run


@pytest.mark.parametrize("method", ["delete", "head_only", "zs_pag_fixed", "unprojected"])
def test_watched_run_is_the_run_of_the_grid_bit_for_bit(copied, method):
    lr = getattr(PROFILE.ladders, METHODS[method].ladder)[1]
    model, rows = experiment.watched_run(CASE, method, lr=lr)
    ladder, _ = experiment.run_method(CASE, method, model=trained(PROFILE, 0), statistics=statistics_of(CASE))
    (again,) = [run for run in ladder.runs if run.lr == lr]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.model.state_dict().items())
    assert not model._forward_pre_hooks
    assert len(rows) == len(again.history) + 1
    references = references_of(CASE)
    for row, net in ((rows.iloc[0], trained(PROFILE, 0)), (rows.iloc[-1], again.model)):
        assert row.drop("epoch").to_dict() == asdict(score(references.images.map_logits(net), references))
    assert rows["epoch"].tolist() == list(range(len(rows)))
    assert rows.iloc[0]["acc_forget"] > rows.iloc[-1]["acc_forget"]


@pytest.mark.filterwarnings("ignore:not reached", "ignore:the search for a rate ended")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_of_the_grid_is_the_public_call_bit_for_bit(copied, seed):
    case = replace(CASE, seed=seed)
    model = trained(PROFILE, case.seed)
    with threads(PROFILE.threads):
        ladder, guard = run_method(case, "zs_pag", model=model, statistics=statistics_of(case))
        images, labels = forget_set(case, guard)
        call = zero_shot_unlearn(model, images, labels, config=PROFILE.unlearn, seed=case.seed, progress=False)
        other = zero_shot_unlearn(model, images, labels, config=PROFILE.unlearn, seed=case.seed + 5, progress=False)
    row, public, otherwise = (one.state_dict() for one in (ladder.kept.model, call.open_model, other.open_model))
    assert ladder.kept.lr == call.report.lr
    assert all(torch.equal(row[name], public[name]) for name in row)
    assert any(not torch.equal(row[name], model.state_dict()[name]) for name in row)
    assert any(not torch.equal(row[name], otherwise[name]) for name in row)  # the streams do matter


def test_method_outside_the_loop_cannot_be_watched(copied, monkeypatch):
    run = experiment.run_method

    def silent(case, name, *, model, statistics):
        return run(case, name, model=trained(PROFILE, 0), statistics=statistics)  # a copy that nobody looks at

    monkeypatch.setattr(experiment.findings, "run_method", silent)
    with pytest.raises(ValueError, match=r"delete has \d+ epochs of which 0 were seen"):
        experiment.watched_run(CASE, "delete", lr=0.03)


@pytest.mark.parametrize(
    ("classes", "shown"), [(tuple(range(10)), 8), ((3, 7), 7), ((3,), 3), ((3, 0, 7), 0), ((5, 8), 8)]
)
def test_class_that_is_shown_is_fixed_beforehand(classes, shown):
    case = experiment.shown_case(replace(PROFILE, classes=classes, seeds=(4, 2)))
    assert (case.forget, case.seed) == (shown, 4)
