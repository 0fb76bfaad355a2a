"""From a profile to files: trained models, proxy statistics, every method on every class and seed.

Invariant: this is the laboratory. It may read retain data; a method it runs may not, and the data guard counts.
"""

from zspag.lab.experiment.cases import (
    Case,
    case_name,
    cases_of,
    data_of,
    forget_set,
    guard_of,
    judged_on,
    made_now,
    recipe,
    recorded_folder,
    references_against,
    references_of,
    shown_case,
    trained,
    trained_on,
    training_key,
    untrained,
)
from zspag.lab.experiment.findings import (
    retraining_noise,
    stage_seconds,
    subspace_table,
)
from zspag.lab.experiment.grid import (
    READS,
    REFERENCES,
    TITLES,
    RetainDataRead,
    RunsFailed,
    Spread,
    answered,
    compute_grid,
    kept_rows,
    restored,
    run_method,
    whole_ladder,
)
from zspag.lab.experiment.statistics import (
    statistics_of,
    statistics_with_classes,
)

__all__ = [
    "Case",
    "READS",
    "REFERENCES",
    "RetainDataRead",
    "RunsFailed",
    "Spread",
    "TITLES",
    "answered",
    "case_name",
    "cases_of",
    "compute_grid",
    "data_of",
    "forget_set",
    "guard_of",
    "judged_on",
    "kept_rows",
    "made_now",
    "recipe",
    "recorded_folder",
    "references_against",
    "references_of",
    "restored",
    "retraining_noise",
    "run_method",
    "shown_case",
    "stage_seconds",
    "statistics_of",
    "statistics_with_classes",
    "subspace_table",
    "trained",
    "trained_on",
    "training_key",
    "untrained",
    "whole_ladder",
]
