"""The three official file formats, read by torchvision: idx (MNIST), pickled batches (CIFAR) and .mat (SVHN).

Invariant: nothing is unpickled before it has the checksum that torchvision knows, and an error names the file.
"""

import gzip
import hashlib
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zspag.lab.data.splits import Split
from zspag.report.files import replacing

IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))

# Loaders are classes of torchvision.datasets, and published without types.
Parts = tuple[Any, Any]
Content = tuple[tuple[str, ...], Split, Split]


@dataclass(frozen=True)
class Format:
    """How files of one format are verified and read.

    Attributes:
        choices: Arguments of a loader for the training and for the test split.
        verify: Given the data root and the loader, raises ``ValueError`` for the first file that is not as it must be.
        read: Turns the two loaded parts into class names, training and test split.
    """

    choices: tuple[dict[str, Any], dict[str, Any]]
    verify: Callable[[Path, Any], None]
    read: Callable[[Parts], Content]


def complete_idx(raw: Path, checksums: Callable[[], dict[str, str]]) -> None:
    """See to it that the four files are in ``raw``, from their ``.gz`` if need be.

    Args:
        raw: Folder of the files.
        checksums: Returns the MD5 of every ``.gz``; called only if one is read.

    Raises:
        FileNotFoundError: If a file is there in neither form.
        ValueError: If a ``.gz`` does not have its checksum.
    """
    for file in IDX_FILES:
        packed = raw / f"{file}.gz"
        if (raw / file).is_file():
            continue
        if not packed.is_file():
            raise FileNotFoundError(f"{raw} lacks {file}; put it there, or delete {raw.parent} and run again")
        _check_sums(raw, {packed.name: checksums()[packed.name]})
        with replacing(raw / file) as temporary:
            temporary.write_bytes(gzip.decompress(packed.read_bytes()))


def _verify_idx(root: Path, loader: Any) -> None:
    for path in (root / loader.__name__ / "raw" / file for file in IDX_FILES):
        if path.stat().st_size != _idx_bytes(path):
            raise ValueError(
                f"{path} is damaged: it is no whole idx file of bytes; delete the folder {path.parent} and run again"
            )


def _idx_bytes(path: Path) -> int | None:
    """Return the bytes that the file must have by its own head; None if the head is not that of unsigned bytes."""
    with path.open("rb") as opened:
        kind, dimensions = opened.read(3), opened.read(1)
        shape = [int.from_bytes(opened.read(4), "big") for _ in range(ord(dimensions or b"\0"))]
    return 4 + 4 * len(shape) + math.prod(shape) if kind == b"\0\0\x08" else None


def _read_idx(parts: Parts) -> Content:
    classes = tuple(name.partition(" - ")[0] for name in parts[0].classes)  # torchvision calls a digit "3 - three"
    train, test = (Split(part.data[:, None], part.targets) for part in parts)
    return classes, train, test


def _verify_batches(root: Path, loader: Any) -> None:
    meta = (loader.meta["filename"], loader.meta["md5"])
    _check_sums(root / loader.base_folder, dict([*loader.train_list, *loader.test_list, meta]))


def _read_batches(parts: Parts) -> Content:
    train, test = (_ordered(part) for part in parts)
    return tuple(parts[0].classes), train, test


def _ordered(part: Any) -> Split:
    """Return the images in the order of (class, file name), as an image folder of the same data gives them."""
    names: list[str] = []
    for file, _ in part.train_list if part.train else part.test_list:
        with (Path(part.root) / part.base_folder / file).open("rb") as batch:  # verified, by us and by torchvision
            names += pickle.load(batch, encoding="latin1")["filenames"]
    order = sorted(range(len(names)), key=lambda i: (part.targets[i], names[i]))
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2)[order].contiguous()
    return Split(images, torch.tensor(part.targets)[order])


def _verify_mat(root: Path, loader: Any) -> None:
    _check_sums(root, {file: checksum for _, file, checksum in (loader.split_list[part] for part in ("train", "test"))})


def _read_mat(parts: Parts) -> Content:
    train, test = (Split(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels)) for part in parts)
    return tuple(map(str, range(10))), train, test  # torchvision has made the label 10 the digit 0


def _check_sums(folder: Path, checksums: dict[str, str]) -> None:
    for path, expected in ((folder / name, checksum) for name, checksum in checksums.items()):
        if not path.is_file():
            raise ValueError(f"{folder} is incomplete, {path.name} is missing; delete it and run again")
        if _md5(path) != expected:
            raise ValueError(f"{path} does not have the official checksum; delete it and fetch it again")


def _md5(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


_TRAIN_OR_NOT: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
IDX = Format(_TRAIN_OR_NOT, _verify_idx, _read_idx)
BATCHES = Format(_TRAIN_OR_NOT, _verify_batches, _read_batches)
MAT = Format(({"split": "train"}, {"split": "test"}), _verify_mat, _read_mat)


def files_at(places: Iterable[Path]) -> list[Path]:
    """Return the files at the places, each a file or a folder, in the order of their paths."""
    inside = (place.rglob("*") if place.is_dir() else [place] for place in places)
    return sorted(path for found in inside for path in found if path.is_file())
