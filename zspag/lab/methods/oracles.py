"""Oracles that train with retain data: fine-tuning, the null space of what is retained, a teacher to keep or flee.

What a method could do that had the data. Retain data comes in through two arguments of its own and nowhere else.

Invariant: steps and epochs are those of every other method; a step may look at retain samples in place of forget ones.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.lab.methods.method import ORACLE, Method, Problem, sgd_at_every_rate
from zspag.projected_sgd import BatchLoss, RateSearch, Run, batch_size, fit_labels, rate_search
from zspag.pseudo_labels import masked_log_probabilities, second_best_labels
from zspag.runtime import generator_for, logits_of, sent
from zspag.subspaces import Subspace, hard_projector, merged, second_moments

# Most retain samples of one epoch: a pass over all of CIFAR-10 for every epoch and rate would cost more than training.
RETAIN_PER_EPOCH = 5000

# Shares of the trace, of a class's moment and of the sum of all projectors: the lower end of the paper's .97 to .99. A
# small net has few directions, and a union over nine classes at .99 leaves none of them to the update.
UNSC_ENERGY = 0.97
UNSC_MERGE_ENERGY = 0.97

# Weights of divergence and cross-entropy on the retain set, as published for whole classes.
SCRUB_DIVERGENCE = 0.001
SCRUB_CROSS_ENTROPY = 0.99
# Share of the epochs that begin with max steps; the others only repair, as in the published schedules (2 of 3 epochs).
SCRUB_MAX_SHARE = 2 / 3


def fine_tune(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Go on training with cross-entropy on the retain set alone, and hope that the rest is forgotten on the way.

    Reference: the weakest baseline of Golatkar et al., CVPR 2020, and of most papers since.

    Note:
        DIFFERS: an epoch has as many steps as the forget set has batches and reads at most ``RETAIN_PER_EPOCH``
        samples, not the whole retain set; no weight decay, no augmentation, frozen norm statistics. A run that has not
        begun to forget by half the epochs is given up, as with every method.
    """
    images, labels = problem.retain_images, problem.retain_labels
    size = _retain_batch(len(images), _steps(len(problem.forget_images), config.update))

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        batches = _passes(len(images), size, drawing)

        def loss(current: nn.Module, _forget: Tensor) -> Tensor:
            batch = sent(next(batches), images.device)
            return F.cross_entropy(current(images[batch]), labels[batch])

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


def unsc(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Fit forget samples to their second-best label, in the null space of what the true retain classes use.

    Reference: Chen et al. (UNSC), IJCAI 2024.

    Note:
        DIFFERS: patches are those that the convolution sees, padding and stride included, every layer is constrained,
        and the epochs are stopped on the forget set; the published code ignores padding and stride, lets two layers of
        its VGG go free, reads its projections by the wrong index on CIFAR-10 and picks the epoch on test accuracy.
        Everything that has no rows (biases, norms) stays frozen.
    """
    model, images = problem.model, problem.forget_images
    project = hard_projector(merged_retain_subspace(model, problem.retain_images, problem.retain_labels))
    labels = second_best_labels(masked_log_probabilities(logits_of(model, images), forget=problem.forget_classes))

    def run(lr: float) -> Run:
        return fit_labels(
            model,
            images,
            problem.forget_labels,
            relabel=lambda _current: labels,
            project=project,
            names=tuple(project.factors),
            update=replace(config.update, lr=lr),
            generator=generator_for(problem.seed, "update"),
        )

    return rate_search(run, update=config.update)


def merged_retain_subspace(model: nn.Module, retain_images: Tensor, retain_labels: Tensor) -> Subspace:
    """Return UNSC's subspace: every retain class cut at ``UNSC_ENERGY``, their union cut at ``UNSC_MERGE_ENERGY``."""
    classes = retain_labels.unique()
    parts = (second_moments(model, retain_images[retain_labels == label]) for label in classes)
    return merged(parts, energy=UNSC_ENERGY, merge_energy=UNSC_MERGE_ENERGY)


def scrub(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Flee the original on the forget set and stay with it, and with the labels, on the retain set, in turns.

    Max steps climb KL(original || current) on forget samples, min steps descend ``SCRUB_DIVERGENCE`` times the same on
    retain samples plus ``SCRUB_CROSS_ENTROPY`` times their cross-entropy. Each epoch goes through the forget set in its
    first half and through the retain samples in its second; after ``SCRUB_MAX_SHARE`` of the epochs all steps are min
    steps.

    Reference: Kurmanji et al. (SCRUB), NeurIPS 2023.

    Note:
        DIFFERS: an epoch has as many steps as the forget set has batches, so each kind gets half of them and at most
        ``RETAIN_PER_EPOCH`` retain samples are read. The temperature is 1, as in the paper's formula; the published
        code softens both distributions at 4. The divergence that max steps climb has no upper bound, and without one
        every rate that forgot ended at infinity; a sample past log K stops counting. At the original the divergence has
        no slope, so the first max steps stand still; in the published code batch statistics and decay move the net.
    """
    forget_images, retain_images = problem.forget_images, problem.retain_images
    steps = _steps(len(forget_images), config.update)
    turn = max(2, steps)  # where an epoch is one step, whole epochs take turns
    forget_size = math.ceil(len(forget_images) / (turn // 2))
    retain_size = _retain_batch(len(retain_images), turn - turn // 2)
    last_max = math.ceil(SCRUB_MAX_SHARE * config.update.epochs) * steps
    forget_teacher, retain_teacher = (
        logits_of(problem.model, images).softmax(1) for images in (forget_images, retain_images)
    )

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        forget_batches = _passes(len(forget_images), forget_size, drawing)
        retain_batches = _passes(len(retain_images), retain_size, drawing)
        step = -1

        def loss(current: nn.Module, _forget: Tensor) -> Tensor:
            nonlocal step
            step += 1
            if step < last_max and step % turn < turn // 2:
                batch = sent(next(forget_batches), forget_images.device)
                fled = divergence(forget_teacher[batch], current(forget_images[batch]))
                return -fled.clamp_max(math.log(problem.num_classes)).mean()
            batch = sent(next(retain_batches), retain_images.device)
            logits = current(retain_images[batch])
            kept = F.cross_entropy(logits, problem.retain_labels[batch])
            return SCRUB_DIVERGENCE * divergence(retain_teacher[batch], logits).mean() + SCRUB_CROSS_ENTROPY * kept

        return loss

    return sgd_at_every_rate(problem, config, make_loss)


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """Return KL(teacher || softmax(logits)) of each row of (n, K), shape (n,)."""
    return F.kl_div(logits.log_softmax(1), teacher, reduction="none").sum(1)


def _steps(count: int, update: UpdateConfig) -> int:
    """Return how many steps ``projected_sgd`` makes of an epoch over ``count`` forget samples."""
    return math.ceil(count / batch_size(count, update))


def _retain_batch(count: int, steps: int) -> int:
    return math.ceil(min(count, RETAIN_PER_EPOCH) / steps)


def _passes(count: int, size: int, drawing: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices below ``count``, pass after pass, every pass in a new order."""
    while True:
        yield from torch.randperm(count, generator=drawing).split(size)


METHODS: dict[str, Method] = {
    "fine_tune": Method(
        "fine-tuning on retain data", fine_tune, ORACLE, "Golatkar et al., CVPR 2020", "low", oracle=True
    ),
    "unsc": Method("UNSC", unsc, ORACLE, "Chen et al., IJCAI 2024", "high", oracle=True),
    "scrub": Method("SCRUB", scrub, ORACLE, "Kurmanji et al., NeurIPS 2023", "low", oracle=True),
}
