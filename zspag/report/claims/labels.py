"""Claim C3: do labels that follow their influence improve on others?

One formula was chosen on one half of CIFAR-10's test images and is judged on the other. The sentences are composed from
what ``ranked`` returns, whatever the outcome.

Invariant: nothing is chosen by looking at the rows that a verdict is about.
"""

from collections.abc import Mapping

import pandas as pd

from zspag.report.claims.decisions import (
    CONTRADICTED,
    MARGIN,
    SUPPORTED,
    UNDECIDED,
    difference,
    improved,
    interval,
    together,
)
from zspag.report.tables import REFERENCES, by_rule, improves, over_classes, paired

# What labels are compared by (claim C3): name and unit, factor, digits; less is better in all three.
C3_MEASURES: dict[str, tuple[str, float, int]] = {
    "over_unlearning": ("over-unlearning (points)", 100.0, 2),
    "drift": ("drift (thousandths of a nat)", 1000.0, 2),
    "nll_retain": ("negative log-likelihood (thousandths of a nat)", 1000.0, 2),
}
_NET, _ALL = "sweep_cifar10_conv7", "airplane-automobile-bird-cat-deer-dog-frog-horse-ship-truck"
C3_FILES = {  # the results, by the half of the test set that judged: three classes chose, all ten confirm
    "first": f"{_NET}_airplane-cat-horse_first-half_rates-3_no-retrained",
    "second": f"{_NET}_{_ALL}_second-half_seeds-1_rates-3_no-retrained",
}
LABELS = "process_labels"  # the paper's, which claim C3 is about where a whole sweep was run
RIVALS = ("random_labels", "second_best_labels", "zs_pag")  # labels that claim C3 says are improved on
# CHOICE, both by the first half alone: of the labels that follow their influence those with the least drift, and of all
# that was tried what has the least drift and the best likelihood. The latter leaves the labels soft.
BEST_LABELS = "balanced_labels"
FROZEN = "distilled"


def label_table(halves: Mapping[str, pd.DataFrame], *, baseline: str, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return the table of claim C3: every method minus the baseline, on the half it was chosen on and on the other.

    Args:
        halves: Per half of the test set, the rows of its grid.
        baseline: The method that is subtracted.
        titles: Readable names of the methods.

    Returns:
        One line per method: its forget accuracy on test images in %, then the differences as "mean ± half-width (pairs
        that are lower of all pairs)", from five classes on with an interval. A method that was run on one half only has
        empty cells for the other.
    """
    cells: dict[str, dict[str, str]] = {}
    for half, frame in halves.items():
        ruled = judged(frame)
        gaps, known = paired(ruled, tuple(C3_MEASURES), baseline=baseline), over_classes(ruled, "acc_forget")
        names = {method: titles.get(method, method) for method in gaps}
        cells[f"{half}: forget %"] = {name: f"{100 * known[m]['mean']:.2f}" for m, name in names.items()}
        for column, (text, factor, digits) in C3_MEASURES.items():
            cells[f"{half}: {text}"] = {
                names[method]: interval(gap[column], factor=factor, digits=digits)
                + f" ({gap[column]['lower']} of {gap[column]['pairs']})"
                for method, gap in gaps.items()
            }
    lines = dict.fromkeys(name for column in cells.values() for name in column)
    return pd.DataFrame(cells, index=pd.Index(list(lines), name="labels")).fillna("")


def label_verdict(halves: Mapping[str, pd.DataFrame], *, titles: Mapping[str, str]) -> str:
    """Return the verdict on claim C3 in sentences composed from the rows of the half that confirms.

    The claim is about labels that follow their influence, so ``BEST_LABELS`` decide it. ``FROZEN`` is what did best of
    all that was tried on the first half, and is judged by the same measures. Both are judged again on the classes that
    the first half did not use, where there are at least two.

    Args:
        halves: Rows of the grids of the "first" half and of the "second", which has ``BEST_LABELS``, ``FROZEN`` and
            ``RIVALS`` among its methods.
        titles: Readable names of the methods.
    """
    ruled = judged(halves["second"])
    seeds, rates = ruled["seed"].nunique(), ", ".join(f"{rate:g}" for rate in sorted(ruled["lr"].unique()))
    words, lost = _words(ruled), over_classes(ruled, "over_unlearning")
    against = {method: _sentence(words[method], titles) for method in words}
    found = [difference(lost[BEST_LABELS], most=MARGIN / 100), *map(improved, words[BEST_LABELS].values())]
    verdict = (
        f"Claim C3 is **{together(found)}**. On the half of the test set that nothing was"
        f" chosen on ({ruled['forget'].nunique()} classes, {seeds} fresh original{'s' * (seeds > 1)}, learning rates:"
        f" {rates}), the best labels by influence of the first half ({titles[BEST_LABELS]}) are {against[BEST_LABELS]};"
        f" {_retained(lost[BEST_LABELS])}. What did best of all on the first half and was frozen ({titles[FROZEN]}) is"
        f" {against[FROZEN]}; {_retained(lost[FROZEN])}."
    )
    new = ruled[~ruled["forget"].isin(halves["first"]["forget"])]
    if new["forget"].nunique() < 2:
        return verdict
    again = " and ".join(f"{titles[name]} {_sentence(found, titles)}" for name, found in _words(new).items())
    return f"{verdict} On the {new['forget'].nunique()} classes that the first half did not use: {again}."


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


def _words(ruled: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return, for the labels and for what was frozen, "better", "worse" or "not distinguishable" per rival."""
    return {
        method: {rival: improves(gaps) for rival, gaps in against_rivals(ruled, method).items()}
        for method in (BEST_LABELS, FROZEN)
    }


def _sentence(words: Mapping[str, str], titles: Mapping[str, str]) -> str:
    link = {"better": "than", "worse": "than", "not distinguishable": "from"}
    return "; ".join(f"{word} {link[word]} {titles[rival]}" for rival, word in words.items())


def _retained(lost: Mapping[str, float]) -> str:
    meaning = {
        SUPPORTED: f"at most {MARGIN:g}",
        CONTRADICTED: f"more than {MARGIN:g}",
        UNDECIDED: f"which does not decide whether it is at most {MARGIN:g}",
    }
    return (
        f"against the masked original the loss of retained accuracy is {interval(lost, factor=100, digits=2)} points,"
        f" {meaning[difference(lost, most=MARGIN / 100)]}"
    )
