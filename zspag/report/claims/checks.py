"""What a verdict is made of: checks with their limits, and how they are shown.

Invariant: a claim holds only if every check that was recorded holds, and one without a check is not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from zspag.report.tables import markdown

YES, NO, NOT_MEASURED = "yes", "no", "not measured"
SHOWN = 22  # letters of a long file name at either end of a cell


@dataclass(frozen=True)
class Limits:
    """What the claims ask for; the protocol's numbers but where ``CHOICE:`` says that it names none.

    Attributes:
        capture: Least share of the oracle's capture, in the worst layer (C1).
        window: How many times as wide the safe window is as without the projection (C2).
        drift: Most drift as a share of that without the projection, each at its own best rate (C2).
        slack: Most that a bound may exceed what it bounds, as a factor (C4).
        first_order: Most relative distance of a change from its first-order prediction (C4). CHOICE.
        cost: Most seconds as a share of retraining (C6). CHOICE: cheaper; and far cheaper where a training takes long.
    """

    capture: float = 0.97
    window: float = 5.0
    drift: float = 1 / 3
    slack: float = 100.0
    first_order: float = 0.3
    cost: float = 1.0


LIMITS = {"smoke": Limits(), "digits": Limits(), "cpu": Limits(), "paper": Limits(cost=0.1)}


@dataclass(frozen=True)
class Check:
    """One thing that a claim asks for, beside what was measured.

    Attributes:
        subject: What is measured.
        required: What the claim asks of it.
        found: What was measured, with its 95 % interval over classes where there is one.
        holds: Whether the claim gets what it asks for.
        file: Name of the result file, without its ending.
    """

    subject: str
    required: str
    found: str
    holds: bool
    file: str

    @property
    def word(self) -> str:
        """Return "yes" or "no"."""
        return YES if self.holds else NO


@dataclass(frozen=True)
class Verdict:
    """A claim and its checks."""

    claim: str
    statement: str
    checks: tuple[Check, ...]

    @property
    def word(self) -> str:
        """Return "yes" if every check holds, "no" if one does not, and "not measured" without checks."""
        if not self.checks:
            return NOT_MEASURED
        return YES if all(check.holds for check in self.checks) else NO


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return verdicts for a terminal: a line per claim, and below it one per check."""
    said = []
    for verdict in verdicts:
        said.append(f"{verdict.claim} {verdict.word}: {verdict.statement}")
        for one in verdict.checks:
            said += [f"   {one.word:<4}{one.subject}: {one.found}", f"       required: {one.required} [{one.file}]"]
    return said


def table(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts as GitHub markdown: a line per claim, and below it one per check."""
    columns = ["what is measured", "required", "measured", "verdict", "result file"]
    index, cells = [], []
    for verdict in verdicts:
        index.append(f"**{verdict.claim}**")
        cells.append([f"**{verdict.statement}**", "", "", f"**{verdict.word}**", ""])
        for one in verdict.checks:
            index.append("")
            cells.append([one.subject, one.required, one.found, one.word, _short(one.file)])
    return markdown(pd.DataFrame(cells, columns=columns, index=pd.Index(index, name="claim")))


def _short(name: str) -> str:
    return name if len(name) <= 2 * SHOWN else f"{name[:SHOWN]}…{name[-SHOWN:]}"
