"""Recorded files are those that were recorded: an edit, a cut, a loss and an addition make ``zspag claims`` fail."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import recorded
from zspag.__main__ import main
from zspag.config import to_dict
from zspag.profiles import PROFILES
from zspag.report import claims, results
from zspag.report.claims.evidence import read
from zspag.report.files import read_json, write_json
from zspag.report.results import Result

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    root = tmp_path_factory.mktemp("accepted")
    recorded.everything(root / "results" / "digits")
    write_json(root / "results" / "commands.json", {})
    (root / "results" / "digits" / "checkpoints").mkdir()
    (root / "results" / "digits" / "checkpoints" / "a.safetensors").write_bytes(b"weights")
    claims.accept(root / "results")
    return root


@pytest.fixture
def root(accepted, tmp_path, monkeypatch):
    """A repository whose results were accepted."""
    shutil.copytree(accepted / "results", tmp_path / "results")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    return tmp_path


def judged(capsys, *arguments):
    code = main(["claims", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_untouched_results_are_judged(root, capsys):
    code, out, err = judged(capsys)
    assert (code, err) == (0, "")
    assert out.startswith("profile digits\nC1 supported: proxies stand in for retain data\n")
    assert judged(capsys, "--profile", "digits")[:2] == (code, out)


def edit(path):
    path.write_text(path.read_text().replace("0.98", "0.99"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE = {
    "an edited number": ("digits/03_capture.json", edit, "edited or cut short"),
    "a cut": ("digits/03_capture.json", cut, "edited or cut short"),
    "a loss": ("digits/03_capture.json", Path.unlink, "is missing, although it was recorded"),
    "other weights": ("digits/checkpoints/a.safetensors", lambda path: path.write_bytes(b"Weights"), "edited or cut"),
    "an addition": ("digits/08_new.json", lambda path: write_json(path, {}), "has not been accepted yet"),
    "a cut of what belongs to all profiles": ("commands.json", cut, "edited or cut short"),
    "edited verdicts": ("claims.json", lambda path: path.write_text("{"), "edited or cut short"),
    "no sums": ("SHA256SUMS", Path.unlink, "SHA256SUMS is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_no_verdict_is_given(root, capsys, kind):
    name, damage, message = DAMAGE[kind]
    damage(root / "results" / name)
    code, out, err = judged(capsys, "--profile", "digits")
    assert (code, out) == (1, "profile digits: no verdict, for its files cannot be trusted\n\n")
    assert err.startswith(f"zspag claims: {name}")
    assert message in err


def test_damage_to_another_profile_does_not_count(root, capsys):
    recorded.write(root / "results" / "cpu", "03_other")
    claims.accept(root / "results")
    cut(root / "results" / "cpu" / "03_other.json")
    assert judged(capsys, "--profile", "digits")[0] == 0
    assert judged(capsys)[0] == 1


def test_profile_that_is_gone_as_a_whole_is_missed(root, capsys):
    shutil.rmtree(root / "results" / "digits")
    code, _, err = judged(capsys)
    assert code == 1
    assert "digits/03_capture.json is missing" in err


NUMBERS = {"cat seed 0 acc_forget": 0.01, "cat seed 0 over_unlearning": -0.002, "cat seed 0 seconds": 5.0}


def run(folder, **changes):
    row = {"class_name": "cat", "seed": 0, "seconds": {"total": 5.0}}
    row["scores"] = {"unlearned": {"acc_forget": 0.01, "over_unlearning": -0.002}}
    recorded.write(folder, "run_cat", {"rows": [row]}, numbers=NUMBERS | changes)


def test_numbers_that_follow_from_their_rows_are_no_trouble(root):
    run(root / "runs" / "digits" / "results")
    assert claims.audit(root, profile="digits", fresh=True)[1] == []


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_a_run_follow_from_its_rows(root, name):
    run(root / "runs" / "digits" / "results", **{name: 0.3})
    _, (trouble,) = claims.audit(root, profile="digits", fresh=True)
    assert f"run_cat.json: {name} is recorded as 0.3, but" in trouble


@pytest.mark.parametrize("lost", [False, True])
def test_edit_with_new_sums_is_found_where_numbers_follow_from_rows(root, capsys, lost):
    def spoil(content):
        del content["numbers"]["safe window zs_pag"]
        if not lost:
            content["numbers"]["safe window zs_pag"] = [99, None]

    recorded.change(root / "results/digits", recorded.SWEEP, spoil)
    claims.accept(root / "results")
    code, _, err = judged(capsys)
    assert code == 1
    assert f"safe window zs_pag is recorded as {'nan' if lost else 99}, but its rows give 30\n" in err


def test_claim_that_held_and_falls_is_an_error_and_one_that_never_held_is_a_result(root, capsys):
    fresh = root / "runs" / "digits" / "results"
    shutil.copytree(root / "results" / "digits", fresh)
    assert judged(capsys, "--profile", "digits", "--fresh")[0] == 0
    fall = {"numbers": {"capture_of_oracle_proxies": [0.5, None]}}
    recorded.change(fresh, "03_capture", lambda content: content.update(fall))
    code, out, err = judged(capsys, "--profile", "digits", "--fresh")
    trouble = "zspag claims: C1 was supported when the results were accepted, and is contradicted now\n"
    assert (code, err) == (1, trouble)
    assert "C1 contradicted: " in out
    recorded.change(root / "results" / "digits", "03_capture", lambda content: content.update(fall))
    claims.accept(root / "results")  # somebody looked at it
    assert judged(capsys, "--profile", "digits", "--fresh")[0] == judged(capsys)[0] == 0


def test_fresh_results_that_are_no_json_or_are_not_there_are_named(root, capsys):
    code, _, err = judged(capsys, "--profile", "smoke", "--fresh")
    assert (code, err) == (1, f"zspag claims: there is no result in {root}/runs/smoke/results\n")
    recorded.write(root / "runs" / "smoke" / "results", "03_capture")
    cut(root / "runs" / "smoke" / "results" / "03_capture.json")
    code, _, err = judged(capsys, "--profile", "smoke", "--fresh")
    assert code == 1
    assert "03_capture.json is not readable as JSON" in err


def test_nothing_recorded_at_all_is_no_success(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    assert judged(capsys) == (1, "", "zspag claims: nothing is recorded\n")


def test_sums_are_those_that_everybody_can_check(root):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=root / "results", check=False).returncode == 0
    cut(root / "results" / "commands.json")
    assert subprocess.run(check, cwd=root / "results", check=False, capture_output=True).returncode == 1


# Result files


def test_a_result_comes_back_from_its_file_and_one_of_another_schema_is_refused(tmp_path):
    made = {"config": {"dataset": "digits"}}
    numbers, data = {"ratio": [1.5, 0.1]}, {"panels": [{"title": "one"}]}
    result = Result(name="a", profile="digits", numbers=numbers, measurements={"x": [1]}, data=data, provenance=made)
    write_json(tmp_path / "a.json", result.to_dict())
    again = results.read(tmp_path / "a.json")
    assert again == result
    assert (again.number("ratio"), again.config) == (1.5, {"dataset": "digits"})
    with pytest.raises(AttributeError):
        again.name = "b"
    with pytest.raises(ValueError, match="a has schema 1, not 2; make it again"):
        Result.from_dict(result.to_dict() | {"schema": 1})


# What is committed


def test_committed_results_are_accepted_and_their_verdicts_are_the_committed_ones():
    found = read_json(ROOT / "results" / "claims.json")["verdicts"]
    assert found.keys() == {*claims.profiles(ROOT / "results")} >= {"digits", "cpu"}
    for profile, words in found.items():
        shown, troubles = claims.audit(ROOT, profile=profile, fresh=False)
        assert troubles == [], "look at what changed, then run `make readme`"
        for claim, word in words.items():
            assert any(line.startswith(f"{claim} {word}: ") for line in shown)


def test_a_sweep_of_more_methods_counts_and_one_beside_it_answers_what_it_did_not_run(tmp_path):
    rows = {"method": ["zs_pag", "a", "b"], "forget": [3, 3, 3]}
    fewer = {"method": ["zs_pag", "c"], "forget": [3, 3]}
    for name, some in (("sweep_more", rows), ("sweep_fewer", fewer)):
        recorded.write(tmp_path, name, {"rows": some}, config={"unlearn": to_dict(PROFILES["cpu"])["unlearn"]})
    evidence = read(tmp_path)
    assert list(evidence.grids("zs_pag")) == ["sweep_more"]
    assert list(evidence.grids("zs_pag", "c")) == ["sweep_fewer"]
    assert evidence.grids("a", "c") == {}
    assert evidence.sweeps.keys() == {"sweep_more", "sweep_fewer"}
