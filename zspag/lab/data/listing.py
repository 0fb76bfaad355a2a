"""Which files of a folder are images of a class, what is left out and why, and which class a folder's name means.

One rule from names to numbers: a folder whose name is a number holds the images of that class; other names follow the
numbers in alphabetical order. Where a number would come to stand for another class than its own, the folder is refused.

Invariant: every file is either used or counted with a reason; but what file managers leave in every folder is no file
of the reader's.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from zspag.lab.data.pictures import IMAGE_SUFFIXES

Parts = tuple[str, ...]  # a path inside the folder or archive

LITTER = ("thumbs.db", "desktop.ini", ".ds_store", "ehthumbs.db")
NAMED = 3  # files that a tally names for each reason
NOT_DIRECT = "deeper than a class folder"
NO_CLASS = "outside of a class folder"


@dataclass(frozen=True)
class Tally:
    """The files that are left out, by reason, in the order in which they were met.

    Attributes:
        files: Paths inside the folder, for each reason.
    """

    files: dict[str, list[Parts]] = field(default_factory=lambda: defaultdict(list))

    def leave_out(self, parts: Parts, reason: str) -> None:
        """Note a file that is not used."""
        self.files[reason].append(parts)

    def is_image(self, parts: Parts) -> bool:
        """Tell whether a file is an image by its name; note it if it is none."""
        reason = _reason(parts)
        if reason:
            self.leave_out(parts, reason)
        return reason is None

    def __str__(self) -> str:
        """Say how many files are left out and why, with the first names of each reason; empty if none is."""
        if not self.files:
            return ""
        reasons = [f"{len(found)} {reason} ({first_of(found)})" for reason, found in sorted(self.files.items())]
        count = sum(map(len, self.files.values()))
        return f"left out {count} file{'s' * (count > 1)}: {', '.join(reasons)}"


def _reason(parts: Parts) -> str | None:
    """Return why a file is no image of the reader's; None if it is one, empty if it is not worth a word."""
    name = parts[-1].lower()
    if name in LITTER or name.startswith("._"):  # macOS writes a ._ twin beside every file on a foreign disk
        return ""
    if any(part.startswith((".", "__")) for part in parts):  # .ipynb_checkpoints, __MACOSX
        return "hidden"
    return None if PurePosixPath(name).suffix in IMAGE_SUFFIXES else "not an image that can be read, by its name"


def first_of(found: Sequence[Parts]) -> str:
    """Return the first few paths as text, with dots if there are more."""
    names = ["/".join(parts) for parts in found[:NAMED]]
    return ", ".join([*names, *(["..."] if len(found) > NAMED else [])])


def walk(folder: Path) -> Iterator[tuple[Parts, Path]]:
    """Yield every file under a folder with its path inside, sorted within each folder; links are followed.

    Raises:
        OSError: If a folder inside cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    for place, inside, names in os.walk(folder, followlinks=True, onerror=stop):
        here = Path(place)
        inside[:] = sorted(name for name in inside if not _leads_back(here / name))
        for name in sorted(names):
            path = here / name
            if path.is_file():
                yield path.relative_to(folder).parts, path


def _leads_back(folder: Path) -> bool:
    """Tell whether a link to a folder leads to one that holds the link, which would be walked without an end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def is_number(name: str) -> bool:
    """Tell whether a folder's name is the number of a class.

    Example:
        >>> [is_number(name) for name in ("10", "007", "-1", "²", "cat")]
        [True, True, False, False, False]
    """
    return name.isascii() and name.isdecimal()


def in_order(names: Collection[str], *, source: Path) -> tuple[str, ...]:
    """Return the class folders in the order of their class numbers: numbers by value, then names by the alphabet.

    Args:
        names: Names of the folders.
        source: Folder or archive, for messages.

    Raises:
        ValueError: If a folder named by a number would be another class than that number.

    Example:
        >>> in_order(["10", "9", "8", "7", "6", "5", "4", "3", "2", "1", "0"], source=Path("photos"))[-2:]
        ('9', '10')
    """
    order = tuple(sorted(names, key=lambda name: (not is_number(name), int(name) if is_number(name) else 0, name)))
    for number, name in enumerate(order):
        if is_number(name) and int(name) != number:
            raise ValueError(
                f"{source} has a class folder {name!r}, which would be class {number}: a folder whose name is a number"
                f" must be that class, so number the folders from 0 without a gap, or put a letter before each number"
            )
    return order


def class_of(name: str, *, classes: Sequence[str] | None, place: str) -> int:
    """Return the class number that a name stands for.

    Args:
        name: Name of a folder, or what the reader gave as a label.
        classes: Class names in the order of the logits; None where there are only numbers.
        place: What the name belongs to, for messages.

    Raises:
        ValueError: If the name is no number, or no name of the list.
    """
    if classes is None:
        if not is_number(name):
            raise ValueError(
                f"{place} must be named by the number of its class, such as 3, or give the class names in a file, one"
                " a line in the order of the logits (--classes-file)"
            )
        return int(name)
    known = [unicodedata.normalize("NFC", each) for each in classes]  # macOS spells umlauts with two characters
    plain = unicodedata.normalize("NFC", name)
    if plain not in known:
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"{place} is none of the {len(known)} class names given: {shown}; rename it or correct them")
    return known.index(plain)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names from a text file: one a line, in the order of the model's logits.

    Raises:
        ValueError: If the file is no text, is empty, has an empty line between names, or a name twice.
    """
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error}); save the class names so") from error
    names = [name.strip() for name in names]
    for number, name in enumerate(names):
        if not name:
            raise ValueError(f"line {number + 1} of {path} is empty: every line names the class of one logit")
        if name in names[:number]:
            raise ValueError(
                f"{path} names the class {name!r} twice, in lines {names.index(name) + 1} and {number + 1}"
            )
    if not names:
        raise ValueError(f"{path} is empty: write one class name a line, in the order of the model's logits")
    return tuple(names)
