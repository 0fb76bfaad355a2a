"""Which files of a folder or an archive are images of a class, what is left out, and which class a name means.

One rule from names to numbers: a folder whose name is a number holds the images of that class; other names follow the
numbers in alphabetical order. Where a number would come to stand for another class than its own, the folder is refused.

Invariant: every file is either used or counted with a reason, except what file managers leave in every folder. A
member of an archive that has an absolute path or a ``..``, or is a link or a device, stops the reading.
"""

import lzma
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from zspag.lab.data.pictures import IMAGE_SUFFIXES

Parts = tuple[str, ...]  # a path inside the folder or archive

ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".tar.bz2", ".tar", ".zip")
# RuntimeError is how zipfile says that a member is encrypted or packed in an unknown way.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError)
LITTER = ("thumbs.db", "desktop.ini", ".ds_store", "ehthumbs.db")
NAMED = 3  # files that a tally names for each reason
NOT_DIRECT = "deeper than a class folder"
NO_CLASS = "outside of a class folder"


class Tally:
    """The files that are left out: their paths by reason, in the order in which they were met."""

    def __init__(self) -> None:
        self.files: dict[str, list[Parts]] = defaultdict(list)

    def is_image(self, parts: Parts) -> bool:
        """Tell whether a file is an image by its name; note it if it is none."""
        name = parts[-1].lower()
        if name in LITTER or name.startswith("._"):  # macOS writes a ._ twin beside every file on a foreign disk
            return False
        if any(part.startswith((".", "__")) for part in parts):  # .ipynb_checkpoints, __MACOSX
            self.files["hidden"].append(parts)
            return False
        if PurePosixPath(name).suffix not in IMAGE_SUFFIXES:
            self.files["not an image that can be read, by its name"].append(parts)
            return False
        return True

    def __str__(self) -> str:
        """Say how many files are left out and why, with the first names of each reason."""
        reasons = [f"{len(found)} {reason} ({first_of(found)})" for reason, found in sorted(self.files.items())]
        count = sum(map(len, self.files.values()))
        return f"left out {count} file{'s' * (count != 1)}" + (f": {', '.join(reasons)}" if reasons else "")


def first_of(found: Sequence[Parts]) -> str:
    """Return the first few paths as text, with dots if there are more."""
    names = ["/".join(parts) for parts in found[:NAMED]]
    return ", ".join([*names, *(["..."] if len(found) > NAMED else [])])


def walk(folder: Path) -> Iterator[tuple[Parts, Path]]:
    """Yield every file under a folder with its path inside, files before folders, sorted; links are followed."""

    def visit(here: Path) -> Iterator[tuple[Parts, Path]]:
        children = sorted(here.iterdir(), key=lambda path: path.name)
        yield from ((path.relative_to(folder).parts, path) for path in children if path.is_file())
        for path in children:
            leads_back = path.is_symlink() and here.resolve().is_relative_to(path.resolve())  # walked without an end
            if path.is_dir() and not leads_back:
                yield from visit(path)

    return visit(folder)


def find_archive(folder: Path, name: str) -> Path | None:
    """Return the archive ``folder/name.*`` if there is one."""
    return next((path for suffix in ARCHIVES if (path := folder / f"{name}{suffix}").is_file()), None)


def files_in(archive: Path) -> Iterator[tuple[Parts, bytes]]:
    """Yield path and contents of every file, in the order of the archive; nothing is written.

    Raises:
        ValueError: If the archive is damaged, or a member is a link or a device, or its path leaves the archive.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as bundle:
                for info in bundle.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)  # 0: written by a system without Unix modes
                    plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                    parts = _safe_parts(archive, info.filename, link=kind == stat.S_IFLNK, plain=plain)
                    if not info.is_dir():
                        yield parts, bundle.read(info)
            return
        with tarfile.open(archive, "r|*") as stream:  # one pass: an .xz cannot be read backwards cheaply
            for member in stream:
                link, plain = member.issym() or member.islnk(), member.isfile() or member.isdir()
                parts = _safe_parts(archive, member.name, link=link, plain=plain)
                contents = stream.extractfile(member) if member.isfile() else None
                if contents is not None:
                    yield parts, contents.read()
    except DAMAGE as error:
        raise ValueError(f"{archive} is not a whole archive ({error}); delete it and fetch it again") from error


def _safe_parts(archive: Path, name: str, *, link: bool, plain: bool) -> Parts:
    path, windows = PurePosixPath(name), PureWindowsPath(name)  # the latter splits at both kinds of slashes
    if path.is_absolute() or windows.is_absolute() or windows.drive:
        raise ValueError(f"{archive} is refused: its member {name!r} has an absolute path")
    if ".." in windows.parts:
        raise ValueError(f"{archive} is refused: its member {name!r} leaves the folder through '..'")
    if link or not plain:
        raise ValueError(f"{archive} is refused: its member {name!r} is {'a link' if link else 'a device or a pipe'}")
    return path.parts


def unpack(archive: Path, target: Path) -> None:
    """Unpack the folder ``target.name`` at the top of the archive as ``target``, which appears whole or not at all.

    Raises:
        ValueError: If the archive is damaged, unsafe (as in ``files_in``) or lacks the folder.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as folder:
        for parts, contents in files_in(archive):
            path = Path(folder, *parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
        inner = Path(folder) / target.name
        if not inner.is_dir():
            raise ValueError(f"{archive} holds no folder {target.name}/ at its top; is it the right archive?")
        inner.rename(target)


def is_number(name: str) -> bool:
    """Tell whether a folder's name is the number of a class, as "10" and "007" are, "-1" and "²" not."""
    return name.isascii() and name.isdecimal()


def in_order(names: Collection[str], *, source: Path) -> tuple[str, ...]:
    """Return the class folders of ``source`` in the order of their numbers: numbers by value, then names by alphabet.

    Raises:
        ValueError: If a folder named by a number would be another class than that number.
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
    """Return the class that a name stands for: its line in ``classes``, or without a list its number.

    Raises:
        ValueError: If the name is no number, or not in the list; the message calls it ``place``.
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
        ValueError: If there is no such file, or it is no text, is empty, or has an empty line or a name twice.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give class names, one a line in the order of the model's logits")
    try:
        names = [name.strip() for name in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error}); save the class names so") from error
    if not names:
        raise ValueError(f"{path} is empty: write one class name a line, in the order of the model's logits")
    for number, name in enumerate(names):
        if not name:
            raise ValueError(f"line {number + 1} of {path} is empty: every line names the class of one logit")
        if name in names[:number]:
            first = names.index(name) + 1
            raise ValueError(f"{path} names the class {name!r} twice, in lines {first} and {number + 1}")
    return tuple(names)
