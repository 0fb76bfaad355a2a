"""Files that are whole or absent: temporary file, fsync, rename.

Invariant: no reader ever sees half of a file, whenever the writer is killed.
"""

import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def repository_root() -> Path:
    """Return the folder that holds runs/, results/ and figures/: ``ZSPAG_ROOT``, or the one above the package."""
    return Path(os.environ.get("ZSPAG_ROOT") or Path(__file__).parents[1])


@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over ``path``, on failure removed.

    A reader sees the old file or the whole new one, never a half, whenever the process is killed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes 0600 files; results are for everybody
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically; NaN and infinities are refused, for JSON has no word for them."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); delete it and run again") from error
