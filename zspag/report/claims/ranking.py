"""Who is better: a paired difference beyond its interval, in one measure or in several.

Invariant: nothing is better within its interval, and a single class has none.
"""


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
