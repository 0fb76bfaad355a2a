"""New targets for the forget samples, and plain descent: ascent, relabeling, distillation, rehearsal.

Invariant: no norm statistic moves and no weight decays, whatever the published code does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.baselines.method import FORGET, PROXIES, Method, descend_all, forget_classes, head_names
from zspag.config import UnlearnConfig
from zspag.influence import soft_cross_entropy
from zspag.material import Material
from zspag.pseudo_labels import masked_log_probabilities, random_labels
from zspag.runtime import logits_of, seed_of, sent
from zspag.sgd import BatchLoss, Ladder


def gradient_ascent(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,
                    config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip  # noqa: ARG001
    """Climb the cross-entropy of the forget samples.

    Note:
        DIFFERS: published code lets the loss run to infinity within a few steps. A sample whose loss passes log K, that
        of a uniform guess, has been forgotten and stops counting.
    """

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        each = F.cross_entropy(current(forget_images[batch]), forget_labels[batch], reduction="none")
        return -each.clamp_max(math.log(num_classes)).mean()

    return descend_all(model, forget_images, forget_labels, update=config.update, seed=seed_of(generator),
                        make_loss=lambda _drawing: loss)  # fmt: skip


def random_relabeling(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,
                      config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip  # noqa: ARG001
    """Fit all parameters to uniformly random retained labels, drawn again for every batch."""
    forget = forget_classes(forget_labels)

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            labels = random_labels(len(batch), num_classes=num_classes, forget=forget, generator=drawing)
            return soft_cross_entropy(current(forget_images[batch]), sent(labels, forget_images.device))

        return loss

    return descend_all(model, forget_images, forget_labels, update=config.update, seed=seed_of(generator),
                        make_loss=make_loss)  # fmt: skip


def delete(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
           config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip  # noqa: ARG001
    """Fit all parameters to the original's softmax with the forget classes masked (DELETE; beta = 0, no projection)."""
    return _distil(model, forget_images, forget_labels, config=config, generator=generator, names=None)


def head_only(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
              config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
    """DELETE on the last layer alone: how far does an edit of the head go?"""
    names = head_names(model, material)
    return _distil(model, forget_images, forget_labels, config=config, generator=generator, names=names)


def _distil(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, config: UnlearnConfig,
            generator: torch.Generator, names: Sequence[str] | None) -> Ladder:  # fmt: skip
    teacher = masked_log_probabilities(logits_of(model, forget_images), forget=forget_classes(forget_labels)).exp()

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return soft_cross_entropy(current(forget_images[batch]), teacher[batch])

    return descend_all(model, forget_images, forget_labels, update=config.update, seed=seed_of(generator),
                        make_loss=lambda _drawing: loss, names=names)  # fmt: skip


def rehearsal(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
              config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
    """DELETE plus cross-entropy to the masked original on the proxies, no projection: are proxies alone enough?"""
    forget, proxies = forget_classes(forget_labels), material.proxies.images
    teacher = masked_log_probabilities(logits_of(model, forget_images), forget=forget).exp()
    kept = masked_log_probabilities(logits_of(model, proxies), forget=forget).exp()

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            beside = sent(torch.randint(len(proxies), (len(batch),), generator=drawing), proxies.device)
            logits = current(torch.cat([forget_images[batch], proxies[beside]]))
            return 2 * soft_cross_entropy(logits, torch.cat([teacher[batch], kept[beside]]))

        return loss

    return descend_all(model, forget_images, forget_labels, update=config.update, seed=seed_of(generator),
                        make_loss=make_loss, names=material.names)  # fmt: skip


METHODS: dict[str, Method] = {
    "gradient_ascent": Method("gradient ascent", gradient_ascent, None, FORGET, "NegGrad", "low"),
    "random_relabeling": Method(
        "random relabeling", random_relabeling, None, FORGET, "Golatkar et al., CVPR 2020", "low"
    ),
    "delete": Method("DELETE", delete, None, FORGET, "Zhou et al., CVPR 2025", "low"),
    "rehearsal": Method("rehearsal on proxies", rehearsal, None, PROXIES, "control", "low"),
    "head_only": Method("head only", head_only, None, FORGET, "control", "middle"),
}
