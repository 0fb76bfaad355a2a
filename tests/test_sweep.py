"""A sweep is the grid in one file: every row, the curves drawn from them, and nothing computed twice."""

import shutil
from dataclasses import replace

import pytest
from laboratory import TINY, rooted

from zspag.config import Ladders
from zspag.lab import experiment, sweep
from zspag.lab.evaluation import Scores
from zspag.lab.methods import METHODS
from zspag.report import files, provenance

pytestmark = pytest.mark.usefixtures("own_data")

PROFILE = replace(TINY, classes=(3,), ladders=Ladders(low=(0.003, 0.03), middle=(0.01, 0.1), high=(0.03, 0.3)))
NAMES = ("delete", "head_only")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    with rooted(tmp_path_factory.mktemp("root"), data_folder) as root:
        lines = list(sweep.sweep(PROFILE, NAMES, record=True))
    return root, lines


def result_of(root, folder="results/tiny"):
    return files.read_json(root / folder / "sweep_digits_digits_3.json")


def rows_of(result):
    columns = result["measurements"]["rows"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_result_holds_every_row_and_its_curves(finished):
    result = result_of(finished[0])
    rows = rows_of(result)
    assert [(row["method"], row["lr"]) for row in rows] == [
        *((name, None) for name in experiment.REFERENCES), ("delete", 0.003), ("delete", 0.03), ("head_only", 0.01),
        ("head_only", 0.1),
    ]  # fmt: skip
    assert set(Scores.__annotations__) <= rows[-1].keys()
    assert rows[-1]["retain_samples_read"] == 0
    for panel, column in zip(result["data"]["panels"], ("acc_forget", "over_unlearning", "drift"), strict=True):
        factor = 1 if column == "drift" else 100
        drawn = panel["series"]["DELETE"]
        assert drawn["x"] == [0.003, 0.03]
        assert drawn["y"] == pytest.approx(
            [factor * row[column] for row in rows[3:5]], rel=1e-5
        )  # rows keep six digits


def test_result_answers_every_question_with_a_table_and_has_no_floor_with_one_seed(finished):
    data = result_of(finished[0])["measurements"]
    assert all(table.startswith("| method | ") for table in data["tables"].values())
    assert "masked original" in data["tables"]["Who is dominated?"]
    assert (data["noise"], data["verdicts"], data["seconds"]) == ([], [], {})  # nothing to say about an absent ZS-PAG


def test_sweep_of_zs_pag_says_whether_it_is_dominated_and_what_retraining_costs(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    list(sweep.sweep(PROFILE, ("zs_pag", "delete"), record=False))
    data = result_of(tmp_path, "runs/tiny/results")["measurements"]
    assert "ZS-PAG is dominated by " in data["verdicts"][0]
    assert "relearning (AIN)" in data["verdicts"][0]
    assert data["seconds"]["retraining"] > 0
    assert "in all / retraining" in data["tables"]["What does it cost, and what does it read?"]


def test_many_methods_are_drawn_eight_at_a_time_beside_the_first(monkeypatch):
    monkeypatch.setattr(sweep.tables, "ladder_panels", lambda _frame, names, _titles: {"panels": [names], "columns": 3})
    names = [f"m{number}" for number in range(18)]
    drawn = sweep._panels(None, names)
    assert drawn == {"panels": [names[:9], [names[0], *names[9:17]], [names[0], *names[17:]]], "columns": 3}
    assert sweep._panels(None, names[:1])["panels"] == [names[:1]]


def test_result_names_the_classes_and_where_the_pixels_came_from(finished):
    data = result_of(finished[0])["measurements"]
    assert (data["class_names"], data["data_source"]) == (["3"], "scikit-learn's own copy")


def test_result_and_figure_carry_their_provenance(finished):
    root, _ = finished
    for path in ("results/tiny", "runs/tiny/results"):
        assert provenance.read_record(root / path / "sweep_digits_digits_3.json")["config"]["classes"] == [3]
    assert provenance.read_record(root / "figures/tiny/sweep_digits_digits_3.png")["data_sha256"]


def test_lines_name_the_safe_rates_and_the_files(finished):
    root, lines = finished
    assert [line.split(":")[0] for line in lines[:2]] == [METHODS[name].title for name in NAMES]
    assert all("safe rates" in line for line in lines[:2])
    assert lines[2:] == [
        f"wrote {root}/runs/tiny/results/sweep_digits_digits_3.json",
        f"wrote {root}/results/tiny/sweep_digits_digits_3.json",
        f"wrote {root}/figures/tiny/sweep_digits_digits_3.png",
    ]


def test_second_sweep_computes_nothing_and_records_only_if_asked(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(finished[0] / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setattr(experiment.grid, "_compute_method", None)
    monkeypatch.setattr(experiment.grid, "_prepare_case", None)
    lines = list(sweep.sweep(PROFILE, NAMES, record=False))
    assert len(lines) == 4
    assert not (tmp_path / "results").exists()
    assert (
        result_of(tmp_path, "runs/tiny/results")["measurements"]["rows"]
        == result_of(finished[0])["measurements"]["rows"]
    )


def test_sweep_from_recorded_models_trains_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setattr(experiment.cases, "train", None)
    with pytest.raises(experiment.RunsFailed, match=r"seed 0: TypeError"):
        list(sweep.sweep(PROFILE, ("delete",), record=False))
    folder = tmp_path / "results" / "tiny" / "checkpoints"
    folder.mkdir(parents=True)
    for kind in ("original", "retrained"):
        (path,) = (finished[0] / "runs" / "tiny" / "checkpoints" / kind).glob("*.safetensors")
        (folder / f"{kind}.safetensors").write_bytes(path.read_bytes())
    list(sweep.sweep(replace(PROFILE, recorded_models=True), ("delete",), record=False))
    before = [row for row in rows_of(result_of(finished[0])) if row["method"] == "delete"]
    after = [row for row in rows_of(result_of(tmp_path, "runs/tiny/results")) if row["method"] == "delete"]
    assert [row | {"seconds": 0} for row in after] == [row | {"seconds": 0} for row in before]


def grown_root(finished, tmp_path, monkeypatch):
    """A repository where one method is recorded and both are in the cache."""
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    (tmp_path / "runs").symlink_to(finished[0] / "runs")
    list(sweep.sweep(PROFILE, NAMES[:1], record=True))
    assert set(result_of(tmp_path)["measurements"]["rows"]["method"]) == {*experiment.REFERENCES, NAMES[0]}


def test_a_recorded_sweep_grows_by_the_methods_that_are_swept_later(finished, tmp_path, monkeypatch):
    grown_root(finished, tmp_path, monkeypatch)
    first = result_of(tmp_path)
    monkeypatch.setattr(provenance, "_commit", lambda: ("another", False))
    lines = list(sweep.sweep(PROFILE, NAMES[1:], record=True))
    assert f"joined what is recorded of {METHODS[NAMES[0]].title}" in lines
    grown, whole = result_of(tmp_path), result_of(finished[0])
    assert rows_of(grown) == rows_of(whole)
    assert grown["made"][NAMES[0]] == first["made"][NAMES[0]]
    assert grown["made"][NAMES[1]]["commit"] == "another" != grown["made"][NAMES[0]]["commit"]
    for part in ("markdown", "tables", "titles"):
        assert grown["measurements"][part] == whole["measurements"][part], part


@pytest.mark.parametrize("change", [{"ladders": Ladders((0.003,), (0.1,), (0.3,))}, {"retrained": False}])
def test_a_recorded_sweep_of_another_configuration_is_replaced(finished, tmp_path, monkeypatch, change):
    grown_root(finished, tmp_path, monkeypatch)
    lines = list(sweep.sweep(replace(PROFILE, **change), NAMES[1:], record=True))
    assert not any(line.startswith("joined") for line in lines)
    assert set(result_of(tmp_path)["made"]) == {NAMES[1]}


@pytest.mark.parametrize(
    "change", [{"data_sha256": "of something else"}, {"config": {"name": "tiny", "an option of then": 1}}]
)
def test_a_recorded_sweep_of_other_data_or_of_options_that_are_gone_is_replaced(
    finished, tmp_path, monkeypatch, change
):
    grown_root(finished, tmp_path, monkeypatch)
    path = tmp_path / "results/tiny/sweep_digits_digits_3.json"
    content = files.read_json(path)
    content["provenance"] |= change
    files.write_json(path, content)
    list(sweep.sweep(PROFILE, NAMES[1:], record=True))
    assert set(result_of(tmp_path)["made"]) == {NAMES[1]}


def test_a_sweep_of_a_half_says_so_in_name_caption_and_rows_and_leaves_the_whole_alone(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    (tmp_path / "runs").symlink_to(finished[0] / "runs")
    monkeypatch.setattr(experiment.cases, "train", None)
    lines = list(sweep.sweep(replace(PROFILE, test_half="second", retrained=False), ("delete",), record=True))
    name = "sweep_digits_digits_3_second-half"
    assert f"wrote {tmp_path}/results/tiny/{name}.json" in lines
    result = files.read_json(tmp_path / "results" / "tiny" / f"{name}.json")
    assert result["caption"].endswith("judged on the second half of the test set.")
    assert result["measurements"]["test_half"] == "second"
    assert set(result["measurements"]["rows"]["gap"]) == {None}
    assert "not measured" in result["measurements"]["markdown"]
    assert result["measurements"]["titles"]["delete"] == "DELETE"
    whole = result_of(finished[0])
    assert whole["measurements"]["test_half"] is None
    assert "half" not in whole["caption"]
    assert None not in whole["measurements"]["rows"]["gap"]
    assert "not measured" not in whole["measurements"]["markdown"]


def test_a_sweep_of_several_seeds_without_retrained_models_has_no_noise_floor(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    profile = replace(PROFILE, seeds=(0, 1))
    found = {}
    for retrained in (False, True):
        list(sweep.sweep(replace(profile, retrained=retrained), ("delete",), record=True))
        found[retrained] = result_of(tmp_path)["measurements"]["noise"]
    assert found[False] == []
    assert len(found[True]) == 1
