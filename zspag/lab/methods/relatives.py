"""The nearest relative of proxies: adversarial stand-ins for retain data, without a subspace and without a projection.

Invariant: a stand-in lies within ``RADIUS`` of its forget sample, and its label is a retained class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig
from zspag.lab.methods.method import FORGET, Method, Problem, sgd_at_every_rate
from zspag.projected_sgd import BatchLoss, RateSearch
from zspag.pseudo_labels import masked_log_probabilities
from zspag.runtime import chunks, frozen, generator_for, logits_of, sent


@dataclass(frozen=True)
class StandInConfig:
    """How ARU makes its retain-like set and weighs its losses.

    Attributes:
        radius: Largest change of a pixel, on [0, 1] (published: .05).
        steps: Steps of the attack (published: 50, cut to 20 for time).
        step: Length of a step, in pixels: the radius is crossed twice.
        copies: Noisy copies whose gradients a step averages.
        sigma: Standard deviation of their noise, in pixels.
        margin: How much nearer, in logits, a sample must be to its stand-in than to the original's answer.
    """

    radius: float = 0.05
    steps: int = 20
    step: float = 0.005
    copies: int = 2
    sigma: float = 0.01
    margin: float = 1.0


STAND_INS = StandInConfig()


def aru(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Pull forget samples away from the original's answer, towards adversarial stand-ins that keep a retained label.

    A stand-in is the forget sample pushed towards the class the original likes best among the retained ones. The loss
    is a triplet on logits (anchor: the forget sample, positive: its stand-in, negative: the original's answer to the
    sample) plus cross-entropy on the stand-ins.

    Reference:
        ARU, 2026, from a description of the method.

    Note:
        DIFFERS: 20 attack steps instead of 50, made once and used at every rate; the description leaves open what
        "smoothing" averages (here: gradients at two slightly noisy copies), the margin and the weights (here: 1); plain
        SGD at the ladder's rates. Every batch of the forget set is fitted, not a part of them.
    """
    model, images, drawing = problem.model, problem.forget_images, generator_for(problem.seed, "attack")
    original = logits_of(model, images)
    labels = masked_log_probabilities(original, forget=problem.forget_classes).argmax(1)
    stand_ins = smoothed_attack(model, images, labels, config=STAND_INS, generator=drawing)

    def make_loss(_drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            anchors, positives = current(torch.cat([images[batch], stand_ins[batch]])).chunk(2)
            apart = triplet(anchors, positives, original[batch], margin=STAND_INS.margin)
            return apart + F.cross_entropy(positives, labels[batch])

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


def triplet(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float) -> Tensor:
    """Return the mean of max(0, ||a - p|| - ||a - n|| + margin), all of shape (n, K).

    Unlike torch's own, the distance of a point to itself is 0 with gradient 0: at the start, anchors are negatives.
    """
    near, far = (torch.linalg.vector_norm(anchors - other, dim=1) for other in (positives, negatives))
    return (near - far + margin).clamp_min(0).mean()


def smoothed_attack(
    model: nn.Module, images: Tensor, targets: Tensor, *, config: StandInConfig, generator: torch.Generator
) -> Tensor:
    """Push each image towards its target by signed steps along the gradient averaged over noisy copies.

    Args:
        model: Maps [0, 1] images to logits.
        images: Shape (n, C, H, W), values in [0, 1].
        targets: Target class of each image, shape (n,).
        config: Radius, steps and smoothing.
        generator: CPU generator of the noise.

    Returns:
        Images in [0, 1] within ``config.radius`` of the given ones, detached.
    """
    with frozen(model):
        parts = [_attack_chunk(model, x, t, config=config, generator=generator) for x, t in chunks(images, targets)]
    return torch.cat(parts)


def _attack_chunk(
    model: nn.Module, origin: Tensor, targets: Tensor, *, config: StandInConfig, generator: torch.Generator
) -> Tensor:
    moving, repeated = origin.clone(), targets.repeat(config.copies)
    lowest, highest = (origin - config.radius).clamp_min(0), (origin + config.radius).clamp_max(1)
    for _ in range(config.steps):
        drawn = torch.randn((config.copies, *origin.shape), generator=generator, dtype=origin.dtype)
        noise = config.sigma * sent(drawn, origin.device)
        x = moving.detach().requires_grad_(True)
        loss = F.cross_entropy(model((x + noise).flatten(0, 1)), repeated, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        moving = torch.minimum(torch.maximum(x.detach() - config.step * gradient.sign(), lowest), highest)
    return moving


METHODS: dict[str, Method] = {"aru": Method("ARU", aru, FORGET, "ARU, 2026", "low")}
