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
    probe_panels,
    relearning_panels,
    residual_panels,
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
    "findings",
    "gap_closed",
    "gap_panels",
    "mean_curves",
    "measured",
    "packed",
    "probe_panels",
    "recorded",
    "relearning_panels",
    "residual_panels",
    "told",
    "unpacked",
    "verdict_table",
    "verdicts",
]
