"""Image folders as one tensor per split: ``{train,test}/<class>/<image>``, or ``<class>/<image>`` split by a seed.

Invariant: labels follow the one order of class folders (``listing``) and images the order of (class, file
name), whatever order the disk or the archive lists them in; a class is split by its own name, whatever the others are.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from zspag.lab.data.archives import files_in
from zspag.lab.data.listing import NO_CLASS, NOT_DIRECT, Parts, Tally, class_of, first_of, in_order, walk
from zspag.lab.data.pictures import Picture, check_sizes, decode, stacked
from zspag.lab.data.splits import Dataset, Split, assemble
from zspag.runtime import generator_for

SPLITS = ("train", "test")
READING = 2  # counts the changes of how a folder becomes tensors: a cache of an older reading is made anew

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
    tally = Tally()
    inside, divided = _chosen(source, options.image_size, tally)
    placed = _divided(source, inside, options) if divided else {(p[0], p[1], p[2]): q for p, q in inside.items()}
    classes = _common_classes(source, placed)
    check_sizes(source, {"/".join(parts): picture for parts, picture in inside.items()})
    coloured = any(picture.pixels.ndim == 3 for picture in placed.values())
    train, test = (_split(placed, part, classes, coloured=coloured) for part in SPLITS)
    words = _words(placed, options, tally, divided=divided)
    return assemble(name, classes, train, test, augment_hint=augment_hint, data_source=words)


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
    """Return the signature of an image folder, or of an archive of one, and of how such folders are read."""
    if source.is_file():
        return signature([source], base=source.parent) | {"reading": READING}
    return signature((path for _, path in walk(source)), base=source) | {"reading": READING}


def _chosen(source: Path, image_size: int | None, tally: Tally) -> tuple[dict[Parts, Picture], bool]:
    """Return the images by their path inside the image folder, and whether they are still to be split."""

    def decoded(parts: Parts, contents: bytes) -> Picture:
        return decode(contents, place="/".join(parts), source=source, image_size=image_size)

    if source.is_file():  # an archive is read once, from its beginning to its end
        members = ((tuple(p for p in PurePosixPath(name).parts if p != "."), data) for name, data in files_in(source))
        found = {parts: decoded(parts, contents) for parts, contents in members if tally.is_image(parts)}
        inside, divided = _inside(source, found, tally)
        return {parts[-(2 if divided else 3) :]: found[parts] for parts in inside}, divided
    paths = {parts: path for parts, path in walk(source) if tally.is_image(parts)}
    inside, divided = _inside(source, paths, tally)
    return {parts: decoded(parts, paths[parts].read_bytes()) for parts in inside}, divided


def _inside(source: Path, found: Iterable[Parts], tally: Tally) -> tuple[list[Parts], bool]:
    """Return the images that lie in the folder of a class, and whether they are still to be split.

    The image folder may lie anywhere in an archive, but a folder is taken at its word.

    Raises:
        ValueError: If there is no image, or more than one image folder.
    """
    found, archive = list(found), source.is_file()
    deep = [p for p in found if len(p) > 2 and p[-3] in SPLITS and (archive or len(p) == 3)]
    chosen = deep or [p for p in found if (len(p) > 1 if archive else len(p) == 2)]
    tops = {parts[: -3 if deep else -2] for parts in chosen}
    for parts in sorted(set(found) - set(chosen)):
        outside = NO_CLASS if len(parts) < 2 else NOT_DIRECT
        tally.leave_out(parts, "outside of train/<class>/ and test/<class>/" if deep else outside)
    if not chosen:
        more = f"; {tally}" if tally.files else ""
        raise ValueError(f"{source} holds no image under train/<class>/ and test/<class>/, nor under <class>/{more}")
    if len(tops) > 1:
        raise ValueError(f"{source} holds more than one image folder: {sorted('/'.join(top) for top in tops)}")
    return chosen, not deep


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
    return in_order(found["train"], source=source)


def _split(placed: Mapping[Place, Picture], part: str, classes: tuple[str, ...], *, coloured: bool) -> Split:
    places = sorted((p for p in placed if p[0] == part), key=lambda place: (classes.index(place[1]), place[2]))
    images = stacked([placed[place] for place in places], coloured=coloured)
    return Split(images, torch.tensor([classes.index(place[1]) for place in places]))


def _words(placed: Mapping[Place, Picture], options: FolderOptions, tally: Tally, *, divided: bool) -> str:
    """Say where the pixels came from, and which files were left out."""
    suffixes = sorted({PurePosixPath(file).suffix.lower() for _, _, file in placed})
    codings = sorted({picture.lossy for picture in placed.values() if picture.lossy is not None})
    words = [f"image folder of {' and '.join(suffixes)} files"]
    if codings:
        words.append(f"{' and '.join(f'{coding}-coded' for coding in codings)} (lossy)")
    if options.image_size is not None:
        words.append(f"resized to {options.image_size}x{options.image_size}")
    if divided and options.test_share is not None:  # a folder that must have its own split is never divided
        words.append(f"split by seed {options.split_seed} with {100 * options.test_share:g} % for the test")
    return ", ".join([*words, *([str(tally)] if tally.files else [])])


@dataclass(frozen=True)
class ForgetFolder:
    """Photos to forget.

    Attributes:
        images: Shape (n, C, H, W), uint8; one channel if every photo is grey, else three.
        labels: Class numbers, shape (n,).
        remarks: Which folder became which class, and what was left out, a line each.
    """

    images: Tensor
    labels: Tensor
    remarks: tuple[str, ...]


def labelled_folder(
    source: Path, *, classes: Sequence[str] | None = None, label: str | None = None, image_size: int | None = None
) -> ForgetFolder:
    """Read images to forget from ``source/<class>/*``, or from ``source/*`` if all of them are of one class.

    Args:
        source: The folder.
        classes: Class names in the order of the logits: a folder's name is one of them then. None: its class's number.
        label: Name or number of the class of images that lie directly in ``source``; None reads class folders.
        image_size: Resize the shorter side to this many pixels and crop the middle square; None takes images as they
            are, which must then be square and of one size.

    Raises:
        ValueError: If the folder is missing or empty, a name stands for no class, files are broken, or sizes differ.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    if not source.is_dir():
        raise ValueError(f"there is no folder {source}: give the folder of the images to forget")
    tally = Tally()
    paths = {parts: path for parts, path in walk(source) if tally.is_image(parts)}
    chosen = _to_forget(source, list(paths), tally, direct=label is not None)
    names = {parts[0]: f"the folder {source / parts[0]}" for parts in chosen}
    if label is not None:
        number = class_of(label, classes=classes, place=f"the label {label!r}")
        numbers, remarks = dict.fromkeys(chosen, number), [f"{source} is class {number}: {_images(len(chosen))}"]
    else:
        folders = {name: class_of(name, classes=classes, place=place) for name, place in names.items()}
        numbers = {parts: folders[parts[0]] for parts in chosen}
        remarks = [
            f"folder {name} is class {number}: {_images(sum(parts[0] == name for parts in chosen))}"
            for name, number in sorted(folders.items(), key=lambda item: item[1])
        ]
    pictures = _all_decoded(source, {parts: paths[parts] for parts in chosen}, image_size)
    check_sizes(source, pictures, remedy="give image_size (--image-size) to resize all of them to one square size")
    images = stacked(list(pictures.values()), coloured=any(picture.pixels.ndim == 3 for picture in pictures.values()))
    labels = torch.tensor([numbers[parts] for parts in chosen])
    return ForgetFolder(images, labels, (*remarks, *([str(tally)] if tally.files else [])))


def _images(count: int) -> str:
    return f"{count} image{'s' * (count > 1)}"


def _to_forget(source: Path, found: Sequence[Parts], tally: Tally, *, direct: bool) -> list[Parts]:
    """Return the images that lie directly in the folder, or directly in a class folder; count the others.

    Raises:
        ValueError: If there is none.
    """
    depth = 1 if direct else 2
    chosen = [parts for parts in found if len(parts) == depth]
    for parts in found:
        if len(parts) != depth:
            tally.leave_out(parts, NO_CLASS if len(parts) < depth else "deeper in it" if direct else NOT_DIRECT)
    if chosen:
        return chosen
    more = f"; {tally}" if tally.files else ""
    if direct:
        raise ValueError(f"{source} holds no image directly: without a label the folders in it are classes{more}")
    if any(len(parts) == 1 for parts in found):
        raise ValueError(
            f"{source} holds {_images(sum(len(parts) == 1 for parts in found))} but no folder of a class: give the"
            f" class of all of them (--label), or put them under {source / '<class>'}/"
        )
    raise ValueError(f"{source} holds no image: put the images to forget under {source / '<class>'}/{more}")


def _all_decoded(source: Path, paths: Mapping[Parts, Path], image_size: int | None) -> dict[str, Picture]:
    """Decode all images, by their path inside the folder.

    Raises:
        ValueError: If some cannot be used; the message counts them, names the first and says what is wrong with it.
    """
    pictures: dict[str, Picture] = {}
    broken = Tally()
    reasons = []
    for parts, path in paths.items():
        place = "/".join(parts)
        try:
            pictures[place] = decode(path.read_bytes(), place=place, source=source, image_size=image_size)
        except (ValueError, OSError) as error:
            reasons.append(error)
            broken.leave_out(parts, "that cannot be used")
    if len(reasons) == 1:
        raise ValueError(str(reasons[0])) from reasons[0]
    if reasons:
        (names,) = broken.files.values()
        raise ValueError(f"{len(names)} of {len(paths)} images cannot be used ({first_of(names)}): {reasons[0]}")
    return pictures
