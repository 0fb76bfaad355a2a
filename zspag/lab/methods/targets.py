"""New targets for the forget samples, and plain descent: ascent, relabeling, distillation, rehearsal.

Invariant: no norm statistic moves and no weight decays, whatever the published code does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig
from zspag.influence import soft_cross_entropy
from zspag.lab.methods.method import FORGET, PROXIES, Method, Problem, head_names, sgd_at_every_rate
from zspag.projected_sgd import BatchLoss, RateSearch
from zspag.pseudo_labels import masked_log_probabilities, random_labels
from zspag.runtime import logits_of, sent


def gradient_ascent(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Climb the cross-entropy of the forget samples.

    Note:
        DIFFERS: published code lets the loss run to infinity within a few steps. A sample whose loss passes log K, that
        of a uniform guess, has been forgotten and stops counting.
    """

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        logits = current(problem.forget_images[batch])
        each = F.cross_entropy(logits, problem.forget_labels[batch], reduction="none")
        return -each.clamp_max(math.log(problem.num_classes)).mean()

    return sgd_at_every_rate(problem, config, lambda _drawing: loss)


def random_relabeling(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit all parameters to uniformly random retained labels, drawn again for every batch."""
    images, classes, forget = problem.forget_images, problem.num_classes, problem.forget_classes

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            labels = random_labels(len(batch), num_classes=classes, forget=forget, generator=drawing)
            return soft_cross_entropy(current(images[batch]), sent(labels, images.device))

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


def delete(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit all parameters to the original's softmax with the forget classes masked (DELETE; beta = 0, no projection)."""
    return _distil(problem, config, names=None)


def head_only(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """DELETE on the last layer alone: how far does an edit of the head go?"""
    return _distil(problem, config, names=head_names(problem))


def _distil(problem: Problem, config: UnlearnConfig, *, names: Sequence[str] | None) -> RateSearch:
    images = problem.forget_images
    teacher = masked_log_probabilities(logits_of(problem.model, images), forget=problem.forget_classes).exp()

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return soft_cross_entropy(current(images[batch]), teacher[batch])

    return sgd_at_every_rate(problem, config, lambda _drawing: loss, names=names)


def rehearsal(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """DELETE plus cross-entropy to the masked original on the proxies, no projection: are proxies alone enough?"""
    images, proxies = problem.forget_images, problem.statistics.proxies.images
    teacher, kept = (
        masked_log_probabilities(logits_of(problem.model, seen), forget=problem.forget_classes).exp()
        for seen in (images, proxies)
    )

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            beside = sent(torch.randint(len(proxies), (len(batch),), generator=drawing), proxies.device)
            logits = current(torch.cat([images[batch], proxies[beside]]))
            return 2 * soft_cross_entropy(logits, torch.cat([teacher[batch], kept[beside]]))

        return loss

    return sgd_at_every_rate(problem, config, make_loss, names=problem.statistics.names)


METHODS: dict[str, Method] = {
    "gradient_ascent": Method("gradient ascent", gradient_ascent, FORGET, "NegGrad", "low"),
    "random_relabeling": Method("random relabeling", random_relabeling, FORGET, "Golatkar et al., CVPR 2020", "low"),
    "delete": Method("DELETE", delete, FORGET, "Zhou et al., CVPR 2025", "low"),
    "rehearsal": Method("rehearsal on proxies", rehearsal, PROXIES, "control", "low"),
    "head_only": Method("head only", head_only, FORGET, "control", "middle"),
}
