"""Claim C3: do labels that follow their influence improve on others?

One formula was chosen on one half of CIFAR-10's test images and is judged on the other. The sentences are composed from
what ``ranked`` says, whichever way it falls.

Invariant: nothing is chosen by looking at the rows that a verdict is about.
"""

from collections.abc import Mapping

import pandas as pd

from zspag.report.claims.ranking import improves, ranked
from zspag.report.tables import REFERENCES, by_rule, over_classes, paired

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
        ruled = judged(frame)
        gaps = paired(ruled, tuple(C3_MEASURES), baseline=baseline)
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
    ruled = judged(halves["second"])
    cases = ruled[["forget", "seed"]].drop_duplicates()
    rates = ", ".join(f"{rate:g}" for rate in sorted(ruled["lr"].unique()))
    words = {method: _words(against_rivals(ruled, method)) for method in (BEST_LABELS, FROZEN)}
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
    again = " and ".join(f"{titles[name]} {_told(_words(against_rivals(new, name)), titles)}" for name in words)
    return f"{said} On the {new['forget'].nunique()} classes that the first half did not use: {again}."


def judged(half: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of half a test set that are compared: one per method, class and seed, without references."""
    ruled = by_rule(half)
    return ruled[~ruled["method"].isin(REFERENCES)]


def against_rivals(ruled: pd.DataFrame, method: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return the paired differences of a method to each of ``RIVALS``, per measure of ``C3_MEASURES``."""
    return {
        rival: paired(ruled[ruled["method"].isin([method, rival])], tuple(C3_MEASURES), baseline=rival)[method]
        for rival in RIVALS
    }


def _words(against: Mapping[str, dict[str, dict[str, float]]]) -> dict[str, str]:
    return {rival: improves(gaps) for rival, gaps in against.items()}


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
