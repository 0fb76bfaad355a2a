"""What an audit found, from its rows: panels, tables and sentences. ``zspag.lab.audit`` makes the rows.

Invariant: nothing here sees a model or imports torch.
"""

from zspag.report.audit.findings import (
    RATE,
    SHARE,
    TITLES,
    anamnesis,
    arrival_table,
    arrivals,
    audited,
    findings,
    mean_curves,
    measured,
    packed,
    recorded,
    unpacked,
)
from zspag.report.audit.gap import gap_closed, gap_panels
from zspag.report.audit.panels import (
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
from zspag.report.audit.verdicts import compared, told, verdict_table, verdicts

__all__ = [
    "RATE",
    "SHARE",
    "TITLES",
    "anamnesis",
    "arrival_table",
    "arrivals",
    "audited",
    "compared",
    "distance_panels",
    "findings",
    "gap_closed",
    "gap_panels",
    "mean_curves",
    "measured",
    "membership_panels",
    "packed",
    "probe_panels",
    "recorded",
    "recovery_panels",
    "relearning_panels",
    "residual_panels",
    "restored_panels",
    "spread_panels",
    "told",
    "trace_panels",
    "unpacked",
    "verdict_table",
    "verdicts",
]
