"""Claim C7: is the class taken out of the features, and what does that cost? Ours; the paper's claims end at answers.

A probe's recalls of the class on the original and on the retrained network are the two ends of a ruler. Removal closes
a share of the gap between them (``audit.gap_closed``). A class whose gap lies within the retrained networks' own spread
has no ruler and does not count; how many do not is part of the answer.

Invariant: nothing here sees a model. Relearning under the own head (AIN) plays no part: it measures a row of the head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from zspag.report.audit import gap_closed
from zspag.report.audit.findings import Findings
from zspag.report.claims.decisions import crossed

REMOVAL = "remove"
PROBES = {"linear": "linear probe", "mlp": "nonlinear probe"}  # no method trains against the second one


@dataclass(frozen=True)
class Removed:
    """What an audit holds against claim C7.

    Attributes:
        shares: Per probe and class that counts, the share of the gap to retraining that is closed, at most 1: what goes
            beyond the retrained network in one class does not make up for another.
        answered: Per class, the share of its images that the open model still recognizes.
        lost: Per class, points of retained accuracy below the masked original.
        restored: Per class, its recall with the original's head put back, a fraction.
        retrained: The same of the retrained networks.
        spread: What two retrained networks differ by there; NaN with one seed.
        classes: Number of classes that were audited.
        originals: Number of originals per class.
        ruined: Classes and originals in which removal ruined the network.
    """

    shares: Mapping[str, pd.Series]
    answered: pd.Series
    lost: pd.Series
    restored: pd.Series
    retrained: float
    spread: float
    classes: int
    originals: int
    ruined: int

    @property
    def most_restored(self) -> float:
        """Return what a retrained network could have recognized as well: their mean and their spread. NaN: unknown."""
        return self.retrained + self.spread

    @property
    def counted(self) -> str:
        """Say how many classes and originals were audited."""
        return crossed(self.classes, self.originals)

    def counting(self, probe: str) -> str:
        """Say how many classes and originals stand behind the share of a probe, and how many classes do not count."""
        count = len(self.shares[probe])
        left_out = self.classes - count
        text = crossed(count, self.originals)
        if not left_out:
            return text
        within = "no gap above 0" if math.isnan(self.spread) else "gap within the retrained networks' spread"
        return f"{text}; {left_out} of {self.classes} not counted: {within}"


def removed(found: Findings) -> Removed:
    """Return what an audit that looked at removal found."""
    looked_at = pd.concat([found[name] for name in ("restored", "ruined") if name in found])
    gaps = gap_closed(found)
    own = gaps[gaps["method"] == REMOVAL]
    head = own[own["probe"] == "original's head"]
    ruined = found["ruined"]["method"] if "ruined" in found else pd.Series(dtype=str)
    closed = {probe: own[own["probe"] == probe].set_index("forget")["share"] for probe in PROBES}
    return Removed(
        shares={probe: share.dropna().clip(upper=1) for probe, share in closed.items()},
        answered=looked_at[looked_at["method"] == REMOVAL].groupby("forget")["acc_forget_before"].mean(),
        lost=head.set_index("forget")["lost"],
        restored=head.set_index("forget")["known"],
        retrained=float(head["retrained"].mean()),
        spread=float(head["spread"].mean(skipna=False)),
        classes=int(looked_at["forget"].nunique()),
        originals=int(looked_at["seed"].nunique()),
        ruined=int((ruined == REMOVAL).sum()),
    )
