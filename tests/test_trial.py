"""The paper profile, cut to a hundredth, runs end to end on a CPU: every notebook, every figure, every architecture."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zspag.config import Profile
from zspag.files import read_json
from zspag.profiles import PAPER_NETS, PROFILES

ROOT = Path(__file__).parents[1]
TRIAL: Profile = PROFILES["paper-trial"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A root with the notebooks and what they read of results/, and a little CIFAR-10: a colour and a bar per class."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(ROOT / "results" / "cpu", root / "results" / "cpu", ignore=shutil.ignore_patterns("checkpoints"))
    draw = np.random.default_rng(0)
    for label in range(10):
        for split, count in (("train", 32), ("test", 8)):
            folder = root / "data" / "cifar10" / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 80, (32, 32, 3))
                pixels[:, :, label % 3] += 60
                pixels[3 * label : 3 * label + 3] += 110
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def zspag(place, *arguments):
    environment = os.environ | {"ZSPAG_ROOT": str(place), "ZSPAG_DATA": str(place / "data"), "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, "-m", "zspag", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_every_notebook_of_the_paper_profile_runs_and_draws_every_figure(place):
    done = zspag(place, "reproduce", "--profile", "paper-trial")
    assert done.returncode == 0, done.stdout + done.stderr
    drawn, expected = (
        {path.name for path in (root / "figures" / name).glob("0*.png")}
        for root, name in ((place, "paper-trial"), (ROOT, "digits"))
    )
    assert drawn == expected
    config = read_json(place / "figures" / "paper-trial" / "05_ladder.json")["provenance"]["config"]
    assert (config["arch"], config["dataset"], config["trial"]) == (TRIAL.arch, "cifar10", True)


@pytest.mark.parametrize("arch", [arch for arch in PAPER_NETS if arch != TRIAL.arch])
def test_each_architecture_of_the_paper_is_trained_forgets_and_is_judged(arch, place):
    done = zspag(place, "run", "--profile", "paper-trial", "--arch", arch)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_json(place / f"runs/paper-trial/results/run_cifar10_{arch}_class3.json")["data"]["rows"]
    assert row["retain_samples_read"] == 0
    assert set(row["scores"]) == {"original", "masked", "retrained", "unlearned"}
    assert len(row["free_dimension"]) > 4
