"""Requests beyond one class: several at once, one after another, part of a class, samples of every class.

``python -m benchmarks.scenarios run`` asks for each of them on digits and records what came of it; with ``--classes``
it asks for these at once, on any pair of data and net. ``table`` writes ``results/scenarios/README.md`` from what is
recorded.

Invariant: means are over seeds; a request that was refused has no number, and the method's own words are repeated.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from zspag.lab import scenarios
from zspag.lab.experiment import case_name, data_of, made_now
from zspag.lab.runs import class_numbers
from zspag.profiles import PROFILES, Profile, for_pair
from zspag.report import files
from zspag.report.tables import markdown

IN_A_ROW = {
    "in a row": "where the method is told what is gone",
    "in a row, untold": "where it is not told",
}
TITLES = {"original": "original", "retrained": "retrained", "zs_pag": "ZS-PAG"}
HEAD = """# Requests beyond one class

Written by `python -m benchmarks.scenarios table`. Open models, test images; points lost and drift against the masked
original. [Sources](../README.md#every-file-and-what-made-it)."""


def folder() -> Path:
    """Return where page and rows are written."""
    return files.repository_root() / "results" / "scenarios"


def measure(profile: Profile, *, named: bool) -> Path:
    """Ask for every kind of request, or for all of the profile's classes at once where they are ``named``.

    Returns:
        The file that the rows are written to.
    """
    started, command = time.time(), f"python -m benchmarks.scenarios run --profile {profile.name}"
    names = [data_of(profile).classes[one] for one in profile.classes] if named else []
    if named:
        command += f" --dataset {profile.dataset} --arch {profile.arch} --classes {','.join(names)}"
        made = [scenarios.together(profile, seed, profile.classes) for seed in profile.seeds]
        rows = [{"kind": "named classes"} | row for each in made for row in each]
    else:
        rows = scenarios.table(profile, profile.seeds)
    content = {
        "schema": 1,
        "rows": rows,
        "class_names": names,
        "command": command,
        "provenance": made_now(profile, seed=profile.seeds[0], started=started),
    }
    target = folder() / f"{case_name(profile) if named else profile.name}.json"
    files.write_json(target, files.plain(content, "requests"))
    return target


def table() -> Path:
    """Write the page from what is recorded, the requests of every kind first."""
    found = [files.read_json(path) for path in sorted(folder().glob("*.json"))]
    parts = [HEAD]
    for one in sorted(found, key=lambda one: bool(one.get("class_names"))):
        rows, config = pd.DataFrame(one["rows"]), one["provenance"]["config"]
        count, commit = rows["seed"].nunique(), (one["provenance"]["commit"] or "unknown")[:7]
        net = ", ".join(dict.fromkeys((config["dataset"], config["arch"])))
        place = f"{net}, {count} original{'s' * (count > 1)}, commit {commit}"
        if one.get("class_names"):
            parts += [f"## {', '.join(one['class_names'])} at once", f"{place}.", beside(rows)]
        else:
            parts += [f"## Every kind, on {place}", _list(summary(rows))]
        if words := said(rows):
            parts += ["What the method said:", _list(words)]
    files.write_text(folder() / "README.md", "\n\n".join(parts) + "\n")
    return folder() / "README.md"


def beside(rows: pd.DataFrame) -> str:
    """Return a table of one request: a line per network, means over originals.

    Args:
        rows: Of ``lab.scenarios.together``.
    """
    lines = []
    for method, own in rows.groupby("method", sort=False):
        if "acc_forget" not in own or own["acc_forget"].isna().all():
            lines.append({"network": TITLES[str(method)], "still recognized (%)": "refused"})
            continue
        best = pd.Series([max(each) for each in own["by_class"]])
        lines.append(
            {
                "network": TITLES[str(method)],
                "still recognized (%)": f"{100 * own['acc_forget'].mean():.1f}",
                "best known class (%)": f"{100 * best.mean():.1f}",
                "retained (%)": f"{100 * own['acc_retain'].mean():.2f}",
                "points lost": f"{100 * own['over_unlearning'].mean():.2f}",
                "drift": f"{own['drift'].astype(float).mean():.4f}",
                "seconds": f"{own['seconds'].mean():.0f}" if method == "zs_pag" else "",
            }
        )
    return markdown(pd.DataFrame(lines).set_index("network").fillna(""))


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
        lines.append(
            f"Half of a class: of the other half's training images {left} are still recognized, {wanted} after"
            " retraining."
        )
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
    parser.add_argument("--dataset", help="data set of --classes (default: the profile's)")
    parser.add_argument("--arch", help="architecture of --classes (default: the profile's)")
    parser.add_argument("--classes", help="ask for these at once instead: names or numbers, comma-separated")
    given = parser.parse_args(arguments)
    if given.what == "run":
        profile = for_pair(PROFILES[given.profile], dataset=given.dataset, arch=given.arch)
        profile = replace(profile, seeds=profile.seeds[: given.seeds])
        if given.classes is not None:
            profile = replace(profile, classes=class_numbers(profile, given.classes.split(",")))
        sys.stdout.write(f"wrote {files.shown(measure(profile, named=given.classes is not None))}\n")
    sys.stdout.write(f"wrote {files.shown(table())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
