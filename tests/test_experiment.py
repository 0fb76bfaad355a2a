"""The grid goes on where it stopped, computes the same on any number of workers, and knows what made every file."""

import importlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from laboratory import TINY, rooted, small

import zspag
from zspag import zero_shot_unlearn
from zspag.config import SubspaceConfig
from zspag.lab import cache, checkpoints, experiment
from zspag.lab.audit.probes import logit_restored
from zspag.lab.cluster import spread_over
from zspag.lab.data import load
from zspag.lab.evaluation import accuracy
from zspag.lab.experiment import (
    REFERENCES,
    TITLES,
    Case,
    compute_grid,
    references_of,
    run_method,
    statistics_of,
    subspace_table,
    trained,
    training_key,
    whole_ladder,
)
from zspag.lab.methods import METHODS
from zspag.profiles import PROFILES, Ladders
from zspag.report import provenance, reproducible
from zspag.runtime import logits_of, pool_map, threads

pytestmark = pytest.mark.usefixtures("own_data")
PROFILE = replace(TINY, classes=(3, 5), ladders=Ladders(low=(0.003, 0.03), middle=(0.01, 0.1), high=(0.03, 0.3)))
METHODS_HERE = ("delete", "head_only")
CASE = Case(PROFILE, 0, 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    """A finished grid of two classes, computed once; tests that change it work on a copy."""
    with rooted(tmp_path_factory.mktemp("finished"), data_folder) as folder:
        frame = compute_grid(PROFILE, METHODS_HERE)
    return folder, frame


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A copy of the finished grid, as hard links: files are replaced as a whole, never written into."""
    shutil.copytree(
        finished[0], tmp_path, copy_function=lambda file, to: Path(to).hardlink_to(file), dirs_exist_ok=True
    )
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_computing(monkeypatch):
    def explode(*_args, **_options):
        raise AssertionError("this would compute")

    for module, name in (("cases", "train"), ("grid", "run_method"), ("statistics", "prepare")):
        monkeypatch.setattr(getattr(experiment, module), name, explode)


def grid_files(root):
    return sorted((root / "runs" / "tiny" / "grid").iterdir())


def lose(root, *names):
    """Delete the files of the grid whose names begin like this."""
    for path in grid_files(root):
        if path.name.startswith(names):
            path.unlink()


def names_of(root):
    return {path.name.rpartition("-")[0] for path in grid_files(root)}


def comparable(frame):
    """Rows in a fixed order, without wall-clock times."""
    frame = frame.drop(columns="seconds").fillna(-1.0)
    return frame.sort_values(["method", "forget", "seed", "lr"], ignore_index=True)


def same_weights(one, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


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
    original, masked, retrained = (finished[1][finished[1]["method"] == name] for name in REFERENCES)
    assert (masked["acc_forget"] == 0).all()
    assert masked["drift"].abs().max() < 1e-9
    assert (masked["over_unlearning"] == 0).all()
    assert (retrained["gap"] == 0).all()
    assert (retrained["acc_forget"] == 0).all()
    assert (original["acc_forget"] > 0.3).all()


def test_under_the_originals_head_each_network_is_judged_as_with_its_last_layer_put_back(finished, monkeypatch):
    """The slow way: the last layer is copied, and all forget test images are answered again."""
    root, frame = finished
    monkeypatch.setenv("ZSPAG_ROOT", str(root))
    case = Case(PROFILE, 0, PROFILE.classes[0])
    references, original = references_of(case), trained(PROFILE, 0)
    own = frame[(frame["forget"] == case.forget) & (frame["lr"].isna() | (frame["chosen"] == True))]  # noqa: E712
    found = own.set_index("method")["restored"]
    images, labels = references.images.forget_test, references.labels.forget_test
    search, _ = run_method(case, "delete", model=original, statistics=statistics_of(case))
    networks = {"retrained": trained(PROFILE, 0, case.forget), "delete": search.kept.model}
    for name, network in networks.items():
        back = logit_restored(original, network, images[:1])
        assert found[name] == accuracy(logits_of(back, images), labels)
    assert found["original"] == found["masked"] == own.set_index("method")["acc_forget"]["original"]
    assert found["retrained"] < found["original"]
    assert frame[frame["chosen"] == False]["restored"].isna().all()  # noqa: E712


def test_every_file_of_the_grid_carries_its_provenance_and_no_path_of_this_machine(finished):
    root, _ = finished
    for path in grid_files(root):
        record = provenance.read_record(path)
        assert record["config"]["ladders"]["low"] == list(PROFILE.ladders.low)
        assert record["threads"] == 1
        assert record["data_sha256"] == load("digits").sha256
        assert str(root) not in path.read_text()
    assert len(grid_files(root)) == 2 * (1 + len(METHODS_HERE))


def test_every_method_has_a_title():
    assert set(TITLES) == {*REFERENCES, "row_only", *METHODS}


@pytest.mark.parametrize(("method", "where"), [("zs_pag", "high"), ("head_only", "middle"), ("delete", "low")])
def test_whole_ladder_runs_every_rate_of_the_methods_own_ladder(method, where):
    update = whole_ladder(PROFILE, method, 3).update
    assert (update.lr, update.ladder, update.whole_ladder) == (None, getattr(PROFILE.ladders, where), True)
    assert replace(update, ladder=PROFILE.unlearn.update.ladder, whole_ladder=False) == PROFILE.unlearn.update


# It goes on where it stopped


def test_second_call_computes_nothing_and_refuses_a_row_that_was_changed_by_hand(copied, finished, no_computing):
    pd.testing.assert_frame_equal(compute_grid(PROFILE, METHODS_HERE), finished[1])
    path = experiment.grid.rows_path(CASE, "delete")
    text = path.read_text()
    path.unlink()  # a hard link: the file of the others stays as it is
    path.write_text(text.replace('"chosen": true', '"chosen": false', 1))
    with pytest.raises(ValueError, match=r"delete-class3-seed0-.*was changed after it was written"):
        compute_grid(PROFILE, METHODS_HERE)


def test_new_grid_would_compute_and_unknown_methods_are_named_before(tmp_path, monkeypatch, no_computing):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"^1 job of the grid failed.*\n  seed 0: .*this would compute$"):
        compute_grid(PROFILE, METHODS_HERE)
    with pytest.raises(ValueError, match="unknown method magic; known are zs_pag, zs_pag_fixed"):
        compute_grid(PROFILE, ("delete", "magic"))


def test_deleted_file_is_recomputed_alone(copied, finished, monkeypatch):
    lose(copied, "delete-class5")
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    ran, real = [], experiment.run_method

    def spy(case, name, **rest):
        ran.append((case.forget, name))
        return real(case, name, **rest)

    monkeypatch.setattr(experiment.cases, "train", None)
    monkeypatch.setattr(experiment.grid, "run_method", spy)
    frame = compute_grid(PROFILE, METHODS_HERE)
    assert ran == [(5, "delete")]
    assert "delete-class5-seed0" in names_of(copied)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    pd.testing.assert_frame_equal(comparable(frame), comparable(finished[1]))


def failing(real, when):
    """Return a function that raises an ArithmeticError for some arguments and is ``real`` for all others."""

    def call(*arguments, **options):
        if when(*arguments):
            raise ArithmeticError("out of luck")
        return real(*arguments, **options)

    return call


def test_failing_job_leaves_the_others_and_is_named(copied, monkeypatch):
    lose(copied, "delete-class5", "head_only")
    fails = failing(run_method, lambda case, name: (case.forget, name) == (5, "head_only"))
    monkeypatch.setattr(experiment.grid, "run_method", fails)
    with pytest.raises(
        RuntimeError, match=r"^1 job of .*\n  seed 0, class 5, head_only: ArithmeticError: out of luck$"
    ):
        compute_grid(PROFILE, METHODS_HERE)
    methods = {f"{name}-class{label}-seed0" for name in ("references", *METHODS_HERE) for label in PROFILE.classes}
    assert names_of(copied) == methods - {"head_only-class5-seed0"}
    monkeypatch.setattr(experiment.grid, "run_method", run_method)
    assert len(compute_grid(PROFILE, METHODS_HERE)) == 2 * (3 + len(METHODS_HERE) * len(PROFILE.ladders.low))


@pytest.mark.slow
def test_class_that_cannot_be_prepared_costs_its_own_methods_only(copied, monkeypatch):
    lose(copied, "references-class5", "delete-class5", "head_only")
    monkeypatch.setattr(experiment.grid, "statistics_of", failing(statistics_of, lambda case: case.forget == 5))
    with pytest.raises(RuntimeError, match=r"^1 job of .*\n  seed 0, class 5: ArithmeticError: out of luck$"):
        compute_grid(PROFILE, METHODS_HERE)
    assert {f"{name}-class3-seed0" for name in METHODS_HERE} <= names_of(copied)
    assert not [name for name in names_of(copied) if "class5" in name and not name.startswith("references")]


def test_cheat_in_a_grid_writes_no_file(copied, monkeypatch):
    def cheat(problem, config):
        load("digits")
        return METHODS["delete"].run(problem, config)

    monkeypatch.setitem(METHODS, "cheat", replace(METHODS["delete"], run=cheat))
    with pytest.raises(RuntimeError, match="class 3, cheat: RetainDataRead: cheat read 1797 samples"):
        compute_grid(replace(PROFILE, classes=(3,)), ("cheat",))
    assert not [name for name in names_of(copied) if name.startswith("cheat")]


@pytest.mark.slow
@pytest.mark.parametrize("spreading", ["pool", "dask"])
def test_two_workers_give_the_rows_of_one(copied, finished, spreading):
    """Spawned processes, one thread each; from the same trained models, which other tests need too."""
    lose(copied, *METHODS_HERE, "references")
    for path in (copied / "runs" / "tiny" / "checkpoints" / "statistics").iterdir():
        path.unlink()
    with nullcontext(pool_map) if spreading == "pool" else spread_over(None, workers=2, threads_each=1) as spread:
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


# Keys


def keys_of(profile, *, seed=0, forget=3, name="delete"):
    return {
        "model": provenance.digest(training_key(profile, seed, None)),
        "retrained": provenance.digest(training_key(profile, seed, forget)),
        "run": experiment.grid.rows_path(Case(profile, seed, forget), name).name.rpartition("-")[2],
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


@pytest.fixture(scope="module")
def copy_of_the_code(tmp_path_factory):
    """The package's source files elsewhere, where a test may edit them."""
    copy = tmp_path_factory.mktemp("code") / "zspag"
    shutil.copytree(Path(zspag.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def code(copy_of_the_code, monkeypatch):
    """The copy, which hashes are taken of in place of the package itself.

    Yields:
        Its folder.
    """
    top, place = Path(zspag.__file__).parent, provenance._file_of

    def elsewhere(name):
        path = place(name)
        return path and copy_of_the_code / path.relative_to(top)

    monkeypatch.setattr(provenance, "_file_of", elsewhere)
    yield copy_of_the_code
    cache.code_hash.cache_clear()


def code_hashes():
    """Return the hash of the code in every kind of key."""
    cache.code_hash.cache_clear()
    return keys_of(PROFILE) | {
        "statistics": cache.code_of(PROFILE, experiment.statistics.__name__),
        "references": experiment.grid.rows_path(CASE, "references"),
        "zs_pag": experiment.grid.rows_path(CASE, "zs_pag"),
        "audit": experiment.grid.rows_path(CASE, "audit", ("zspag.lab.audit.running",)),
    }


EVERY = {"model", "retrained", "statistics", "run", "zs_pag", "references", "audit"}
NEW = ("\n\n\ndef ", "\n\nNEW = 1\n\n\ndef ")


@pytest.mark.parametrize(
    ("file", "old", "new", "moved"),
    [
        ("runtime.py", '"/".join', '"+".join', EVERY),
        ("runtime.py", "Return a 63-bit seed that is", "Give a seed that is", set()),
        ("lab/training.py", *NEW, EVERY),
        ("lab/models/small.py", *NEW, EVERY),
        ("lab/models/vit.py", *NEW, set()),
        ("speedups/conv_bn.py", *NEW, EVERY - {"model", "retrained"}),
        ("calibration/cross_fitting.py", "STEPS = 10", "STEPS = 11", {"zs_pag", "audit"}),
        ("lab/methods/targets.py", *NEW, {"run", "audit"}),
        ("lab/methods/synthetic.py", *NEW, {"audit"}),
        ("lab/audit/measures.py", *NEW, {"audit"}),
        ("report/plots.py", *NEW, set()),
        ("outcome/plot.py", *NEW, set()),
        ("__main__.py", *NEW, set()),
        ("report/claims/verdicts.py", *NEW, set()),
    ],
)
def test_keys_move_with_all_the_code_that_is_imported_and_with_no_other(code, file, old, new, moved):
    before, text = code_hashes(), (code / file).read_text()
    assert old in text
    (code / file).write_text(text.replace(old, new, 1))
    after = code_hashes()
    (code / file).write_text(text)
    assert {name for name in before if before[name] != after[name]} == moved


@pytest.mark.parametrize("arch", [*experiment.cases.models.ARCHITECTURES, "somebody/net.py:build"])
def test_the_code_of_every_training_is_known_again_without_torch(arch):
    assert cache.code_of(replace(PROFILE, arch=arch)) in reproducible._training_hashes()
    assert provenance.closure_hash(["zspag.proxies"]) not in reproducible._training_hashes()


def test_keys_move_with_the_own_architecture_and_the_own_family_of_methods_and_with_no_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = {}
    for value in (1, 2):
        for name in ("own_net", "own_family"):
            (tmp_path / f"{name}.py").write_text(f"def own():\n    return {value}\n")
        own_method = replace(METHODS["delete"], run=importlib.import_module("own_family").own)
        monkeypatch.setitem(experiment.cases.models.ARCHITECTURES, "own", importlib.import_module("own_net").own)
        monkeypatch.setitem(METHODS, "own", own_method)
        cache.code_hash.cache_clear()
        nets = [training_key(replace(PROFILE, arch=arch), 0, None) for arch in ("own", "conv7")]
        keys[value] = nets + [experiment.grid.rows_path(CASE, name) for name in ("own", "delete", "references")]
    cache.code_hash.cache_clear()
    assert [one == other for one, other in zip(keys[1], keys[2], strict=True)] == [False, True, False, True, True]


def test_key_holds_the_content_of_a_factory_and_not_its_place(tmp_path):
    def key_at(folder, source):
        folder.mkdir()
        (folder / "net.py").write_text(source)
        return training_key(replace(PROFILE, arch=f"{folder / 'net.py'}:make"), 0, None)

    here, there = (key_at(tmp_path / name, "def make(): ...") for name in ("here", "there"))
    assert here == there
    assert str(tmp_path) not in json.dumps(here)
    assert key_at(tmp_path / "new", "def make(): return 1") != here


# Models and statistics, stored and found


def test_stored_model_comes_back_bit_for_bit_and_in_eval_mode(copied, no_computing):
    first, second, retrained = trained(PROFILE, 0), trained(PROFILE, 0), trained(PROFILE, 0, 3)
    assert not first.training
    assert first is not second
    assert same_weights(first, second)
    assert not same_weights(first, retrained)


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


def test_untrained_model_is_the_original_before_its_first_step(copied):
    blank, again, other = (experiment.untrained(PROFILE, seed) for seed in (0, 0, 1))
    assert same_weights(blank, again)
    assert not same_weights(blank, other)
    data = experiment.data_of(PROFILE).test
    hits = [
        (logits_of(net, data.float()).argmax(1) == data.labels).double().mean() for net in (blank, trained(PROFILE, 0))
    ]
    assert hits[0] < 0.3 < 0.6 < hits[1]


def moments_of(statistics):
    means = statistics.moments
    voted = [] if means.votes is None else [means.votes[1]]
    return [means.pooled, means.averaged, *statistics.halves, *voted, *(means.per_class or ())]


@pytest.mark.parametrize("kept", ["every class", "means", "means and votes"])
def test_statistics_survive_the_store_bit_for_bit(tmp_path, kept):
    whole = small().statistics
    if kept != "every class":  # any moments will do for votes
        votes = (0.9, whole.moments[2]) if kept == "means and votes" else None
        whole = replace(whole, moments=replace(whole.moments, per_class=None, votes=votes))
    checkpoints.save(tmp_path / "statistics.safetensors", *experiment.statistics.pack(whole))
    again = experiment.statistics.unpack(*checkpoints.load(tmp_path / "statistics.safetensors"))
    for name in ("images", "labels", "sources", "barely"):
        assert torch.equal(getattr(again.proxies, name), getattr(whole.proxies, name))
    assert (again.proxies.hits, again.proxies.eps) == (whole.proxies.hits, whole.proxies.eps)
    assert (again.seconds, again.frozen, again.names) == (whole.seconds, whole.frozen, whole.names)
    assert (again.moments.per_class is None) == (kept != "every class")
    assert (again.moments.votes and again.moments.votes[0]) == (0.9 if kept == "means and votes" else None)
    assert len(again.moments) == len(whole.moments) == 9
    for ours, theirs in zip(moments_of(again), moments_of(whole), strict=True):
        assert ours.rows_per_sample == theirs.rows_per_sample
        assert list(ours.second) == list(theirs.second)  # the last one is the head
        assert ours.factors.keys() == theirs.factors.keys()
        for mine, other in ((ours.second, theirs.second), (ours.factors, theirs.factors)):
            assert all(torch.equal(mine[name], tensor) for name, tensor in other.items())
    if kept == "every class":
        assert any(part.factors for part in again.moments)  # the head of a class has fewer rows than dimensions
        assert not torch.equal(again.moments[0].second[whole.names[0]], again.moments[1].second[whole.names[0]])


def test_single_classes_are_made_again_where_they_were_not_kept(copied, monkeypatch):
    whole = statistics_of(CASE)
    assert experiment.statistics_with_classes(CASE).moments.per_class is not None
    means = replace(whole, moments=replace(whole.moments, per_class=None))
    monkeypatch.setattr(experiment.statistics, "statistics_of", lambda _case: means)
    again = experiment.statistics_with_classes(CASE)
    assert again.proxies is means.proxies
    for ours, theirs in zip(again.moments, whole.moments, strict=True):
        for name, second in ours.second.items():  # products in float32, added up here at once and there by halves
            largest = float(second.abs().max())
            torch.testing.assert_close(second, theirs.second[name], rtol=1e-5, atol=1e-6 * largest)


def test_statistics_are_found_again_and_those_of_a_pool_are_no_answer_to_a_merge(copied, no_computing):
    first, second = statistics_of(CASE), statistics_of(CASE)
    assert torch.equal(first.proxies.images, second.proxies.images)
    merging = replace(PROFILE, unlearn=replace(PROFILE.unlearn, subspace=SubspaceConfig(combine="merge")))
    with pytest.raises(AssertionError, match="this would compute"):
        statistics_of(replace(CASE, profile=merging))


OLDER = {"code": "older", "torch": "2.0", "threads": 7, "device": "cuda"}


@pytest.mark.parametrize(
    ("change", "without", "taken"),
    [
        (OLDER, (), True),
        ({}, ("optimizer", "mixup"), True),  # options that are younger than the file
        ({"seed": 1}, (), False),
        ({"without": 4}, (), False),
        ({"data": "other"}, (), False),
        ({"width": 5}, (), False),
    ],
)
def test_recorded_checkpoint_is_taken_if_it_has_the_same_recipe(copied, no_computing, change, without, taken):
    key = json.loads(json.dumps(training_key(PROFILE, 0, None))) | change
    key["train"] = {name: value for name, value in key["train"].items() if name not in without}
    (source,) = (copied / "runs" / "tiny" / "checkpoints" / "original").glob("*.safetensors")
    tensors, record = checkpoints.load(source)
    folder = copied / "results" / "tiny" / "checkpoints"
    checkpoints.save(folder / "original.safetensors", tensors, record | {"config": key})
    source.unlink()
    if taken:
        model = trained(replace(PROFILE, recorded_models=True), 0)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(AssertionError, match="would compute"):
        trained(replace(PROFILE, recorded_models=not taken), 0)  # only who asks for recorded models gets them


def test_references_hold_forget_and_retained_samples_apart(copied, no_computing):
    references, data = references_of(CASE), load("digits")
    assert set(references.labels.forget_train.tolist()) == set(references.labels.forget_test.tolist()) == {3}
    assert set(references.labels.retain_test.tolist()) == set(range(10)) - {3}
    assert len(references.labels.forget_test) + len(references.labels.retain_test) == len(data.test)
    assert references.original.retain_test.shape == (len(references.labels.retain_test), 10)


# What a method is handed


@pytest.mark.parametrize(
    ("method", "change", "forget", "retain"),
    [
        ("delete", {"forget_samples": 17}, 17, 0),
        ("fine_tune", {"retain_samples": 4}, 146, 9 * 4),
        ("fine_tune", {"retain_samples": None}, 146, 1438 - 146),
    ],
)
def test_samples_of_a_profile_are_all_that_a_method_is_handed(copied, monkeypatch, method, change, forget, retain):
    def run(problem, _config):
        images, labels = problem.retain or ((), ())
        assert len(images) == len(labels)
        assert 5 not in labels
        return len(problem.forget_images), len(images)

    monkeypatch.setitem(METHODS, method, replace(METHODS[method], run=run))
    handed, guard = run_method(Case(replace(PROFILE, **change), 0, 5), method, model=None, statistics=None)
    assert handed == (forget, retain)
    assert guard.retain_samples_read == retain


def test_a_method_that_stops_at_the_rate_it_takes_ends_in_the_same_model(copied):
    given = {"model": trained(PROFILE, 0), "statistics": statistics_of(CASE)}
    (short, _), (long, _) = (run_method(CASE, "delete", **given, whole=whole) for whole in (False, True))
    assert len(short.runs) < len(long.runs)
    assert short.kept.lr == long.kept.lr
    assert same_weights(short.kept.model, long.kept.model)


@pytest.mark.filterwarnings("ignore:not reached", "ignore:the search for a rate ended", "ignore:removal may cost")
@pytest.mark.parametrize(("method", "goal"), [("zs_pag", "suppress"), ("remove", "remove")])
def test_a_run_of_the_grid_is_the_public_call_bit_for_bit(copied, method, goal):
    model, config = trained(PROFILE, 0), replace(PROFILE.unlearn, goal=goal)
    with threads(PROFILE.threads):
        ladder, guard = run_method(CASE, method, model=model, statistics=statistics_of(CASE))
        images, labels = experiment.forget_set(CASE, guard)
        call, other = (
            zero_shot_unlearn(model, images, labels, config=config, seed=seed, progress=False) for seed in (0, 5)
        )
    assert guard.retain_samples_read == 0
    assert ladder.kept.lr == (call.report.lr if goal == "suppress" else config.removal.lr)
    assert ladder.kept.history[-1].forget_accuracy == call.report.forget_accuracy
    assert same_weights(ladder.kept.model, call.open_model)
    assert not same_weights(ladder.kept.model, model)
    assert not same_weights(ladder.kept.model, other.open_model)  # the streams do matter


# Subspaces, times and the noise floor


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


def test_update_costs_what_the_chosen_runs_cost_and_no_rate_that_is_run_for_a_curve(copied, finished, no_computing):
    frame = finished[1].replace({"method": {"delete": "zs_pag"}})
    frame = frame[frame["method"] == "zs_pag"].sort_values(["forget", "lr"], ignore_index=True)
    frame["seconds"] = [1.0, 2.0, 4.0, 8.0]
    frame["chosen"] = [True, False, False, True]  # the seconds of a chosen run hold those of the trials
    seconds = experiment.stage_seconds(PROFILE, frame)
    assert seconds["update"] == pytest.approx((1 + 8) / 2)
    assert set(seconds) == {"proxies", "subspaces", "update", "retraining"}
    assert all(value > 0 for value in seconds.values())


def test_noise_floor_needs_two_seeds_and_retrained_models(copied, monkeypatch, no_computing):
    assert len(experiment.retraining_noise(PROFILE)) == 0
    known = {label: references_of(Case(PROFILE, 0, label)) for label in PROFILE.classes}
    monkeypatch.setattr(experiment.findings, "references_of", lambda case: known[case.forget])
    floor = experiment.retraining_noise(replace(PROFILE, seeds=(0, 1, 2)))
    assert floor["forget"].tolist() == [3, 3, 5, 5]
    assert (floor[["agreement_forget", "agreement_retain"]] == 1).all(axis=None)  # the same model stands for all seeds
    assert floor[["js_forget", "js_retain"]].abs().max(axis=None) < 1e-12
    known = {label: replace(references, retrained=None) for label, references in known.items()}
    with pytest.raises(ValueError, match="leaves retrained models out"):
        experiment.retraining_noise(replace(PROFILE, retrained=False, seeds=(0, 1)))


# Half of the test set, and no retrained models


def test_a_half_changes_what_is_judged_on_and_nothing_that_a_method_is_handed(copied, monkeypatch):
    monkeypatch.setattr(experiment.cases, "train", None)  # trained models and statistics are found again
    monkeypatch.setattr(experiment.statistics, "prepare", None)
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
        assert torch.equal(statistics_of(case).proxies.images, statistics_of(CASE).proxies.images)


@pytest.mark.slow
def test_rows_of_a_half_are_those_of_the_half(copied, finished, monkeypatch):
    monkeypatch.setattr(experiment.cases, "train", None)
    names = ("first", "second")
    profiles = [replace(PROFILE, classes=(3,), test_half=name) for name in names]
    frames = [finished[1][finished[1]["forget"] == 3], *(compute_grid(one, ("head_only",)) for one in profiles)]
    whole, first, second = (frame[frame["method"] == "head_only"].sort_values("lr") for frame in frames)
    counts = [len(references_of(Case(profile, 0, 3)).labels.forget_test) for profile in profiles]
    own = [part["acc_forget"].to_numpy() for part in (whole, first, second)]
    assert own[0] == pytest.approx((counts[0] * own[1] + counts[1] * own[2]) / sum(counts))
    assert not (first["drift"].to_numpy() == second["drift"].to_numpy()).all()


def test_without_retrained_models_none_is_trained_and_what_needs_them_is_empty(copied, finished, monkeypatch):
    trainings = []

    def spy(*job):
        trainings.append(job[2:])
        return trained(*job)

    for module in (experiment.cases, experiment.grid):
        monkeypatch.setattr(module, "trained", spy)
    frame = compute_grid(replace(PROFILE, classes=(3,), retrained=False), ("head_only",))
    assert set(trainings) == {()}
    references_of(CASE)
    assert set(trainings) == {(), (3,)}
    beside = ["gap", "agreement_forget", "agreement_retain", "js_forget", "js_retain"]
    assert set(frame["method"]) == {"original", "masked", "head_only"}
    assert frame[beside].isna().all(axis=None)
    whole = finished[1][finished[1]["forget"] == 3]
    assert not whole[beside].isna().any(axis=None)
    same = ["acc_forget", "acc_retain", "drift", "nll_retain"]
    ours, theirs = (one[one["method"] == "head_only"][same].to_numpy() for one in (frame, whole))
    assert (ours == theirs).all()


@pytest.mark.parametrize(
    ("classes", "shown"), [(tuple(range(10)), 8), ((3, 7), 7), ((3,), 3), ((3, 0, 7), 0), ((5, 8), 8)]
)
def test_class_that_is_shown_is_fixed_beforehand(classes, shown):
    case = experiment.shown_case(replace(PROFILE, classes=classes, seeds=(4, 2)))
    assert (case.forget, case.seed) == (shown, 4)
