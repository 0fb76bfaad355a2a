"""ZS-PAG and its ablations: other labels, other subspaces, no projection.

Label variants are calibrated as "zs_pag" is. Controls of the subspace differ from "zs_pag_fixed": all layers, the
images alone, and the first rate of a ladder that forgets.

Invariant: each differs in the one thing it is named after, and draws as much from the generator.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from zspag.calibration.cross_fitting import fit_views, unlearn_with
from zspag.config import UnlearnConfig
from zspag.lab.methods.method import ORACLE, PROXIES, Method, Problem, fit
from zspag.projected_sgd import RateSearch, rate_search
from zspag.pseudo_labels import pseudo_labeler
from zspag.runtime import generator_for, seed_of
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

OLD_RATE = 0.3  # smallest rate that was tried before there was a calibration


def zs_pag(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG as ``zero_shot_unlearn`` runs it, with the configured labels.

    With ``whole_ladder`` the layers that the calibration chose are run at every rate of the ladder, too.
    """
    model, labels, statistics, seed = problem.model, problem.forget_labels, problem.statistics, problem.seed
    made = unlearn_with(model, labels, statistics, forget=problem.forget_classes, config=config, seed=seed)
    runs = [made.run]
    if config.update.whole_ladder:
        rates = [lr for lr in config.update.ladder if lr != made.run.lr]
        runs += [fit_views(model, labels, statistics, made, lr=lr, config=config, seed=seed) for lr in rates]
    runs.sort(key=lambda run: run.lr)
    return RateSearch(tuple(runs), runs.index(made.run))


def process_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with labels tilted by influence before every epoch (strategy "process")."""
    return _with_labels(problem, config, "process")


def influence_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with labels tilted once, by influence at the original weights (strategy "influence")."""
    return _with_labels(problem, config, "influence")


def second_best_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with the retained class that the original finds most likely (strategy "second_best")."""
    return _with_labels(problem, config, "second_best")


def random_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with uniformly random retained classes (strategy "random")."""
    return _with_labels(problem, config, "random")


def _with_labels(problem: Problem, config: UnlearnConfig, strategy: str) -> RateSearch:
    return zs_pag(problem, replace(config, labels=replace(config.labels, strategy=strategy)))


def _fit_all_layers(problem: Problem, config: UnlearnConfig, project: Projector | None) -> RateSearch:
    """Fit the configured labels at every rate of the ladder: all layers, the images alone, projected or not."""
    names = problem.statistics.names
    labeler = pseudo_labeler(
        problem.model,
        problem.forget_images,
        forget=problem.forget_classes,
        proxies=problem.statistics.proxies,
        moments=averaged(problem.statistics.moments),
        projector=project,
        names=names,
        config=config.labels,
        generator=generator_for(problem.seed, "labels"),
    )
    return rate_search(
        lambda lr: fit(problem, config, labeler, lr=lr, project=project, names=names), update=config.update
    )


def fixed(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG as it was before the calibration: all layers, no views, the first rate from ``OLD_RATE`` that forgets."""
    ladder = _fit_all_layers(problem, config, projector(problem.statistics.moments, config=config.subspace))
    allowed = [index for index, run in enumerate(ladder.runs) if run.lr >= OLD_RATE] or [ladder.chosen]
    forgot = [index for index in allowed if ladder.runs[index].reached(config.update.forget_accuracy)]
    return replace(ladder, chosen=forgot[0] if forgot else allowed[-1])


def unprojected(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG's labels and weights, without the projection."""
    return _fit_all_layers(problem, config, None)


def _fit_in(
    problem: Problem, config: UnlearnConfig, choose: Callable[[Subspace, torch.Generator], Subspace]
) -> RateSearch:
    """Protect what ``choose`` makes of ZS-PAG's own subspace and a generator; it has the same rank in every layer."""
    own = combine(problem.statistics.moments, config=config.subspace)
    drawing = generator_for(seed_of(problem.generator), "subspace")  # a draw before the seed: all see the same batches
    return _fit_all_layers(problem, config, hard_projector(choose(own, drawing)))


def in_forget_subspace(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with the subspace of the forget samples."""
    return _fit_in(problem, config, lambda own, _: forget_subspace(problem.model, problem.forget_images, own=own))


def in_noise_subspace(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with the subspace of noise images, as many as there are proxies."""
    model, images, count = problem.model, problem.forget_images, len(problem.statistics.proxies.labels)
    return _fit_in(
        problem, config, lambda own, drawing: noise_subspace(model, images, count=count, own=own, generator=drawing)
    )


def in_random_subspace(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with uniformly random directions."""
    return _fit_in(problem, config, lambda own, drawing: random_like(own, generator=drawing))


def in_retain_subspace(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """ZS-PAG with the subspace of the true retain data at the same ranks: what proxies would ideally replace."""
    images, labels = problem.oracle_data
    return _fit_in(problem, config, lambda own, _: retain_subspace(problem.model, images, labels, own=own))


def forget_subspace(model: nn.Module, forget_images: Tensor, *, own: Subspace) -> Subspace:
    """Return the directions the forget samples themselves use, at the ranks of ``own``."""
    return by_rank(second_moments(model, forget_images), ranks=own.ranks)


def noise_subspace(
    model: nn.Module, forget_images: Tensor, *, count: int, own: Subspace, generator: torch.Generator
) -> Subspace:
    """Return the directions that ``count`` images of uniform noise use, at the ranks of ``own``."""
    noise = torch.rand((count, *forget_images.shape[1:]), generator=generator).to(forget_images)
    return by_rank(second_moments(model, noise), ranks=own.ranks)


def retain_subspace(model: nn.Module, retain_images: Tensor, retain_labels: Tensor, *, own: Subspace) -> Subspace:
    """Return the subspace of true retain data at the ranks of ``own``, every class weighing the same (an oracle)."""
    parts = [second_moments(model, retain_images[retain_labels == label]) for label in retain_labels.unique()]
    return by_rank(pooled(parts), ranks=own.ranks)


_OURS = "Chen et al., IJCAI 2025"
METHODS: dict[str, Method] = {
    "zs_pag": Method("ZS-PAG", zs_pag, PROXIES, _OURS, "high"),
    "zs_pag_fixed": Method("ZS-PAG, not calibrated", fixed, PROXIES, "control", "high", ("OLD_RATE",)),
    "unprojected": Method("ZS-PAG without projection", unprojected, PROXIES, "control", "low"),
    "process_labels": Method("ZS-PAG, per-epoch influence labels", process_labels, PROXIES, _OURS, "high"),
    "influence_labels": Method("ZS-PAG, influence labels tilted once", influence_labels, PROXIES, "control", "high"),
    "second_best_labels": Method("ZS-PAG, second-best labels", second_best_labels, PROXIES, "control", "high"),
    "random_labels": Method("ZS-PAG, random labels", random_labels, PROXIES, "control", "high"),
    "forget_subspace": Method("subspace of forget samples", in_forget_subspace, PROXIES, "control", "high"),
    "noise_subspace": Method("subspace of noise", in_noise_subspace, PROXIES, "control", "middle"),
    "random_subspace": Method("random subspace", in_random_subspace, PROXIES, "control", "low"),
    "oracle_subspace": Method("subspace of retain data", in_retain_subspace, ORACLE, "oracle", "high"),
}
