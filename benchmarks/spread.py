"""Where the spread of a result comes from: another original, or another draw of the method on the same one?

``python -m benchmarks.spread digits`` forgets every class of every original several times, each time with other random
draws (starts of the attack, batches), and splits the variance of what comes out: between draws on one original, and
between originals. ``cifar10`` does so on the committed conv7 nets. ``table`` writes ``results/spread/README.md``.

Invariant: models are judged open, on test images that the method never saw; the masked original is the yardstick.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from zspag.config import UnlearnConfig
from zspag.lab.evaluation import masked_parts, score
from zspag.lab.experiment import (
    Case,
    answered,
    cases_of,
    data_of,
    forget_set,
    guard_of,
    kept_rows,
    made_now,
    references_of,
    trained,
)
from zspag.profiles import PROFILES, Profile
from zspag.report import files
from zspag.report.tables import markdown
from zspag.runtime import pool_map
from zspag.unlearning import zero_shot_unlearn

DRAWS = 3
SUBJECTS: Mapping[str, Profile] = {
    "digits": replace(PROFILES["digits"], retrained=False),
    "cifar10": replace(
        PROFILES["cpu"], classes=(3, 7), seeds=(0, 1), recorded_models=True, test_half="second", retrained=False
    ),
}
GOALS = {"suppress": "ZS-PAG", "remove": "removal (ours)"}
MEASURES = {"acc_forget": ("forget %", 100.0), "lost": ("points lost", 100.0), "drift": ("drift (thousandths)", 1000.0)}


@dataclass(frozen=True)
class Job:
    """One draw of the method on one class of one original."""

    case: Case
    goal: str
    draw: int


def make(job: Job) -> list[dict[str, Any]]:
    """Return the one row of a draw, from its file if nothing that made it has changed."""
    return kept_rows(job.case, f"spread-{job.goal}-{job.draw}", partial(_rows, job), code=(__name__,))


def _name(job: Job) -> str:
    return f"draw {job.draw} of class {job.case.forget}, seed {job.case.seed}"


def _rows(job: Job) -> Iterator[dict[str, Any]]:
    case, config = job.case, replace(job.case.profile.unlearn, goal=job.goal)
    assert isinstance(config, UnlearnConfig)
    references, guard = references_of(case), guard_of(case)
    images, labels = forget_set(case, guard)
    with guard.method():
        answer = zero_shot_unlearn(
            trained(case.profile, case.seed),
            images,
            labels,
            num_classes=data_of(case.profile).num_classes,
            config=config,
            seed=1000 * case.seed + job.draw,
            progress=False,
        )
    found = score(references.images.map_logits(answer.open_model), references)
    yardstick = score(masked_parts(references), references)
    yield {
        "goal": job.goal,
        "forget": case.forget,
        "seed": case.seed,
        "draw": job.draw,
        "reached": answer.report.reached,
        "acc_forget": found.acc_forget,
        "lost": yardstick.acc_retain - found.acc_retain,
        "drift": found.drift,
        "retain_samples_read": guard.retain_samples_read,
    }


def components(rows: pd.DataFrame, column: str) -> dict[str, float]:
    """Return the mean of a column and its two standard deviations: between draws, and between originals.

    Classes differ for reasons of their own, so both are means over classes of variances within a class. The variance of
    an original's mean holds the draws' share of it, which is taken away; what is left below 0 counts as 0.

    Args:
        rows: One row per class ("forget"), original ("seed") and draw.
        column: What varies.

    Example:
        >>> rows = pd.DataFrame({"forget": 0, "seed": [0, 0, 1, 1], "draw": [0, 1, 0, 1], "x": [1.0, 1.0, 3.0, 3.0]})
        >>> components(rows, "x")
        {'mean': 2.0, 'draws': 0.0, 'originals': 1.4142135623730951}
    """
    each = rows.groupby(["forget", "seed"])[column]
    draws = float(each.var(ddof=1).mean())
    means = each.mean().groupby("forget").var(ddof=1)
    count = len(rows) / len(each)
    between = max(0.0, float(means.mean()) - draws / count)
    return {"mean": float(rows[column].mean()), "draws": draws**0.5, "originals": between**0.5}


def folder() -> Path:
    """Return where page and rows are written."""
    return files.repository_root() / "results" / "spread"


def measure(subject: str, *, draws: int, goals: Sequence[str]) -> Path:
    """Make the rows of one subject that are missing and write them; return the file.

    Raises:
        RunsFailed: If a draw failed; what the others finished is kept.
    """
    started, profile = time.time(), SUBJECTS[subject]
    jobs = [Job(case, goal, draw) for goal, case, draw in product(goals, cases_of(profile), range(draws))]
    made = answered(profile, pool_map, make, jobs, title="draws", name=_name)
    rows = [row for job in jobs for row in made[job]]
    content = {
        "schema": 1,
        "rows": rows,
        "net": f"{profile.dataset}, {profile.arch}",
        "provenance": made_now(profile, seed=profile.seeds[0], started=started),
    }
    target = folder() / f"{subject}.json"
    files.write_json(target, files.plain(content, "spread"))
    return target


def table() -> Path:
    """Write ``README.md`` from what is recorded."""
    lines, said = [], []
    for path in sorted(folder().glob("*.json")):
        found = files.read_json(path)
        frame = pd.DataFrame(found["rows"])
        for goal, rows in frame.groupby("goal", sort=False):
            counts = " x ".join(str(rows[name].nunique()) for name in ("forget", "seed", "draw"))
            line = {"data, net": found["net"], "method": GOALS[str(goal)], "classes x originals x draws": counts}
            for column, (title, factor) in MEASURES.items():
                parts = {name: factor * value for name, value in components(rows, column).items()}
                line[title] = f"{parts['mean']:.2f} (draws {parts['draws']:.2f}, originals {parts['originals']:.2f})"
            line["not reached"] = f"{(~rows['reached'].astype(bool)).sum()} of {len(rows)}"
            line["commit"] = (found["provenance"]["commit"] or "unknown")[:7]
            lines.append(line)
            said.append(_larger(f"{found['net']}, {GOALS[str(goal)]}", rows))
    shown = markdown(pd.DataFrame(lines).set_index("data, net")) if lines else "Nothing is recorded."
    files.write_text(folder() / "README.md", "\n\n".join([HEAD, shown, *said]) + "\n")
    return folder() / "README.md"


def _larger(subject: str, rows: pd.DataFrame) -> str:
    parts = components(rows, "lost")
    first, second = ("originals", "draws") if parts["originals"] >= parts["draws"] else ("draws", "originals")
    return f"* {subject}: of the points lost, {first} spread {_times(parts[first], parts[second])} {second}."


def _times(more: float, less: float) -> str:
    return f"{more / less:.1f} times as much as" if less > 0 else "all there is, and nothing comes from"


HEAD = """# Where the spread comes from

Written by `python -m benchmarks.spread table`. Each class of each original is forgotten several times with other
random draws of the method. Behind each mean stand two standard deviations: between draws on one original, and between
originals (after the draws' share is taken away), both within a class. More draws on one original never replace a second
original. Open models, test images, points below the masked original.
[Sources](../README.md#every-file-and-what-made-it)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spread", description=__doc__)
    parser.add_argument("what", choices=(*SUBJECTS, "table"))
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws per class and original, at least 2")
    parser.add_argument("--goals", default="suppress,remove", help="of the method, comma-separated")
    given = parser.parse_args(arguments)
    if given.what == "table":
        sys.stdout.write(f"wrote {files.shown(table())}\n")
        return 0
    goals = given.goals.split(",")
    if given.draws < 2 or not set(goals) <= set(GOALS):
        parser.error(f"two draws or more, and goals among {', '.join(GOALS)}: got {given.draws} and {given.goals}")
    sys.stdout.write(f"wrote {files.shown(measure(given.what, draws=given.draws, goals=goals))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
