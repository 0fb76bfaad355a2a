"""Archives of strangers: read or unpacked without leaving the folder they are given.

Invariant: a member with an absolute path, a ``..``, a link or a device stops the reading, and nothing of the archive
stands under its final name.
"""

import gzip
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".tar.bz2", ".tar", ".zip")
# RuntimeError is how zipfile says that a member is encrypted or packed in an unknown way.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,
)


class UnsafeArchiveError(ValueError):
    """An archive that tries to write outside its folder."""


def find_archive(folder: Path, name: str) -> Path | None:
    """Return the archive ``folder/name.*`` if there is one."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def files_in(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and contents of every file, in the order of the archive; nothing is written.

    Raises:
        UnsafeArchiveError: If a member's path is absolute or leaves the archive, or is a link or a device.
        ValueError: If the archive is damaged.
    """
    with _naming_damage(archive):
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as bundle:
                for info in bundle.infolist():
                    _check_name(archive, info.filename)
                    _check_zip_kind(archive, info)
                    if not info.is_dir():
                        yield info.filename, bundle.read(info)
            return
        with tarfile.open(archive, "r|*") as stream:  # one pass: an .xz cannot be read backwards cheaply
            for member in stream:
                _check_name(archive, member.name)
                _check_tar_kind(archive, member)
                contents = stream.extractfile(member) if member.isfile() else None
                if contents is not None:
                    yield member.name, contents.read()


def unpack(archive: Path, target: Path) -> None:
    """Unpack the folder ``target.name`` of the archive as ``target``, which appears whole or not at all.

    Args:
        archive: A tar archive of any compression, or a zip.
        target: Folder that does not exist yet; the archive holds a folder of the same name at its top.

    Raises:
        UnsafeArchiveError: If a member's path is absolute or leaves the archive, or is a link or a device.
        ValueError: If the archive is damaged or lacks the folder.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as folder:
        _write_members(archive, Path(folder))
        inner = Path(folder) / target.name
        if not inner.is_dir():
            raise ValueError(f"{archive} holds no folder {target.name}/ at its top; is it the right archive?")
        inner.rename(target)


def _write_members(archive: Path, folder: Path) -> None:
    with _naming_damage(archive):
        if archive.suffix == ".zip":
            for name, contents in files_in(archive):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents)
            return
        with tarfile.open(archive, "r|*") as stream:
            for member in stream:
                _check_name(archive, member.name)
                _check_tar_kind(archive, member)
                stream.extract(member, folder, filter="data")  # the library's own refusals stand behind ours


@contextmanager
def _naming_damage(archive: Path) -> Generator[None, None, None]:
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{archive} is not a whole archive ({error}); delete it and fetch it again") from error


def _check_name(archive: Path, name: str) -> None:
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive:
        raise UnsafeArchiveError(f"{archive} is refused: its member {name!r} has an absolute path")
    if ".." in windows.parts:  # splits at both kinds of slashes
        raise UnsafeArchiveError(f"{archive} is refused: its member {name!r} leaves the folder through '..'")


def _check_tar_kind(archive: Path, member: tarfile.TarInfo) -> None:
    if member.issym() or member.islnk():
        raise UnsafeArchiveError(f"{archive} is refused: its member {member.name!r} is a link to {member.linkname!r}")
    if not (member.isfile() or member.isdir()):
        raise UnsafeArchiveError(f"{archive} is refused: its member {member.name!r} is a device or a pipe")


def _check_zip_kind(archive: Path, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise UnsafeArchiveError(f"{archive} is refused: its member {info.filename!r} is a link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):  # 0: written by a system without Unix modes
        raise UnsafeArchiveError(f"{archive} is refused: its member {info.filename!r} is a device or a pipe")
