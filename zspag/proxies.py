"""Proxy adversarial data: forget samples pushed into every retained class replace the retain data.

Paper: "proxy adversarial data generation". For a retained class t and a forget sample x, targeted projected gradient
descent minimizes CE(f(x + delta), t) with ||delta|| <= eps and x + delta in [0, 1].

Every hit gives two proxies. The one with the largest margin lies well inside its class; bases are made from it. The
*barely hit* one is the same proxy, pulled back towards its source until it only just hits. A model changes its answers
there first, so drift is measured there.

Invariant: nothing but the model and forget samples is read, and every proxy is classified as its label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import ProxyConfig
from zspag.process.progress import step
from zspag.runtime import chunks, frozen, logits_of, sent
from zspag.speedups.conv_bn import conv_bn_pairs, fuse_conv_bn

MOST_PROBES = 20  # forget samples per class that the search for a radius attacks at most
STUCK = 2  # doublings of the radius without another hit, after which no radius is expected to bring one
HALVINGS = 6  # of the way from the source to the proxy: a barely hit one lies within 1/64 of the border


@dataclass(frozen=True)
class Attacked:
    """What an attack made of its images.

    Attributes:
        images: The best iterate of each, in [0, 1], shape (n, C, H, W).
        margins: Its target's logit minus the largest other one, shape (n,); above 0 it hits.
    """

    images: Tensor
    margins: Tensor

    @property
    def hits(self) -> Tensor:
        """Which images reached their target, shape (n,)."""
        return self.margins > 0


@dataclass(frozen=True)
class RadiusSearch:
    """The radius that a search took, and the share of hits in the worst class at every radius that it tried."""

    eps: float
    tried: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ProxySet:
    """Proxies of the retained classes, the same number for each.

    Attributes:
        images: Proxies in [0, 1], shape (m, C, H, W), ordered by class.
        labels: Class each proxy is classified as, shape (m,).
        sources: Index of the forget sample each proxy was made from, shape (m,).
        hits: Per class, the share of attacked samples that arrived.
        eps: Radius used, in pixels.
        barely: The same proxies pulled back until they only just hit, shape (m, C, H, W).
    """

    images: Tensor
    labels: Tensor
    sources: Tensor
    hits: dict[int, float]
    eps: float
    barely: Tensor

    def of_class(self, label: int) -> Tensor:
        """Return the proxies of one class, shape (m / classes, C, H, W)."""
        return self.images[self.labels == label]


def margins_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each row's logit of its target minus the largest other logit, shape (n,).

    Example:
        >>> margins_of(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([1])).item()
        2.0
    """
    own = targets[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


def attack(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    eps: float,
    config: ProxyConfig,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Attacked:
    """Push each image towards its target class by targeted PGD, and keep its best iterate.

    Args:
        model: Maps [0, 1] images to logits; normalization is its first layer, so eps is in pixels.
        images: Shape (n, C, H, W), values in [0, 1].
        targets: Target class of each image, shape (n,).
        eps: Radius in pixels; an L2 ball has radius ``eps * sqrt(C*H*W)``.
        config: Norm, steps, first step's share of the radius, random start.
        generator: CPU generator of the random start.
        start: Where to start, within eps of ``images``; None starts by ``config.random_start``.

    Returns:
        Images within eps of ``images``, and their margins. The start counts as an iterate: from the best iterates of a
        smaller radius, no margin falls.

    Note:
        CHOICE: the step shrinks from ``step_share`` of the radius to nothing. Of steps of one length, the last iterate
        of a larger ball hit *less* often than that of a smaller one on nets without batch norm. The gradient is taken
        with respect to the input only; no parameter requires grad while the attack runs.
    """
    if start is None and config.random_start:
        noise = sent(torch.rand(images.shape, generator=generator, dtype=images.dtype), images.device) * 2 - 1
        start = _into_ball(images + eps * noise, images, eps=eps, norm=config.norm)
    start = images if start is None else start
    with frozen(model), fuse_conv_bn(conv_bn_pairs(model, images, passes=2 * config.steps)):
        parts, done = [], 0
        for part in chunks(images, start, targets):
            parts.append(_attack_chunk(model, *part, eps=eps, config=config))
            done += len(part[0])
            step("attack", done, len(images))
    best, margins = zip(*parts, strict=True)
    return Attacked(torch.cat(best), torch.cat(margins))


def _attack_chunk(
    model: nn.Module, origin: Tensor, moving: Tensor, targets: Tensor, *, eps: float, config: ProxyConfig
) -> tuple[Tensor, Tensor]:
    """Attack one chunk and return best iterates and their margins.

    A step costs a forward pass and the gradient in the input, and beside them reads and writes the images a dozen
    times: a few per cent for a net of a few million operations per pixel.
    """
    best = moving
    highest = torch.full((len(moving),), -torch.inf, dtype=moving.dtype, device=moving.device)
    for done in range(config.steps + 1):
        x = moving.detach().requires_grad_(done < config.steps)
        logits = model(x)
        margins = margins_of(logits.detach(), targets)
        better = margins > highest
        best, highest = torch.where(_beside(better, x), x.detach(), best), torch.where(better, margins, highest)
        if done == config.steps:
            break
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), x)
        length = eps * config.step_share * (1 - done / config.steps)
        if config.norm == "linf":  # the steepest step whose root mean square per pixel is ``length``, in both norms
            moved = torch.sub(moving, gradient.sign(), alpha=length)
        else:
            moved = moving - gradient * (length * math.sqrt(gradient[0].numel()) / _lengths(gradient))
        moving = _into_ball(moved, origin, eps=eps, norm=config.norm)
    return best, highest


def _beside(values: Tensor, images: Tensor) -> Tensor:
    """Return one value per image (n,) in a shape that multiplies images."""
    return values.view(-1, *[1] * (images.dim() - 1))


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


def search_radius(
    model: nn.Module,
    forget_images: Tensor,
    *,
    retained: Sequence[int],
    config: ProxyConfig,
    generator: torch.Generator,
) -> RadiusSearch:
    """Return the first radius of ``eps_start * 2^j`` at which each class is hit by ``hit_rate`` of a few samples.

    A sample that has hit is left alone; the others start from the best iterates of the radius before. So the hit rate
    cannot fall as the radius grows, and all radii together cost at most half of the attack that follows, unless that
    is less than one sample per class costs.

    Returns:
        The radius in pixels and the hit rates on the way. Where no radius suffices it is ``eps_max``, or the first one
        after which ``STUCK`` doublings hit no further sample.

    Note:
        CHOICE: the paper's budget is unknown. Doubling from 4/255 until 90 % of every class is hit needs no knowledge
        of the data; notebook 02 shows the hit rate against the radius. ``generate`` takes ``margin`` times this. With
        100 classes a few samples each are tried, and one that no radius moves (a flat gradient) took the search to
        ``eps_max``: a ball of the whole pixel range, in which an attack from a random start hits less.
    """
    radii = [config.eps_start * 2.0**j for j in range(64) if config.eps_start * 2.0**j < config.eps_max]
    steps = max(1, config.steps // 2)
    # An attack looks once more at its end, hence the + 1.
    half = math.ceil(config.per_class * config.oversample) * (config.steps + 1) / 2
    probes = max(1, min(MOST_PROBES, len(forget_images), int(half / ((steps + 1) * max(1, len(radii))))))
    sources = _draw_sources(len(forget_images), probes, len(retained), generator).to(forget_images.device)
    targets = torch.tensor(retained, device=forget_images.device).repeat_interleave(probes)
    images, shorter = forget_images[sources], replace(config, steps=steps)
    tried: list[tuple[float, float]] = []
    counts: list[int] = []
    best, margins = images, torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
    for eps in radii:
        left = (margins <= 0).nonzero()[:, 0]
        first = None if not tried else best[left]
        found = attack(model, images[left], targets[left], eps=eps, config=shorter, generator=generator, start=first)
        best, margins = best.index_copy(0, left, found.images), margins.index_copy(0, left, found.margins)
        counts.append(int((margins > 0).sum()))
        worst = (margins > 0).view(len(retained), probes).double().mean(1).min().item()
        tried.append((eps, worst))
        if worst >= config.hit_rate:
            return RadiusSearch(eps, tuple(tried))
    last = counts[-1] if counts else 0
    stuck = last > 0 and counts.index(last) + STUCK < len(counts)
    return RadiusSearch(radii[counts.index(last)] if stuck else config.eps_max, tuple(tried))


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
        At most ``config.per_class`` proxies per class; fewer where a class had fewer hits. A class that less than half
        of ``config.hit_rate`` of its attacks reached keeps its few, and takes none from the others.

    Raises:
        ValueError: If a class has no hit; the message names it and the option that helps.
    """
    eps = config.eps
    if eps is None:
        search = search_radius(model, forget_images, retained=retained, config=config, generator=generator)
        eps = min(config.margin * search.eps, config.eps_max)
    wanted = math.ceil(config.per_class * config.oversample)
    if not config.random_start:
        wanted = min(wanted, len(forget_images))  # without a random start, a repeated source is a repeated proxy
    sources = _draw_sources(len(forget_images), wanted, len(retained), generator).to(forget_images.device)
    targets = torch.tensor(retained, device=forget_images.device).repeat_interleave(wanted)
    found = attack(model, forget_images[sources], targets, eps=eps, config=config, generator=generator)
    hit = found.hits.view(len(retained), wanted)
    counts = hit.sum(1).tolist()
    hits = {label: count / wanted for label, count in zip(retained, counts, strict=True)}
    if missing := [label for label, share in hits.items() if share == 0]:
        raise ValueError(
            f"no forget sample reached class {', '.join(map(str, missing))} within eps={eps:.4g} (pixels) and"
            f" steps={config.steps}: raise proxies.eps (or proxies.eps_max), or proxies.steps"
        )
    enough = [count for count in counts if count >= config.hit_rate / 2 * wanted]
    equal = min(config.per_class, *(enough or counts))
    kept = (hit & (hit.cumsum(1) <= equal)).view(-1).nonzero()[:, 0]
    images, labels, own = found.images[kept], targets[kept], sources[kept]
    return ProxySet(images, labels, own, hits, eps, pulled_back(model, images, forget_images[own], labels))


def pulled_back(model: nn.Module, proxies: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Move proxies straight towards their sources as long as they hit, by bisection.

    Args:
        model: The classifier.
        proxies: Images that hit, shape (m, C, H, W).
        sources: What each was made from, same shape.
        targets: The classes they hit, shape (m,).

    Returns:
        Images that hit and lie within 1/2^HALVINGS of the way of one that does not, or of their source if that hits
        itself, same shape.
    """
    near, far = torch.zeros(len(proxies)).to(proxies), torch.ones(len(proxies)).to(proxies)
    way = proxies - sources
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        hit = margins_of(logits_of(model, sources + _beside(middle, way) * way), targets) > 0
        near, far = torch.where(hit, near, middle), torch.where(hit, middle, far)
    return torch.where(_beside(far == 1, way), proxies, sources + _beside(far, way) * way)


def _draw_sources(count: int, wanted: int, classes: int, generator: torch.Generator) -> Tensor:
    """Return ``wanted`` source indices per class, shape (classes * wanted,).

    Each class has shuffled passes over the samples of its own, so that a source repeats only after all were used.
    """
    passes = math.ceil(wanted / count)
    own = [torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)]) for _ in range(classes)]
    return torch.cat([order[:wanted] for order in own])
