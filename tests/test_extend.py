"""The recipes of docs/extend.md, typed as they stand there."""

import re
from pathlib import Path

import pytest
from PIL import Image

from zspag.__main__ import main
from zspag.lab import demo
from zspag.lab.methods import METHODS
from zspag.report.files import read_json

TEXT = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")


def recipe(name):
    return re.search(rf"```python {name}\n(.*?)```", TEXT, re.DOTALL)[1]


def command(word):
    """Return the arguments of the command that names ``word``, as the page prints it."""
    (line,) = [one for one in TEXT.splitlines() if one.startswith("    zspag") and word in one]
    return line.split()[1:]


def test_a_method_of_a_few_lines_runs_by_its_name(capsys):
    names = {}
    try:
        exec(compile(recipe("method"), "extend.md", "exec"), names)  # noqa: S102  our own page
    finally:
        METHODS.pop("towards_uniform", None)
    assert names["result"].report.chosen == "towards_uniform"
    assert names["result"].report.reached
    assert "towards_uniform" in capsys.readouterr().out


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    (tmp_path / "tiny.py").write_text(recipe("net"))
    return tmp_path


@pytest.mark.slow
def test_a_net_in_a_file_is_trained_and_forgets(place):
    assert main(command("--profile smoke --arch")) == 0
    (row,) = read_json(next(place.glob("runs/smoke/results/run_*_tiny_*.json")))["measurements"]["rows"]
    assert row["retain_samples_read"] == 0


@pytest.mark.slow
def test_a_folder_of_photos_is_a_data_set(place):
    images, labels = demo.digits("train")
    for number, name in enumerate(("cat", "dog", "fox")):
        (place / "photos" / name).mkdir(parents=True)
        for index, image in enumerate(images[labels == number][:40]):
            Image.fromarray((image[0] * 255).byte().numpy()).save(place / "photos" / name / f"{index}.png")
    assert main(command("--dataset photos")) == 0
    (row,) = read_json(next(place.glob("runs/smoke/results/run_photos_tiny_cat.json")))["measurements"]["rows"]
    assert row["class_name"] == "cat"
