"""The paper's claims under test, and one of ours: what is compared, with what, and a verdict in words.

``judge`` gives the verdict on every claim from recorded files, ``labels`` (C3), ``dominance`` (C5) and ``removal`` (C7,
ours) hold those that need more than a limit, ``records`` says whether the files are those that were recorded.

Invariant: nothing here sees a model, and nothing is chosen by looking at the rows that a verdict is about.
"""

from zspag.report.claims.decisions import interval, plural
from zspag.report.claims.dominance import COMPARED, comparison, comparison_table, dominated, verdict
from zspag.report.claims.evidence import cut_down, of_older_defaults, read, sweeps
from zspag.report.claims.labels import (
    BEST_LABELS,
    C3_FILES,
    C3_MEASURES,
    FROZEN,
    LABELS,
    RIVALS,
    label_table,
    label_verdict,
)
from zspag.report.claims.records import accept, audit, profiles
from zspag.report.claims.verdicts import Check, Verdict, judge, lines, table
from zspag.report.tables import improves, paired, ranked

__all__ = [
    "BEST_LABELS",
    "C3_FILES",
    "C3_MEASURES",
    "COMPARED",
    "FROZEN",
    "LABELS",
    "RIVALS",
    "Check",
    "Verdict",
    "accept",
    "audit",
    "comparison",
    "comparison_table",
    "cut_down",
    "dominated",
    "improves",
    "interval",
    "judge",
    "label_table",
    "label_verdict",
    "lines",
    "of_older_defaults",
    "paired",
    "plural",
    "profiles",
    "ranked",
    "read",
    "sweeps",
    "table",
    "verdict",
]
