"""Variance is split as a two-way table says it, and every draw is another run on the same original."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks import spread
from zspag.profiles import PROFILES
from zspag.report import files


def rows_of(original, draw, *, classes=5, originals=200, draws=3):
    """Rows whose values are the sum of a class's, an original's and a draw's part, each normally distributed."""
    random = np.random.default_rng(0)
    place = [(c, s, d) for c in range(classes) for s in range(originals) for d in range(draws)]
    part = random.normal(0, original, (classes, originals))
    values = [10 * c + part[c, s] + random.normal(0, draw) for c, s, _ in place]
    return pd.DataFrame(place, columns=["forget", "seed", "draw"]).assign(lost=values)


@pytest.mark.parametrize(("original", "draw"), [(2.0, 0.5), (0.5, 2.0), (1.0, 1.0)])
def test_both_parts_are_found_again(original, draw):
    found = spread.components(rows_of(original, draw), "lost")
    assert found["originals"] == pytest.approx(original, rel=0.1)
    assert found["draws"] == pytest.approx(draw, rel=0.1)
    assert found["mean"] == pytest.approx(20, rel=0.05)  # classes differ by ten, and count for neither part


def test_draws_alone_are_not_taken_for_originals():
    found = spread.components(rows_of(0.0, 1.0), "lost")
    assert found["originals"] < 0.2
    assert rows_of(0.0, 1.0).groupby(["forget", "seed"])["lost"].mean().groupby("forget").std().mean() > 0.5  # naively


@pytest.mark.slow
def test_digits_are_drawn_several_times_and_the_page_says_what_is_larger(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setitem(spread.SUBJECTS, "digits", replace(PROFILES["smoke"], retrained=False, seeds=(0, 1)))
    assert spread.main(["digits", "--draws", "2", "--goals", "suppress"]) == 0
    found = files.read_json(tmp_path / "results" / "spread" / "digits.json")
    frame = pd.DataFrame(found["rows"])
    assert len(frame) == 4
    assert frame["retain_samples_read"].eq(0).all()
    assert frame.groupby("seed")["drift"].nunique().eq(2).all()  # another draw, another run
    assert spread.main(["table"]) == 0
    page = (tmp_path / "results" / "spread" / "README.md").read_text()
    assert "| ZS-PAG | 1 x 2 x 2 |" in page
    larger = spread.components(frame, "lost")
    assert ("originals spread" if larger["originals"] >= larger["draws"] else "draws spread") in page


@pytest.mark.parametrize("options", [["--draws", "1"], ["--goals", "forget"]])
def test_one_draw_or_an_unknown_goal_is_refused(options, capsys):
    with pytest.raises(SystemExit):
        spread.main(["digits", *options])
    assert "two draws or more, and goals among suppress, remove" in capsys.readouterr().err


def test_the_committed_page_is_what_the_records_say(tmp_path, monkeypatch):
    kept = files.repository_root() / "results" / "spread"
    if not kept.is_dir():
        pytest.fail("nothing is recorded: python -m benchmarks.spread digits")
    monkeypatch.setattr(spread, "folder", lambda: tmp_path)
    for path in kept.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert spread.table().read_text() == (kept / "README.md").read_text()
