"""One class after another into files."""

from dataclasses import fields, replace

import pytest
import torch
from datafiles import folder_files, write_folder
from laboratory import FORGET, TINY, rooted

from zspag import __main__ as command_line
from zspag.lab import checkpoints, experiment, runs
from zspag.lab.data.sources import read_digits
from zspag.report import files, provenance
from zspag.report.results import Result

pytestmark = pytest.mark.usefixtures("own_data")
PROFILE = replace(TINY, classes=(FORGET,), unlearn=replace(TINY.unlearn, update=replace(TINY.unlearn.update, lr=0.6)))
NAMES = [f"{kind}.safetensors" for kind in ("original-digits-digits-seed0", "retrained-digits-digits-seed0-without3")]


# Class numbers


@pytest.fixture
def named(monkeypatch):
    """Digits whose classes have the given names."""

    def rename(*classes):
        data = replace(experiment.data_of(PROFILE), classes=classes)
        monkeypatch.setattr(experiment, "data_of", lambda _profile: data)

    return rename


def test_classes_are_given_by_name_or_number_and_the_name_wins(named):
    assert runs.class_numbers(PROFILE, ["3", "0", "9"]) == (3, 0, 9)
    named("9", "8", "7", "6", "5", "4", "3", "2", "one", "0")
    assert runs.class_numbers(PROFILE, ["9", "one", "1"]) == (0, 8, 1)


@pytest.mark.parametrize("name", ["cat", "10", "-1", "", "²", "3 "])
def test_unknown_class_is_named_beside_the_known_ones(name):
    with pytest.raises(ValueError, match=r"digits has no class '.*'; its classes are 0, 1, 2, 3") as caught:
        runs.class_numbers(PROFILE, ["3", name])
    assert repr(name) in str(caught.value)


def test_class_that_is_named_twice_is_refused_by_name_and_number_alike(named):
    with pytest.raises(ValueError, match=r"class '3' is named twice \(class 3\)"):
        runs.class_numbers(PROFILE, ["3", "0", "3"])
    named("ant", "bee", *map(str, range(2, 10)))
    assert runs.class_numbers(PROFILE, ["bee", "0"]) == (1, 0)
    with pytest.raises(ValueError, match=r"class '1' is named twice \(class 1\)"):
        runs.class_numbers(PROFILE, ["bee", "1"])


def test_it_is_said_which_folder_became_which_class_and_what_was_left_out(tmp_path):
    def lines(name, classes):
        folder = write_folder(tmp_path / name, folder_files(classes=classes) | {"train/notes.txt": b"x"})
        return list(runs.folder_lines(replace(PROFILE, dataset=str(folder))))

    by_name = lines("named", ("bee", "ant"))
    assert by_name[0] == "folders by class number: 0 ant, 1 bee"
    assert by_name[1].startswith("named: image folder of .png files, left out 1 file: 1 not an image")
    assert lines("numbered", ("1", "0"))[0] == "a folder's name is the number of its class, 0 to 1"
    assert list(runs.folder_lines(PROFILE)) == []  # digits need no word


# zspag run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    """A run of one class with its record, as ``zspag run --record`` makes it."""
    with rooted(tmp_path_factory.mktemp("root"), data_folder) as root:
        before = torch.get_num_threads()
        lines = list(runs.run(PROFILE, record=True))
        assert torch.get_num_threads() == before
    return root, lines


@pytest.fixture
def root(finished, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(finished[0]))
    return finished[0]


@pytest.fixture
def again(finished, tmp_path, monkeypatch):
    """Another repository that finds what the finished run cached."""
    (tmp_path / "runs").symlink_to(finished[0] / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    return tmp_path


def result_of(root, folder="results"):
    return files.read_json(root / folder / "tiny" / "run_digits_digits_3.json")


def test_run_writes_a_result_by_the_schema_and_a_figure_with_the_same_record(root):
    result = result_of(root)
    assert set(result) == {"schema", *(field.name for field in fields(Result))}
    assert (result["schema"], result["name"], result["profile"]) == (2, "run_digits_digits_3", "tiny")
    assert result == files.read_json(root / "runs" / "tiny" / "results" / "run_digits_digits_3.json")
    assert result["provenance"]["config"]["classes"] == [FORGET]
    assert result["provenance"]["seconds"] > 0
    for path in (root / "results/tiny/run_digits_digits_3.json", root / "figures/tiny/run_digits_digits_3.png"):
        assert provenance.read_record(path) == result["provenance"]
    assert result["measurements"]["data_source"] == "scikit-learn's own copy"
    (panel,) = result["data"]["panels"]
    assert list(panel["series"]) == ["original", "masked original", "retrained", "ZS-PAG"]
    assert panel["series"]["masked original"][FORGET] == 0
    assert all(len(heights) == len(panel["groups"]) == 10 for heights in panel["series"].values())


def test_a_class_has_one_panel_with_the_mean_over_its_seeds(root):
    (row,) = result_of(root)["measurements"]["rows"]
    other = row | {"seed": 1, "per_class": {key: [0.0] * 10 for key in row["per_class"]}}
    panels = list(runs._panels([row, other, row | {"forget": 5, "class_name": "5"}], list("0123456789")))
    assert [panel["title"] for panel in panels] == ["forget 3 (mean over 2 seeds)", "forget 5 (seed 0)"]
    both, alone = (panel["series"]["original"] for panel in panels)
    assert both == pytest.approx([value / 2 for value in alone])
    assert max(both) > 40


def test_run_forgets_reads_no_retain_sample_and_its_headline_numbers_are_its_rows(root, finished):
    result = result_of(root)
    (row,) = result["measurements"]["rows"]
    scores = row["scores"]
    assert row["retain_samples_read"] == 0
    assert "0 retain samples read" in finished[1][0]
    assert row["forget_samples"] == int((read_digits().train.labels == FORGET).sum())
    assert scores["original"]["acc_forget"] > 0.9
    assert scores["unlearned"]["acc_forget"] < 0.2
    assert scores["masked"]["acc_forget"] == scores["retrained"]["acc_forget"] == 0
    assert result["numbers"]["3 seed 0 acc_forget"] == [scores["unlearned"]["acc_forget"], 0.01]
    assert result["numbers"]["3 seed 0 seconds"] == [row["seconds"]["total"], None]
    assert row["seconds"]["total"] >= sum(row["seconds"][stage] for stage in ("proxies", "subspaces", "update"))


def test_recorded_checkpoints_are_those_of_the_run(root, finished):
    folder = root / "results" / "tiny" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    tensors, record = checkpoints.load(folder / NAMES[0])
    model = experiment.trained(PROFILE, 0)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert record["config"]["seed"] == 0
    assert finished[1][-2:] == [f"wrote {folder / name}" for name in NAMES]


def test_run_from_recorded_models_trains_nothing_and_finds_the_same(root, tmp_path, monkeypatch):
    target = tmp_path / "results" / "tiny" / "checkpoints"
    target.mkdir(parents=True)
    for path in (root / "results" / "tiny" / "checkpoints").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setattr(experiment.cases, "train", None)
    with pytest.raises(TypeError, match="NoneType"):
        list(runs.run(PROFILE, record=False))
    lines = list(runs.run(replace(PROFILE, recorded_models=True), record=True))
    (before,), (after,) = result_of(root)["measurements"]["rows"], result_of(tmp_path)["measurements"]["rows"]
    assert {name for name in before if before[name] != after[name]} == {"seconds"}
    assert lines[-1].startswith(f"left {target / NAMES[1]} as it")


def test_checkpoint_that_is_too_large_is_left_out_and_said_so(again, monkeypatch):
    monkeypatch.setattr(runs, "RECORDED_BYTES", 100)
    lines = list(runs.run(PROFILE, record=True))
    assert lines[-1].startswith(f"left out {again}/results/tiny/checkpoints/{NAMES[1]}: 0.0 MB")
    assert not (again / "results" / "tiny" / "checkpoints").exists()


def test_second_run_forgets_nothing_anew_and_without_record_leaves_results_alone(again, finished, monkeypatch):
    monkeypatch.setattr(runs, "zero_shot_unlearn", None)
    assert list(runs.run(PROFILE, record=False)) == [
        finished[1][0],
        f"wrote {again}/runs/tiny/results/run_digits_digits_3.json",
        f"wrote {again}/figures/tiny/run_digits_digits_3.png",
    ]
    assert not (again / "results").exists()
    more = replace(PROFILE, unlearn=replace(PROFILE.unlearn, update=replace(PROFILE.unlearn.update, lr=0.1)))
    with pytest.raises(TypeError, match="NoneType"):  # the control: another configuration is another run
        list(runs.run(more, record=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": (FORGET, 11)}, r"forget must name classes in 0..9, got \(11,\)"),
        ({"retrained": False}, "a run shows retrained models"),
    ],
)
def test_what_a_run_cannot_do_is_said_before_anything_is_trained(root, monkeypatch, change, message):
    monkeypatch.setattr(experiment.cases, "train", None)
    with pytest.raises(ValueError, match=message):
        next(runs.run(replace(PROFILE, **change), record=False))


def test_a_class_that_is_refused_does_not_cost_the_others(again, finished, monkeypatch):
    forget = runs.forget_class

    def refuses_five(case):
        if case.forget == 5:
            raise ValueError("no sample arrived")
        return forget(case)

    monkeypatch.setattr(runs, "forget_class", refuses_five)
    monkeypatch.setattr(runs, "pool_map", lambda *_, **__: [])  # no training
    told = []
    with pytest.raises(experiment.RunsFailed, match="^1 of 2 not done, the others are kept: seed 0, class 5$"):
        for line in runs.run(replace(PROFILE, classes=(5, FORGET)), record=True):
            told.append(line)
    assert told == ["seed 0, class 5: no sample arrived", finished[1][0]]
    assert not (again / "results").exists()  # half a run is no record


def test_the_command_line_says_what_was_refused_in_one_line(monkeypatch, capsys):
    def one_of_two(_profile, *, record):
        yield f"recorded: {record}"
        raise experiment.RunsFailed("1 of 2 not done")

    monkeypatch.setattr(runs, "run", one_of_two)
    assert command_line.main(["run", "--profile", "smoke"]) == 1
    assert capsys.readouterr() == ("recorded: False\n", "zspag run: 1 of 2 not done\n")
