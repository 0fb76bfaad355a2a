"""What outputs on forget images betray: whether one can tell that something was forgotten, and what is known nearby.

The Streisand effect: a model that answers forget images as no retrained model would tells everybody what was removed
(Golatkar et al., CVPR 2020). Residual knowledge: forget images that, moved a little, are recognized where a retrained
model recognizes nothing (Hsu et al., "The Unseen Threat", NeurIPS 2025).

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

ATTACK = ProxyConfig(norm="linf")  # the ball that random moves fill


@dataclass(frozen=True)
class OutputDivergence:
    """What tells a model from the retrained one by its outputs on the same forget images."""

    entropy: float  # mean entropy of the outputs, in nats
    entropy_retrained: float
    entropy_auc: float  # chance of more entropy than the retrained model's: 1 is always less certain, .5 alike
    entropy_ks: float  # Kolmogorov-Smirnov distance of the entropies; also sees what has an AUC of .5
    label_distance: float  # total variation distance of the histograms of predicted labels, in [0, 1]
    forget_mass: float  # mean probability of the forget classes together
    forget_mass_retrained: float


def streisand(logits: Tensor, retrained: Tensor, *, forget: Sequence[int]) -> OutputDivergence:
    """Compare a model's logits (n, K) with the retrained model's, on forget images that were never trained on.

    Non-finite logits are cut at a large finite value.
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
    """Return the zero-retrain-forgetting score on forget images: 1 - mean JS(logits, those of an untrained model).

    It lies between 0 and 1; 1 answers like the untrained model. That one is nearly uniform, so the score favours
    outputs that spread: a retrained model, sure of a wrong label, scores lower, and is what to aim at.

    Reference: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023.

    DIFFERS: the divergence is in bits, so that the score fills [0, 1]; in nats it would not fall below 1 - log 2.
    """
    return 1 - mean_js(_log_softmax(logits), _log_softmax(incompetent)) / math.log(2)


def _log_softmax(logits: Tensor) -> Tensor:
    return finite(logits.double()).log_softmax(1)


@dataclass(frozen=True)
class Residual:
    """How often moved forget images are recognized, by a model and by the retrained one; all are shares."""

    known: float  # of images and draws that the model recognizes
    known_retrained: float
    difference: float  # known - known_retrained; a ratio would divide by zero where the retrained model knows none
    exposed: float  # of images that the model recognizes in at least one draw and the retrained model in none
    exposed_retrained: float  # the reverse, which two retrained models would also show


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

    Moves are uniform in the L-inf ball of ``radius`` pixels, then cut to [0, 1]. A CPU generator in the same state
    gives every model the same moved images, and every radius the same directions.
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

    The arguments are those of ``recognized_nearby``. A stronger attack would reach more.
    """
    moved = attack(model, images, labels, eps=radius, config=ATTACK, generator=generator).images
    return recognized(logits_of(model, moved), labels)[None]
