"""The paper's claims as functions of recorded rows: what is compared, with what, and a verdict in words.

C3, do influence labels improve on others, and C5, is ZS-PAG dominated. ``ranked`` and ``dominated`` decide, and the
sentences are composed from what they say, whichever way it falls.

Invariant: nothing here sees a model, and nothing is chosen by looking at the rows that a verdict is about.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from zspag.tables import REFERENCES, by_rule, over_classes, safe_rates, window

# What labels are compared by (claim C3): name and unit, factor, digits; less is better in all three.
C3_MEASURES: dict[str, tuple[str, float, int]] = {
    "over_unlearning": ("over-unlearning (points)", 100.0, 2),
    "drift": ("drift (thousandths of a nat)", 1000.0, 2),
    "nll_retain": ("negative log-likelihood (thousandths of a nat)", 1000.0, 2),
}
_NET = "sweep_cifar10_conv7"
C3_FILES = {  # the results, by the half of the test set that judged: three classes chose, all ten confirm
    "first": f"{_NET}_airplane-cat-horse_first-half",
    "second": f"{_NET}_airplane-automobile-bird-cat-deer-dog-frog-horse-ship-truck_second-half",
}
RIVALS = ("random_labels", "second_best_labels", "zs_pag")  # labels that claim C3 says are improved on
# CHOICE, both by the first half alone: of the labels that follow their influence those with the least drift, and of all
# that was tried what has the least drift and the best likelihood. The latter leaves the labels soft.
BEST_LABELS = "balanced_labels"
FROZEN = "distilled"
# What methods are compared on (claim C5), and which way is better: -1 lower, 1 higher.
COMPARED = {"gap": -1, "drift": -1, "safe window": 1, "AIN": 1}


def paired(rows: pd.DataFrame, columns: Sequence[str], *, baseline: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return every method's differences to a baseline, per class and seed, averaged as the protocol has it.

    Classes differ much more than methods do; a difference within one class and seed is free of that.

    Args:
        rows: One row per method, class and seed, from ``by_rule`` or ``in_hindsight``.
        columns: Columns to compare, such as "drift".
        baseline: The method that is subtracted.

    Returns:
        Per method (but the baseline) and column what ``over_classes`` returns of the differences, and "lower" of
        "pairs": in how many of the classes and seeds the method has the smaller value.

    Raises:
        ValueError: If a method lacks a class or seed that the baseline has, or the other way round.
    """
    answer: dict[str, dict[str, dict[str, float]]] = {}
    for column in columns:
        wide = rows.pivot(index=["forget", "seed"], columns="method", values=column)
        if wide.isna().any(axis=None):
            lacking = ", ".join(wide.columns[wide.isna().any()])
            raise ValueError(f"{column} cannot be paired: some class and seed has none for {lacking}")
        gaps = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
        means = over_classes(gaps.reset_index().melt(["forget", "seed"], var_name="method"), "value")
        for method, mean in means.items():
            counts = {"lower": int((gaps[method] < 0).sum()), "pairs": len(gaps)}
            answer.setdefault(method, {})[column] = mean | counts
    return answer


def ranked(gap: dict[str, float]) -> str:
    """Say in a word whether a paired difference, where less is better, is beyond its interval.

    Example:
        >>> ranked({"mean": -2.0, "half": 1.0, "classes": 3}), ranked({"mean": -1.0, "half": 2.0, "classes": 3})
        ('better', 'not distinguishable')
    """
    if gap["classes"] < 2 or abs(gap["mean"]) <= gap["half"]:
        return "not distinguishable"
    return "better" if gap["mean"] < 0 else "worse"


def improves(gaps: dict[str, dict[str, float]]) -> str:
    """Say whether a method improves on its baseline: better in one of the paired measures and worse in none.

    Args:
        gaps: Per measure, less being better, a paired difference as in ``paired``.

    Returns:
        "better", "worse" (in at least one measure), or "not distinguishable".
    """
    words = {ranked(gap) for gap in gaps.values()}
    return "worse" if "worse" in words else "better" if "better" in words else "not distinguishable"


def label_table(halves: dict[str, pd.DataFrame], *, baseline: str, titles: dict[str, str]) -> pd.DataFrame:
    """Return the table of claim C3: every method minus the baseline, on the half it was chosen on and on the other.

    Args:
        halves: Per half of the test set, the rows of its grid.
        baseline: The method that is subtracted.
        titles: Readable names of the methods.

    Returns:
        One line per method: its forget accuracy on test images in %, then the differences as "mean ± half-width (pairs
        that are lower of all pairs)". A method that was run on one half only has empty cells for the other.
    """
    lines: dict[str, dict[str, str]] = {}
    for half, frame in halves.items():
        ruled = by_rule(frame)
        gaps = paired(ruled[~ruled["method"].isin(REFERENCES)], tuple(C3_MEASURES), baseline=baseline)
        known = over_classes(ruled, "acc_forget")
        for method, measures in gaps.items():
            line = lines.setdefault(titles.get(method, method), {})
            line[f"{half}: forget %"] = f"{100 * known[method]['mean']:.2f}"
            for column, (text, factor, digits) in C3_MEASURES.items():
                gap = measures[column]
                cell = f"{factor * gap['mean']:+.{digits}f} ± {factor * gap['half']:.{digits}f}"
                share = f" ({gap['lower']} of {gap['pairs']})"
                line[f"{half}: {text}"] = cell + share
    shown = ["forget %", *(text for text, *_ in C3_MEASURES.values())]
    columns = [f"{half}: {text}" for half in halves for text in shown]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns).fillna("").rename_axis("labels")


def label_verdict(halves: Mapping[str, pd.DataFrame], *, titles: dict[str, str]) -> str:
    """Return the verdict on claim C3 in sentences composed from the rows of the half that confirms.

    The claim is about labels that follow their influence, so ``BEST_LABELS`` decide it. ``FROZEN`` is what did best of
    all that was tried on the first half, and is judged by the same measures. Both are told again for the classes that
    the first half did not use, where there are at least two.

    Args:
        halves: Rows of the grids of the "first" half and of the "second", which has ``BEST_LABELS``, ``FROZEN`` and
            ``RIVALS`` among its methods.
        titles: Readable names of the methods.
    """
    ruled = by_rule(halves["second"])
    ruled = ruled[~ruled["method"].isin(REFERENCES)]
    cases = ruled[["forget", "seed"]].drop_duplicates()
    rates = ", ".join(f"{rate:g}" for rate in sorted(ruled["lr"].unique()))
    words = {method: _against_rivals(ruled, method) for method in (BEST_LABELS, FROZEN)}
    lost = over_classes(ruled, "over_unlearning")
    holds = set(words[BEST_LABELS].values()) == {"better"} and ranked(lost[BEST_LABELS]) != "worse"
    fresh = f"{cases['seed'].nunique()} fresh original{'s' * (cases['seed'].nunique() > 1)}"
    said = (
        f"Claim C3 is **{'supported' if holds else 'not supported'}**. On the half of the test set that nothing was"
        f" chosen on ({cases['forget'].nunique()} classes, {fresh}, learning rates: {rates}), the best labels by"
        f" influence of the first half ({titles[BEST_LABELS]}) are {_told(words[BEST_LABELS], titles)};"
        f" {_kept(lost[BEST_LABELS])}. What did best of all on the first half and was frozen ({titles[FROZEN]}) is"
        f" {_told(words[FROZEN], titles)}; {_kept(lost[FROZEN])}."
    )
    new = ruled[~ruled["forget"].isin(halves["first"]["forget"])]
    if new["forget"].nunique() < 2:
        return said
    again = " and ".join(f"{titles[name]} {_told(_against_rivals(new, name), titles)}" for name in words)
    return f"{said} On the {new['forget'].nunique()} classes that the first half did not use: {again}."


def _against_rivals(ruled: pd.DataFrame, method: str) -> dict[str, str]:
    """Return whether a method improves on each of ``RIVALS``."""
    return {
        rival: improves(
            paired(ruled[ruled["method"].isin([method, rival])], tuple(C3_MEASURES), baseline=rival)[method]
        )
        for rival in RIVALS
    }


def _told(words: Mapping[str, str], titles: Mapping[str, str]) -> str:
    link = {"better": "than", "worse": "than", "not distinguishable": "from"}
    return "; ".join(f"{word} {link[word]} {titles[rival]}" for rival, word in words.items())


def _kept(lost: dict[str, float]) -> str:
    """Say how retained accuracy compares with that of the masked original."""
    meant = {"better": "a gain", "worse": "a loss beyond the interval", "not distinguishable": "within the interval"}
    return (
        f"against the masked original the loss of retained accuracy is {100 * lost['mean']:+.2f} ±"
        f" {100 * lost['half']:.2f} points, {meant[ranked(lost)]}"
    )


def comparison(rows: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return what claim C5 compares, one line per forget-only method, the masked original among them.

    Args:
        rows: One row per method, class and seed, from ``by_rule``. AIN is ``relearn_steps`` over those of the retrained
            model of the same class and seed; it is left out where the rows do not have it for every method.
        frame: The whole grid, for the safe window.

    Returns:
        Columns of ``COMPARED``, indexed by method. Gap is a fraction, drift in nats, the safe window a factor.

    Note:
        CHOICE: the masked original has no learning rate to miss, so its window is infinite; a method with rates of
        which none is safe has a window of 0.
    """
    most = rows.groupby("method", sort=False)["retain_samples_read"].max().fillna(0)
    methods = [name for name in most.index if most[name] == 0 and name not in ("original", "retrained")]
    measured = [name for name in ("gap", "drift") if rows[name].notna().any()]  # no gap without retrained models
    columns = {name: {method: over_classes(rows, name)[method]["mean"] for method in methods} for name in measured}
    columns["safe window"] = {
        method: math.inf if method == "masked" else window(safe_rates(frame, method)) for method in methods
    }
    relearned = _relearning(rows)
    if all(math.isfinite(relearned.get(method, math.nan)) for method in methods):
        columns["AIN"] = {method: relearned[method] for method in methods}
    return pd.DataFrame(columns, index=pd.Index(methods, name="method"))


def _relearning(rows: pd.DataFrame) -> dict[str, float]:
    """Return AIN of the methods that have it for every class and seed, seeds averaged per class.

    A retrained model that needs no step gives none.
    """
    if "relearn_steps" not in rows:
        return {}
    key = ["forget", "seed"]
    retrained = rows[rows["method"] == "retrained"].set_index(key)["relearn_steps"].astype(float).rename("_retrained")
    joined = rows.join(retrained.where(retrained > 0), on=key)
    ratio = joined.assign(AIN=joined["relearn_steps"].astype(float) / joined["_retrained"])
    complete = ratio["AIN"].notna().groupby(ratio["method"]).all()
    return {method: values["mean"] for method, values in over_classes(ratio, "AIN").items() if complete[method]}


def dominated(summary: pd.DataFrame) -> dict[str, list[str]]:
    """Return, per method, who dominates it: at least as good on all that is compared, and better on one (Pareto).

    Args:
        summary: From ``comparison``; columns of ``COMPARED`` count, others do not. Numbers that agree to nine decimals
            are equal, whatever the order in which they were summed.

    Raises:
        ValueError: If a number is missing, for nothing can be compared with it.

    Example:
        >>> both = pd.DataFrame({"gap": [0.1, 0.2], "drift": [0.0, 0.0]}, index=["near", "far"])
        >>> dominated(both)
        {'near': [], 'far': ['near']}
    """
    columns = [name for name in COMPARED if name in summary]
    scores = summary[columns].astype(float).round(9) * [COMPARED[name] for name in columns]
    if missing := [str(name) for name in scores.index[scores.isna().any(axis=1)]]:
        raise ValueError(
            f"{', '.join(missing)}: a number of {', '.join(columns)} is missing, so nothing can be compared"
        )
    return {
        str(name): [
            str(other) for other, rival in scores.iterrows() if bool((rival >= own).all()) and bool((rival > own).any())
        ]
        for name, own in scores.iterrows()
    }


def comparison_table(summary: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return the comparison as a reader sees it, with the verdict: who dominates a method, if anybody does."""
    beaten = dominated(summary)
    lines: list[dict[str, Any]] = []
    for name, row in summary.iterrows():
        line = {
            "method": titles.get(str(name), str(name)),
            **({"gap (points)": f"{100 * row['gap']:.2f}"} if "gap" in summary else {}),
            "drift (nats)": f"{row['drift']:.4f}" if row["drift"] < 99 else "> 99",
            "safe window (factor)": f"{row['safe window']:.0f}" if math.isfinite(row["safe window"]) else "no rate",
        }
        if "AIN" in summary:
            line["AIN"] = f"{row['AIN']:.3f}"
        lines.append(line | {"dominated by": _named(beaten[str(name)], titles) or "nobody"})
    return pd.DataFrame(lines).set_index("method")


def _named(methods: Sequence[str], titles: Mapping[str, str]) -> str:
    """List up to three titles, which may hold commas, and count the rest."""
    first = [titles.get(name, name) for name in methods[:3]]
    return "; ".join([*first, *([f"{len(methods) - 3} more"] if len(methods) > 3 else [])])


def verdict(summary: pd.DataFrame, titles: Mapping[str, str], method: str) -> str:
    """Return claim C5 in one sentence: whether a method is dominated, by whom, and on what it was compared."""
    words = {"gap": "gap to retraining", "drift": "drift", "safe window": "safe window", "AIN": "relearning (AIN)"}
    *first, last = [words[name] for name in COMPARED if name in summary]
    lacking = [words[name] for name in COMPARED if name not in summary]
    left_out = f" ({' and '.join(lacking)} not measured in these rows)" if lacking else ""
    by = dominated(summary)[method]
    rivals = len(summary) - 1
    count = f"{len(by) or 'none'} of the {rivals} other forget-only methods, the masked original included"
    said = f"is dominated by {count}" + (f": {_named(by, titles)}" if by else "")
    return f"On {', '.join(first)} and {last} together{left_out}, {titles.get(method, method)} {said}."
