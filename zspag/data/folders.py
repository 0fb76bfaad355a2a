"""Image folders ``{train,test}/<class>/<image>``, on disk or inside an archive, as one tensor per split.

Invariant: labels follow the alphabetical order of the class folders and images the order of (class, file name),
whatever order the disk or the archive lists them in.
"""

import hashlib
import io
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zspag.data.archives import files_in
from zspag.data.splits import Dataset, Split, assemble

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
SPLITS = ("train", "test")
BROKEN = (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError)  # Pillow's, by format

Pixels = NDArray[np.uint8]


def read_image_folder(source: Path, *, name: str, image_size: int | None) -> Dataset:
    """Read an image folder, or an archive of one, into memory.

    Args:
        source: Folder with train/<class>/ and test/<class>/, or an archive of it.
        name: Name of the data set.
        image_size: Resize the shorter side to this many pixels and crop the middle square; None takes images as they
            are, which must then be square and of one size.

    Returns:
        The data set; grey if every image is grey, else RGB.

    Raises:
        ValueError: If a file is broken or of another size than the first, or the folders do not hold the same two or
            more classes in both splits; the message names the file or the class.
    """
    files = files_in(source) if source.is_file() else _files_under(source)
    decoded: dict[tuple[str, str, str], Pixels] = {}
    for place, contents in _placed(source, files):
        decoded[place] = _decode(contents, place="/".join(place), source=source, image_size=image_size)
    classes = _common_classes(source, decoded)
    _check_sizes(source, decoded)
    coloured = any(pixels.ndim == 3 for pixels in decoded.values())
    train, test = (_stack(decoded, split, classes, coloured=coloured) for split in SPLITS)
    return assemble(name, classes, train, test, augment_hint="shift_flip")


def labelled_folder(source: Path) -> tuple[Tensor, Tensor]:
    """Read images to forget from ``source/<label>/*``, the label's number as folder name.

    Returns:
        Images (n, C, H, W) float on [0, 1] and labels (n,).

    Raises:
        ValueError: If the folder is missing or empty, a label is no number, a file is broken, or sizes differ.
    """
    decoded: dict[tuple[str, str, str], Pixels] = {}
    for path in sorted(source.glob("*/*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            if not path.parent.name.isdigit():
                raise ValueError(f"{path.parent} must be named by the label's number, such as {source / '3'}")
            place = ("forget", path.parent.name, path.name)
            decoded[place] = _decode(path.read_bytes(), place="/".join(place[1:]), source=source, image_size=None)
    if not decoded:
        raise ValueError(f"{source} holds no image: put the images to forget under {source / '<label>'}/")
    _check_sizes(source, decoded, remedy="resize them as the model expects")
    labels = tuple(sorted({place[1] for place in decoded}, key=int))
    split = _stack(decoded, "forget", labels, coloured=any(pixels.ndim == 3 for pixels in decoded.values()))
    return split.float(), torch.tensor([int(labels[index]) for index in split.labels.tolist()])


def signature(paths: Iterable[Path], *, base: Path) -> dict[str, int | str]:
    """Return count, size in bytes and a hash of names, sizes and times of change, without reading the files."""
    facts = [(path, path.stat()) for path in paths]
    rows = [[path.relative_to(base).as_posix(), fact.st_size, fact.st_mtime_ns] for path, fact in facts]
    return {
        "files": len(rows),
        "bytes": sum(fact.st_size for _, fact in facts),
        "listing_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def folder_signature(source: Path) -> dict[str, int | str]:
    """Return the signature of an image folder, or of an archive of one."""
    if source.is_file():
        return signature([source], base=source.parent)
    return signature((path for _, path in _listed(source)), base=source)


def _listed(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob("*/*/*")):
        if path.parent.parent.name in SPLITS and path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _files_under(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((name, path.read_bytes()) for name, path in _listed(folder))


def _placed(source: Path, files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[tuple[str, str, str], bytes]]:
    tops: set[tuple[str, ...]] = set()
    for name, contents in files:
        path = PurePosixPath(name)
        parts = tuple(part for part in path.parts if part != ".")
        hidden = any(part.startswith((".", "__")) for part in parts)  # .DS_Store, __MACOSX
        if hidden or len(parts) < 3 or parts[-3] not in SPLITS or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        tops.add(parts[:-3])
        if len(tops) > 1:
            raise ValueError(f"{source} holds more than one image folder: {sorted('/'.join(top) for top in tops)}")
        yield (parts[-3], parts[-2], parts[-1]), contents


def _decode(contents: bytes, *, place: str, source: Path, image_size: int | None) -> Pixels:
    try:
        with Image.open(io.BytesIO(contents)) as image:
            image.load()
    except BROKEN as error:
        raise ValueError(f"{place} in {source} is not a readable image ({error}); replace or remove it") from error
    if image.mode in DEEP_MODES:
        raise ValueError(f"{place} in {source} has mode {image.mode}; only 8 bits per channel are supported")
    plain = image.convert("L" if image.mode in GREY_MODES else "RGB")
    return np.array(plain if image_size is None else _resized(plain, image_size))


def _resized(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def _common_classes(source: Path, decoded: Iterable[tuple[str, str, str]]) -> tuple[str, ...]:
    found = {split: {place[1] for place in decoded if place[0] == split} for split in SPLITS}
    for split in SPLITS:
        if not found[split]:
            raise ValueError(f"{source} holds no image under {split}/<class>/; put train/ and test/ folders there")
    if odd := found["train"] ^ found["test"]:
        raise ValueError(f"the class {min(odd)!r} in {source} has images in only one of train/ and test/")
    if len(found["train"]) < 2:
        raise ValueError(f"{source} holds only the class {min(found['train'])!r}; unlearning needs two or more")
    return tuple(sorted(found["train"]))


def _check_sizes(
    source: Path, decoded: dict[tuple[str, str, str], Pixels], *, remedy: str = "give image_size to resize all of them"
) -> None:
    (first, reference), *others = sorted(decoded.items(), key=lambda item: item[0])
    height, width = reference.shape[:2]
    for place, pixels in others:
        if pixels.shape[:2] != (height, width):
            raise ValueError(
                f"{'/'.join(place)} in {source} is {pixels.shape[1]}x{pixels.shape[0]} pixels, but"
                f" {'/'.join(first)} is {width}x{height}; {remedy}"
            )
    if height != width:
        raise ValueError(f"the images in {source} are {width}x{height}, not square; {remedy}")


def _stack(
    decoded: dict[tuple[str, str, str], Pixels], split: str, classes: tuple[str, ...], *, coloured: bool
) -> Split:
    places = sorted(place for place in decoded if place[0] == split)
    pictures = [decoded[place] for place in places]
    if coloured:
        pictures = [p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2) for p in pictures]
    images: Tensor = torch.from_numpy(np.stack(pictures))
    images = images.permute(0, 3, 1, 2).contiguous() if coloured else images[:, None]
    return Split(images, torch.tensor([classes.index(place[1]) for place in places]))
