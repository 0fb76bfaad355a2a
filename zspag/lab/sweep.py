"""A grid that outlives its machine: methods over their whole ladders, as one result file and one figure.

``zspag sweep`` runs what notebook 05 runs, for any profile, data set and architecture. Every finished method of a class
and seed is a file of its own under ``runs/``, so an interrupted sweep goes on where it stopped.

A recorded result grows: methods that are swept later, with the same configuration and data, join those that are there.

Invariant: the result file holds every row of the grid, and nothing in it was chosen by looking at the rows. It says of
each method by which commit, when and with which versions its rows were made.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from zspag.config import from_dict
from zspag.lab import cluster, experiment, runs
from zspag.profiles import Profile
from zspag.report import files, results, tables
from zspag.report.results import Result

ROW = 8  # methods beside the first one in a row of panels


def sweep(profile: Profile, methods: Sequence[str], *, record: bool, scheduler: str | None = None) -> Iterator[str]:
    """Run methods on every class and seed of a profile and write the rows.

    Args:
        profile: Data, architecture, classes, seeds, configuration and ladders.
        methods: Names of ``methods.METHODS``.
        record: Write the result to ``results/<profile>`` too; what is recorded there of other methods, with the same
            configuration and data, stays.
        scheduler: Address of a dask scheduler; None starts workers on this machine.

    Yields:
        Lines for the reader: safe rates per method (accuracies, where each has one rate), then the files.
    """
    started = time.time()
    with cluster.spread_over(scheduler, workers=profile.workers, threads_each=profile.threads) as spread:
        frame = experiment.compute_grid(profile, methods, spread=spread)
    for name in methods:
        found = f"safe rates {tables.window_text(frame, name)}"
        if profile.rates_of is not None:
            own = tables.by_rule(frame[frame["method"] == name])
            forget, lost = (100 * own[column].mean() for column in ("acc_forget", "over_unlearning"))
            found = f"forget accuracy {forget:.2f} %, {lost:+.2f} points lost"
        yield f"{experiment.TITLES[name]}: {found}"
    name = f"sweep_{experiment.case_name(profile)}"
    data = experiment.data_of(profile)
    made_by = experiment.made_now(profile, seed=profile.seeds[0], started=started)
    made = dict.fromkeys(methods, _short(made_by))
    if record:
        before = _recorded(files.repository_root() / "results" / profile.name / f"{name}.json", profile, data.sha256)
        joining = [method for method in before[1] if method not in methods]
        if joining:
            yield f"joined what is recorded of {', '.join(experiment.TITLES[method] for method in joining)}"
            frame = pd.concat([frame, before[0][before[0]["method"].isin(joining)]])
            order = {"seed": profile.seeds, "forget": profile.classes, "method": tuple(experiment.TITLES)}
            frame = frame.sort_values(  # as in a grid that was computed as a whole
                list(order),
                key=lambda column: column.map(order[str(column.name)].index),
                kind="stable",
                ignore_index=True,
            )
            made |= {method: before[1][method] for method in joining}
            methods = [method for method in experiment.TITLES if method in made]
    yield from runs.publish(_result(profile, name, methods, frame, made, made_by), record=record)


def _recorded(path: Path, profile: Profile, data_sha256: str) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """Return the rows of a recorded result and, per method, how they were made; nothing if it answers another question.

    An option that is younger than the file had its default then; a file with one that is gone answers another question.
    """
    if not path.is_file():
        return pd.DataFrame(), {}
    try:
        content = results.read(path)
        record = content.provenance
        recorded = replace(from_dict(Profile, record["config"]), workers=profile.workers)  # they change no number
    except (TypeError, ValueError):
        return pd.DataFrame(), {}  # an option of then that there is no longer
    if (recorded, record["data_sha256"]) != (profile, data_sha256):
        return pd.DataFrame(), {}
    rows = pd.DataFrame(content.measurements["rows"])
    methods = [name for name in rows["method"].unique() if name not in experiment.REFERENCES]
    return rows, content.made or dict.fromkeys(methods, _short(record))


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a method's record what the record of the whole file holds."""
    return {name: value for name, value in record.items() if name not in ("config", "platform")}


def _result(
    profile: Profile,
    name: str,
    methods: Sequence[str],
    frame: pd.DataFrame,
    made: dict[str, Any],
    made_by: dict[str, Any],
) -> Result:
    """Return a result file: the curves, what the safe windows are worth, and every row, from which tables are made.

    One rate of every method makes no curve and no window: then every class is a mark, one panel per original.
    """
    best = tables.in_hindsight(frame)
    noise = experiment.retraining_noise(profile) if profile.retrained and len(profile.seeds) > 1 else pd.DataFrame()
    # Recorded models were trained elsewhere: their time says nothing about this machine.
    timed = "zs_pag" in methods and profile.retrained and not profile.recorded_models
    seconds = experiment.stage_seconds(profile, frame) if timed else {}
    drift = {f"drift in hindsight {method}": tables.over_classes(best, "drift")[method]["mean"] for method in methods}
    if profile.rates_of is None:
        caption, draw, panels = "Forget accuracy, over-unlearning and drift over the learning rate", "curves", _panels
        numbers = {f"safe window {name}": tables.window(tables.safe_rates(frame, name)) for name in methods} | drift
    else:
        caption, draw, panels = "Every method at the rates taken on another original", "scatter", _marks
        lost = tables.over_classes(tables.by_rule(frame), "over_unlearning")
        numbers = {f"points lost {name}": 100 * lost[name]["mean"] for name in methods} | drift
    data = experiment.data_of(profile)
    finite = frame.replace([math.inf, -math.inf], math.nan)  # what diverged has no number in a file
    return Result(
        name=name,
        profile=profile.name,
        draw=draw,
        caption=caption + (f", judged on the {profile.test_half} half of the test set." if profile.test_half else "."),
        numbers={name: [value, None] for name, value in numbers.items()},
        data=panels(frame, methods),
        measurements={
            "noise": noise.to_dict("records"),
            "seconds": seconds,
            "rows": files.plain(tables.columns(finite), "rows"),
            "data_source": data.data_source,
            "test_half": profile.test_half,
            "titles": {name: experiment.TITLES[name] for name in (*experiment.REFERENCES, *methods)},
            "reads": {name: experiment.READS[name] for name in methods},
            "class_names": [data.classes[forget] for forget in profile.classes],
        },
        provenance=made_by,
        made=made,
    )


def _panels(frame: pd.DataFrame, methods: Sequence[str]) -> dict[str, Any]:
    """Return a row of three panels per eight methods, the first method in each of them: more curves cannot be told."""
    first, *others = methods
    parts = [others[start : start + ROW] for start in range(0, max(1, len(others)), ROW)]
    rows = [tables.ladder_panels(frame, [first, *part], experiment.TITLES) for part in parts]
    return rows[0] | {"panels": [panel for row in rows for panel in row["panels"]]}


def _marks(frame: pd.DataFrame, methods: Sequence[str]) -> dict[str, Any]:
    """Return one panel per original: forget accuracy over points lost, a mark per class and method."""
    panels = []
    for seed, own in frame.groupby("seed"):
        of = {name: rows for name, rows in own.groupby("method")}
        series = {
            experiment.TITLES[name]: {
                "x": (100 * of[name]["over_unlearning"]).tolist(),
                "y": (100 * of[name]["acc_forget"]).tolist(),
            }
            for name in methods
        }
        panel = {"series": series, "title": f"original of seed {seed}", "dot": 30}
        axes = {"xlabel": "retained points lost", "ylabel": "forget accuracy on test images (%)"}
        panels.append(panel | axes | {"lines": {"1 %": 1}})
    return {"panels": panels, "columns": min(2, len(panels)), "size": [5.6, 4.2]}
