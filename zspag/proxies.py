"""Proxy adversarial data: forget samples pushed into every retained class stand in for the retain data nobody has.

Paper: "proxy adversarial data generation". For a retained class t and a forget sample x, targeted projected gradient
descent minimizes CE(f(x + delta), t) with ||delta|| <= eps and x + delta in [0, 1].

Invariant: nothing but the model and forget samples is read, and every proxy is classified as its label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import ProxyConfig
from zspag.folding import norm_pairs, norms_folded
from zspag.runtime import chunks, frozen, logits_of, sent

PROBE = 20  # forget samples per class that the search for eps attacks


@dataclass(frozen=True)
class ProxySet:
    """Proxies of the retained classes, the same number for each.

    Attributes:
        images: Proxies in [0, 1], shape (m, C, H, W), ordered by class.
        labels: Class each proxy is classified as, shape (m,).
        sources: Index of the forget sample each proxy was made from, shape (m,).
        hits: Per class, the share of attacked samples that arrived.
        eps: Radius used, in pixels.
    """

    images: Tensor
    labels: Tensor
    sources: Tensor
    hits: dict[int, float]
    eps: float

    def of_class(self, label: int) -> Tensor:
        """Return the proxies of one class, shape (m / classes, C, H, W)."""
        return self.images[self.labels == label]


def attack(
    model: nn.Module, images: Tensor, targets: Tensor, *, eps: float, config: ProxyConfig, generator: torch.Generator
) -> Tensor:
    """Push each image towards its target class by targeted PGD.

    Args:
        model: Maps [0, 1] images to logits; normalization is its first layer, so eps is in pixels.
        images: Shape (n, C, H, W), values in [0, 1].
        targets: Target class of each image, shape (n,).
        eps: Radius in pixels; an L2 ball has radius ``eps * sqrt(C*H*W)``.
        config: Norm, steps, step size, random start and early stop.
        generator: CPU generator of the random start.

    Returns:
        Attacked images in [0, 1] within eps of ``images``, same shape, detached.

    Note:
        The gradient is taken with respect to the input only; no parameter requires grad while the attack runs.
    """
    start = _start(images, eps=eps, config=config, generator=generator)
    with frozen(model), norms_folded(norm_pairs(model, images, passes=2 * config.steps)):
        parts = chunks(images, start, targets)
        return torch.cat([_attack_chunk(model, *part, eps=eps, config=config) for part in parts])


def _start(images: Tensor, *, eps: float, config: ProxyConfig, generator: torch.Generator) -> Tensor:
    if not config.random_start:
        return images.clone()
    noise = sent(torch.rand(images.shape, generator=generator, dtype=images.dtype), images.device) * 2 - 1
    return _into_ball(images + eps * noise, images, eps=eps, norm=config.norm)


def _attack_chunk(
    model: nn.Module, origin: Tensor, moving: Tensor, targets: Tensor, *, eps: float, config: ProxyConfig
) -> Tensor:
    """Attack one chunk; samples whose target is already confident leave the batch (``config.confidence``).

    A step costs a forward pass and the gradient in the input, and beside them reads and writes the images a dozen
    times: a few per cent for a net of a few million operations per pixel.
    """
    result, left = moving.clone(), torch.arange(len(moving), device=moving.device)
    for _ in range(config.steps):
        x = moving.detach().requires_grad_(True)
        logits = model(x)
        loss = F.cross_entropy(logits, targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        if config.confidence is not None:
            reached = logits.detach().softmax(1).gather(1, targets[:, None])[:, 0] >= config.confidence
            going = (~reached).nonzero()[:, 0]  # the one time per step that the host waits for the device
            if len(going) < len(left):
                result[left] = moving  # those that go on are written again
                left, moving, origin, targets, gradient = (
                    part[going] for part in (left, moving, origin, targets, gradient)
                )
                if len(left) == 0:
                    return result
        moved = _descended(moving, gradient, length=eps * config.step_share, norm=config.norm)
        moving = _into_ball(moved, origin, eps=eps, norm=config.norm)
    result[left] = moving
    return result


def _descended(images: Tensor, gradient: Tensor, *, length: float, norm: str) -> Tensor:
    """Return the images after a steepest step whose root mean square per pixel is ``length`` in both norms."""
    if norm == "linf":
        return torch.sub(images, gradient.sign(), alpha=length)
    return images - gradient * (length * math.sqrt(gradient[0].numel()) / _lengths(gradient))


def _into_ball(moved: Tensor, origin: Tensor, *, eps: float, norm: str) -> Tensor:
    """Project onto the eps ball around ``origin``, then onto [0, 1], which only brings a point closer to ``origin``."""
    delta = moved - origin
    if norm == "linf":
        delta.clamp_(-eps, eps)
    else:
        delta *= (eps * math.sqrt(origin[0].numel()) / _lengths(delta)).clamp_max(1.0)
    return delta.add_(origin).clamp_(0, 1)


def _lengths(images: Tensor) -> Tensor:
    """Return each image's Euclidean length, in a shape that multiplies images; never 0."""
    axes = tuple(range(1, images.dim()))
    return torch.linalg.vector_norm(images, dim=axes, keepdim=True).clamp_min(1e-30)  # flattening copies channels-last


def generate(
    model: nn.Module,
    forget_images: Tensor,
    *,
    retained: Sequence[int],
    config: ProxyConfig,
    generator: torch.Generator,
) -> ProxySet:
    """Make proxies of every retained class from forget samples, the same number of hits per class.

    Args:
        model: The trained classifier.
        forget_images: Shape (n, C, H, W), values in [0, 1].
        retained: Classes to make proxies of.
        config: Attack options; ``eps=None`` searches the radius first.
        generator: CPU generator of source order and random starts.

    Returns:
        At most ``config.per_class`` proxies per class; fewer where the worst class had fewer hits.

    Raises:
        ValueError: If a class has no hit; the message names it and the option that helps.
    """
    eps = config.eps
    if eps is None:
        arrived = find_eps(model, forget_images, retained=retained, config=config, generator=generator)
        eps = min(config.margin * arrived, config.eps_max)
    wanted = math.ceil(config.per_class * config.oversample)
    if not config.random_start:
        wanted = min(wanted, len(forget_images))  # without a random start, a repeated source is a repeated proxy
    sources = _draw_sources(len(forget_images), wanted, len(retained), generator).to(forget_images.device)
    targets = torch.tensor(retained, device=forget_images.device).repeat_interleave(wanted)
    images = attack(model, forget_images[sources], targets, eps=eps, config=config, generator=generator)
    hit = (logits_of(model, images).argmax(1) == targets).view(len(retained), wanted)
    counts = hit.sum(1).tolist()
    hits = {label: count / wanted for label, count in zip(retained, counts, strict=True)}
    _refuse_missing(hits, eps=eps, config=config)
    equal = min(config.per_class, *counts)
    kept = (hit & (hit.cumsum(1) <= equal)).view(-1).nonzero()[:, 0]
    return ProxySet(images[kept], targets[kept], sources[kept], hits, eps)


def find_eps(
    model: nn.Module,
    forget_images: Tensor,
    *,
    retained: Sequence[int],
    config: ProxyConfig,
    generator: torch.Generator,
) -> float:
    """Return the first radius of ``eps_start * 2^j`` at which each class is hit by ``hit_rate`` of a few samples.

    Returns:
        The radius in pixels; ``eps_max`` if none below it suffices.

    Note:
        CHOICE: the paper's budget is unknown. Doubling from 4/255 until 90 % of every class is hit needs no knowledge
        of the data; notebook 02 shows the hit rate against the radius. ``generate`` takes ``margin`` times this.
    """
    sources = _draw_sources(len(forget_images), min(PROBE, len(forget_images)), len(retained), generator)
    sources = sources.to(forget_images.device)
    targets = torch.tensor(retained, device=forget_images.device).repeat_interleave(len(sources) // len(retained))
    eps = config.eps_start
    while eps < config.eps_max:
        moved = attack(model, forget_images[sources], targets, eps=eps, config=config, generator=generator)
        hit = (logits_of(model, moved).argmax(1) == targets).view(len(retained), -1)
        if hit.double().mean(1).min().item() >= config.hit_rate:
            return eps
        eps *= 2
    return config.eps_max


def _draw_sources(count: int, wanted: int, classes: int, generator: torch.Generator) -> Tensor:
    """Return ``wanted`` source indices per class, shape (classes * wanted,).

    Each class has shuffled passes over the samples of its own, so that a source repeats only after all were used.
    """
    passes = math.ceil(wanted / count)
    own = [torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)]) for _ in range(classes)]
    return torch.cat([order[:wanted] for order in own])


def _refuse_missing(hits: dict[int, float], *, eps: float, config: ProxyConfig) -> None:
    missing = [label for label, share in hits.items() if share == 0]
    if missing:
        raise ValueError(
            f"no forget sample reached class {', '.join(map(str, missing))} within eps={eps:.4g} (pixels) and"
            f" steps={config.steps}: raise proxies.eps (or proxies.eps_max), or proxies.steps"
        )
