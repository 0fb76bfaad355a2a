"""What is recorded of one profile, as the claims read it.

Invariant: files are only read, and which of several sweeps counts does not depend on what they say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from zspag.profiles import PROFILES
from zspag.report import files
from zspag.report.claims.labels import C3_FILES


@dataclass(frozen=True)
class Evidence:
    """The recorded results of one profile.

    Attributes:
        contents: Content of every result file, by its name without the ending.
        grids: Rows of the sweeps that count (see ``sweeps``), by the same name.
        halves: Rows of the grids of claim C3, by the half of the test set that judged; empty unless both are there.
    """

    contents: Mapping[str, dict[str, Any]]
    grids: Mapping[str, pd.DataFrame]
    halves: Mapping[str, pd.DataFrame]

    def titles(self, name: str) -> dict[str, str]:
        """Return the readable names of a sweep's methods; older files have none."""
        found: dict[str, str] = self.contents[name]["data"].get("titles", {})
        return found


def read(folder: Path) -> Evidence:
    """Read every result of a folder such as ``results/digits``; one that does not exist holds none.

    Raises:
        ValueError: If a file is not JSON; the message names it.
    """
    contents = {path.stem: files.read_json(path) for path in sorted(folder.glob("*.json"))}
    halves = {half: grid(contents[name]) for half, name in C3_FILES.items() if name in contents}
    return Evidence(
        contents=contents,
        grids={name: grid(contents[name]) for name in sweeps(contents).values()},
        halves=halves if len(halves) == len(C3_FILES) else {},
    )


def grid(content: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a sweep's result file."""
    return pd.DataFrame(content["data"]["rows"])


def sweeps(contents: Mapping[str, dict[str, Any]]) -> dict[tuple[str, str, str], str]:
    """Return the name of the sweep that counts for every data set, architecture and size (see ``cut_down``).

    Where several are recorded, it is the one of the newest schema; of these the one of most methods, then the youngest.
    Those without retrained models, made for claim C3 alone, are none.

    Args:
        contents: Content of the result files of one profile, by name; what is no sweep is passed over.
    """
    best: dict[tuple[str, str, str], tuple[tuple[int, int, str], str]] = {}
    for name, content in contents.items():
        made = content.get("provenance", {})
        if not name.startswith("sweep_") or not made["config"].get("retrained", True):
            continue
        config = made["config"]
        key = (Path(config["dataset"]).name, Path(config["arch"]).name, cut_down(config))
        rank = (content["schema"], grid(content)["method"].nunique(), made["started"])
        if key not in best or rank > best[key][0]:
            best[key] = (rank, name)
    return {key: name for key, (_, name) in best.items()}


def cut_down(config: dict[str, Any]) -> str:
    """Say what of its profile's size a recorded configuration leaves out; nothing if it was run as it is.

    Args:
        config: A profile as a dictionary; options that are younger than the record may be missing.
    """
    usual = PROFILES.get(config.get("name", ""))
    samples, half = config.get("forget_samples"), config.get("test_half")
    parts = [f"{samples} forget images"] if usual is not None and samples != usual.forget_samples else []
    parts += [f"{config['retain_samples']} images per class for oracles"] if config.get("retain_samples") else []
    parts += [f"judged on the {half} half of the test images"] if half else []
    return ", ".join(parts)
