"""Every method under one signature: ZS-PAG, its ablations and controls, and what it is compared with.

A method maps ``(model, forget_images, forget_labels, *, num_classes, config, generator, material)`` to a ``Ladder`` of
runs over the same learning rates, with the same epochs and batches, so that none is starved of tuning. ``material`` is
what ``unlearning.prepare`` derives from the first two arguments alone. An oracle takes retain images through a separate
argument and is marked in every table. One module per family; a method is one function and one line of its table.

Invariant: norm statistics are frozen and no method decays weights; the learning-rate rule sees the forget set only.
"""

from zspag.baselines import (
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
from zspag.baselines.method import Method, Run
from zspag.baselines.projected import forget_subspace, noise_subspace, random_subspace, retain_subspace

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

__all__ = ["METHODS", "Method", "Run", "forget_subspace", "noise_subspace", "random_subspace", "retain_subspace"]
