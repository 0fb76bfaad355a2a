"""A page writes numbers first, draws from their file, and seals only what is there."""

import base64
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zspag.profiles import PROFILES
from zspag.report import files, plots
from zspag.report.page import Page, resolve_profile, sha256


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """Replace the drawing; the list holds the contents that the page handed over."""
    contents = []

    def save(content, path):
        contents.append(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"png of " + content["name"].encode())

    monkeypatch.setattr(plots, "save", save)
    monkeypatch.setattr(plots, "inches_wide", lambda path: 7.5)
    return contents


def test_profile_is_the_parameter_then_the_environment_then_digits(monkeypatch):
    monkeypatch.delenv("ZSPAG_PROFILE", raising=False)
    assert resolve_profile(None) is PROFILES["digits"]
    monkeypatch.setenv("ZSPAG_PROFILE", "smoke")
    assert resolve_profile(None).name == "smoke"
    assert resolve_profile("cpu").name == "cpu"
    with pytest.raises(ValueError, match=r"no profile 'large'; choose one of .*digits.*smoke"):
        resolve_profile("large")


def test_figure_is_drawn_from_the_file_that_holds_its_numbers(root, drawn):
    page = Page("02_proxies", "smoke", data_sha256="d" * 64)
    shown = page.figure(
        "02_budget", "curve", {"x": np.arange(3)}, caption="Rate.", numbers={"rate": (np.float64(0.75), 0.1)}, seed=4
    )

    saved = files.read_json(root / "runs/smoke/results/02_budget.json")
    facts = {"schema": 2, "name": "02_budget", "profile": "smoke", "draw": "curve", "caption": "Rate."}
    assert saved.items() >= (facts | {"numbers": {"rate": [0.75, 0.1]}, "data": {"x": [0, 1, 2]}}).items()
    assert (saved["provenance"]["seed"], saved["provenance"]["data_sha256"]) == (4, "d" * 64)
    assert drawn == [saved]
    bundle, metadata = shown._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == (root / "figures/smoke/02_budget.png").read_bytes()
    assert bundle["text/plain"] == "<figure 02_budget>"  # no path: pages are committed
    assert metadata["image/png"]["width"] == 720


def test_figure_that_cannot_be_drawn_is_not_sealed(root):
    page = Page("02_proxies", "smoke")
    with pytest.raises(ValueError, match="02_budget: there is no kind of panel 'pie'"):
        page.figure("02_budget", "pie", {}, caption="Rate.")
    assert not list(root.glob("figures/smoke/*"))
    assert page.seal().startswith("02_proxies: 0 figures, 0 results")


def test_finding_that_does_not_hold_stops_every_profile_but_a_trial(root):
    Page("04_labels", "smoke").expect(2 > 1)
    with pytest.raises(AssertionError, match="a finding of 04_labels does not hold in the smoke profile"):
        Page("04_labels", "smoke").expect(1 > 2)
    Page("04_labels", "paper-trial").expect(1 > 2)


def test_rows_are_kept_until_whatever_made_them_changes(root, monkeypatch):
    computed, shell = [], SimpleNamespace(user_ns={"In": ["a = 1"]})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)

    def computed_again(profile="smoke", data="d"):
        before = len(computed)
        rows = Page("04_labels", profile, data_sha256=data).kept("steps", lambda: (computed.append(1), [{"x": 0.1}])[1])
        assert rows == [{"x": 0.1}]
        return len(computed) > before

    assert [computed_again(), computed_again()] == [True, False]
    shell.user_ns["In"].append("a = 2")
    assert [computed_again(), computed_again()] == [True, False]
    assert [computed_again("digits"), computed_again(data="e"), computed_again()] == [True, True, False]
    seen = []
    monkeypatch.setattr("zspag.report.provenance.closure_hash", lambda names: seen.extend(names) or "edited")
    assert computed_again()
    assert {"zspag.report.page", "zspag.config"} <= set(seen)  # all that is loaded, and by it all that it imports
    monkeypatch.setattr("zspag.report.page._device_and_threads", lambda profile: ("cuda", 1))
    assert [computed_again(), computed_again()] == [True, False]


def test_recorded_result_is_drawn_again_outside_the_profiles_own_figures(root, drawn):
    files.write_json(root / "results/cpu/sweep_x.json", {"name": "sweep_x", "data": {"rows": [1]}})
    page = Page("05_experiments", "smoke")
    content, picture = page.recorded("cpu", "sweep_x")
    assert content["data"]["rows"] == [1]
    assert picture.path == root / "runs/smoke/recorded/sweep_x.png"
    assert drawn == [content]
    assert page.seal().startswith("05_experiments: 0 figures, 0 results")  # nothing that this page computed
    with pytest.raises(FileNotFoundError, match=r"results/cpu/sweep_y.json is not recorded; `zspag sweep --record`"):
        page.recorded("cpu", "sweep_y")


def test_seal_names_every_output_with_its_hash(root, drawn):
    page = Page("02_proxies", "smoke")
    page.figure("02_budget", "curve", {"x": [1]}, caption="Rate.")
    page.figure("02_budget", "curve", {"x": [1]}, caption="Rate.")  # a reader runs a cell twice
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
