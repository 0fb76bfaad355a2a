"""Image folders as one tensor per split: ``{train,test}/<class>/<image>``, or ``<class>/<image>`` split by a seed.

Invariant: labels follow the alphabetical order of the class folders and images the order of (class, file name),
whatever order the disk or the archive lists them in; a class is split by its own name, whatever the others are.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from zspag.data.archives import files_in
from zspag.data.pictures import IMAGE_SUFFIXES, Picture, check_sizes, decode, stacked
from zspag.data.splits import Dataset, Split, assemble
from zspag.runtime import generator_for

SPLITS = ("train", "test")

Place = tuple[str, str, str]  # split, class and file name


@dataclass(frozen=True)
class FolderOptions:
    """How an image folder becomes a data set.

    Attributes:
        image_size: Resize the shorter side to this many pixels and crop the middle square; None takes images as they
            are, which must then be square and of one size.
        test_share: Share of every class that becomes the test split where there are no train/ and test/ folders; None
            requires them.
        split_seed: Seed of that split.
        min_per_class: Fewest images of a class that is split.
    """

    image_size: int | None
    test_share: float | None
    split_seed: int
    min_per_class: int

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise ValueError(f"test_share must lie between 0 and 1, got {self.test_share}")
        if self.min_per_class < 2:
            raise ValueError(f"min_per_class must be at least 2, one image for each split, got {self.min_per_class}")


def read_image_folder(source: Path, *, name: str, options: FolderOptions, augment_hint: str = "shift_flip") -> Dataset:
    """Read an image folder, or an archive of one, into memory.

    Args:
        source: Folder with train/<class>/ and test/<class>/, or with <class>/ alone, or an archive of it.
        name: Name of the data set.
        options: Size and split.
        augment_hint: Label-preserving augmentation, as in ``Dataset``.

    Returns:
        The data set; grey if every image is grey, else RGB.

    Raises:
        ValueError: If a file is broken or of another size than the first, a class has too few images, or the folders
            do not hold the same two or more classes in both splits; the message names the file or the class.
    """
    files = files_in(source) if source.is_file() else ((name, path.read_bytes()) for name, path in _listed(source))
    decoded = {
        parts: decode(contents, place="/".join(parts), source=source, image_size=options.image_size)
        for parts, contents in _images(files)
    }
    inside, divided = _inside(source, decoded)
    placed = _divided(source, inside, options) if divided else {(p[0], p[1], p[2]): q for p, q in inside.items()}
    classes = _common_classes(source, placed)
    check_sizes(source, {"/".join(parts): picture for parts, picture in inside.items()})
    coloured = any(picture.pixels.ndim == 3 for picture in placed.values())
    train, test = (_split(placed, part, classes, coloured=coloured) for part in SPLITS)
    words = _words(placed, options, divided=divided)
    return assemble(name, classes, train, test, augment_hint=augment_hint, data_source=words)


def labelled_folder(source: Path) -> tuple[Tensor, Tensor]:
    """Read images to forget from ``source/<label>/*``, the label's number as folder name.

    Returns:
        Images (n, C, H, W) float on [0, 1] and labels (n,).

    Raises:
        ValueError: If the folder is missing or empty, a label is no number, a file is broken, or sizes differ.
    """
    decoded: dict[Place, Picture] = {}
    for path in sorted(source.glob("*/*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            if not path.parent.name.isdigit():
                raise ValueError(f"{path.parent} must be named by the label's number, such as {source / '3'}")
            place = "/".join(path.parts[-2:])
            decoded["forget", path.parent.name, path.name] = decode(
                path.read_bytes(), place=place, source=source, image_size=None
            )
    if not decoded:
        raise ValueError(f"{source} holds no image: put the images to forget under {source / '<label>'}/")
    check_sizes(source, {"/".join(place[1:]): p for place, p in decoded.items()}, remedy="resize as the model expects")
    labels = tuple(sorted({place[1] for place in decoded}, key=int))
    split = _split(decoded, "forget", labels, coloured=any(picture.pixels.ndim == 3 for picture in decoded.values()))
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
    deep = [path for split in SPLITS for path in (folder / split).glob("*/*") if path.is_file()]
    for path in sorted(deep or [path for path in folder.glob("*/*") if path.is_file()]):
        yield path.relative_to(folder).as_posix(), path


def _images(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[tuple[str, ...], bytes]]:
    for name, contents in files:
        path = PurePosixPath(name)
        parts = tuple(part for part in path.parts if part != ".")
        hidden = any(part.startswith((".", "__")) for part in parts)  # .DS_Store, __MACOSX
        if not hidden and len(parts) >= 2 and path.suffix.lower() in IMAGE_SUFFIXES:
            yield parts, contents


def _inside(source: Path, decoded: Mapping[tuple[str, ...], Picture]) -> tuple[dict[tuple[str, ...], Picture], bool]:
    """Return the images by their path inside the image folder, and whether they are still to be split.

    Raises:
        ValueError: If there is no image, or more than one image folder.
    """
    deep = [parts for parts in decoded if len(parts) > 2 and parts[-3] in SPLITS]
    depth, chosen = (3, deep) if deep else (2, list(decoded))
    tops = {parts[:-depth] for parts in chosen}
    if not chosen:
        raise ValueError(f"{source} holds no image under train/<class>/ and test/<class>/, nor under <class>/")
    if len(tops) > 1:
        raise ValueError(f"{source} holds more than one image folder: {sorted('/'.join(top) for top in tops)}")
    return {parts[-depth:]: decoded[parts] for parts in chosen}, not deep


def _divided(source: Path, inside: Mapping[tuple[str, ...], Picture], options: FolderOptions) -> dict[Place, Picture]:
    members: dict[str, list[str]] = defaultdict(list)
    for name, file in sorted(inside):
        members[name].append(file)
    if options.test_share is None or set(members) <= set(SPLITS):
        raise ValueError(f"{source} has no class folders in train/ and test/; it must hold {{train,test}}/<class>/*")
    if tiny := [name for name, names in members.items() if len(names) < options.min_per_class]:
        count = len(members[tiny[0]])
        others = f" (and so have {len(tiny) - 1} other classes)" if len(tiny) > 1 else ""
        raise ValueError(
            f"the class {tiny[0]!r} in {source} has {count} image{'s' * (count > 1)}, fewer than"
            f" {options.min_per_class}{others}: add images, remove its folder, or give a smaller min_per_class"
        )
    placed: dict[Place, Picture] = {}
    for name, names in members.items():
        for part, file in zip(_parts(name, len(names), options.test_share, options.split_seed), names, strict=True):
            placed[part, name, file] = inside[name, file]
    return placed


def _parts(name: str, count: int, test_share: float, seed: int) -> list[str]:
    """Return the split of every image of a class; both splits get at least one."""
    tested = min(max(round(test_share * count), 1), count - 1)
    order = torch.randperm(count, generator=generator_for("folder split", seed, name)).tolist()
    return ["test" if position < tested else "train" for position in order]


def _common_classes(source: Path, placed: Iterable[Place]) -> tuple[str, ...]:
    found = {split: {place[1] for place in placed if place[0] == split} for split in SPLITS}
    for split in SPLITS:
        if not found[split]:
            raise ValueError(f"{source} holds no image under {split}/<class>/; put train/ and test/ folders there")
    if odd := found["train"] ^ found["test"]:
        raise ValueError(f"the class {min(odd)!r} in {source} has images in only one of train/ and test/")
    if len(found["train"]) < 2:
        raise ValueError(f"{source} holds only the class {min(found['train'])!r}; unlearning needs two or more")
    return tuple(sorted(found["train"]))


def _split(placed: Mapping[Place, Picture], part: str, classes: tuple[str, ...], *, coloured: bool) -> Split:
    places = sorted(place for place in placed if place[0] == part)
    images = stacked([placed[place] for place in places], coloured=coloured)
    return Split(images, torch.tensor([classes.index(place[1]) for place in places]))


def _words(placed: Mapping[Place, Picture], options: FolderOptions, *, divided: bool) -> str:
    """Say where the pixels came from."""
    suffixes = sorted({PurePosixPath(file).suffix.lower() for _, _, file in placed})
    codings = sorted({picture.lossy for picture in placed.values() if picture.lossy is not None})
    words = [f"image folder of {' and '.join(suffixes)} files"]
    if codings:
        words.append(f"{' and '.join(f'{coding}-coded' for coding in codings)} (lossy)")
    if options.image_size is not None:
        words.append(f"resized to {options.image_size}x{options.image_size}")
    if divided and options.test_share is not None:  # a folder that must have its own split is never divided
        words.append(f"split by seed {options.split_seed} with {100 * options.test_share:g} % for the test")
    return ", ".join(words)
