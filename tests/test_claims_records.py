"""Recorded files are those that were recorded: an edit, a cut, a loss and an addition make ``zspag claims`` fail."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import recorded
from zspag.__main__ import main
from zspag.report import claims, readme
from zspag.report.files import read_json, write_json

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository whose results were accepted."""
    recorded.everything(tmp_path / "results" / "digits")
    write_json(tmp_path / "results" / "commands.json", {})
    (tmp_path / "results" / "digits" / "checkpoints").mkdir()
    (tmp_path / "results" / "digits" / "checkpoints" / "a.safetensors").write_bytes(b"weights")
    claims.accept(tmp_path / "results")
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
    assert out.startswith("profile digits\nC1 yes: proxies stand in for retain data\n")
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
    assert code == 1
    assert out == "profile digits: no verdict, for its files cannot be trusted\n\n"
    assert err.startswith(f"zspag claims: {name}")
    assert message in err


def test_damage_to_another_profile_does_not_count(root, capsys):
    recorded.everything(root / "results" / "cpu")
    claims.accept(root / "results")
    edit(root / "results" / "cpu" / "03_capture.json")
    assert judged(capsys, "--profile", "digits")[0] == 0
    assert judged(capsys)[0] == 1


def test_profile_that_is_gone_as_a_whole_is_missed(root, capsys):
    shutil.rmtree(root / "results" / "digits")
    code, _, err = judged(capsys)
    assert code == 1
    assert "digits/03_capture.json is missing" in err


def test_edit_with_new_sums_is_found_where_numbers_follow_from_rows(root, capsys):
    recorded.change(
        root / "results/digits", recorded.SWEEP, lambda c: c["numbers"].update({"safe window zs_pag": [99, None]})
    )
    claims.accept(root / "results")
    code, _, err = judged(capsys)
    assert code == 1
    assert err == (f"zspag claims: {recorded.SWEEP}.json: safe window zs_pag is recorded as 99, but its rows give 10\n")


def run(**changes):
    row = {"class_name": "cat", "seed": 0, "seconds": {"total": 5.0}}
    row["scores"] = {"unlearned": {"acc_forget": 0.01, "over_unlearning": -0.002}}
    numbers = {"cat seed 0 acc_forget": 0.01, "cat seed 0 over_unlearning": -0.002, "cat seed 0 seconds": 5.0}
    return {"numbers": numbers | changes, "rows": [row]}


@pytest.mark.parametrize("name", run()["numbers"])
def test_numbers_of_a_run_follow_from_its_rows(root, capsys, name):
    recorded.write(root / "results/digits", "run_cat", **run())
    claims.accept(root / "results")
    assert judged(capsys)[0] == 0
    recorded.write(root / "results/digits", "run_cat", **run(**{name: 0.3}))
    claims.accept(root / "results")
    code, _, err = judged(capsys)
    assert code == 1
    assert f"{name} is recorded as 0.3, but" in err


def test_claim_that_held_and_falls_is_an_error_and_one_that_never_held_is_a_result(root, capsys):
    (root / "runs" / "digits").mkdir(parents=True)
    fresh = root / "runs" / "digits" / "results"
    shutil.copytree(root / "results" / "digits", fresh)
    assert judged(capsys, "--profile", "digits", "--fresh")[0] == 0
    fall = {"numbers": {"capture_of_oracle_proxies": [0.5, None]}}
    recorded.change(fresh, "03_capture", lambda content: content.update(fall))
    code, out, err = judged(capsys, "--profile", "digits", "--fresh")
    assert (code, err) == (1, "zspag claims: C1 held when the results were accepted, and does not hold any more\n")
    assert "C1 no: " in out
    recorded.change(root / "results" / "digits", "03_capture", lambda content: content.update(fall))
    claims.accept(root / "results")  # somebody looked at it
    assert judged(capsys, "--profile", "digits", "--fresh")[0] == judged(capsys)[0] == 0


def test_fresh_results_that_are_no_json_or_are_not_there_are_named(root, capsys):
    code, _, err = judged(capsys, "--profile", "smoke", "--fresh")
    assert (code, err) == (1, f"zspag claims: there is no result in {root}/runs/smoke/results\n")
    recorded.everything(root / "runs" / "smoke" / "results")
    cut(root / "runs" / "smoke" / "results" / "05_cost.json")
    code, _, err = judged(capsys, "--profile", "smoke", "--fresh")
    assert code == 1
    assert "05_cost.json is not readable as JSON" in err


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


# What is committed


def test_committed_results_are_accepted_and_no_claim_that_held_has_fallen():
    for profile in claims.profiles(ROOT / "results"):
        _, troubles = claims.audit(ROOT, profile=profile, fresh=False)
        assert troubles == [], "look at what changed, then run `make readme`"


def test_committed_verdicts_are_those_of_the_committed_results():
    found = read_json(ROOT / "results" / "claims.json")["verdicts"]
    assert {"digits", "cpu"} <= found.keys()
    for profile, words in found.items():
        assert words == {one.claim: one.word for one in claims.judge(ROOT / "results" / profile, profile=profile)}
        assert f"Profile `{profile}`" in readme.verdicts(ROOT / "results")
