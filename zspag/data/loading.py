"""``load``: a name becomes a data set, from the cache if its source has not changed.

Invariant: a set that cannot be had says in one sentence what to put where.
"""

import hashlib
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path

from zspag.data.archives import SUFFIXES, find_archive, unpack
from zspag.data.cache import cached
from zspag.data.folders import folder_signature, read_image_folder, signature
from zspag.data.guard import count_load
from zspag.data.sources import (
    CIFAR_BATCHES,
    DIGITS_SPLIT_SEED,
    MNIST_FILES,
    download_cifar,
    download_mnist,
    read_cifar_batches,
    read_digits,
    read_mnist,
)
from zspag.data.splits import Dataset

NAMED = ("digits", "mnist", "cifar10")


def data_root() -> Path:
    """Return the folder of the data sets: ``$ZSPAG_DATA``, or ``data/`` of the repository."""
    if chosen := os.environ.get("ZSPAG_DATA"):
        return Path(chosen)
    repository = os.environ.get("ZSPAG_ROOT")
    return (Path(repository) if repository else Path(__file__).parents[2]) / "data"


def load(name: str | Path, *, root: Path | None = None, image_size: int | None = None) -> Dataset:
    """Load a data set; while a guard's ``method()`` block runs, all its samples count as read.

    Args:
        name: "digits", "mnist", "cifar10", or an image folder ``{train,test}/<class>/`` or an archive of one: its
            path, or its name under ``root``.
        root: Folder of the data sets and of their cache; None means ``data_root()``.
        image_size: Height and width that the images of a folder are resized to, in pixels; None leaves them alone.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If the set is missing and cannot be downloaded; the message says what to put where.
        ValueError: If the source is damaged, unsafe or not an image folder; the message names the file.
    """
    root = data_root() if root is None else Path(root)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    if image_size is not None and name in NAMED:
        raise ValueError(f"image_size={image_size} is for image folders; {name} has its own size")
    dataset = _load_named(str(name), root) if name in NAMED else _load_folder(name, root, image_size)
    count_load(dataset)
    return dataset


def _load_named(name: str, root: Path) -> Dataset:
    cache = root / "cache"
    if name == "digits":
        facts = {"scikit-learn": version("scikit-learn"), "split_seed": DIGITS_SPLIT_SEED}
        return cached(cache, name, source=facts, build=read_digits)
    if name == "mnist":
        files = [root / "MNIST" / "raw" / file for file in _mnist_files(root)]
        return cached(cache, name, source=dict(signature(files, base=root)), build=lambda: read_mnist(root))
    source = _cifar_source(root)
    if source.name == CIFAR_BATCHES:
        facts = dict(signature(sorted(source.glob("*batch*")), base=root))
        return cached(cache, name, source=facts, build=lambda: read_cifar_batches(root))
    return _cached_folder(source, cache, key=name, name=name, image_size=None)


def _mnist_files(root: Path) -> tuple[str, ...]:
    target = root / "MNIST"
    if not target.exists():
        archive = find_archive(root, "mnist")
        if archive is None:
            download_mnist(root)
        else:
            unpack(archive, target)
    for file in MNIST_FILES:
        if not (target / "raw" / file).is_file():
            raise FileNotFoundError(f"{target / 'raw'} lacks {file}; put it there, or delete {target} and run again")
    return MNIST_FILES


def _cifar_source(root: Path) -> Path:
    batches, folder = root / CIFAR_BATCHES, root / "cifar10"
    if batches.is_dir():
        return batches
    if folder.is_dir():
        return folder
    if archive := find_archive(root, "cifar10"):
        return archive
    if official := find_archive(root, "cifar-10-python"):
        unpack(official, batches)
    else:
        download_cifar(root)
    return batches


def _load_folder(name: str | Path, root: Path, image_size: int | None) -> Dataset:
    candidates = [Path(name), root / name, find_archive(root, str(name))]
    source = next((path for path in candidates if path is not None and path.exists()), None)
    if source is None:
        raise FileNotFoundError(
            f"no data set {str(name)!r}: it is neither one of {', '.join(NAMED)} nor an image folder; put images under"
            f" {root / name}/train/<class>/ and {root / name}/test/<class>/"
        )
    if source.is_file() and not source.name.endswith(SUFFIXES):
        raise ValueError(f"{source} is neither a folder nor an archive ({', '.join(SUFFIXES)})")
    plain = next((source.name.removesuffix(s) for s in SUFFIXES if source.name.endswith(s)), source.name)
    place = hashlib.sha256(f"{source.resolve()} {image_size}".encode()).hexdigest()[:8]
    return _cached_folder(source, root / "cache", key=f"{plain}-{place}", name=plain, image_size=image_size)


def _cached_folder(source: Path, cache: Path, *, key: str, name: str, image_size: int | None) -> Dataset:
    facts = {"name": source.name, **folder_signature(source), "image_size": image_size}
    build = partial(read_image_folder, source, name=name, image_size=image_size)
    return cached(cache, key, source=facts, build=build)
