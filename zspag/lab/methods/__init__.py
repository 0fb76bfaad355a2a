"""Every method under one signature: ZS-PAG, its ablations and controls, and what it is compared with.

A method maps a ``Problem`` and a configuration to runs over a ladder of learning rates. All methods have the same
epochs and batches, and as many rates. Only an oracle's problem holds retain data, and every table marks the oracles.
One module per mechanism; a method is one function and one entry of its module's table.

Invariant: norm statistics are frozen and no method decays weights; the learning-rate rule sees the forget set only.
"""

from zspag.lab.methods import adversarial, labels, oracles, projected, removal, sensitivity, synthetic, targets
from zspag.lab.methods.method import Method, Problem, listing
from zspag.lab.methods.projected import forget_subspace, noise_subspace, retain_subspace

FAMILIES = (projected, removal, labels, targets, adversarial, sensitivity, synthetic, oracles)
METHODS: dict[str, Method] = {name: method for family in FAMILIES for name, method in family.METHODS.items()}

__all__ = ["METHODS", "Method", "Problem", "forget_subspace", "listing", "noise_subspace", "retain_subspace"]
