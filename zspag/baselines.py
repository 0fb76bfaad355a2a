"""Every method under one signature: ZS-PAG, its ablations and controls, and what it is compared with.

A method maps ``(model, forget_images, forget_labels, *, num_classes, config, generator, material)`` to a ``Ladder`` of
runs over the same learning rates, with the same epochs and batches, so that none is starved of tuning. ``material`` is
what ``unlearning.prepare`` derives from the first two arguments alone. An oracle takes retain images through a separate
argument and is marked in every table.

Invariant: norm statistics are frozen and no method decays weights; the learning-rate rule sees the forget set only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.influence import soft_cross_entropy
from zspag.pseudo_labels import masked_log_probabilities, random_labels, relabeler
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import (
    Projector,
    Subspace,
    averaged,
    by_rank,
    combine,
    hard_projector,
    pooled,
    projector,
    random_like,
    second_moments,
)
from zspag.unlearning import BatchLoss, Ladder, Material, climb, descend, fit_labels


class Run(Protocol):
    """The signature of every method."""

    def __call__(
        self,
        model: nn.Module,
        forget_images: Tensor,
        forget_labels: Tensor,
        *,
        num_classes: int,
        config: UnlearnConfig,
        generator: torch.Generator,
        material: Material,
    ) -> Ladder:
        """Return the runs of the method over the learning rates of ``config.update``."""


@dataclass(frozen=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        title: Name in figures and tables.
        run: The method; None for an oracle.
        oracle: Takes ``retain_images`` as well; None for a forget-only method.
        reads: What data it touches, in words.
        reference: Where it comes from.
        ladder: Which of ``config.Ladders`` it is run at.
    """

    title: str
    run: Run | None
    oracle: Callable[..., Ladder] | None
    reads: str
    reference: str
    ladder: str


def _seed(generator: torch.Generator) -> int:
    """Every rate draws the same batches: each run starts a stream of its own from the generator's next number."""
    return int(torch.randint(2**31, (1,), generator=generator))


def _fit(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    config: UnlearnConfig,
    generator: torch.Generator,
    material: Material,
    project: Projector | None,
    strategy: str | None = None,
) -> Ladder:
    """Fit pseudo-labels of ``strategy`` (the configured one if None) with or without a projector."""
    seed, names = _seed(generator), material.names
    labels = config.labels if strategy is None else replace(config.labels, strategy=strategy)
    relabel = relabeler(
        model, forget_images, forget=_forget(forget_labels), proxies=material.proxies,
        moments=averaged(material.moments), projector=project, names=names, config=labels,
        generator=generator_for(seed, "labels"),
    )  # fmt: skip
    return climb(
        lambda lr: fit_labels(
            model, forget_images, forget_labels, relabel=relabel, project=project, names=names,
            update=replace(config.update, lr=lr), generator=generator_for(seed, "update"),
        ),
        update=config.update,
    )  # fmt: skip


def _forget(forget_labels: Tensor) -> tuple[int, ...]:
    return tuple(sorted(set(forget_labels.tolist())))


def _zs_pag(strategy: str | None) -> Run:
    """ZS-PAG with the configured labels, or with those of ``strategy``."""

    def run(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
            config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
        project = projector(material.moments, config=config.subspace)
        return _fit(model, forget_images, forget_labels, config=config, generator=generator, material=material,
                    project=project, strategy=strategy)  # fmt: skip

    return run


def unprojected(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
                config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
    """ZS-PAG's labels and weights, without the projection."""
    return _fit(model, forget_images, forget_labels, config=config, generator=generator, material=material,
                project=None)  # fmt: skip


def _in_subspace(choose: Callable[[nn.Module, Tensor, Material, Subspace, torch.Generator], Subspace]) -> Run:
    """ZS-PAG with another subspace of the same rank per layer: does it matter *which* directions are protected?

    Labels and rank are those of "zs_pag", so nothing but the directions differs.
    """

    def run(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
            config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
        own = combine(material.moments, config=config.subspace)
        other = choose(model, forget_images, material, own, generator_for(_seed(generator), "subspace"))
        return _fit(model, forget_images, forget_labels, config=config, generator=generator, material=material,
                    project=hard_projector(other))  # fmt: skip

    return run


def forget_subspace(model: nn.Module, forget_images: Tensor, material: Material, own: Subspace,  # noqa: ARG001
                    generator: torch.Generator) -> Subspace:  # fmt: skip  # noqa: ARG001
    """Directions the forget samples themselves use, at the ranks of ``own``."""
    return by_rank(second_moments(model, forget_images), ranks=own.ranks)


def noise_subspace(model: nn.Module, forget_images: Tensor, material: Material, own: Subspace,
                   generator: torch.Generator) -> Subspace:  # fmt: skip
    """Directions that uniform noise images use, as many images as proxies, at the ranks of ``own``."""
    count = len(material.proxies.labels)
    noise = torch.rand((count, *forget_images.shape[1:]), generator=generator).to(forget_images)
    return by_rank(second_moments(model, noise), ranks=own.ranks)


def random_subspace(model: nn.Module, forget_images: Tensor, material: Material, own: Subspace,  # noqa: ARG001
                    generator: torch.Generator) -> Subspace:  # fmt: skip
    """Uniformly random directions, at the ranks of ``own``."""
    return random_like(own, generator=generator)


def oracle_subspace(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
                    config: UnlearnConfig, generator: torch.Generator, material: Material,
                    retain_images: Tensor, retain_labels: Tensor) -> Ladder:  # fmt: skip
    """ZS-PAG with the subspace of the true retain data at the same ranks: what proxies would ideally replace."""
    own = combine(material.moments, config=config.subspace)
    _seed(generator)  # keeps the batches those of the other subspaces
    other = retain_subspace(model, retain_images, retain_labels, own=own)
    return _fit(model, forget_images, forget_labels, config=config, generator=generator, material=material,
                project=hard_projector(other), strategy="soft")  # fmt: skip


def retain_subspace(model: nn.Module, retain_images: Tensor, retain_labels: Tensor, *, own: Subspace) -> Subspace:
    """Return the subspace of true retain data at the ranks of ``own``, every class weighing the same (an oracle)."""
    parts = [second_moments(model, retain_images[retain_labels == label]) for label in retain_labels.unique()]
    return by_rank(pooled(parts), ranks=own.ranks)


def _descend_all(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    update: UpdateConfig,
    seed: int,
    make_loss: Callable[[torch.Generator], BatchLoss],
    names: Sequence[str] | None = None,
) -> Ladder:
    """Minimize a loss at every rate; all parameters move unless ``names`` says which.

    ``make_loss`` receives the generator of the loss's own draws, afresh for every rate: no rate depends on another.
    """
    moving = [name for name, _ in model.named_parameters()] if names is None else names
    return climb(
        lambda lr: descend(
            model, forget_images, forget_labels, loss=make_loss(generator_for(seed, "loss")), names=moving,
            project=None, update=replace(update, lr=lr), generator=generator_for(seed, "update"),
        ),
        update=update,
    )  # fmt: skip


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

    return _descend_all(model, forget_images, forget_labels, update=config.update, seed=_seed(generator),
                        make_loss=lambda _drawing: loss)  # fmt: skip


def random_relabeling(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,
                      config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip  # noqa: ARG001
    """Fit all parameters to uniformly random retained labels, drawn again for every batch."""
    forget = _forget(forget_labels)

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            labels = random_labels(len(batch), num_classes=num_classes, forget=forget, generator=drawing)
            return soft_cross_entropy(current(forget_images[batch]), labels.to(forget_images.device))

        return loss

    return _descend_all(model, forget_images, forget_labels, update=config.update, seed=_seed(generator),
                        make_loss=make_loss)  # fmt: skip


def delete(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
           config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip  # noqa: ARG001
    """Fit all parameters to the original's softmax with the forget classes masked (DELETE; beta = 0, no projection)."""
    return _distil(model, forget_images, forget_labels, config=config, generator=generator, names=None)


def head_only(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
              config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
    """DELETE on the last layer alone: how far does an edit of the head go?"""
    last = material.names[-1]
    prefix = last.rpartition(".")[0]
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] == prefix]
    return _distil(model, forget_images, forget_labels, config=config, generator=generator, names=names)


def _distil(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, config: UnlearnConfig,
            generator: torch.Generator, names: Sequence[str] | None) -> Ladder:  # fmt: skip
    teacher = masked_log_probabilities(logits_of(model, forget_images), forget=_forget(forget_labels)).exp()

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return soft_cross_entropy(current(forget_images[batch]), teacher[batch])

    return _descend_all(model, forget_images, forget_labels, update=config.update, seed=_seed(generator),
                        make_loss=lambda _drawing: loss, names=names)  # fmt: skip


def rehearsal(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
              config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
    """DELETE plus cross-entropy to the masked original on the proxies, no projection: are proxies alone enough?"""
    forget, proxies = _forget(forget_labels), material.proxies.images
    teacher = masked_log_probabilities(logits_of(model, forget_images), forget=forget).exp()
    kept = masked_log_probabilities(logits_of(model, proxies), forget=forget).exp()

    def make_loss(drawing: torch.Generator) -> BatchLoss:
        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            beside = torch.randint(len(proxies), (len(batch),), generator=drawing).to(proxies.device)
            logits = current(torch.cat([forget_images[batch], proxies[beside]]))
            return 2 * soft_cross_entropy(logits, torch.cat([teacher[batch], kept[beside]]))

        return loss

    return _descend_all(model, forget_images, forget_labels, update=config.update, seed=_seed(generator),
                        make_loss=make_loss, names=material.names)  # fmt: skip


_FORGET, _PROXIES, _ORACLE = "forget set", "forget set, proxies made from it", "forget set and RETAIN SET (oracle)"
_OURS = "Chen et al., IJCAI 2025"


def _projected(title: str, run: Run, reference: str) -> Method:
    return Method(title, run, None, _PROXIES, reference, "high")


def _plain(title: str, run: Run, reads: str, reference: str) -> Method:
    return Method(title, run, None, reads, reference, "low")


METHODS: dict[str, Method] = {
    "zs_pag": _projected("ZS-PAG", _zs_pag(None), _OURS),
    "unprojected": _plain("ZS-PAG without projection", unprojected, _PROXIES, "control"),
    "process_labels": _projected("ZS-PAG, influence labels", _zs_pag("process"), _OURS),
    "influence_labels": _projected("ZS-PAG, labels tilted once", _zs_pag("influence"), "control"),
    "second_best_labels": _projected("ZS-PAG, second-best labels", _zs_pag("second_best"), "control"),
    "random_labels": _projected("ZS-PAG, random labels", _zs_pag("random"), "control"),
    "forget_subspace": _projected("subspace of forget samples", _in_subspace(forget_subspace), "control"),
    "noise_subspace": Method("subspace of noise", _in_subspace(noise_subspace), None, _PROXIES, "control", "middle"),
    "random_subspace": _plain("random subspace", _in_subspace(random_subspace), _PROXIES, "control"),
    "oracle_subspace": Method("subspace of retain data", None, oracle_subspace, _ORACLE, "oracle", "high"),
    "gradient_ascent": _plain("gradient ascent", gradient_ascent, _FORGET, "NegGrad"),
    "random_relabeling": _plain("random relabeling", random_relabeling, _FORGET, "Golatkar et al., CVPR 2020"),
    "delete": _plain("DELETE", delete, _FORGET, "Zhou et al., CVPR 2025"),
    "rehearsal": _plain("rehearsal on proxies", rehearsal, _PROXIES, "control"),
    "head_only": Method("head only", head_only, None, _FORGET, "control", "middle"),
}
