"""Image folders as one tensor per split: ``{train,test}/<class>/<image>``, or ``<class>/<image>`` split by a seed.

Invariant: labels follow the one order of class folders (``listing``) and images the order of (class, file
name), whatever order the disk or the archive lists them in; a class is split by its own name, whatever the others are.
"""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from zspag.lab.data.listing import NO_CLASS, NOT_DIRECT, Parts, Tally, class_of, files_in, first_of, in_order, walk
from zspag.lab.data.pictures import Picture, decode, stacked
from zspag.lab.data.splits import Dataset, Split
from zspag.preflight.inputs import balanced, most_images
from zspag.runtime import generator_for

SPLITS = ("train", "test")


@dataclass(frozen=True)
class FolderOptions:
    """How an image folder becomes a data set."""

    # Resize the shorter side to this many pixels and crop the middle square; None takes images as they are, which must
    # then be square and of one size.
    image_size: int | None = None
    test_share: float | None = 0.2  # of every class where a folder has no train/ and test/; None refuses such folders
    split_seed: int = 0  # seed of that split
    min_per_class: int = 10  # fewest images of a class that is split

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise ValueError(f"test_share must lie between 0 and 1, got {self.test_share}")
        if self.min_per_class < 2:
            raise ValueError(f"min_per_class must be at least 2, one image for each split, got {self.min_per_class}")


def read_image_folder(source: Path, *, name: str, options: FolderOptions, augment_hint: str = "shift_flip") -> Dataset:
    """Read an image folder, or an archive of one, into memory; grey if every image is grey, else RGB.

    Raises:
        ValueError: If a file is broken or of another size than the first, a class has too few images, or the folders
            do not hold the same two or more classes in both splits; the message names the file or the class.
    """
    tally, size = Tally(), options.image_size
    if source.is_file():  # an archive is read once, from its beginning to its end
        found = {
            parts: decode(contents, place="/".join(parts), source=source, image_size=size)
            for parts, contents in files_in(source)
            if tally.is_image(parts)
        }
        chosen, depth = _in_class_folders(source, found, tally)
        pictures = {parts[-depth:]: found[parts] for parts in chosen}
    else:
        paths = {parts: path for parts, path in walk(source) if tally.is_image(parts)}
        chosen, depth = _in_class_folders(source, paths, tally)
        pictures = _decoded(source, {parts: paths[parts] for parts in chosen}, size)
    split = {parts: parts[0] for parts in pictures} if depth == 3 else _divided(source, pictures, options)
    classes = _common_classes(source, split)

    rows = sorted((SPLITS.index(split[parts]), classes.index(parts[-2]), parts[-1], parts) for parts in pictures)
    images = stacked({parts: pictures[parts] for *_, parts in rows}, source=source)
    labels = torch.tensor([label for _, label, *_ in rows])
    count = sum(part == "train" for part in split.values())
    train, test = Split(images[:count], labels[:count]), Split(images[count:], labels[count:])

    suffixes = sorted({PurePosixPath(parts[-1]).suffix.lower() for parts in pictures})
    codings = sorted({picture.lossy for picture in pictures.values() if picture.lossy is not None})
    words = [f"image folder of {' and '.join(suffixes)} files"]
    if codings:
        words.append(f"{' and '.join(f'{coding}-coded' for coding in codings)} (lossy)")
    if size is not None:
        words.append(f"resized to {size}x{size}")
    if depth == 2:
        words.append(f"split by seed {options.split_seed} with {100 * (options.test_share or 0):g} % for the test")
    if tally.files:
        words.append(str(tally))
    return Dataset(name, classes, train, test, augment_hint, ", ".join(words))


def _in_class_folders(source: Path, found: Collection[Parts], tally: Tally) -> tuple[list[Parts], int]:
    # Return the images in class folders, and the length of their paths: 3 with train/ and test/, 2 without. In an
    # archive the image folder may lie anywhere; a folder must be the image folder itself.
    archive = source.is_file()
    published = [parts for parts in found if len(parts) > 2 and parts[-3] in SPLITS and (archive or len(parts) == 3)]
    chosen = published or [parts for parts in found if len(parts) == 2 or (archive and len(parts) > 2)]
    depth = 3 if published else 2
    for parts in sorted(set(found) - set(chosen)):
        outside = NO_CLASS if len(parts) < 2 else NOT_DIRECT
        tally.files["outside of train/<class>/ and test/<class>/" if published else outside].append(parts)
    if not chosen:
        raise ValueError(f"{source} holds no image under train/<class>/ and test/<class>/, nor under <class>/; {tally}")
    tops = {"/".join(parts[:-depth]) for parts in chosen}
    if len(tops) > 1:
        raise ValueError(f"{source} holds more than one image folder: {sorted(tops)}")
    return chosen, depth


def _divided(source: Path, pictures: Iterable[Parts], options: FolderOptions) -> dict[Parts, str]:
    # Return the split of every image at <class>/<image>; both splits get some of every class.
    members: dict[str, list[Parts]] = defaultdict(list)
    for parts in sorted(pictures):
        members[parts[0]].append(parts)
    if options.test_share is None or set(members) <= set(SPLITS):
        raise ValueError(f"{source} has no class folders in train/ and test/; it must hold {{train,test}}/<class>/*")
    if tiny := [name for name, own in members.items() if len(own) < options.min_per_class]:
        count = len(members[tiny[0]])
        others = f" (and so have {len(tiny) - 1} other classes)" if len(tiny) > 1 else ""
        raise ValueError(
            f"the class {tiny[0]!r} in {source} has {_images(count)}, fewer than {options.min_per_class}{others}: add"
            " images, remove its folder, or give a smaller min_per_class (--min-per-class)"
        )
    split: dict[Parts, str] = {}
    for name, own in members.items():
        tested = min(max(round(options.test_share * len(own)), 1), len(own) - 1)
        order = torch.randperm(len(own), generator=generator_for("folder split", options.split_seed, name)).tolist()
        split |= {parts: "test" if position < tested else "train" for parts, position in zip(own, order, strict=True)}
    return split


def _common_classes(source: Path, split: Mapping[Parts, str]) -> tuple[str, ...]:
    # Return the class names in the order of their numbers; both splits must hold the same two or more.
    found = {part: {parts[-2] for parts, own in split.items() if own == part} for part in SPLITS}
    for part in SPLITS:
        if not found[part]:
            raise ValueError(f"{source} holds no image under {part}/<class>/; put train/ and test/ folders there")
    if odd := found["train"] ^ found["test"]:
        raise ValueError(f"the class {min(odd)!r} in {source} has images in only one of train/ and test/")
    if len(found["train"]) < 2:
        raise ValueError(f"{source} holds only the class {min(found['train'])!r}; unlearning needs two or more")
    return in_order(found["train"], source=source)


@dataclass(frozen=True)
class ForgetFolder:
    """Photos to forget."""

    images: Tensor  # shape (n, C, H, W), uint8; one channel if every photo is grey, else three
    labels: Tensor  # class numbers, shape (n,)
    remarks: tuple[str, ...]  # which folder became which class, and what was left out, a line each
    left_out: int = 0  # photos beyond the limit, which were not read
    places: Mapping[int, str] = field(default_factory=dict)  # by class, what named it: "folder photos/3", "--label 3"


def labelled_folder(
    source: Path,
    *,
    classes: Sequence[str] | None = None,
    label: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
) -> ForgetFolder:
    """Read images to forget from ``source/<class>/*``, or from ``source/*`` if all of them are of one class.

    Args:
        source: The folder.
        classes: Class names in the order of the logits: a folder's name is one of them then. None: its class's number.
        label: Name or number of the class of images that lie directly in ``source``; None reads class folders.
        image_size: As in ``FolderOptions``.
        limit: Most photos that are read, equally many of each class; None reads as many of the first one's size as
            ``inputs.FORGET_BYTES`` holds.

    Raises:
        ValueError: If the folder is missing or empty, a name stands for no class, files are broken, or sizes differ.
    """
    FolderOptions(image_size=image_size)  # refuses a size without a pixel
    if not source.is_dir():
        raise ValueError(f"there is no folder {source}: give the folder of the images to forget")
    tally = Tally()
    paths = {parts: path for parts, path in walk(source) if tally.is_image(parts)}
    depth, deeper, place = 2, NOT_DIRECT, "in the folder of a class"
    if label is not None:
        depth, deeper, place = 1, "deeper in it", "directly in it"
    chosen = [parts for parts in paths if len(parts) == depth]
    for parts in paths:
        if len(parts) != depth:
            tally.files[NO_CLASS if len(parts) < depth else deeper].append(parts)
    if not chosen:
        raise ValueError(f"{source} holds no image {place}: {_where_to_put(source, paths, label)}; {tally}")
    if label is not None:
        number = class_of(label, classes=classes, place=f"the label {label!r}")
        numbers, remarks = [number] * len(chosen), [f"{source} is class {number}: {_images(len(chosen))}"]
        places = {number: f"--label {label}"}
    else:
        own = [parts[0] for parts in chosen]
        folders = {name: class_of(name, classes=classes, place=f"the folder {source / name}") for name in own}
        numbers = [folders[name] for name in own]
        places = {number: f"folder {source / name}" for name, number in folders.items()}
        ranked = sorted(folders.items(), key=lambda item: item[1])
        remarks = [f"folder {name} is class {number}: {_images(own.count(name))}" for name, number in ranked]
    if tally.files:
        remarks.append(str(tally))

    labels = torch.tensor(numbers)
    if limit is not None and limit < len(places):
        raise ValueError(
            f"--limit {limit} is less than the {len(places)} classes to forget: give {len(places)} or more"
        )
    used = balanced(labels, limit or _most(source, chosen[0], paths[chosen[0]], image_size))
    if len(used) < len(labels):
        remarks.append(f"{len(used)} of {_images(len(labels))} are read, equally many of each class (--limit)")
    pictures = _decoded(source, {chosen[place]: paths[chosen[place]] for place in used.tolist()}, image_size)
    images = stacked(pictures, source=source, square=False)
    return ForgetFolder(images, labels[used], tuple(remarks), len(labels) - len(used), places)


def _where_to_put(source: Path, found: Collection[Parts], label: str | None) -> str:
    # The remedy where no image lies where it should.
    if label is not None and found:
        return f"leave out the label (--label {label}), or give the folder {source / next(iter(found))[0]}"
    return f"put images under {source / '<class>'}/, or all in {source} and give their class (--label)"


def _most(source: Path, parts: Parts, path: Path, image_size: int | None) -> int:
    """Return how many photos of the size of this one are used if nobody sets a limit."""
    try:
        picture = decode(path.read_bytes(), place="/".join(parts), source=source, image_size=image_size)
    except (ValueError, OSError):
        return sys.maxsize  # whoever reads it again says what is wrong with it
    return most_images(picture.pixels.size)


def _decoded(source: Path, paths: Mapping[Parts, Path], image_size: int | None) -> dict[Parts, Picture]:
    # Decode all images before complaining: the message counts those that cannot be used and says why the first.
    pictures: dict[Parts, Picture] = {}
    broken: dict[Parts, Exception] = {}
    for parts, path in paths.items():
        try:
            contents = path.read_bytes()
            pictures[parts] = decode(contents, place="/".join(parts), source=source, image_size=image_size)
        except (ValueError, OSError) as error:
            broken[parts] = error
    if broken:
        reason = next(iter(broken.values()))
        many = f"{len(broken)} of {len(paths)} images cannot be used ({first_of(list(broken))}): "
        raise ValueError(f"{many if len(broken) > 1 else ''}{reason}") from reason
    return pictures


def _images(count: int) -> str:
    return f"{count} image{'s' * (count > 1)}"
