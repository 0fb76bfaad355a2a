"""Published data sets that torchvision fetches and verifies: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN.

Each is looked for as official files, as an image folder or an archive of one, as an official archive, and is downloaded
if it is nowhere.

Invariant: CIFAR is one data set, with one hash, whether it comes from the official batches or, without loss, from an
image folder with the original file names: both are ordered by (class, file name). A download appears whole or not at
all.
"""

import http.client
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zspag.lab.data.archives import find_archive, unpack
from zspag.lab.data.formats import BATCHES, IDX, IDX_FILES, MAT, Format, Parts, complete_idx, files_at
from zspag.lab.data.splits import Dataset, assemble

DATA_SOURCE = "official files"
TIMEOUT = 20.0  # seconds without an answer after which a download counts as impossible
# What torchvision raises on files that passed for whole, an odd number of dimensions for instance.
DAMAGE = (RuntimeError, ValueError, AssertionError, TypeError, KeyError, IndexError, EOFError)


@dataclass(frozen=True)
class Official:
    """A data set that torchvision knows.

    Attributes:
        title: Its name in a sentence.
        what: What it holds.
        loader: Class of ``torchvision.datasets``.
        format: Format of its files.
        places: Folders or files under the data root that hold it.
        archive: Name without suffix of an archive that holds ``places[0]``; None if there is no such archive.
        folders: Names of image folders, or of archives of one, that stand in for the official files.
        wanted: What to put under the data root by hand.
        num_classes: Number of classes K.
        augment_hint: Label-preserving augmentation, as in ``Dataset``.
    """

    title: str
    what: str
    loader: str
    format: Format
    places: tuple[str, ...]
    archive: str | None
    folders: tuple[str, ...]
    wanted: str
    num_classes: int
    augment_hint: str


def _idx(title: str, name: str, loader: str, what: str, augment_hint: str) -> Official:
    wanted = f"{', '.join(IDX_FILES)} (or their .gz) under {loader}/raw/, or {name}.tar.xz that holds them,"
    return Official(title, what, loader, IDX, (loader,), name, (), wanted, 10, augment_hint)


def _cifar(num_classes: int, folders: tuple[str, ...], place: str) -> Official:
    first, archive = f"cifar{num_classes}", f"cifar-{num_classes}-python"
    what = f"60 000 photographs of {num_classes} classes, 32x32, colour"
    wanted = (
        f"{archive}.tar.gz or its {place}/, or the image folder {first}/{{train,test}}/<class>/ or its archive"
        f" {' or '.join(f'{folder}.tar.xz' for folder in folders)},"
    )
    return Official(
        f"CIFAR-{num_classes}",
        what,
        f"CIFAR{num_classes}",
        BATCHES,
        (place,),
        archive,
        folders,
        wanted,
        num_classes,
        "shift_flip",
    )


MATS = ("train_32x32.mat", "test_32x32.mat")
OFFICIAL = {
    "mnist": _idx("MNIST", "mnist", "MNIST", "70 000 handwritten digits, 28x28, grey", "shift"),
    "fashion": _idx("Fashion-MNIST", "fashion", "FashionMNIST", "70 000 garments, 28x28, grey", "shift_flip"),
    "cifar10": _cifar(10, ("cifar10",), "cifar-10-batches-py"),
    "cifar100": _cifar(100, ("cifar100", "cifar100-jpeg"), "cifar-100-python"),
    "svhn": Official(
        "SVHN",
        "99 289 house numbers, 32x32, colour",
        "SVHN",
        MAT,
        MATS,
        None,
        ("svhn",),
        f"{' and '.join(MATS)}, or the image folder svhn/{{train,test}}/<digit>/ or its archive svhn.tar.xz,",
        10,
        "shift",
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

    Raises:
        FileNotFoundError: If it is nowhere and cannot be fetched; the message says what to put where.
    """
    official, found = OFFICIAL[name], locate(name, root)
    places = [root / place for place in official.places]
    if found is None:
        _download(official, root)
    elif official.archive is not None and found == find_archive(root, official.archive):
        unpack(found, places[0])
    elif found != places[0]:
        return found, None
    if official.format is IDX:
        complete_idx(places[0] / "raw", lambda: dict(_loader(official).resources))
        return places[0], [places[0] / "raw" / file for file in IDX_FILES]
    return places[0], files_at(places)


def read_official(name: str, root: Path) -> Dataset:
    """Read the official files under ``root``.

    Raises:
        ValueError: If a file is missing, damaged or without its checksum; the message names it.
    """
    official = OFFICIAL[name]
    official.format.verify(root, _loader(official))
    try:
        classes, train, test = official.format.read(_parts(official, root, download=False))
    except DAMAGE as error:
        raise ValueError(
            f"the files of {official.title} in {root / official.places[0]} do not fit together ({error}); delete them"
            " and run again"
        ) from error
    return assemble(name, classes, train, test, augment_hint=official.augment_hint, data_source=DATA_SOURCE)


def _loader(official: Official) -> Any:
    from torchvision import datasets  # seconds of import that a cached set does not need

    return getattr(datasets, official.loader)


def _parts(official: Official, folder: str | Path, *, download: bool) -> Parts:
    train, test = (_loader(official)(folder, download=download, **choice) for choice in official.format.choices)
    return train, test


def _download(official: Official, root: Path) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".downloading-") as folder:
            _parts(official, folder, download=True)  # checksums included
            for place in official.places:
                (Path(folder) / place).replace(root / place)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise FileNotFoundError(
            f"{official.title} is not in {root} and cannot be downloaded ({reason}); put {official.wanted} into {root}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
