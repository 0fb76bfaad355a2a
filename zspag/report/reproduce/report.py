"""Did the recorded numbers come out again? Fresh results against committed ones, number by number.

Invariant: a recorded number that was not computed again counts as a disagreement, never as an agreement.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zspag.report import files
from zspag.report.results import factor_of

TIMES = "time_and_memory.json"
_ENVIRONMENT = {  # parts of a record that may explain other numbers, and their names for the reader
    "threads": "threads",
    "device": "device",
    "platform": "platform",
    "data_sha256": "data set",
    "config_sha256": "configuration",
}
_PACKAGES = ("torch", "numpy", "python")
_SLACK = 1e-9  # relative; both sides are rounded to 6 digits, so this only absorbs binary representation


@dataclass(frozen=True)
class Disagreement:
    """A recorded number that did not come out again; ``now`` is None where it was not computed at all."""

    file: str
    name: str
    recorded: float
    now: float | None
    tolerance: float | str  # a number, or a factor such as "x3"

    def __str__(self) -> str:
        now = "not computed" if self.now is None else f"now {self.now:g}"
        allowed = self.tolerance if isinstance(self.tolerance, str) else f"{self.tolerance:g}"
        return f"{self.file}: {self.name}: recorded {self.recorded:g}, {now}, tolerance {allowed}"


@dataclass(frozen=True)
class Report:
    """The reproduction report."""

    profile: str
    numbers: int  # recorded numbers that have a tolerance
    agreed: int  # those of them that came out again within it, and could have failed
    loose: int  # those that came out again, but whose tolerance is as large as they are
    values: int  # recorded values behind the figures (leaves of ``data``)
    identical: int  # those of them that are the same to the last of six digits
    disagreements: tuple[Disagreement, ...]
    unrecorded: tuple[str, ...]  # fresh results without a recorded one
    environment: tuple[str, ...]  # what differs between the recording and this run, in words

    def __str__(self) -> str:
        if not self.numbers and not self.values:
            return f"There are no recorded results of profile {self.profile} to compare with (--record keeps these)."
        lines = [
            f"Of {self.numbers} recorded numbers {self.agreed} agreed, {len(self.disagreements)} differed, and"
            f" {self.loose} agreed but could hardly have failed (a tolerance as large as the number);"
            f" {self.identical} of {self.values} plotted values are identical."
        ]
        lines += [f"  {item}" for item in self.disagreements]
        if self.unrecorded:
            lines.append(f"Not recorded yet: {', '.join(self.unrecorded)}.")
        if self.environment:
            lines.append("The recording was made elsewhere, so small differences are expected:")
            lines += [f"  {line}" for line in self.environment]
        return "\n".join(lines)


def compare(recorded: Mapping[str, Any], fresh: Mapping[str, Any], *, profile: str) -> Report:
    """Compare the contents of results/<profile>/*.json with those of runs/<profile>/results/*.json, both by name."""
    numbers = values = identical = loose = 0
    disagreements: list[Disagreement] = []
    environment: set[str] = set()
    for name, old in sorted(recorded.items()):
        new = fresh.get(name, {"numbers": {}, "data": {}, "provenance": {}})
        for key, (value, tolerance) in old["numbers"].items():
            if tolerance is None:  # a time, say: recorded to be read, not to be met
                continue
            numbers += 1
            now = new["numbers"].get(key, (None, None))[0]
            if now is None or not _agrees(now, value, tolerance):
                disagreements.append(Disagreement(name, key, value, now, tolerance))
            elif value and factor_of(tolerance) is None and tolerance >= abs(value):
                loose += 1
        before, after = (dict(_leaves([one["data"], one.get("measurements", {})])) for one in (old, new))
        values += len(before)
        identical += sum(key in after and after[key] == value for key, value in before.items())
        if name in fresh:
            environment |= set(_differences(old["provenance"], new["provenance"]))
    return Report(
        profile=profile,
        numbers=numbers,
        agreed=numbers - len(disagreements) - loose,
        loose=loose,
        values=values,
        identical=identical,
        disagreements=tuple(disagreements),
        unrecorded=tuple(sorted(set(fresh) - set(recorded))),
        environment=tuple(sorted(environment)),
    )


def _agrees(now: float, value: float, tolerance: float | str) -> bool:
    if (factor := factor_of(tolerance)) is not None:
        if now * value <= 0:
            return now == value  # no factor leads from nothing to something, or over to the other sign
        return abs(math.log(now / value)) <= math.log(factor) * (1 + _SLACK)
    return math.isclose(now, value, rel_tol=_SLACK, abs_tol=float(tolerance) * (1 + _SLACK))


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{where}[{index}]")
    else:
        yield where, value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between the environments of two records, in words."""
    for key, title in _ENVIRONMENT.items():
        if old.get(key) != new.get(key):
            yield f"{title}: recorded {_short(old.get(key))}, now {_short(new.get(key))}"
    for package in _PACKAGES:
        before, after = old.get("versions", {}).get(package), new.get("versions", {}).get(package)
        if before != after:
            yield f"{package}: recorded {before}, now {after}"


def _short(value: Any) -> str:
    return " ".join(value.values()) if isinstance(value, Mapping) else str(value)[:12]


def read_recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the recorded results of notebooks in ``folder`` by name (other files in it have another shape)."""
    found = {path.stem: files.read_json(path) for path in sorted(folder.glob("[0-9][0-9]_*.json"))}
    return {name: content for name, content in found.items() if {"numbers", "data"} <= set(content)}


def read_fresh(seals: Iterable[Mapping[str, Any]], root: Path) -> dict[str, dict[str, Any]]:
    """Return the results that the seals declare, by name; what else lies in runs/ belongs to earlier runs."""
    declared = [root / name for seal in seals for name in seal["outputs"] if name.startswith("runs/")]
    return {path.stem: files.read_json(path) for path in declared}


def record(seals: Mapping[str, Mapping[str, Any]], *, profile: str, root: Path, cold: bool) -> list[Path]:
    """Replace the committed results of these notebooks with the fresh ones, and the table of times with their costs.

    Args:
        seals: Seals of the notebooks that just succeeded, by notebook.
        profile: Name of the profile.
        root: Root of the repository.
        cold: Whether the run started without a cache, so that its times are those of a fresh clone.

    Returns:
        The files written. Recorded results of the same notebooks that are no longer made are removed.
    """
    folder, fresh = root / "results" / profile, read_fresh(seals.values(), root)
    numbers = {name[:2] for name in seals}
    for name, content in fresh.items():
        files.write_json(folder / f"{name}.json", content)
    for name in read_recorded(folder):
        if name[:2] in numbers and name not in fresh:
            (folder / f"{name}.json").unlink()
    table = folder / TIMES
    before = files.read_json(table)["notebooks"] if table.is_file() else {}
    costs = {name: cost for name, cost in before.items() if name[:2] not in numbers}
    for name, seal in seals.items():
        made = seal["provenance"]
        keys = ("seconds", "peak_memory_mib", "peak_device_memory_mib", "device", "threads")
        costs[name] = {key: seal[key] for key in keys} | {"commit": made.get("commit")}
        costs[name] |= {"cold": cold, "versions": made["versions"], "started": made["started"]}
    content = {"schema": 1, "profile": profile, "cores": os.cpu_count(), "notebooks": dict(sorted(costs.items()))}
    files.write_json(table, content)
    return [*(folder / f"{name}.json" for name in fresh), table]
