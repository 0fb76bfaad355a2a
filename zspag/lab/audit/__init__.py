"""The audit: forgotten, or only silent? What attackers, probes and training see in each network of a class and seed.

Every measure is made of the references and of methods alike, for a number of this kind means something only beside the
retrained network's, and beside that of one that only hides the class. ``bench`` holds the networks and the images,
``measures`` what is measured, ``running`` spreads classes and seeds over processes; the rest reads rows alone.

Invariant: the laboratory's view; an audit changes no network.
"""

from zspag.lab.audit.bench import METHODS, SUBJECTS
from zspag.lab.audit.comparison import Comparison, compared
from zspag.lab.audit.findings import Findings, findings, measured, packed, unpacked
from zspag.lab.audit.panels import (
    distance_panels,
    membership_panels,
    probe_panels,
    recovery_panels,
    relearning_panels,
    residual_panels,
    restored_panels,
    spread_panels,
    trace_panels,
)
from zspag.lab.audit.record import publish, recorded
from zspag.lab.audit.returns import anamnesis, arrival_table, arrivals, mean_curves
from zspag.lab.audit.running import audit, audited
from zspag.lab.audit.verdicts import verdict_table, verdicts

__all__ = [
    "METHODS",
    "SUBJECTS",
    "Comparison",
    "Findings",
    "anamnesis",
    "arrival_table",
    "arrivals",
    "audit",
    "audited",
    "compared",
    "distance_panels",
    "findings",
    "mean_curves",
    "measured",
    "membership_panels",
    "packed",
    "probe_panels",
    "publish",
    "recorded",
    "recovery_panels",
    "relearning_panels",
    "residual_panels",
    "restored_panels",
    "spread_panels",
    "trace_panels",
    "unpacked",
    "verdict_table",
    "verdicts",
]
