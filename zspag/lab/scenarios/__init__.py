"""Requests beyond one class: several at once, one after another, a part of a class, samples across classes.

Every request goes through ``zero_shot_unlearn`` as a user would send it, and the result stands beside a model that was
retrained without the same samples. What a request does not name shall stay; of a class that it names in part, that is
the rest of the class.

Invariant: the method is handed the named samples and their labels, and nothing that an earlier request was handed.
"""

from zspag.lab.scenarios.kinds import across_classes, at_once, in_a_row, order_of, part_of_class, table, together
from zspag.lab.scenarios.outcome import Request, compared, drawn, handed, judged, of_classes, retrained, unlearned

__all__ = [
    "Request",
    "across_classes",
    "at_once",
    "compared",
    "drawn",
    "handed",
    "in_a_row",
    "judged",
    "of_classes",
    "order_of",
    "part_of_class",
    "retrained",
    "table",
    "together",
    "unlearned",
]
