"""ZS-PAG and its ablations: other labels, other subspaces, no projection.

Label variants are calibrated as "zs_pag" is. Controls of the subspace differ from
"zs_pag_fixed": all layers, the images alone, and the first rate of a ladder that forgets.

Invariant: each differs in the one thing it is named after, and draws as much from the generator.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from zspag.baselines.method import ORACLE, PROXIES, Method, Run, forget_classes
from zspag.calibration import fit_views, unlearn_with
from zspag.config import UnlearnConfig
from zspag.material import Material
from zspag.pseudo_labels import relabeler
from zspag.runtime import generator_for, seed_of
from zspag.sgd import Ladder, climb, fit_labels
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

_OURS = "Chen et al., IJCAI 2025"
OLD_RATE = 0.3  # smallest rate that was tried before there was a calibration


def _fit(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    config: UnlearnConfig,
    generator: torch.Generator,
    material: Material,
    project: Projector | None,
) -> Ladder:
    """Fit the configured pseudo-labels at every rate of the ladder: all layers, the images alone, projected or not."""
    seed, names = seed_of(generator), material.names
    relabel = relabeler(
        model, forget_images, forget=forget_classes(forget_labels), proxies=material.proxies,
        moments=averaged(material.moments), projector=project, names=names, config=config.labels,
        generator=generator_for(seed, "labels"),
    )  # fmt: skip
    return climb(
        lambda lr: fit_labels(
            model, forget_images, forget_labels, relabel=relabel, project=project, names=names,
            update=replace(config.update, lr=lr), generator=generator_for(seed, "update"),
        ),
        update=config.update,
    )  # fmt: skip


def _calibrated(strategy: str | None) -> Run:
    """ZS-PAG as ``zero_shot_unlearn`` runs it, with the configured labels or with those of ``strategy``.

    Layers and rate are chosen on held-out halves of the forget set. Where curves are wanted (``whole_ladder``), the
    chosen layers are run at every rate of the ladder, too.
    """

    def run(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
            config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
        seed, forget = seed_of(generator), forget_classes(forget_labels)
        labels = config.labels if strategy is None else replace(config.labels, strategy=strategy)
        config = replace(config, labels=labels)
        made = unlearn_with(model, forget_labels, material, forget=forget, config=config, seed=seed)
        runs = [made.run]
        if config.update.whole_ladder:
            rates = [lr for lr in config.update.ladder if lr != made.run.lr]
            runs += [fit_views(model, forget_labels, material, made, lr=lr, config=config, seed=seed) for lr in rates]
        runs.sort(key=lambda one: one.lr)
        return Ladder(tuple(runs), runs.index(made.run))

    return run


def fixed(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int,  # noqa: ARG001
          config: UnlearnConfig, generator: torch.Generator, material: Material) -> Ladder:  # fmt: skip
    """ZS-PAG as it was before the calibration: all layers, no views, the first rate from ``OLD_RATE`` that forgets."""
    ladder = _fit(model, forget_images, forget_labels, config=config, generator=generator, material=material,
                  project=projector(material.moments, config=config.subspace))  # fmt: skip
    target = config.update.forget_accuracy
    allowed = [index for index, run in enumerate(ladder.runs) if run.lr >= OLD_RATE] or [ladder.chosen]
    return Ladder(ladder.runs, next((index for index in allowed if ladder.runs[index].reached(target)), allowed[-1]))


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
        other = choose(model, forget_images, material, own, generator_for(seed_of(generator), "subspace"))
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
    seed_of(generator)  # keeps the batches those of the other subspaces
    other = retain_subspace(model, retain_images, retain_labels, own=own)
    return _fit(model, forget_images, forget_labels, config=config, generator=generator, material=material,
                project=hard_projector(other))  # fmt: skip


def retain_subspace(model: nn.Module, retain_images: Tensor, retain_labels: Tensor, *, own: Subspace) -> Subspace:
    """Return the subspace of true retain data at the ranks of ``own``, every class weighing the same (an oracle)."""
    parts = [second_moments(model, retain_images[retain_labels == label]) for label in retain_labels.unique()]
    return by_rank(pooled(parts), ranks=own.ranks)


def _projected(title: str, run: Run, reference: str, ladder: str = "high") -> Method:
    return Method(title, run, None, PROXIES, reference, ladder)


METHODS: dict[str, Method] = {
    "zs_pag": _projected("ZS-PAG", _calibrated(None), _OURS),
    "zs_pag_fixed": _projected("ZS-PAG, not calibrated", fixed, "control"),
    "unprojected": _projected("ZS-PAG without projection", unprojected, "control", "low"),
    "process_labels": _projected("ZS-PAG, influence labels", _calibrated("process"), _OURS),
    "influence_labels": _projected("ZS-PAG, labels tilted once", _calibrated("influence"), "control"),
    "second_best_labels": _projected("ZS-PAG, second-best labels", _calibrated("second_best"), "control"),
    "random_labels": _projected("ZS-PAG, random labels", _calibrated("random"), "control"),
    "forget_subspace": _projected("subspace of forget samples", _in_subspace(forget_subspace), "control"),
    "noise_subspace": _projected("subspace of noise", _in_subspace(noise_subspace), "control", "middle"),
    "random_subspace": _projected("random subspace", _in_subspace(random_subspace), "control", "low"),
    "oracle_subspace": Method("subspace of retain data", None, oracle_subspace, ORACLE, "oracle", "high"),
}
