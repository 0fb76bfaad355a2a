"""The README says what the recorded files say, its figures exist, and its code runs."""

import re
from pathlib import Path

import pytest

from zspag import readme

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_block_says_what_the_recorded_results_say():
    assert readme.render(TEXT, ROOT) == TEXT, "the README is stale: run `make readme`"


def test_a_stale_block_is_noticed(tmp_path):
    empty = readme.render(TEXT, tmp_path)
    assert readme.NOT_YET in empty
    stale = TEXT.replace("<!-- end runs -->", "| typed by hand |\n<!-- end runs -->")
    assert readme.render(stale, ROOT) == TEXT


def test_a_block_that_nothing_writes_is_refused():
    with pytest.raises(ValueError, match="README block 'wishes' is written by nothing"):
        readme.render("<!-- begin wishes -->\n<!-- end wishes -->", ROOT)


def test_every_figure_and_link_of_the_readme_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) > 5
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_the_example_runs():
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    names = {}
    exec(compile(example[1], "README.md", "exec"), names)  # noqa: S102  the README's own code
    assert names["forgetful"] is not names["model"]
    assert set(names["result"].report.forget_classes) == {3}
