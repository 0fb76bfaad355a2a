"""What a newcomer does, typed and timed: clone, the README's two commands, its six lines, one notebook in a browser.

Run by hand (`make fresh-clone`): it takes most of half an hour. Writes ``results/commands.json``, which the README
shows. HOME is empty: nothing of the user's settings or caches helps. Set-up is timed apart, since it is mostly a
download. With an argument, the clone is made in that folder and stays.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from zspag.report import files, provenance

ROOT = Path(__file__).parents[1]
PYTHON = ".venv/bin/python"
TWO_COMMANDS = {
    "set-up": ["make", ".venv/.installed"],
    "make test": ["make", "test"],  # before the figures: a failure is known sooner
    "make figures": ["make", "figures"],
    "make figures, again": ["make", "figures"],
}
AND_THEN = {
    "six lines": [PYTHON, "../own/six_lines.py"],  # in a folder of its own, beside nothing
    "zspag demo": [PYTHON, "-m", "zspag", "demo"],
    "a notebook in the browser": [PYTHON, "-m", "pytest", "-q", "tests/test_jupyterlab.py", "-k", "browser and 00_"],
}


def clone_into(folder: Path) -> tuple[Path, dict[str, str]]:
    """Clone what is committed; return the clone and the environment of somebody who has nothing else."""
    clone, home = folder / "zspag", folder / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (example,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", (clone / "README.md").read_text(), re.DOTALL)
    (folder / "own").mkdir()
    (folder / "own" / "six_lines.py").write_text(example)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("ZSPAG_", "PYTHONPATH"))}
    return clone, given | {"HOME": str(home)}


def timed(commands: Mapping[str, list[str]], clone: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Run commands in the clone and return the seconds of each; the first that fails ends it."""
    seconds = {}
    for name, command in commands.items():
        begun = time.perf_counter()
        subprocess.run(command, cwd=clone, env=environment, check=True)
        seconds[name] = time.perf_counter() - begun
        sys.stdout.write(f"{name}: {seconds[name]:.0f} s\n")
        sys.stdout.flush()
    return seconds


def main() -> None:
    """Time every command in a fresh clone and record it."""
    started = time.time()
    with contextlib.ExitStack() as stack:
        kept = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(tempfile.TemporaryDirectory())
        clone, environment = clone_into(Path(kept))
        head = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(head, cwd=clone, check=True, capture_output=True, text=True).stdout.strip()
        seconds = timed(TWO_COMMANDS | AND_THEN, clone, environment)
    record = provenance.record(
        config={}, seed=None, data_sha256=None, device="cpu", threads=os.cpu_count() or 1, started=started
    ) | {"commit": commit, "dirty": False}  # what was timed is the clone, whatever has been edited here since
    files.write_json(ROOT / "results" / "commands.json", {"schema": 1, "seconds": seconds, "provenance": record})


if __name__ == "__main__":
    main()
