"""The line in a notebook's first cell: how long it takes, from its words and its recorded seconds, and its record."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zspag.report import files
from zspag.report.reproduce.report import TIMES

LINE = re.compile(r"^\*\*Time\.\*\*.*$", re.MULTILINE)
WORDS_PER_MINUTE = 200
SECONDS_PER_LINE = 3  # of code
SHUT = "hide-input"  # tag of the cells that only set up, draw or check: their code is folded
_FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)  # solutions are read by those who ask for them


def reading_minutes(content: Mapping[str, Any]) -> int:
    """Return how many minutes the content of a notebook file takes to read: text and code, without what is folded."""
    sources: dict[str, list[str]] = {"markdown": [], "code": []}
    for cell in content["cells"]:
        if SHUT not in cell["metadata"].get("tags", []):
            sources[cell["cell_type"]].append("".join(cell["source"]))
    words = len(LINE.sub("", _FOLDED.sub("", "\n".join(sources["markdown"]))).split())
    lines = sum(len(source.splitlines()) for source in sources["code"])
    return math.ceil(words / WORDS_PER_MINUTE + lines * SECONDS_PER_LINE / 60)


def time_line(content: Mapping[str, Any], seconds: float | None, *, number: str = "") -> str:
    """Return the line for the content of a notebook file.

    Args:
        content: The notebook.
        seconds: What it took in the recorded run, if there is one.
        number: Its two digits, if the recorded run kept numbers of it.
    """
    running = "" if seconds is None else f", {max(1, round(seconds))} seconds to run on digits"
    line = f"**Time.** About {reading_minutes(content)} minutes to read (folded cells not counted){running}."
    if not number:
        return line
    return (
        f"{line} **Record.** Numbers and figures: `results/digits/{number}_*.json`, with the"
        " [commit](../results/README.md) that made them."
    )


def headed(content: dict[str, Any], seconds: float | None, *, number: str = "") -> dict[str, Any]:
    """Return the content of a notebook file with that line in its first cell; one without the line stays as it is."""
    first = content["cells"][0]
    source = LINE.sub(time_line(content, seconds, number=number), "".join(first["source"]))
    return content | {"cells": [first | {"source": source.splitlines(keepends=True)}, *content["cells"][1:]]}


def write(root: Path) -> None:
    """Write the line into every notebook that has changed."""
    table = root / "results" / "digits" / TIMES
    known = files.read_json(table)["notebooks"] if table.is_file() else {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        content, number = files.read_json(path), path.stem[:2]
        kept = any(table.parent.glob(f"{number}_*.json"))
        seconds = known.get(path.stem, {}).get("seconds")
        if (made := headed(content, seconds, number=number * kept)) != content:
            # As nbformat writes it, so that only this line differs.
            files.write_text(path, json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
