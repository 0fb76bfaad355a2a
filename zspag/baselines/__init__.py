"""Every method under one signature: ZS-PAG, its ablations and controls, and what it is compared with.

A method maps ``(model, forget_images, forget_labels, *, num_classes, config, generator, material)`` to a ``Ladder`` of
runs over the same learning rates, with the same epochs and batches, so that none is starved of tuning. ``material`` is
what ``unlearning.prepare`` derives from the first two arguments alone. An oracle takes retain images through a separate
argument and is marked in every table. One module per family; a method is one function and one line of its table.

Invariant: norm statistics are frozen and no method decays weights; the learning-rate rule sees the forget set only.
"""

from zspag.baselines import importances, oracles, projected, targets
from zspag.baselines.method import Method, Run
from zspag.baselines.projected import forget_subspace, noise_subspace, random_subspace, retain_subspace

METHODS: dict[str, Method] = projected.METHODS | targets.METHODS | oracles.METHODS | importances.METHODS

__all__ = ["METHODS", "Method", "Run", "forget_subspace", "noise_subspace", "random_subspace", "retain_subspace"]
