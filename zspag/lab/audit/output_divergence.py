"""What the outputs on forget images betray: whether one can tell that something was forgotten.

The Streisand effect: a model that answers forget images as no retrained model would, with too much or too little
certainty or with labels of its own, tells everybody what was removed (Golatkar et al., CVPR 2020).

Invariant: a model compared with itself leaves no trace. What two retrained models of different seeds show is the floor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zspag.lab.audit.roc import area
from zspag.lab.evaluation import finite, mean_js


@dataclass(frozen=True)
class Traces:
    """What tells a model from the retrained one by its outputs on the same forget images.

    Attributes:
        entropy: Mean entropy of the model's outputs, in nats.
        entropy_retrained: The same of the retrained model.
        entropy_auc: Chance that an output of the model has more entropy than one of the retrained model, ties counted
            half: .5 is nothing to see, 1 a model that is always less certain, 0 one that is always more so.
        entropy_ks: Largest distance of the two distribution functions of the entropy; also sees what has an AUC of .5.
        label_distance: Total variation distance of the histograms of predicted labels, in [0, 1].
        forget_mass: Mean probability the model gives to the forget classes together.
        forget_mass_retrained: The same of the retrained model.
    """

    entropy: float
    entropy_retrained: float
    entropy_auc: float
    entropy_ks: float
    label_distance: float
    forget_mass: float
    forget_mass_retrained: float


def streisand(logits: Tensor, retrained: Tensor, *, forget: Sequence[int]) -> Traces:
    """Compare a model's outputs on forget images with the retrained model's.

    Args:
        logits: Logits (or log-probabilities) of the model on forget images that were never trained on, shape (n, K).
        retrained: Those of the retrained model on the same images.
        forget: Forget classes.

    Returns:
        Entropies, label histograms and masses; non-finite logits are cut at a large finite value.
    """
    own, other = entropies(logits), entropies(retrained)
    masses = [_log_softmax(part).exp()[:, list(forget)].sum(1).mean().item() for part in (logits, retrained)]
    shares, shares_retrained = label_shares(logits), label_shares(retrained)
    return Traces(
        entropy=own.mean().item(),
        entropy_retrained=other.mean().item(),
        entropy_auc=area(own, other)[0],
        entropy_ks=_ks(own, other),
        label_distance=(shares - shares_retrained).abs().sum().item() / 2,
        forget_mass=masses[0],
        forget_mass_retrained=masses[1],
    )


def entropies(logits: Tensor) -> Tensor:
    """Return the entropy of each row of logits (n, K) in nats, between 0 and log K."""
    log_p = _log_softmax(logits)
    return -(log_p.exp() * log_p).sum(1)


def label_shares(logits: Tensor) -> Tensor:
    """Return the share of rows of logits (n, K) whose argmax is each class, shape (K,)."""
    return logits.argmax(1).bincount(minlength=logits.shape[1]).double() / len(logits)


def zrf(logits: Tensor, incompetent: Tensor) -> float:
    """Return the zero-retrain-forgetting score: 1 - mean JS(model, a model that never learned anything).

    Args:
        logits: Logits of the model on forget images, shape (n, K).
        incompetent: Those of a model of the same architecture with its initial, random weights.

    Returns:
        A score between 0 and 1; 1 answers like the untrained model. The retrained model's is what to aim at.

    Note:
        Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023. DIFFERS: the divergence is in bits here, so
        that the score fills [0, 1]; in nats it would not fall below 1 - log 2. An untrained model is nearly uniform,
        so the score favours outputs that spread: a retrained model, sure of a wrong label, scores lower.
    """
    divergence = mean_js(_log_softmax(logits), _log_softmax(incompetent))
    return 1 - divergence / math.log(2)


def _log_softmax(logits: Tensor) -> Tensor:
    return finite(logits.double()).log_softmax(1)


def _ks(first: Tensor, second: Tensor) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic."""
    pooled = torch.cat([first, second])
    own, other = (
        torch.searchsorted(part.sort().values, pooled, right=True).double() / len(part) for part in (first, second)
    )
    return (own - other).abs().max().item()
