"""The paper profile, cut to a hundredth, runs end to end on a CPU: every notebook, every figure, every architecture."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zspag.profiles import PAPER_DATA, PAPER_NETS, PROFILES, Profile
from zspag.report.files import read_json

ROOT = Path(__file__).parents[1]
TRIAL: Profile = PROFILES["paper-trial"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A root with the notebooks and what they read of results/, and a little of each of the paper's data sets."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for part in ("cpu", "digits", "removal"):
        shutil.copytree(ROOT / "results" / part, root / "results" / part, ignore=shutil.ignore_patterns("checkpoints"))
    paint(root / "data" / "cifar10", classes=10, size=32)
    paint(root / "data" / "cifar100", classes=100, size=32)
    paint(root / "data" / "svhn", classes=10, size=32)
    paint(root / "data" / "facescrub", classes=12, size=70)  # crops are resized to 64
    return root


def paint(folder, *, classes, size):
    """Images with a colour and a bar per class (the first ten: a trial keeps no others)."""
    draw = np.random.default_rng(0)
    for label in range(classes):
        for split, count in (("train", 48), ("test", 8)) if label < 10 else (("train", 2), ("test", 1)):
            target = folder / split / f"class{label:02}"
            target.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 80, (size, size, 3))
                pixels[:, :, label % 3] += 60
                pixels[size * label // 11 : size * (label + 1) // 11] += 110
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target / f"{index}.png")


def zspag(place, *arguments):
    environment = os.environ | {"ZSPAG_ROOT": str(place), "ZSPAG_DATA": str(place / "data"), "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, "-m", "zspag", *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_notebook_of_the_paper_profile_runs_and_draws_every_figure(place):
    done = zspag(place, "reproduce", "--profile", "paper-trial")
    assert done.returncode == 0, done.stdout + done.stderr
    drawn, expected = (
        {path.name for path in (root / "figures" / name).glob("0*.png")}
        for root, name in ((place, "paper-trial"), (ROOT, "digits"))
    )
    assert drawn == expected
    config = read_json(place / "runs" / "paper-trial" / "results" / "03_capture.json")["provenance"]["config"]
    assert (config["arch"], config["dataset"], config["trial"]) == (TRIAL.arch, "cifar10", True)


OTHERS = [("svhn", "alexnet"), ("facescrub", "vgg16"), ("cifar100", "vit")]


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "arch"), OTHERS)
def test_each_data_set_and_architecture_of_the_paper_is_trained_forgets_and_is_judged(dataset, arch, place):
    done = zspag(place, "run", "--profile", "paper-trial", "--dataset", dataset, "--arch", arch)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_json(place / f"runs/paper-trial/results/run_{dataset}_{arch}_class03.json")["measurements"]["rows"]
    assert row["retain_samples_read"] == 0
    assert set(row["scores"]) == {"original", "masked", "retrained", "unlearned"}
    assert len(row["free_dimension"]) + len(row["frozen"]) > 4


def test_nothing_of_the_paper_is_left_out_of_the_trial():
    tried = [(TRIAL.dataset, TRIAL.arch), *OTHERS]
    assert {dataset for dataset, _ in tried} == set(PAPER_DATA)
    assert {arch for _, arch in tried} == set(PAPER_NETS)
