"""Requests beyond one class: several at once, one after another, part of a class, samples of every class.

``python -m benchmarks.scenarios run`` asks for each of them on digits and records what came of it; ``table`` writes
``results/scenarios/README.md`` from the record.

Invariant: means are over seeds; a request that was refused has no number, and the method's own words are repeated.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from zspag.lab import scenarios
from zspag.lab.experiment import made_now
from zspag.profiles import PROFILES
from zspag.report import files

IN_A_ROW = {
    "in a row": "where the method is told what is gone",
    "in a row, untold": "where it is not told",
}
HEAD = """# Requests beyond one class

Written by `python -m benchmarks.scenarios table`: digits, {seeds}, commit {commit}. Open models, test images."""


def folder() -> Path:
    """Return where page and rows are written."""
    return files.repository_root() / "results" / "scenarios"


def measure(profile: str, *, seeds: int) -> Path:
    """Ask for every kind of request and write the rows; return the file."""
    started, chosen = time.time(), PROFILES[profile]
    rows = scenarios.table(chosen, chosen.seeds[:seeds])
    content = {"schema": 1, "rows": rows, "provenance": made_now(chosen, seed=chosen.seeds[0], started=started)}
    target = folder() / f"{profile}.json"
    files.write_json(target, files.plain(content, "requests"))
    return target


def table(profile: str) -> Path:
    """Write the page from the record."""
    found = files.read_json(folder() / f"{profile}.json")
    rows = pd.DataFrame(found["rows"])
    count = rows["seed"].nunique()
    head = HEAD.format(
        seeds=f"{count} original{'s' * (count > 1)}", commit=(found["provenance"]["commit"] or "unknown")[:7]
    )
    parts = [head, "## What came of them", _list(summary(rows)), "## What the method said", _list(said(rows))]
    files.write_text(folder() / "README.md", "\n\n".join(parts) + "\n")
    return folder() / "README.md"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines) or "Nothing."


def said(rows: pd.DataFrame) -> list[str]:
    """Return a line per kind of request and message of the method: refusals first, then warnings.

    Args:
        rows: Of ``lab.scenarios.table``.
    """
    refused = rows[rows["refused"].fillna("") != ""].drop_duplicates(["kind", "refused"])
    warned = rows[["kind", "warned"]].explode("warned").dropna().drop_duplicates()
    return [
        *(f"{row['kind']}: refused. {row['refused']}" for row in refused.to_dict("records")),
        *(f"{row['kind']}: done, with a warning. {row['warned']}" for row in warned.to_dict("records")),
    ]


def summary(rows: pd.DataFrame) -> list[str]:
    """Return what the method made of each kind of request that it did not refuse, in a sentence each.

    Args:
        rows: Of ``lab.scenarios.table``; means over seeds.
    """
    done = rows[rows["acc_retain"].notna()]
    own = {str(kind): part for kind, part in done[done["method"] == "zs_pag"].groupby("kind")}
    lines = []
    if "at once" in own:
        part = own["at once"]
        most, lost = max(map(len, part["classes"])), 100 * part["over_unlearning"].mean()
        known = _percent(part["acc_forget"])
        lines.append(f"At once, up to {most} classes: {known} still recognized, {lost:+.2f} points over-unlearned.")
    for kind, told in IN_A_ROW.items():
        if kind in set(done["kind"]):
            last = done[done["kind"] == kind].sort_values("step").groupby("seed").last()
            best = _percent(pd.Series([max(by_class) for by_class in last["by_class"]]))
            lines.append(
                f"In a row, {told}: after {last['step'].min():.0f} requests {best} of the best known forgotten class is"
                f" still recognized, with a drift of {last['drift'].astype(float).mean():.4f} nats."
            )
    if "part of a class" in own:
        target = done[(done["kind"] == "part of a class") & (done["method"] == "retrained")]
        left, wanted = (_percent(part["acc_rest"]) for part in (own["part of a class"], target))
        lines.append(f"Half of a class: of the other half {left} is still recognized, {wanted} after retraining.")
    if "across classes" in own:
        kept = _percent(own["across classes"]["acc_retain"])
        lines.append(f"Samples across classes, where not refused: {kept} of the test images are still recognized.")
    return lines


def _percent(values: "pd.Series[float]") -> str:
    return f"{100 * values.astype(float).mean():.1f} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenarios", description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--profile", default="digits", choices=sorted(PROFILES))
    parser.add_argument("--seeds", type=int, default=2, help="originals, the first ones of the profile")
    given = parser.parse_args(arguments)
    made = table(given.profile) if given.what == "table" else measure(given.profile, seeds=given.seeds)
    sys.stdout.write(f"wrote {files.shown(made)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
