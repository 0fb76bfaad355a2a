"""What is recorded of one profile, as the claims read it.

Invariant: files are only read, and which of several sweeps counts does not depend on what they say.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from zspag.profiles import PROFILES, for_pair
from zspag.report import audit, results
from zspag.report.audit.findings import Findings
from zspag.report.claims.labels import C3_FILES
from zspag.report.results import Result


@dataclass(frozen=True)
class Evidence:
    """The recorded results of one profile.

    Attributes:
        folder: Where they lie, such as ``results/digits``; it may be missing.
        ranked: Of every data set, architecture and size the sweeps, the one that counts first (see ``ranked``).
    """

    folder: Path
    ranked: Sequence[Sequence[Result]]

    @property
    def sweeps(self) -> dict[str, Result]:
        """The sweeps by name."""
        return {sweep.name: sweep for alike in self.ranked for sweep in alike}

    @property
    def needed(self) -> list[str]:
        """Names of the sweeps that a claim can rest on: the first of each kind, and others for methods it lacks."""
        names = []
        for alike in self.ranked:
            known: set[str] = set()
            for sweep in alike:
                methods = set(grid(sweep)["method"])
                names += [sweep.name] * bool(methods - known)
                known |= methods
        return names

    def result(self, name: str) -> Result | None:
        """Return one result, or None if it is not recorded."""
        path = self.folder / f"{name}.json"
        return results.read(path) if path.is_file() else None

    def grids(self, *methods: str) -> dict[str, pd.DataFrame]:
        """Return, by name, the rows of one sweep of each data set, net and size: the first that ran these methods."""
        found = {}
        for alike in self.ranked:
            whole = (sweep for sweep in alike if set(methods) <= set(grid(sweep)["method"]))
            if (sweep := next(whole, None)) is not None:
                found[sweep.name] = grid(sweep)
        return found

    def audits(self, method: str) -> dict[str, Findings]:
        """Return what audits of a method found, by name; one of features alone counts where there is no other."""
        found = {}
        for path in (path for kind in ("features", "audit") for path in sorted(self.folder.glob(f"{kind}_*.json"))):
            rows = audit.unpacked(results.read(path).measurements["rows"])
            if method in audit.audited(rows):
                found[path.stem.partition("_")[2]] = (path.stem, rows)
        return dict(found.values())

    def halves(self) -> dict[str, Result]:
        """Return the sweeps of claim C3 by the half of the test set that judged; nothing unless both are there."""
        found = {half: self.result(name) for half, name in C3_FILES.items()}
        there = {half: sweep for half, sweep in found.items() if sweep is not None}
        return there if len(there) == len(found) else {}


def read(folder: Path) -> Evidence:
    """Read the sweeps of a folder such as ``results/digits``; one that does not exist holds nothing.

    A sweep of older defaults counts only for a data set and net without one of today's.

    Raises:
        ValueError: If a file is not JSON; the message names it.
    """
    found = ranked(map(results.read, sorted(folder.glob("sweep_*.json"))))
    renewed = {key[:2] for key, alike in found.items() if not all(map(of_older_defaults, alike))}
    for key in found:
        if key[:2] in renewed:
            found[key] = [sweep for sweep in found[key] if not of_older_defaults(sweep)]
    return Evidence(folder, list(found.values()))


def of_older_defaults(result: Result) -> bool:
    """Whether a result was made before there was a calibration: its configuration knows no views."""
    return "unlearn" in result.config and "views" not in result.config["unlearn"]


def grid(sweep: Result) -> pd.DataFrame:
    """Return the rows of a sweep."""
    return pd.DataFrame(sweep.measurements["rows"])


def sweeps(found: Iterable[Result]) -> dict[tuple[str, str, str], Result]:
    """Return the sweep that counts for every data set, architecture and size: the first of ``ranked``."""
    return {key: alike[0] for key, alike in ranked(found).items()}


def ranked(found: Iterable[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """Return the sweeps of every data set, architecture and size (see ``cut_down``), that of most methods first.

    Of equals it is the youngest. Those without retrained models were made for claim C3 alone and do not count.

    Args:
        found: All sweeps of one profile.
    """
    alike: dict[tuple[str, str, str], list[Result]] = {}
    for sweep in found:
        config = sweep.config
        if config.get("retrained", True):
            key = (Path(config["dataset"]).name, Path(config["arch"]).name, cut_down(config))
            alike.setdefault(key, []).append(sweep)

    def rank(sweep: Result) -> tuple[int, str]:
        return grid(sweep)["method"].nunique(), sweep.provenance["started"]

    return {key: sorted(some, key=rank, reverse=True) for key, some in alike.items()}


def cut_down(config: Mapping[str, Any]) -> str:
    """Return what of its profile's size a recorded configuration leaves out, in words; nothing if it was run whole.

    Args:
        config: A profile as a dictionary; options that are younger than the record may be missing.
    """
    samples, half, parts = config.get("forget_samples"), config.get("test_half"), []
    if (own := PROFILES.get(config.get("name", ""))) is not None:
        usual = for_pair(own, dataset=Path(config["dataset"]).name, arch=config["arch"])
        parts += [f"{samples or 'all'} forget images"] if samples != usual.forget_samples else []
    parts += [f"{config['retain_samples']} images per class for oracles"] if config.get("retain_samples") else []
    parts += [f"judged on the {half} half of the test images"] if half else []
    return ", ".join(parts)
