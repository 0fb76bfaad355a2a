"""A sweep is the grid in one file: every row, the curves drawn from them, and nothing computed twice."""

import shutil
from dataclasses import replace

import pytest
from laboratory import TINY, rooted

from zspag.lab import experiment, sweep
from zspag.lab.evaluation import Scores
from zspag.lab.methods import METHODS
from zspag.profiles import Ladders
from zspag.report import claims, files, provenance, recorded_tables

pytestmark = pytest.mark.usefixtures("own_data")

PROFILE = replace(TINY, classes=(3,), ladders=Ladders(low=(0.003, 0.03), middle=(0.01, 0.1), high=(0.03, 0.3)))
NAMES = ("delete", "head_only")
FILE = "sweep_digits_digits_3.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    with rooted(tmp_path_factory.mktemp("root"), data_folder) as root:
        lines = list(sweep.sweep(PROFILE, NAMES, record=True))
    return root, lines


@pytest.fixture
def again(finished, tmp_path, monkeypatch):
    """Another repository that finds what the finished sweep cached."""
    (tmp_path / "runs").symlink_to(finished[0] / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def grown(again):
    """One where of two cached methods one is recorded."""
    list(sweep.sweep(PROFILE, NAMES[:1], record=True))
    assert set(result_of(again)["measurements"]["rows"]["method"]) == {*experiment.REFERENCES, NAMES[0]}
    return again


def result_of(root, folder="results/tiny"):
    return files.read_json(root / folder / FILE)


def rows_of(result):
    columns = result["measurements"]["rows"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_result_holds_every_row_and_its_curves(finished):
    result = result_of(finished[0])
    rows = rows_of(result)
    runs = [("delete", 0.003), ("delete", 0.03), ("head_only", 0.01), ("head_only", 0.1)]
    assert [(row["method"], row["lr"]) for row in rows] == [*((name, None) for name in experiment.REFERENCES), *runs]
    assert set(Scores.__annotations__) <= rows[-1].keys()
    assert rows[-1]["retain_samples_read"] == 0
    for panel, column in zip(result["data"]["panels"], ("acc_forget", "over_unlearning", "drift"), strict=True):
        factor = 1 if column == "drift" else 100
        drawn = panel["series"]["DELETE"]
        assert drawn["x"] == [0.003, 0.03]
        assert drawn["y"] == pytest.approx([factor * row[column] for row in rows[3:5]], rel=1e-5)  # six digits are kept


def test_every_question_is_answered_by_a_table_from_the_rows_and_there_is_no_floor_with_one_seed(finished):
    shown = recorded_tables.sweeps(finished[0] / "results")
    assert shown.count("| method | ") == 5
    assert "| DELETE | " in shown
    assert "dominated" not in shown  # nothing to say about an absent ZS-PAG
    data = result_of(finished[0])["measurements"]
    assert (data["noise"], data["seconds"]) == ([], {})
    assert (data["class_names"], data["data_source"]) == (["3"], "scikit-learn's own copy")


@pytest.mark.slow
def test_sweep_of_zs_pag_says_whether_it_is_dominated_and_what_retraining_costs(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    list(sweep.sweep(PROFILE, ("zs_pag", "delete"), record=False))
    assert result_of(tmp_path, "runs/tiny/results")["measurements"]["seconds"]["retraining"] > 0
    (tmp_path / "shown").mkdir()
    (tmp_path / "runs/tiny/results").rename(tmp_path / "shown/tiny")
    shown = recorded_tables.sweeps(tmp_path / "shown")
    assert "ZS-PAG is dominated by " in shown
    assert "recall under the original's head" in shown
    assert "in all / retraining" in shown


def test_many_methods_are_drawn_eight_at_a_time_beside_the_first(monkeypatch):
    monkeypatch.setattr(sweep.tables, "ladder_panels", lambda _frame, names, _titles: {"panels": [names], "columns": 3})
    names = [f"m{number}" for number in range(18)]
    drawn = sweep._panels(None, names)
    assert drawn == {"panels": [names[:9], [names[0], *names[9:17]], [names[0], *names[17:]]], "columns": 3}
    assert sweep._panels(None, names[:1])["panels"] == [names[:1]]


def test_result_and_figure_carry_their_provenance_and_lines_name_them(finished):
    root, lines = finished
    assert [line.split(":")[0] for line in lines[:2]] == [METHODS[name].title for name in NAMES]
    assert all("safe rates" in line for line in lines[:2])
    places = [f"runs/tiny/results/{FILE}", f"results/tiny/{FILE}", "figures/tiny/sweep_digits_digits_3.png"]
    assert lines[2:] == [f"wrote {root}/{place}" for place in places]
    for place in places:
        record = provenance.read_record(root / place)
        assert record["config"]["classes"] == [3]
        assert record["data_sha256"]


def test_second_sweep_computes_nothing_and_records_only_if_asked(again, finished, monkeypatch):
    monkeypatch.setattr(experiment.grid, "run_method", None)
    monkeypatch.setattr(experiment.cases, "train", None)
    assert len(list(sweep.sweep(PROFILE, NAMES, record=False))) == 4
    assert not (again / "results").exists()
    assert (
        result_of(again, "runs/tiny/results")["measurements"]["rows"] == result_of(finished[0])["measurements"]["rows"]
    )


@pytest.mark.slow
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
    whole, own = (rows_of(one) for one in (result_of(finished[0]), result_of(tmp_path, "runs/tiny/results")))
    before, after = ([row | {"seconds": 0} for row in rows if row["method"] == "delete"] for rows in (whole, own))
    assert after == before


def test_rates_of_a_sweep_are_run_once_on_another_original(again, monkeypatch, tmp_path):
    list(sweep.sweep(PROFILE, NAMES, record=True))
    first = rows_of(result_of(again))
    profile = replace(PROFILE, seeds=(1,), retrained=False, rates_of=f"results/tiny/{FILE}")
    lines = list(sweep.sweep(profile, NAMES, record=True))
    assert all("points lost" in line for line in lines[:2])
    result = files.read_json(again / "results/tiny/sweep_digits_digits_3_seeds-1_fixed-rates_no-retrained.json")
    own = {row["method"]: row for row in rows_of(result) if row["method"] in NAMES}
    assert {name: row["lr"] for name, row in own.items()} == {
        row["method"]: row["lr"] for row in first if row["chosen"] is True
    }
    (panel,) = result["data"]["panels"]
    assert panel["series"]["DELETE"]["y"] == pytest.approx([100 * own["delete"]["acc_forget"]])
    assert result["numbers"]["points lost delete"][0] == pytest.approx(100 * own["delete"]["over_unlearning"], rel=1e-5)
    assert list(claims.records._unsupported(again / "results/tiny")) == []  # its numbers follow from its rows
    shown = recorded_tables.originals(again / "results")
    assert "| DELETE | " in shown
    assert "seed 0: forget %" in shown
    assert "seed 1: points lost" in shown
    assert "Over 2 originals the mean loss of " in shown
    assert "made on device" not in shown
    elsewhere = result_of(again)
    elsewhere["provenance"]["device"] = "cuda"
    files.write_json(again / "results/tiny" / FILE, elsewhere)
    assert "made on device `cuda`, the others on `cpu`" in recorded_tables.originals(again / "results")
    assert "fixed-rates" not in recorded_tables.sweeps(again / "results")  # one rate has no window to compare


@pytest.mark.parametrize(
    ("content", "method", "message"),
    [
        (None, "delete", r"no recorded sweep .*rates.json: zspag sweep --record writes one"),
        ({}, "delete", r"rates.json holds no rates: name a file that zspag sweep wrote"),
        ({"chosen": [True, True], "seed": [0, 0], "method": ["jit", "jit"], "forget": [3, 4], "lr": [1.0, 2.0]},
         "delete", r"rates.json has no rate of delete for class 3; of it there is jit"),
    ],
)  # fmt: skip
def test_rates_that_are_not_there_are_refused_before_any_work(again, monkeypatch, content, method, message):
    monkeypatch.setattr(experiment.grid, "run_method", None)
    if content is not None:
        written = result_of(again, "runs/tiny/results")
        written["measurements"]["rows"] = content or [{"of": "a run"}]
        files.write_json(again / "rates.json", written)
    with pytest.raises(ValueError, match=message):
        list(sweep.sweep(replace(PROFILE, rates_of="rates.json", seeds=(5,)), (method,), record=False))


def test_methods_that_lose_another_amount_elsewhere_are_named():
    rows = [("calm", 0, 0.010), ("calm", 1, 0.014), ("wild", 0, 0.01), ("wild", 1, 0.03)]
    shown = recorded_tables.pd.DataFrame(rows, columns=["method", "seed", "over_unlearning"])
    said = recorded_tables._moved(shown, {"calm": "Calm", "wild": "Wild"})
    assert (
        said == "Over 2 originals the mean loss of 1 of 2 methods stays within 0.5 points; it does not for Wild (2.00)."
    )
    alike = recorded_tables._moved(shown[shown["method"] == "calm"], {"calm": "Calm"})
    assert alike.endswith("1 of 1 methods stays within 0.5 points.")


def test_a_recorded_sweep_grows_by_the_methods_that_are_swept_later(grown, finished, monkeypatch):
    first = result_of(grown)
    monkeypatch.setattr(provenance, "git", lambda *arguments: "another" if arguments[0] == "rev-parse" else "")
    lines = list(sweep.sweep(PROFILE, NAMES[1:], record=True))
    assert f"joined what is recorded of {METHODS[NAMES[0]].title}" in lines
    joined, whole = result_of(grown), result_of(finished[0])
    assert rows_of(joined) == rows_of(whole)
    assert joined["made"][NAMES[0]] == first["made"][NAMES[0]]
    assert joined["made"][NAMES[1]]["commit"] == "another" != joined["made"][NAMES[0]]["commit"]
    for part in ("titles", "reads"):
        assert joined["measurements"][part] == whole["measurements"][part], part


@pytest.mark.parametrize(
    ("change", "edit"),
    [
        ({"ladders": Ladders((0.003,), (0.1,), (0.3,))}, {}),
        pytest.param({}, {"data_sha256": "of something else"}, marks=pytest.mark.slow),
        pytest.param({}, {"config": {"name": "tiny", "an option of then": 1}}, marks=pytest.mark.slow),
    ],
)
def test_a_recorded_sweep_of_another_configuration_or_of_other_data_is_replaced(grown, change, edit):
    content = result_of(grown)
    content["provenance"] |= edit
    files.write_json(grown / "results" / "tiny" / FILE, content)
    lines = list(sweep.sweep(replace(PROFILE, **change), NAMES[1:], record=True))
    assert not any(line.startswith("joined") for line in lines)
    assert set(result_of(grown)["made"]) == {NAMES[1]}


def test_a_sweep_of_a_half_says_so_in_name_caption_and_rows_and_leaves_the_whole_alone(again, finished, monkeypatch):
    monkeypatch.setattr(experiment.cases, "train", None)
    lines = list(sweep.sweep(replace(PROFILE, test_half="second", retrained=False), ("delete",), record=True))
    name = "sweep_digits_digits_3_second-half_no-retrained"
    assert f"wrote {again}/results/tiny/{name}.json" in lines
    half, whole = files.read_json(again / "results" / "tiny" / f"{name}.json"), result_of(finished[0])
    assert half["caption"].endswith("judged on the second half of the test set.")
    assert "half" not in whole["caption"]
    assert (half["measurements"]["test_half"], whole["measurements"]["test_half"]) == ("second", None)
    assert set(half["measurements"]["rows"]["gap"]) == {None}
    assert None not in whole["measurements"]["rows"]["gap"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("retrained", "lines", "file"), [(False, 0, FILE.replace(".json", "_no-retrained.json")), (True, 1, FILE)]
)
def test_a_sweep_of_two_seeds_has_a_noise_floor_if_it_has_retrained_models(again, retrained, lines, file):
    list(sweep.sweep(replace(PROFILE, seeds=(0, 1), retrained=retrained), ("delete",), record=True))
    assert len(files.read_json(again / "results/tiny" / file)["measurements"]["noise"]) == lines
