"""Where the named data sets come from: scikit-learn's digits, MNIST and CIFAR-10 in torchvision's formats, Gaussians.

Invariant: CIFAR-10 is one data set, with one hash, whether it comes from the official batches or from an image folder
with the original file names: both are ordered by (class, file name).
"""

import http.client
import math
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zspag.data.splits import Dataset, Split, assemble
from zspag.runtime import generator_for

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

DIGITS_SPLIT_SEED = 0
DIGITS_TEST_SHARE = 0.2
MNIST_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
CIFAR_BATCHES = "cifar-10-batches-py"
TIMEOUT = 20.0  # seconds without an answer after which a download counts as impossible


def read_digits() -> Dataset:
    """Return scikit-learn's own 1797 digits, shape (n, 1, 8, 8), split 80/20 within every class by a fixed seed."""
    from sklearn.datasets import load_digits  # a second of import that a cached set does not need

    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator_for("digits split", DIGITS_SPLIT_SEED, label))
        in_test[members[order[: round(DIGITS_TEST_SHARE * len(members))]]] = True
    everything, classes = Split(images, labels), tuple(map(str, range(10)))
    return assemble("digits", classes, everything.select(~in_test), everything.select(in_test), augment_hint="shift")


def gaussians2d(*, classes: int, per_class: int, spread: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points of the plane around centres on the unit circle, for the theory.

    Args:
        classes: Number of Gaussians K.
        per_class: Points of each.
        spread: Standard deviation of each, in units of the circle's radius.
        generator: Source of randomness.

    Returns:
        Points (K * per_class, 2), float32, and labels (K * per_class,), int64, class by class.

    Raises:
        ValueError: If a count is below 1 or the spread negative.
    """
    if classes < 1 or per_class < 1 or spread < 0:
        raise ValueError(
            f"classes and per_class must be at least 1 and spread not negative, got {classes}, {per_class}, {spread}"
        )
    labels = torch.arange(classes).repeat_interleave(per_class)
    angles = labels * (2 * math.pi / classes)
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    return centres + spread * torch.randn(len(labels), 2, generator=generator), labels


def read_mnist(root: Path) -> Dataset:
    """Read ``root/MNIST/raw``.

    Raises:
        ValueError: If a file is damaged.
    """
    from torchvision.datasets import MNIST  # seconds of import that a cached set does not need

    try:
        parts = [MNIST(root, train=train, download=False) for train in (True, False)]
        train, test = (Split(part.data[:, None], part.targets) for part in parts)
    except (RuntimeError, ValueError, AssertionError, TypeError, KeyError, IndexError, EOFError) as error:
        raise ValueError(
            f"the files in {root / 'MNIST' / 'raw'} are damaged ({error}); delete that folder and run again"
        ) from error
    return assemble("mnist", tuple(map(str, range(10))), train, test, augment_hint="shift")


def read_cifar_batches(root: Path) -> Dataset:
    """Read torchvision's ``root/cifar-10-batches-py``, whose checksums torchvision knows.

    Raises:
        ValueError: If a file is missing or does not have its checksum.
    """
    from torchvision.datasets import CIFAR10  # seconds of import that a cached set does not need

    try:
        train, test = CIFAR10(root, train=True, download=False), CIFAR10(root, train=False, download=False)
    except RuntimeError as error:
        raise ValueError(
            f"{root / CIFAR_BATCHES} is incomplete or lacks the official checksums; delete it and run again"
        ) from error
    classes = tuple(train.classes)
    return assemble("cifar10", classes, _ordered(root, train), _ordered(root, test), augment_hint="shift_flip")


def download_mnist(root: Path) -> None:
    """Fetch MNIST with torchvision into ``root/MNIST``.

    Raises:
        FileNotFoundError: If it cannot be fetched; the message says what to put where.
    """
    from torchvision.datasets import MNIST  # seconds of import that a cached set does not need

    remedy = f"put {', '.join(MNIST_FILES)} into {root / 'MNIST' / 'raw'}, or mnist.tar.xz with MNIST/raw/ into {root}"
    _download(lambda folder: MNIST(folder, download=True), root / "MNIST", name="MNIST", remedy=remedy)


def download_cifar(root: Path) -> None:
    """Fetch CIFAR-10 with torchvision, checksums included, into ``root/cifar-10-batches-py``.

    Raises:
        FileNotFoundError: If it cannot be fetched; the message says what to put where.
    """
    from torchvision.datasets import CIFAR10  # seconds of import that a cached set does not need

    remedy = (
        f"put cifar-10-python.tar.gz, or the image folder cifar10/{{train,test}}/<class>/ or its archive"
        f" cifar10.tar.xz, into {root}"
    )
    _download(lambda folder: CIFAR10(folder, download=True), root / CIFAR_BATCHES, name="CIFAR-10", remedy=remedy)


def _ordered(root: Path, part: "CIFAR10") -> Split:
    names: list[str] = []
    for file, _ in part.train_list if part.train else part.test_list:
        with (root / CIFAR_BATCHES / file).open("rb") as batch:  # its checksum was verified by torchvision
            names += pickle.load(batch, encoding="latin1")["filenames"]
    order = sorted(range(len(names)), key=lambda i: (part.targets[i], names[i]))
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2)[order].contiguous()
    return Split(images, torch.tensor(part.targets)[order])


def _download(fetch: Callable[[str], object], target: Path, *, name: str, remedy: str) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".downloading-") as folder:
            fetch(folder)
            (Path(folder) / target.name).rename(target)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise FileNotFoundError(
            f"{name} is not in {target.parent} and cannot be downloaded ({reason}); {remedy}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
