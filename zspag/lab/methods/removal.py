"""Removal, the goal beyond the paper, as the public call runs it.

Invariant: it is ``zspag.removal`` and nothing beside it.
"""

from zspag.config import UnlearnConfig
from zspag.lab.methods.method import PROXIES, Method, Problem
from zspag.projected_sgd import RateSearch
from zspag.removal import remove_with


def remove(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Move features under a frozen head, against a ridge probe as adversary, proxies as anchors (goal "remove").

    Instead of a rate, the part of the way to the fitted weights is chosen, on held-out proxies.
    """
    made = remove_with(
        problem.model,
        problem.forget_labels,
        problem.statistics,
        forget=problem.forget_classes,
        config=config,
        seed=problem.seed,
    )
    return RateSearch((made.run,), 0)


METHODS: dict[str, Method] = {"remove": Method("removal (ours)", remove, PROXIES, "ours, beyond the paper", "low")}
