"""Data sets with a name: scikit-learn's digits, Gaussians in the plane, and the published sets that torchvision knows.

MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN are looked for as official files, as an image folder or an archive of
one, as an official archive, and are downloaded if they are nowhere.

Invariant: CIFAR is one data set, with one hash, whether it comes from the official batches or, without loss, from an
image folder with the original file names: both are ordered by (class, file name). Nothing is unpickled before it has
the checksum that torchvision knows. A download appears whole or not at all.
"""

import gzip
import http.client
import pickle
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zspag.lab.data.listing import find_archive, unpack
from zspag.lab.data.splits import Dataset, Split
from zspag.report.files import replacing
from zspag.runtime import generator_for

DIGITS_SPLIT_SEED = 0
DIGITS_TEST_SHARE = 0.2
IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
MATS = ("train_32x32.mat", "test_32x32.mat")
TIMEOUT = 20.0  # seconds without an answer after which a download counts as impossible

Content = tuple[tuple[str, ...], Split, Split]  # class names, training and test split


def read_digits() -> Dataset:
    """Return scikit-learn's own 1797 digits, shape (n, 1, 8, 8), split 80/20 within every class by a fixed seed."""
    from sklearn.datasets import load_digits  # a second of import that a cached set does not need

    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * 255 / 16).round().to(torch.uint8)[:, None]
    everything = Split(images, torch.from_numpy(bunch.target).long())
    in_test = torch.zeros(len(images), dtype=torch.bool)
    for label, members in enumerate(everything.members(range(10))):
        order = torch.randperm(len(members), generator=generator_for("digits split", DIGITS_SPLIT_SEED, label))
        in_test[members[order[: round(DIGITS_TEST_SHARE * len(members))]]] = True
    train, test, classes = everything.select(~in_test), everything.select(in_test), tuple(map(str, range(10)))
    return Dataset("digits", classes, train, test, augment_hint="shift", data_source="scikit-learn's own copy")


def _read_idx(root: Path, loader: Any) -> Content:
    from torchvision.datasets import mnist

    raw, tensors = root / loader.__name__ / "raw", []  # the tensors in the order of IDX_FILES
    for path in (raw / file for file in IDX_FILES):
        packed = path.with_name(f"{path.name}.gz")
        if not path.is_file():
            if not packed.is_file():
                raise FileNotFoundError(f"{raw} lacks {path.name}; put it there, or delete {raw.parent} and run again")
            _check_sums(raw, {packed.name: dict(loader.resources)[packed.name]})
            with replacing(path) as temporary:
                temporary.write_bytes(gzip.decompress(packed.read_bytes()))
        read = mnist.read_image_file if "images" in path.name else mnist.read_label_file
        try:
            tensors.append(read(str(path)))
        except (AssertionError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is damaged: it is no whole idx file of bytes ({error}); delete the folder {raw} and run again"
            ) from error
    splits = []
    for images, labels in (tensors[:2], tensors[2:]):
        if len(images) != len(labels):
            raise ValueError(
                f"the files in {raw} do not fit together: {len(images)} images have {len(labels)} labels; delete them"
                " and run again"
            )
        splits.append(Split(images[:, None], labels))
    classes = tuple(name.partition(" - ")[0] for name in loader.classes)  # torchvision calls a digit "3 - three"
    return classes, splits[0], splits[1]


def _read_batches(root: Path, loader: Any) -> Content:
    folder, splits = root / loader.base_folder, []
    meta = (loader.meta["filename"], loader.meta["md5"])
    _check_sums(folder, dict([*loader.train_list, *loader.test_list, meta]))
    for files, train in ((loader.train_list, True), (loader.test_list, False)):
        part = loader(root, train=train)
        names: list[str] = []
        for file, _ in files:
            with (folder / file).open("rb") as batch:
                names += pickle.load(batch, encoding="latin1")["filenames"]
        order = np.lexsort((names, part.targets))
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2)[order].contiguous()
        splits.append(Split(images, torch.tensor(part.targets)[order]))
    return tuple(part.classes), splits[0], splits[1]


def _read_mat(root: Path, loader: Any) -> Content:
    _check_sums(root, {file: checksum for _, file, checksum in (loader.split_list[part] for part in ("train", "test"))})
    parts = [loader(root, split=part) for part in ("train", "test")]
    train, test = (Split(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels)) for part in parts)
    return tuple(map(str, range(10))), train, test  # torchvision has made the label 10 the digit 0


def _check_sums(folder: Path, checksums: dict[str, str]) -> None:
    from torchvision.datasets.utils import check_integrity

    for path, checksum in ((folder / name, checksum) for name, checksum in checksums.items()):
        if not path.is_file():
            raise ValueError(f"{folder} is incomplete, {path.name} is missing; delete it and run again")
        if not check_integrity(str(path), checksum):
            raise ValueError(f"{path} does not have the official checksum; delete it and fetch it again")


@dataclass(frozen=True)
class Official:
    """A data set that torchvision knows."""

    title: str  # without the dash it is the class of torchvision.datasets
    what: str
    read: Callable[[Path, Any], Content]  # verifies and reads the files, given the data root and that class
    places: tuple[str, ...]  # folders or files under the data root that hold it
    files: str  # what to put there by hand
    archive: str | None = None  # name without suffix of an archive of places[0]
    folders: tuple[str, ...] = ()  # image folders, or archives of one, that stand in for the official files
    augment_hint: str = "shift_flip"
    num_classes: int = 10

    @property
    def loader(self) -> Any:
        """The class of ``torchvision.datasets``; published without types."""
        from torchvision import datasets  # seconds of import that a cached set does not need

        return getattr(datasets, self.title.replace("-", ""))

    @property
    def wanted(self) -> str:
        """What to put under the data root by hand."""
        if not self.folders:
            return self.files
        archives = " or ".join(f"{folder}.tar.xz" for folder in self.folders)
        return f"{self.files}, or the image folder {self.folders[0]}/{{train,test}}/<class>/ or its archive {archives}"


OFFICIAL = {
    "mnist": Official(
        "MNIST",
        "70 000 handwritten digits, 28x28, grey",
        _read_idx,
        places=("MNIST",),
        files=f"{', '.join(IDX_FILES)} (or their .gz) under MNIST/raw/, or mnist.tar.xz that holds them",
        archive="mnist",
        augment_hint="shift",  # a mirrored digit is none
    ),
    "fashion": Official(
        "Fashion-MNIST",
        "70 000 garments, 28x28, grey",
        _read_idx,
        places=("FashionMNIST",),
        files=f"{', '.join(IDX_FILES)} (or their .gz) under FashionMNIST/raw/, or fashion.tar.xz that holds them",
        archive="fashion",
    ),
    "cifar10": Official(
        "CIFAR-10",
        "60 000 photographs of 10 classes, 32x32, colour",
        _read_batches,
        places=("cifar-10-batches-py",),
        files="cifar-10-python.tar.gz or its cifar-10-batches-py/",
        archive="cifar-10-python",
        folders=("cifar10",),
    ),
    "cifar100": Official(
        "CIFAR-100",
        "60 000 photographs of 100 classes, 32x32, colour",
        _read_batches,
        places=("cifar-100-python",),
        files="cifar-100-python.tar.gz or its cifar-100-python/",
        archive="cifar-100-python",
        folders=("cifar100", "cifar100-jpeg"),
        num_classes=100,
    ),
    "svhn": Official(
        "SVHN",
        "99 289 house numbers, 32x32, colour",
        _read_mat,
        places=MATS,
        files=" and ".join(MATS),
        folders=("svhn",),
        augment_hint="shift",
    ),
}


def locate(name: str, root: Path) -> Path | None:
    """Return where the set is found first: official files, image folder or archive. Nothing is unpacked or fetched."""
    official = OFFICIAL[name]
    if all((root / place).exists() for place in official.places):
        return root / official.places[0]
    folders = [root / folder for folder in official.folders if (root / folder).is_dir()]
    archives = [find_archive(root, stem) for stem in (*official.folders, official.archive) if stem]
    return next((path for path in (*folders, *archives) if path is not None), None)


def provide(name: str, root: Path) -> tuple[Path, list[Path] | None]:
    """Make the set ready to be read, unpacking or downloading it if need be.

    Returns:
        Where it is, and the official files there; None if the place is an image folder or an archive of one.
    """
    official, found = OFFICIAL[name], locate(name, root)
    places = [root / place for place in official.places]
    if found is None:
        _download(official, root)
    elif official.archive is not None and found == find_archive(root, official.archive):
        unpack(found, places[0])
    elif found != places[0]:
        return found, None
    inside = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    return places[0], sorted(path for path in inside if path.is_file())


def read_official(name: str, root: Path) -> Dataset:
    """Read the official files under ``root``.

    Raises:
        ValueError: If a file is missing, damaged or without its checksum; the message names it.
    """
    official = OFFICIAL[name]
    return Dataset(name, *official.read(root, official.loader), official.augment_hint, data_source="official files")


def _download(official: Official, root: Path) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    root.mkdir(parents=True, exist_ok=True)
    choices = [{"split": "train"}, {"split": "test"}] if official.read is _read_mat else [{"train": True}]
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".downloading-") as folder:
            for choice in choices:
                official.loader(folder, download=True, **choice)  # checksums included
            for place in official.places:
                (Path(folder) / place).replace(root / place)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise FileNotFoundError(
            f"{official.title} is not in {root} and cannot be downloaded ({reason}); put {official.wanted}, into {root}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
