"""DELETE and the head-only control, at a rate that is chosen as ours is: by cross-fitting, without edges.

What is fitted is what these methods fit: the forget images themselves, no projection. Only the rate's choice is ours:
each half of the forget set is fitted, and the other half and its barely hit proxies judge.

Invariant: nothing but the model, forget images and proxies made from them is read.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zspag.calibration.open_search import LARGEST, SMALLEST, least_bad, rate_at, search_rate
from zspag.calibration.trials import held_out_damage, make_folds
from zspag.config import UnlearnConfig
from zspag.lab.methods import METHODS, Problem
from zspag.outcome import Trial
from zspag.projected_sgd import Run
from zspag.proxy_statistics import ProxyStatistics, prepare
from zspag.runtime import generator_for, logits_of

START = -8  # first step of the scale: 1e-4, a whole gradient needs no more on most nets
LATER = 3  # larger rates that are tried where the final run, on all images, does not forget at the chosen one


@dataclass(frozen=True)
class Control:
    """A control's run.

    Attributes:
        run: The final run, on all forget images.
        trials: All trials of the search.
        at_edge: The search ended at the edge of its range.
    """

    run: Run
    trials: tuple[Trial, ...]
    at_edge: bool


def control(
    method: str, model: nn.Module, images: Tensor, labels: Tensor, *, num_classes: int, seed: int, goal: float
) -> Control:
    """Run "delete" or "head_only" at the rate that cross-fitting chooses.

    Args:
        method: Name of a forget-only method of the package.
        model: Maps images to logits (n, K). Not changed.
        images: Forget images, shape (n, C, H, W), float on [0, 1].
        labels: Their classes, shape (n,).
        num_classes: Width K of the logits.
        seed: Seed of proxies and batches, the same as ours.
        goal: Accuracy on the forget set that counts as forgotten.
    """
    config = UnlearnConfig()
    forget = sorted(set(labels.tolist()))
    generator = generator_for(seed, "material")
    statistics = prepare(model, images, forget=forget, num_classes=num_classes, config=config, generator=generator)
    run = _runner(method, model, num_classes=num_classes, config=config, statistics=statistics, seed=seed)
    trial = _cross_fitted(run, model, images, labels, statistics, forget=forget, goal=goal, config=config)
    search = search_rate(trial, start=START)
    best = search.trials[search.best] if search.best is not None else least_bad(search.trials)
    place = min(range(SMALLEST, LARGEST + 1), key=lambda one: abs(rate_at(one) - best.lr))
    runs: list[Run] = []
    for later in range(1 + LATER):
        runs.append(run(images, labels, rate_at(place + later), config.update.epochs))
        if runs[-1].reached(goal):
            return Control(runs[-1], search.trials, search.at_edge)
    kept = min(runs, key=lambda one: 2.0 if one.diverged else one.history[-1].forget_accuracy)
    return Control(kept, search.trials, search.at_edge)


def _runner(
    method: str, model: nn.Module, *, num_classes: int, config: UnlearnConfig, statistics: ProxyStatistics, seed: int
) -> Callable[[Tensor, Tensor, float, int], Run]:
    """Return a function that fits images and labels at a rate, within so many epochs."""

    def run(images: Tensor, labels: Tensor, lr: float, epochs: int) -> Run:
        problem = Problem(model, images, labels, num_classes, generator_for(seed, method), statistics)
        update = replace(config.update, lr=lr, epochs=epochs)
        return METHODS[method].run(problem, replace(config, update=update)).kept

    return run


def _cross_fitted(
    run: Callable[[Tensor, Tensor, float, int], Run],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    statistics: ProxyStatistics,
    *,
    forget: list[int],
    goal: float,
    config: UnlearnConfig,
) -> Callable[[float], Trial]:
    """Return a function that tries a rate as ``trials.attempt`` does, on the images themselves."""
    folds = make_folds(model, statistics, labels, subspace=config.subspace)
    halves = [(statistics.half_of[: len(images)] == half).nonzero()[:, 0].to(images.device) for half in (0, 1)]

    def trial(lr: float) -> Trial:
        started, forgot, damages, mistakes = time.perf_counter(), True, [], []
        for fold, half in zip(folds, halves, strict=True):
            fitted = run(images[half], labels[half], lr, max(1, config.update.epochs // 2))
            forgot = forgot and fitted.reached(goal)
            if fitted.diverged:
                damages.append(float("inf"))
                break
            damages.append(held_out_damage(fold.before, logits_of(fitted.model, fold.barely), forget=forget))
            mistakes.append((logits_of(fitted.model, fold.unseen).argmax(1) == fold.unseen_labels).double())
            if not forgot:
                break
        ruined = not all(damage < float("inf") for damage in damages)
        unseen: Any = None if ruined else torch.cat(mistakes).mean().item()
        drift = None if ruined else sum(damages) / len(damages)
        return Trial("all", lr, unseen, drift, forgot and not ruined, time.perf_counter() - started)

    return trial
