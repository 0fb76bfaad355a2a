"""Clone the repository into an empty folder, type the README's commands, time each.

Run by hand (`make fresh-clone`): it takes most of an hour. Writes ``results/commands.json``, which the README shows.
Set-up is timed apart, since it is mostly a download. With an argument, the clone is made in that folder and stays.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zspag.report import files, provenance

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "set-up": ["make", ".venv/.installed"],
    "make test": ["make", "test"],  # before the figures: a failure is known sooner
    "make figures": ["make", "figures"],
    "make figures, again": ["make", "figures"],
}


def main() -> None:
    """Time every command in a fresh clone of what is committed; the first that fails ends it unrecorded."""
    started, seconds = time.time(), {}
    given = {name: value for name, value in os.environ.items() if not name.startswith(("ZSPAG_", "PYTHONPATH"))}
    with contextlib.ExitStack() as stack:
        kept = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(tempfile.TemporaryDirectory())
        clone = Path(kept) / "zspag"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True
        ).stdout.strip()
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, cwd=clone, env=given, check=True)
            seconds[name] = time.perf_counter() - begun
            sys.stdout.write(f"{name}: {seconds[name]:.0f} s\n")
            sys.stdout.flush()
    record = provenance.record(
        config={}, seed=None, data_sha256=None, device="cpu", threads=os.cpu_count() or 1, started=started
    ) | {"commit": commit, "dirty": False}  # what was timed is the clone, whatever has been edited here since
    files.write_json(ROOT / "results" / "commands.json", {"schema": 1, "seconds": seconds, "provenance": record})


if __name__ == "__main__":
    main()
