"""How a class comes back in training: mean curves, steps until it is there, and AIN.

Invariant: nothing here sees a model.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from zspag.lab.relearning import SHARES

_ACCURACIES = ("acc_forget", "acc_retain")


def mean_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Return training curves as means over classes, seeds averaged per class first.

    Args:
        rows: Of the measure "relearning".

    Returns:
        Per method, kind of images shown, rate and step: samples, acc_forget and acc_retain, and for both accuracies
        the least and the largest class, such as "acc_forget_low". A mean ends where the first of its curves does.
    """
    curve, place = ["method", "shown", "lr"], ["method", "shown", "lr", "step"]
    ends = rows.groupby([*curve, "forget", "seed"])["step"].transform("max")
    rows = rows[rows["step"] <= ends.groupby([rows[name] for name in curve]).transform("min")]
    per_class = rows.groupby([*place, "forget"], sort=False)[["samples", *_ACCURACIES]].mean()
    groups = per_class.groupby(place, sort=False)
    spans = {
        f"{name}_{end}": values
        for name in _ACCURACIES
        for end, values in (("low", groups[name].min()), ("high", groups[name].max()))
    }
    return groups.mean().assign(**spans).reset_index()


def curve_arrivals(curves: pd.DataFrame, *, original: float, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """Return where each curve first has a share of the original's forget accuracy again.

    Args:
        curves: One network's rows of the measure "relearning" where the class is shown.
        original: The original's accuracy on the judged forget images, a fraction.
        shares: Shares of it to reach.

    Returns:
        Per rate, seed and share the first row of the curve at or above the level, with "share" and "reached"; the
        last row, not reached, where there is none: its step is then the number of steps that did not suffice.
    """
    found = []
    for _, curve in curves.groupby(["lr", "seed"], sort=False):
        for share in shares:
            above = curve[curve["acc_forget"] >= share * original]
            row = curve.iloc[-1] if above.empty else above.iloc[0]
            found.append(row.to_dict() | {"share": share, "reached": not above.empty})
    return pd.DataFrame(found)


def indices(own: pd.DataFrame, retrained: pd.DataFrame) -> pd.DataFrame:
    """Return the anamnesis index AIN: a model's steps over the retrained model's; 1 is what one would wish for.

    Args:
        own: Of ``curve_arrivals``, of the model.
        retrained: Of the retrained model, at the same rates, seeds and shares.

    Returns:
        One row per rate and share: "steps" and "steps_retrained", means over the seeds; "index", their ratio, NaN
        where the retrained model was at the level before its first step; "reached" and "reached_retrained", shares of
        the seeds. Below 1 the former makes the index a lower bound, the latter an upper one, both nothing at all.

    Raises:
        ValueError: If the two do not have the same rates, seeds and shares.
    """
    keys = ["lr", "share"]
    pairs = own.merge(retrained, on=[*keys, "seed"], how="outer", suffixes=("", "_retrained"), validate="one_to_one")
    if pairs[["step", "step_retrained"]].isna().any(axis=None):
        raise ValueError("a model and the retrained one must be compared at the same rates, seeds and shares")
    columns = ["step", "step_retrained", "reached", "reached_retrained"]
    table = pairs.groupby(keys)[columns].agg(lambda values: values.astype(float).mean()).reset_index()
    table = table.rename(columns={"step": "steps", "step_retrained": "steps_retrained"})
    started = table["steps_retrained"].where(table["steps_retrained"] > 0)
    return table.assign(index=table["steps"] / started)


def arrivals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how soon the class was back where it was shown again, per network, class, seed, rate and share.

    Args:
        rows: Of the measure "relearning"; the level is a share of what the original recognizes.

    Returns:
        Columns method, forget, and those of ``curve_arrivals``.
    """
    curves, found = rows[rows["shown"] == "the class"], []
    untouched = curves[(curves["method"] == "original") & (curves["step"] == 0)].drop_duplicates(["forget", "seed"])
    level = untouched.set_index(["forget", "seed"])["acc_forget"]
    for (method, forget, seed), own in curves.groupby(["method", "forget", "seed"], sort=False):
        back = curve_arrivals(own, original=float(level[forget, seed]))
        found.append(back.assign(method=method, forget=forget))
    return pd.concat(found, ignore_index=True)


def anamnesis(back: pd.DataFrame, *, lr: float, share: float) -> dict[str, float]:
    """Return AIN per network: its steps over the retrained network's, seeds averaged per class, mean over classes.

    Args:
        back: Of ``arrivals``.
        lr: Learning rate.
        share: Share of the original's forget accuracy.

    Returns:
        Networks by name; classes of which the retrained network needed no step are left out. Where counting stopped
        before it arrived, an index is an upper bound.
    """
    part = back[(back["lr"] == lr) & (back["share"] == share)]
    targets = dict(iter(part[part["method"] == "retrained"].groupby("forget")))
    found: dict[str, list[float]] = {}
    for (method, forget), own in part.groupby(["method", "forget"], sort=False):
        found.setdefault(method, []).append(indices(own, targets[forget])["index"].item())
    return {method: float(pd.Series(indices).mean()) for method, indices in found.items()}


def arrival_table(back: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return what ``arrivals`` found as a reader sees it: steps, AIN and retained accuracy per rate and share.

    Returns:
        One line per network and a column per rate and share, such as "12 steps (768 images), AIN 0.050, retained 97 %":
        means over classes and seeds. A plus sign says that some had not arrived when counting stopped.
    """
    lines: dict[str, dict[str, str]] = {}
    for (lr, share), part in back.groupby(["lr", "share"], sort=False):
        index = anamnesis(back, lr=lr, share=share)
        for method, own in part.groupby("method", sort=False):
            more = "" if own["reached"].all() else "+"
            steps = f"{own['step'].mean():.0f}{more} steps ({own['samples'].mean():.0f} images)"
            rest = f"AIN {index.get(str(method), math.nan):.3f}, retained {100 * own['acc_retain'].mean():.0f} %"
            lines.setdefault(titles[str(method)], {})[f"{100 * share:g} % back at {lr:g}"] = f"{steps}, {rest}"
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("network")
