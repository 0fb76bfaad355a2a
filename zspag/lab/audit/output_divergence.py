"""What outputs on forget images betray: whether one can tell that something was forgotten, and what is known nearby.

The Streisand effect: a model that answers forget images as no retrained model would, with too much or too little
certainty or with labels of its own, tells everybody what was removed (Golatkar et al., CVPR 2020). Residual knowledge:
forget images that, moved a little, are recognized where a retrained model recognizes nothing (Hsu et al., "The Unseen
Threat: Residual Knowledge in Machine Unlearning under Perturbed Samples", NeurIPS 2025).

Invariant: a model compared with itself shows nothing. What two retrained models of different seeds show is the floor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.config import ProxyConfig
from zspag.lab.audit.membership_inference import area
from zspag.lab.evaluation import finite, mean_js, recognized
from zspag.proxies import attack
from zspag.runtime import logits_of, sent

RADII = (4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255)  # pixels
ATTACK = ProxyConfig(norm="linf")  # the ball that random moves fill


@dataclass(frozen=True)
class OutputDivergence:
    """What tells a model from the retrained one by its outputs on the same forget images.

    Attributes:
        entropy: Mean entropy of the model's outputs, in nats.
        entropy_retrained: The same of the retrained model.
        entropy_auc: Chance that an output of the model has more entropy than one of the retrained model, ties counted
            half: .5 is nothing to see, 1 a model that is always less certain, 0 one that is always more so.
        entropy_ks: Kolmogorov-Smirnov distance of the entropies; also sees what has an AUC of .5.
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


def streisand(logits: Tensor, retrained: Tensor, *, forget: Sequence[int]) -> OutputDivergence:
    """Compare a model's outputs on forget images with the retrained model's.

    Args:
        logits: Logits (or log-probabilities) of the model on forget images that were never trained on, shape (n, K).
            Non-finite ones are cut at a large finite value.
        retrained: Those of the retrained model on the same images.
        forget: Forget classes.
    """
    from scipy.stats import ks_2samp  # most of the package does not need it

    both = [_log_softmax(part) for part in (logits, retrained)]
    own, other = (-(log_p.exp() * log_p).sum(1) for log_p in both)
    masses = [log_p.exp()[:, list(forget)].sum(1).mean().item() for log_p in both]
    counts = [part.argmax(1).bincount(minlength=part.shape[1]) for part in (logits, retrained)]
    shares, shares_retrained = (count.double() / count.sum() for count in counts)
    return OutputDivergence(
        entropy=own.mean().item(),
        entropy_retrained=other.mean().item(),
        entropy_auc=area(own, other)[0],
        entropy_ks=float(ks_2samp(own.cpu(), other.cpu(), method="asymp").statistic),
        label_distance=(shares - shares_retrained).abs().sum().item() / 2,
        forget_mass=masses[0],
        forget_mass_retrained=masses[1],
    )


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
    return 1 - mean_js(_log_softmax(logits), _log_softmax(incompetent)) / math.log(2)


def _log_softmax(logits: Tensor) -> Tensor:
    return finite(logits.double()).log_softmax(1)


@dataclass(frozen=True)
class Residual:
    """How often moved forget images are recognized, by a model and by the retrained one; all are shares.

    Attributes:
        known: Share of images and draws that the model recognizes.
        known_retrained: The same of the retrained model.
        difference: The former minus the latter. A ratio would divide by zero: the retrained model may know none.
        exposed: Share of images the model recognizes in at least one draw and the retrained model in none.
        exposed_retrained: The reverse, which two retrained models would also show.
    """

    known: float
    known_retrained: float
    difference: float
    exposed: float
    exposed_retrained: float


def residual(known: Tensor, known_retrained: Tensor) -> Residual:
    """Compare what a model and the retrained one recognize among the same moved images: booleans, shape (draws, n).

    Raises:
        ValueError: If the shapes differ.
    """
    if known.shape != known_retrained.shape:
        raise ValueError(
            f"both need the same draws, got shapes {tuple(known.shape)} and {tuple(known_retrained.shape)}"
        )
    share, share_retrained = known.double().mean().item(), known_retrained.double().mean().item()
    ever, ever_retrained = known.any(0), known_retrained.any(0)
    return Residual(
        known=share,
        known_retrained=share_retrained,
        difference=share - share_retrained,
        exposed=(ever & ~ever_retrained).double().mean().item(),
        exposed_retrained=(ever_retrained & ~ever).double().mean().item(),
    )


def recognized_nearby(
    model: nn.Module, images: Tensor, labels: Tensor, *, radius: float, draws: int, generator: torch.Generator
) -> Tensor:
    """Return whether a model recognizes images that were moved at random, booleans of shape (draws, n).

    Args:
        model: Maps [0, 1] images to logits.
        images: Forget images, shape (n, C, H, W), values in [0, 1].
        labels: Their labels, shape (n,).
        radius: Largest move of a pixel, in pixels; moves are uniform in the L-inf ball, then cut to [0, 1].
        draws: Moves per image.
        generator: CPU generator of the moves. In the same state it gives every model the same moved images, and every
            radius the same directions.
    """
    seen = []
    for _ in range(draws):
        noise = sent(torch.rand(images.shape, generator=generator, dtype=images.dtype), images.device) * 2 - 1
        seen.append(recognized(logits_of(model, (images + radius * noise).clamp(0, 1)), labels))
    return torch.stack(seen)


def recognized_under_attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, radius: float, generator: torch.Generator
) -> Tensor:
    """Return whether a model recognizes images after an attack towards their own label on its own weights, (1, n).

    The arguments are those of ``recognized_nearby``; the generator draws the random starts. The attack is a lower bound
    on what a stronger one would reach.
    """
    moved = attack(model, images, labels, eps=radius, config=ATTACK, generator=generator).images
    return recognized(logits_of(model, moved), labels)[None]
