"""How a class comes back in training: mean curves, steps until it is there, and AIN.

Invariant: nothing here sees a model.
"""

import math
from collections.abc import Mapping

import pandas as pd

from zspag.lab.audit import recovery

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


def arrivals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how soon the class was back where it was shown again, per network, class, seed, rate and share.

    Args:
        rows: Of the measure "relearning"; the level is a share of what the original recognizes.

    Returns:
        Columns method, forget, and those of ``recovery.arrivals``.
    """
    curves, found = rows[rows["shown"] == "the class"], []
    untouched = curves[(curves["method"] == "original") & (curves["step"] == 0)].drop_duplicates(["forget", "seed"])
    level = untouched.set_index(["forget", "seed"])["acc_forget"]
    for (method, forget, seed), own in curves.groupby(["method", "forget", "seed"], sort=False):
        back = recovery.arrivals(own, original=float(level[forget, seed]))
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
        found.setdefault(method, []).append(recovery.anamnesis(own, targets[forget])["index"].item())
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
