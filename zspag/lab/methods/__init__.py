"""Every method under one signature: ZS-PAG, its ablations and controls, and what it is compared with.

A method maps a ``Problem`` and a configuration to a ``RateSearch`` of runs over the same learning rates, with the same
epochs and batches, so that none is starved of tuning. Only an oracle's problem holds retain data, and an oracle is
marked in every table. One module per family; a method is one function and one line of its table.

Invariant: norm statistics are frozen and no method decays weights; the learning-rate rule sees the forget set only.
"""

from zspag.lab.methods import (
    adversarial,
    boundary,
    gated,
    importances,
    labels,
    oracles,
    projected,
    relatives,
    saliency,
    sensitivity,
    synthetic,
    targets,
)
from zspag.lab.methods.method import Method, Problem
from zspag.lab.methods.projected import forget_subspace, noise_subspace, retain_subspace

FAMILIES = (
    projected,
    labels,
    targets,
    boundary,
    adversarial,
    saliency,
    sensitivity,
    relatives,
    synthetic,
    gated,
    oracles,
    importances,
)
METHODS: dict[str, Method] = {name: method for family in FAMILIES for name, method in family.METHODS.items()}

__all__ = ["METHODS", "Method", "Problem", "forget_subspace", "noise_subspace", "retain_subspace"]
