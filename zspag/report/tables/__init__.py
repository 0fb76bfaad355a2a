"""Tables from files: averages over a grid, curves over its rates, and tables for readers.

Invariant: nothing here sees a model or imports torch.
"""

from zspag.report.tables.answers import (
    cost_table,
    distance_table,
    every_table,
    forgetting_table,
    main_table,
    originals_table,
    prediction_table,
    preparation,
)
from zspag.report.tables.averages import (
    REFERENCES,
    SAFE_FORGET,
    SAFE_RETAIN,
    by_rule,
    improves,
    in_hindsight,
    over_classes,
    paired,
    ranked,
)
from zspag.report.tables.cells import columns, markdown, nats
from zspag.report.tables.curves import (
    curve,
    ladder_panels,
    safe_rates,
    window,
    window_text,
)

__all__ = [
    "REFERENCES",
    "SAFE_FORGET",
    "SAFE_RETAIN",
    "by_rule",
    "columns",
    "cost_table",
    "curve",
    "distance_table",
    "every_table",
    "forgetting_table",
    "improves",
    "in_hindsight",
    "ladder_panels",
    "main_table",
    "markdown",
    "nats",
    "originals_table",
    "over_classes",
    "paired",
    "prediction_table",
    "preparation",
    "ranked",
    "safe_rates",
    "window",
    "window_text",
]
