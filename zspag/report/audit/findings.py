"""What an audit found: its rows by measure, training curves as means, and how soon a class came back.

Invariant: nothing here sees a model; a file gives back the findings that went in.
"""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from zspag.report import results
from zspag.report.results import Result
from zspag.report.tables import columns

Findings = dict[str, pd.DataFrame]
TITLES = {  # the networks of an audit, as in every table of the laboratory
    "original": "original",
    "masked": "masked original",
    "row_only": "original, one row edited",
    "retrained": "retrained",
    "zs_pag": "ZS-PAG",
    "remove": "removal (ours)",
    "delete": "DELETE",
    "boundary_shrink": "boundary shrink",
    "head_only": "head only",
}
RATE = 3e-4  # the learning rate that sentences and the figure of a record speak of
SHARES = (0.5, 0.9)  # of the original's forget accuracy: when a class counts as back
SHARE = SHARES[0]
OWN = "own"  # a network is trained under its own head; older records know no other
_ACCURACIES = ("acc_forget", "acc_retain")


def measured(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows of one measure, with its columns."""
    return rows[rows["measure"] == measure].dropna(axis=1, how="all").reset_index(drop=True)


def findings(rows: pd.DataFrame) -> Findings:
    """Return the rows of ``lab.audit.audit`` as a frame per measure.

    Training curves are many rows. Instead of "relearning" there are "curves" (of ``mean_curves``) and "arrivals".
    """
    found = {str(measure): measured(rows, str(measure)) for measure in rows["measure"].unique()}
    if (curves := found.pop("relearning", None)) is not None:
        found |= {"curves": mean_curves(curves), "arrivals": arrivals(curves)}
    return found


def packed(found: Findings) -> dict[str, dict[str, list[Any]]]:
    """Return findings as a file keeps them: by measure and column, None where a row has nothing."""
    return {name: columns(frame) for name, frame in found.items()}


def unpacked(kept: Mapping[str, Mapping[str, list[Any]]]) -> Findings:
    """Return findings from what ``packed`` made of them.

    In older records every network was trained under its own head, and no column says so.
    """
    found = {name: pd.DataFrame(dict(columns)) for name, columns in kept.items()}
    for name in found.keys() & {"curves", "arrivals"}:
        if "head" not in found[name]:
            found[name]["head"] = OWN
    return found


def recorded(folder: Path) -> dict[str, tuple[Result, Findings]]:
    """Return the audits recorded in ``folder/<profile>/`` by a title such as "digits, 10 classes, 3 seeds"."""
    found = {}
    for path in sorted(folder.glob("*/audit_*.json")):
        result = results.read(path)
        seeds, classes = len(result.measurements["seeds"]), result.measurements["class_names"]
        named = f"{len(classes)} classes" if len(classes) > 3 else ", ".join(classes)
        title = f"{Path(result.config['dataset']).name}, {named}, {seeds} seed{'s' * (seeds > 1)}"
        found[title] = result, unpacked(result.measurements["rows"])
    return found


def audited(found: Findings) -> list[str]:
    """Return the networks that were looked at, those that were ruined everywhere included."""
    frames = [found[name] for name in ("restored", "ruined") if name in found]
    return [str(method) for method in pd.concat(frames)["method"].unique()]


def mean_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of "relearning" as means over classes, seeds averaged per class first.

    There is one per method, kind of images shown, head, rate and step, with both accuracies and the least and the
    largest class of each, such as "acc_forget_low". A mean ends where the first of its curves does.
    """
    curve, place = ["method", "shown", "head", "lr"], ["method", "shown", "head", "lr", "step"]
    ends = rows.groupby([*curve, "forget", "seed"])["step"].transform("max")
    rows = rows[rows["step"] <= ends.groupby([rows[name] for name in curve]).transform("min")]
    per_class = rows.groupby([*place, "forget"], sort=False)[["samples", *_ACCURACIES]].mean()
    groups = per_class.groupby(place, sort=False)
    means = groups.mean()
    for name in _ACCURACIES:
        means[f"{name}_low"], means[f"{name}_high"] = groups[name].min(), groups[name].max()
    return means.reset_index()


def arrivals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how soon the class was back, per network, head, class, seed, rate and share of the original's accuracy.

    From the rows of "relearning" it is the first of a curve that reaches the share; where none does, the last one, with
    "reached" False: so many steps did not suffice. What the original recognizes under its own head is the measure for
    all.
    """
    curves, found = rows[rows["shown"] == "the class"], []
    untouched = curves[(curves["method"] == "original") & (curves["head"] == OWN) & (curves["step"] == 0)]
    level = untouched.drop_duplicates(["forget", "seed"]).set_index(["forget", "seed"])["acc_forget"]
    for (_, _, forget, seed, _), curve in curves.groupby(["method", "head", "forget", "seed", "lr"], sort=False):
        for share in SHARES:
            above = curve[curve["acc_forget"] >= share * level[forget, seed]]
            row = curve.iloc[-1] if above.empty else above.iloc[0]
            found.append(row.to_dict() | {"share": share, "reached": not above.empty})
    return pd.DataFrame(found)


def anamnesis(back: pd.DataFrame, *, head: str, lr: float, share: float) -> dict[str, float]:
    """Return the anamnesis index (AIN) of each network in ``arrivals`` (Chundawat et al., IEEE TIFS 2023).

    It is the network's steps over the retrained network's under the same head, seeds averaged per class, mean over
    classes; classes of which the retrained network needed no step are left out. Where counting stopped before the
    retrained network arrived, it is an upper bound.

    Raises:
        ValueError: If a network lacks a seed that the retrained one has, or the other way round.

    Note:
        Under the own head, as it was published, it measures one row of the head: the original with that row edited
        ("row_only") has an index near 1 and everything else left. Show it beside that control, or not at all.
    """
    part = back[(back["head"] == head) & (back["lr"] == lr) & (back["share"] == share)]
    wide = part.pivot(index=["forget", "seed"], columns="method", values="step").astype(float)
    ruined = wide.isna().groupby("forget").transform("all")  # a class of which a network has no seed at all
    if (wide.isna() & ~ruined).any(axis=None) or ruined["retrained"].any():
        raise ValueError("a network and the retrained one must be compared on the same classes and seeds")
    steps = wide.groupby("forget").mean()
    index = steps.div(steps["retrained"].where(steps["retrained"] > 0), axis=0)
    return {str(method): float(index[method].mean()) for method in part["method"].unique()}


def arrival_table(back: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return ``arrivals`` as a reader sees them: a line per network and head, and a column per rate and share.

    A cell holds means over classes and seeds, such as "12 steps (768 images), AIN 0.050, retained 97 %". A plus sign
    says that some had not arrived when counting stopped. Steps and AIN under the own head measure one row of it: they
    are to be read beside the line of the original with that row edited, and beside the lines of the other heads.
    """
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for (head, lr, share), part in back.groupby(["head", "lr", "share"], sort=False):
        index = anamnesis(back, head=head, lr=lr, share=share)
        for method, own in part.groupby("method", sort=False):
            more = "" if own["reached"].all() else "+"
            steps = f"{own['step'].mean():.0f}{more} steps ({own['samples'].mean():.0f} images)"
            rest = f"AIN {index[str(method)]:.3f}, retained {100 * own['acc_retain'].mean():.0f} %"
            line = lines.setdefault((head, str(method)), {"network": titles[str(method)], "head": head})
            line[f"{100 * share:g} % back at {lr:g}"] = f"{steps}, {rest}"
    return pd.DataFrame(list(lines.values())).set_index("network")


def apart(values: pd.Series) -> float:
    """Return the mean absolute difference of two of the values; NaN where there are not two."""
    pairs = list(itertools.combinations(values.dropna(), 2))
    return fmean(abs(first - second) for first, second in pairs) if pairs else math.nan
