"""What ZS-PAG derives from model and forget set before the first update: views, proxies, and their input moments.

Invariant: nothing but the model and forget samples is read.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig
from zspag.process.progress import step
from zspag.proxies import ProxySet, generate
from zspag.pseudo_labels import retained_classes
from zspag.runtime import channels_last
from zspag.subspaces import ClassMoments, Moments, RunningMean, accumulate, second_moments, weighted_mean
from zspag.views import Views, make_views

HALVABLE = 4  # forget images; of fewer, the views are halved and not the images


@dataclass(frozen=True)
class ProxyStatistics:
    """What the method derives from model and forget set before the first update.

    Attributes:
        views: The forget samples and their views.
        proxies: Stand-ins of the retained classes, made from the views.
        moments: Input moments of the proxies, one per retained class where they fit in memory, and their means.
        half_of: Half that each view belongs to, 0 or 1, shape (v,), on the CPU.
        halves: Pooled moments of the proxies made from either half.
        seconds: Wall-clock seconds per stage ("proxies", "subspaces").
    """

    views: Views
    proxies: ProxySet
    moments: ClassMoments
    half_of: Tensor
    halves: tuple[Moments, Moments]
    seconds: dict[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Weights that can be projected, in the order in which the model uses them."""
        return tuple(self.moments.pooled.second)

    @property
    def frozen(self) -> dict[str, str]:
        """Weights that cannot be projected and stay frozen, by name, with the reason."""
        return self.moments.pooled.unprojectable

    @property
    def image_of(self) -> Tensor:
        """Index of the forget image behind each proxy, shape (m,), on the CPU."""
        return self.views.sources[self.proxies.sources.cpu()]


def prepare(
    model: nn.Module,
    forget_images: Tensor,
    *,
    forget: Sequence[int],
    num_classes: int,
    config: UnlearnConfig,
    generator: torch.Generator,
) -> ProxyStatistics:
    """Make views and proxies of every retained class, and collect what the proxies feed into each layer.

    Raises:
        ValueError: If a class cannot be reached by the attack, or no layer can be projected.
    """
    retained = retained_classes(num_classes, forget).tolist()
    started = time.perf_counter()
    views = make_views(model, forget_images, least=config.views, generator=generator)
    half_of = halved(views, views.answers[: len(forget_images)], generator=generator)
    proxies = generate(
        model, channels_last(views.images), retained=retained, config=config.proxies, generator=generator
    )
    attacked = time.perf_counter()
    made_from = half_of[proxies.sources.cpu()].to(proxies.labels.device)
    moments, first, second = class_moments(
        model, proxies.images, proxies.labels, halves=made_from, merge_at=config.subspace.merge_at
    )
    seconds = {"proxies": attacked - started, "subspaces": time.perf_counter() - attacked}
    statistics = ProxyStatistics(views, proxies, moments, half_of, (first, second), seconds)
    if not statistics.names:
        reasons = "; ".join(f"{name}: {why}" for name, why in statistics.frozen.items()) or "it has no weights"
        raise ValueError(f"the model has no convolution, linear or attention layer to project ({reasons})")
    return statistics


def class_moments(
    model: nn.Module, images: Tensor, labels: Tensor, *, halves: Tensor, merge_at: float | None
) -> tuple[ClassMoments, Moments, Moments]:
    """Collect what proxies feed into each layer, class by class, with the pooled moments of either half.

    One class at a time is held beside the means, however many there are (``subspaces.accumulate`` keeps small ones).

    Args:
        model: Not changed.
        images: Proxies, shape (m, C, H, W).
        labels: Their classes, shape (m,).
        halves: Half that each was made from, 0 or 1, shape (m,).
        merge_at: As for ``subspaces.accumulate``.

    Returns:
        The moments of both halves together, and the pooled moments of each; a half without proxies gets those of all.
    """
    retained, means = labels.unique().tolist(), (RunningMean(), RunningMean())

    def moments_of(label: int) -> Moments:
        parts, counts = [], []
        for half, mean in enumerate(means):
            chosen = images[(labels == label) & (halves == half)]
            if len(chosen):
                parts.append(second_moments(model, chosen))
                counts.append(len(chosen))
                mean.add(parts[-1], by_trace=True)
        step("subspaces", retained.index(label) + 1, len(retained))
        return weighted_mean(parts, counts)

    moments = accumulate(map(moments_of, retained), classes=len(retained), merge_at=merge_at)
    first, second = (mean.mean() if mean.count else moments.pooled for mean in means)
    return moments, first, second


def halved(views: Views, answers: Tensor, *, generator: torch.Generator) -> Tensor:
    """Deal the images to two halves, class by class, all views of an image to one; shape (v,), values 0 and 1.

    Args:
        views: The images and their views.
        answers: What the model answers to each image, shape (n,).
        generator: CPU generator of the deal.
    """
    order = torch.randperm(len(answers), generator=generator)
    order = order[answers[order].argsort(stable=True)]
    half = torch.empty_like(order)
    half[order] = torch.arange(len(order)) % 2
    return half[views.sources] if len(answers) >= HALVABLE else torch.arange(len(views.sources)) % 2
