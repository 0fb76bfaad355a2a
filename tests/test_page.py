"""A page writes numbers first, draws from their file, and seals only what is there."""

import base64
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from zspag.profiles import PROFILES
from zspag.report import files, plots
from zspag.report.page import Page, resolve_profile, sha256


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    return tmp_path


FRAME = pd.DataFrame({"rate": [1, 2, 4], "lost": [0.1, float("nan"), 0.5]})
ALT = "Points lost over the learning rate: they rise with the rate."


def lost_over_rate(frame):
    figure, axis = plt.subplots(figsize=(4, 3))
    axis.plot(frame["rate"], frame["lost"], "o")
    axis.set(xlabel="learning rate", ylabel="points lost")
    return figure


def written(root, name, *functions):
    """Write a notebook that defines ``functions``, each in a cell of its own that would fail if it ran."""
    sources = [f"raise SystemExit\n{inspect.getsource(one)}" for one in functions]
    cells = [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in sources]
    files.write_json(root / "notebooks" / f"{name}.ipynb", {"cells": cells})


def test_profile_is_the_parameter_then_the_environment_then_digits(monkeypatch):
    monkeypatch.delenv("ZSPAG_PROFILE", raising=False)
    assert resolve_profile(None) is PROFILES["digits"]
    monkeypatch.setenv("ZSPAG_PROFILE", "smoke")
    assert resolve_profile(None).name == "smoke"
    assert resolve_profile("cpu").name == "cpu"
    with pytest.raises(ValueError, match=r"no profile 'large'; choose one of .*digits.*smoke"):
        resolve_profile("large")


def test_finding_that_does_not_hold_stops_every_profile_but_a_trial(root):
    Page("04_labels", "smoke").expect(2 > 1)
    with pytest.raises(AssertionError, match="a finding of 04_labels does not hold in the smoke profile"):
        Page("04_labels", "smoke").expect(1 > 2)
    Page("04_labels", "paper-trial").expect(1 > 2)


def test_seal_names_every_output_with_its_hash(root):
    page = Page("02_proxies", "smoke")
    page.plot("02_budget", lost_over_rate, FRAME, alt=ALT)
    page.plot("02_budget", lost_over_rate, FRAME, alt=ALT)  # a reader runs a cell twice
    page.result("02_counts", {"hits": 5})
    line = page.seal()

    assert line.startswith("02_proxies: 1 figure, 1 result, ")
    seal = files.read_json(root / "runs/smoke/seals/02_proxies.json")
    assert set(seal["outputs"]) == {
        "runs/smoke/results/02_budget.json",
        "figures/smoke/02_budget.png",
        "runs/smoke/results/02_counts.json",
    }
    assert all(sha256(root / name) == digest for name, digest in seal["outputs"].items())
    assert seal["peak_memory_mib"]["self"] > 50  # this process holds torch
    assert (seal["device"], seal["threads"]) == (seal["provenance"]["device"], torch.get_num_threads())
    assert 0 <= seal["seconds"] < 60

    (root / "runs/smoke/seals/02_proxies.json").unlink()
    (root / "runs/smoke/results/02_counts.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"02_proxies declared runs/smoke/results/02_counts\.json"):
        page.seal()
    assert not (root / "runs/smoke/seals/02_proxies.json").exists()


def test_names_belong_to_their_notebook(root):
    with pytest.raises(ValueError, match="called like 02_proxy_generation, got 'proxies'"):
        Page("proxies", "smoke")
    page = Page("02_proxies", "smoke")
    for name in ("03_counts", "02-counts", "counts"):
        with pytest.raises(ValueError, match=f"results of 02_proxies are called 02_..., got '{name}'"):
            page.result(name, {})
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (0.5, r"numbers\.rate must be a pair \(value, tolerance\), got 0.5"),
        ((0.5, "x1"), r'is a factor above 1, such as "x3", got .x1.'),
        ((0.5, "3"), r'is a factor above 1, such as "x3", got .3.'),
        ((0.5, -0.1), r"tolerance of numbers\.rate must be a number from 0 or None, got -0.1"),
        (("high", 0.1), r"value of numbers\.rate must be a number, got 'high'"),
        ((float("nan"), 0.1), r"numbers\.rate\[0\] is nan"),
    ],
)
def test_numbers_come_with_a_tolerance(root, pair, message):
    with pytest.raises(ValueError, match=message):
        Page("02_proxies", "smoke").result("02_counts", {}, numbers={"rate": pair})
    assert not (root / "runs").exists()


def test_plot_is_drawn_from_the_file_and_again_from_the_notebook_without_running_it(root):
    page = Page("02_proxies", "smoke")
    picture = page.plot("02_lost", lost_over_rate, FRAME, alt=ALT, numbers={"most": (np.float64(0.5), "x2")}, seed=4)
    content = files.read_json(root / "runs/smoke/results/02_lost.json")
    assert content["data"]["frames"] == {"frame": {"rate": [1, 2, 4], "lost": [0.1, None, 0.5]}}
    assert (content["draw"], content["caption"]) == ("lost_over_rate", ALT)
    assert (content["provenance"]["seed"], content["numbers"]) == (4, {"most": [0.5, "x2"]})
    bundle, shown = picture._repr_mimebundle_()
    assert ALT in shown["image/png"]["alt"]  # what nbconvert and JupyterLab tell those who cannot see it
    assert base64.b64decode(bundle["image/png"]) == picture.path.read_bytes()
    assert str(root) not in bundle["text/plain"]  # no path: pages are committed
    assert (picture.title, picture.width) == (f"figure 02_lost: {ALT}", 384)
    written(root, "02_proxies", lost_over_rate)
    plots.save(content, root / "again.png")
    assert (root / "again.png").read_bytes() == picture.path.read_bytes()
    assert page.seal().startswith("02_proxies: 1 figure, 0 results")
    written(root, "02_proxies")
    with pytest.raises(ValueError, match=r"02_proxies.ipynb defines no function lost_over_rate"):
        plots.save(content, root / "again.png")


def test_plot_of_several_frames_gets_each_by_its_name(root):
    def two(dots, borders):
        figure, axis = plt.subplots()
        axis.plot(dots["x"], dots["y"], "o")
        axis.axvline(borders["at"].iloc[0])
        axis.set(xlabel="x", ylabel="y")
        return figure

    frames = {"dots": pd.DataFrame({"x": [1, 2], "y": [1, 3]}), "borders": pd.DataFrame({"at": [1.5]})}
    Page("02_proxies", "smoke").plot("02_two", two, frames, alt=ALT)
    assert (root / "figures/smoke/02_two.png").is_file()


def test_plot_needs_words_and_nothing_of_the_notebook(root):
    page = Page("02_proxies", "smoke")
    with pytest.raises(ValueError, match="02_lost needs an alt text of 8 words or more, got 'Loss.'"):
        page.plot("02_lost", lost_over_rate, FRAME, alt="Loss.")

    def needs_the_page(frame):
        return [FRAME for _ in lost_over_rate(frame)]

    with pytest.raises(ValueError, match="needs_the_page uses FRAME, lost_over_rate of the notebook: put it into"):
        page.plot("02_lost", needs_the_page, FRAME, alt=ALT)
    assert not list(root.glob("figures/smoke/*"))


def test_plot_says_what_is_wrong_with_the_picture_and_shows_it_all_the_same(root):
    constant = FRAME.assign(lost=0.1)
    with pytest.warns(UserWarning, match="figure 02_lost: panel 1 shows the one y value 0.1"):
        Page("02_proxies", "smoke").plot("02_lost", lost_over_rate, constant, alt=ALT)
    assert (root / "figures/smoke/02_lost.png").is_file()


def test_jitter_is_the_same_each_time_and_the_callers_numbers_go_on(root):
    def dots(frame):
        figure, axis = plt.subplots()
        axis.plot(frame["rate"] + np.random.default_rng(np.random.randint(99)).random(), frame["rate"], "o")
        axis.set(xlabel=f"{np.random.random():.9f}")
        return figure

    def drawn():
        np.random.seed(4)
        first = np.random.random()
        picture = Page("02_proxies", "smoke").plot("02_dots", dots, FRAME, alt=ALT)
        with Image.open(picture.path) as pixels:
            return first, pixels.convert("RGB").tobytes(), np.random.random()

    np.random.seed(4)
    expected = (np.random.random(), np.random.random())
    one, other = drawn(), drawn()
    assert one[1] == other[1]
    assert (one[0], one[2]) == (other[0], other[2]) == expected
