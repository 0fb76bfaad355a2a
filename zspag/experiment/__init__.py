"""From a profile to files: trained models, material, every method on every class and seed.

Invariant: this is the laboratory. It may read retain data; a method it runs may not, and the data guard counts.
"""

from zspag.experiment.cases import (
    Case,
    case_name,
    code_of,
    data_of,
    forget_set,
    guard_of,
    judged_on,
    panel_against,
    panel_of,
    recipe,
    recorded_folder,
    shown_case,
    store,
    trained,
    training_key,
)
from zspag.experiment.findings import (
    retraining_noise,
    stage_seconds,
    subspace_table,
    watched_run,
)
from zspag.experiment.grid import (
    JUDGED,
    READS,
    REFERENCES,
    TITLES,
    RetainDataRead,
    RunsFailed,
    Spread,
    compute_grid,
    kept_rows,
    relearn_steps,
    run_method,
    whole_ladder,
)
from zspag.experiment.materials import (
    MATERIAL_CODE,
    material_of,
    material_with_classes,
)

__all__ = [
    "Case",
    "JUDGED",
    "MATERIAL_CODE",
    "READS",
    "REFERENCES",
    "RetainDataRead",
    "RunsFailed",
    "Spread",
    "TITLES",
    "case_name",
    "code_of",
    "compute_grid",
    "data_of",
    "forget_set",
    "guard_of",
    "judged_on",
    "kept_rows",
    "material_of",
    "material_with_classes",
    "panel_against",
    "panel_of",
    "recipe",
    "recorded_folder",
    "relearn_steps",
    "retraining_noise",
    "run_method",
    "shown_case",
    "stage_seconds",
    "store",
    "subspace_table",
    "trained",
    "training_key",
    "watched_run",
    "whole_ladder",
]
