"""What came of the requests, in words: where the method held, where it failed, and what it said itself.

Invariant: nothing here sees a model.
"""

import pandas as pd

ROWS = {"in a row": "where the method is told what is gone", "in a row, untold": "where it is not told"}


def said(rows: pd.DataFrame) -> list[str]:
    """Return a line per kind of request and message: refusals first, then warnings.

    Args:
        rows: Of ``requests.table``.
    """
    refused = rows[rows["refused"].fillna("") != ""].drop_duplicates(["kind", "refused"])
    lines = [f"{kind}: refused. {message}" for kind, message in zip(refused["kind"], refused["refused"], strict=True)]
    warned = rows[["kind", "warned"]].explode("warned").dropna().drop_duplicates()
    return lines + [
        f"{kind}: done, with a warning. {message}"
        for kind, message in zip(warned["kind"], warned["warned"], strict=True)
    ]


def summary(rows: pd.DataFrame) -> list[str]:
    """Return what the method made of each kind of request that it did not refuse, in a sentence each.

    Args:
        rows: Of ``requests.table``; means over seeds.
    """
    done = rows[rows["acc_retain"].notna()]
    own = {str(kind): part for kind, part in done[done["method"] == "zs_pag"].groupby("kind")}
    lines = []
    if "at once" in own:
        lines.append(_at_once(own["at once"]))
    lines += [_in_a_row(done[done["kind"] == kind], told) for kind, told in ROWS.items() if kind in set(done["kind"])]
    if "part of a class" in own:
        target = done[(done["kind"] == "part of a class") & (done["method"] == "retrained")]
        left, wanted = (_percent(part["acc_rest"]) for part in (own["part of a class"], target))
        lines.append(f"Half of a class: of the other half {left} is still recognized, {wanted} after retraining.")
    if "across classes" in own:
        kept = _percent(own["across classes"]["acc_retain"])
        lines.append(f"Samples across classes, where not refused: {kept} of the test images are still recognized.")
    return lines


def _at_once(rows: pd.DataFrame) -> str:
    most, lost = max(map(len, rows["classes"])), 100 * rows["over_unlearning"].mean()
    known = _percent(rows["acc_forget"])
    return f"At once, up to {most} classes: {known} still recognized, {lost:+.2f} points over-unlearned."


def _in_a_row(rows: pd.DataFrame, told: str) -> str:
    last = rows.sort_values("step").groupby("seed").last()
    best = _percent(pd.Series([max(by_class) for by_class in last["by_class"]]))
    return (
        f"In a row, {told}: after {last['step'].min():.0f} requests {best} of the best known forgotten class is still"
        f" recognized, with a drift of {last['drift'].astype(float).mean():.4f} nats."
    )


def _percent(values: "pd.Series[float]") -> str:
    return f"{100 * values.astype(float).mean():.1f} %"
