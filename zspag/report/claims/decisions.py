"""How numbers decide: four words, and the rules by which a number gets one.

"Contradicted" is for what the data contradict. Where an interval holds both answers, nothing is decided, and below
``FEWEST`` classes there is no interval: the classes are shown, and decide nothing about classes in general.

Invariant: a number is decided by its own rows and a limit that was written down before.
"""

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from zspag.report.tables.averages import FEWEST, half_width, in_range

SUPPORTED, CONTRADICTED, UNDECIDED, NOT_MEASURED = "supported", "contradicted", "undecided", "not measured"
DECIMALS = 9  # to which numbers are equal: sums depend on their order
MARGIN = 0.5  # points of retained accuracy that count as no loss; the safe window's margin, too
RUNG = 3.0  # factor between neighbouring rates of a ladder: a safe window is known no better than that
NOISE = 0.1  # part of itself by which a time differs from run to run on a quiet machine


def together(words: Iterable[str]) -> str:
    """Return the word of several that have to hold together: one contradiction is enough, and doubt spreads.

    Example:
        >>> together(["supported", "undecided"]), together(["undecided", "contradicted"]), together([])
        ('undecided', 'contradicted', 'not measured')
    """
    words = set(words)
    return next((word for word in (CONTRADICTED, UNDECIDED, SUPPORTED) if word in words), NOT_MEASURED)


def every(holds: Iterable[bool]) -> str:
    """Decide what is said of every single one, such as a bound of every layer: one counterexample contradicts."""
    return SUPPORTED if all(holds) else CONTRADICTED


def difference(gap: Mapping[str, float], *, most: float = 0.0) -> str:
    """Decide whether a mean over classes is at most ``most``, by its 95 % interval.

    Args:
        gap: "mean", "half" and "classes", as ``tables.over_classes`` and ``tables.paired`` give them.
        most: The limit. An interval that ends on it is within.

    Example:
        >>> difference({"mean": 0.15, "half": 0.12, "classes": 10}, most=0.5)
        'supported'
        >>> difference({"mean": 7.7, "half": 17.0, "classes": 10}, most=0.5)
        'undecided'
    """
    if gap["classes"] < FEWEST:
        return UNDECIDED
    if round(gap["mean"] + gap["half"] - most, DECIMALS) <= 0:
        return SUPPORTED
    return CONTRADICTED if round(gap["mean"] - gap["half"] - most, DECIMALS) > 0 else UNDECIDED


def at_most(values: pd.Series, most: float) -> str:
    """Decide whether the mean of one value per class is at most ``most``."""
    half = half_width(values) if len(values) >= FEWEST else math.nan
    return difference({"mean": float(values.mean()), "half": half, "classes": len(values)}, most=most)


def at_least(values: pd.Series, least: float) -> str:
    """Decide whether the mean of one value per class is at least ``least``."""
    return at_most(-values, -least)


def improved(word: str) -> str:
    """Return the verdict on an improvement that ``tables.improves`` found "better", "worse" or neither."""
    return {"better": SUPPORTED, "worse": CONTRADICTED}.get(word, UNDECIDED)


def within(value: float, most: float, *, factor: float = 1.0, slack: float = 0.0) -> str:
    """Decide whether a number is at most ``most``, where they are known up to a factor, or up to a difference.

    Example:
        >>> [within(share, 1.0, factor=1.1) for share in (0.8, 0.95, 1.2)]
        ['supported', 'undecided', 'contradicted']
        >>> [within(share, 1.0, slack=0.1) for share in (0.8, 0.95, 1.2)]
        ['supported', 'undecided', 'contradicted']
    """
    if value * factor + slack <= most:
        return SUPPORTED
    return CONTRADICTED if value / factor - slack > most else UNDECIDED


def spread_out(values: pd.Series, *, factor: float, digits: int, share: bool = False) -> str:
    """Return a mean with its 95 % interval over classes; of fewer than five classes with the least and the largest.

    That of a share of images is cut at the ends of its range, and given by its ends.

    Example:
        >>> spread_out(pd.Series([0.5, 0.75]), factor=100, digits=1)
        '62.5 (50.0 to 75.0)'
    """
    mean, count = f"{factor * values.mean():.{digits}f}", len(values)
    if count >= FEWEST and share:
        low, high = in_range(values.mean(), half_width(values))
        return f"{mean} ({factor * low:.{digits}f} to {factor * high:.{digits}f})"
    if count >= FEWEST:
        return f"{mean} ± {factor * half_width(values):.{digits}f}"
    return f"{mean} ({factor * values.min():.{digits}f} to {factor * values.max():.{digits}f})" if count > 1 else mean


def interval(gap: Mapping[str, float], *, factor: float, digits: int) -> str:
    """Return a mean difference with its interval; of fewer than five classes without one.

    Example:
        >>> interval({"mean": -0.002, "half": 0.001, "classes": 5}, factor=1000, digits=1)
        '-2.0 ± 1.0'
        >>> interval({"mean": -0.002, "half": 0.001, "classes": 2}, factor=1000, digits=1)
        '-2.0 (no interval)'
    """
    mean = f"{factor * gap['mean']:+.{digits}f}"
    return f"{mean} ± {factor * gap['half']:.{digits}f}" if gap["classes"] >= FEWEST else f"{mean} (no interval)"


def counted(rows: pd.DataFrame) -> str:
    """Say of how many classes and originals rows are: what stands behind a number."""
    return crossed(rows["forget"].nunique(), rows["seed"].nunique())


def crossed(classes: int, originals: int) -> str:
    """Return counts of classes and originals with their words.

    Example:
        >>> crossed(5, 1)
        '5 classes x 1 original'
    """
    return f"{plural(classes, 'class', 'classes')} x {plural(originals, 'original', 'originals')}"


def plural(count: int, one: str, several: str) -> str:
    """Return a count with its word."""
    return f"{count} {one if count == 1 else several}"
