"""Which layers move, and how fast: chosen on held-out forget samples and held-out proxies, without retained data.

The forget samples are halved. Each half is fitted once, and the other half judges (``zspag.calibration.trials``). The
rate is searched without edges: the search ends when a gentler rate does not forget and a larger one is no better.

Invariant: nothing but the model, forget samples and proxies made from them is read.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zspag.activations import Outputs, watching
from zspag.calibration.open_search import (
    LARGEST,
    SMALLEST,
    Search,
    choose,
    layer_choices,
    least_bad,
    rate_at,
    search_rate,
)
from zspag.calibration.trials import Fold, attempt, held_out_damage, make_folds
from zspag.config import UnlearnConfig, UpdateConfig
from zspag.outcome import Layer, Trial
from zspag.preflight.classifiers import own_name
from zspag.process.progress import step
from zspag.projected_sgd import Run, fit_labels
from zspag.proxy_statistics import ProxyStatistics
from zspag.pseudo_labels import PseudoLabeler, pseudo_labeler
from zspag.runtime import channels_last, chunks, generator_for, logits_of
from zspag.subspaces import Projector, averaged, energy_of, projector

LOOKED_AT = 64  # samples of a fold that leaks are taken from at most; each gives a row per position
STEPS = 10  # batches per epoch at least; CHOICE: of views, 10 do what 20 do, in half the time on small nets
START = -3  # first step of the scale: 0.03, from which most nets are one or two steps away
LATER = (1, 2, -1)  # steps of the scale from the chosen rate, should the final run not forget at that


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and everything that was tried.

    Attributes:
        layers: "all", "body" or "head".
        names: Weights that move.
        trial: The trial that was chosen.
        trials: All trials in the order in which they ran.
        at_edge: The search ended at the edge of its range, or nothing that was tried forgets.
    """

    layers: str
    names: tuple[str, ...]
    trial: Trial
    trials: tuple[Trial, ...]
    at_edge: bool


@dataclass(frozen=True, eq=False)
class Made:
    """A calibrated run.

    Attributes:
        calibration: What was chosen, and all trials.
        run: The final run, on all views.
        trials: Final runs that did not forget, before the one that was kept.
        layers: Every weight that could be looked at.
        remaining: Share of the forget images that the final run's model recognizes; None where the run diverged.
        damage: Of the final run on all barely hit proxies, in nats; None where the run diverged.
        seconds: Wall-clock seconds of the final runs.
        relabel: Gives pseudo-labels of all views before every epoch.
        project: Keeps updates out of what all proxies use.
    """

    calibration: Calibration
    run: Run
    trials: tuple[Trial, ...]
    layers: tuple[Layer, ...]
    remaining: float | None
    damage: float | None
    seconds: float
    relabel: PseudoLabeler
    project: Projector


def unlearn_with(
    model: nn.Module,
    forget_labels: Tensor,
    statistics: ProxyStatistics,
    *,
    forget: Sequence[int],
    config: UnlearnConfig,
    seed: int,
    frozen: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
) -> Made:
    """Choose layers and rate on the two halves of the forget set, and fit all of it.

    Args:
        model: The original.
        forget_labels: Classes of the images that ``statistics`` was made from, shape (n,).
        statistics: Views, proxies and moments.
        forget: All classes that are gone afterwards, earlier requests included.
        config: Options; ``update.lr`` and ``update.layers`` leave out what they fix.
        seed: Seed of labels and batches.
        frozen: Weights that must not move, with the reason.
        only: Weights that may move; None leaves the choice to the calibration.

    Raises:
        ValueError: If every weight is frozen.
    """
    frozen = {**statistics.frozen, **(frozen or {})}
    names = tuple(name for name in statistics.names if name not in frozen)
    if not names:
        raise ValueError(f"every weight is frozen ({'; '.join(f'{k}: {v}' for k, v in frozen.items())}): free some")
    images = channels_last(statistics.views.images)
    labels = forget_labels[statistics.views.sources.to(forget_labels.device)]
    project = projector(statistics.moments, config=config.subspace)
    free = free_dimension(project)
    names = tuple(name for name in names if only is None or name in only)
    # Often the first layer: without it, no derivative is taken that far down.
    names = tuple(name for name in names if free[name]) or names
    config = replace(config, update=_of_views(config.update))
    relabel = pseudo_labeler(
        model,
        images,
        forget=forget,
        proxies=statistics.proxies,
        moments=averaged(statistics.moments),
        projector=project,
        names=names,
        config=config.labels,
        generator=generator_for(seed, "labels"),
    )
    folds = make_folds(model, statistics, forget_labels, subspace=config.subspace)
    choices = layer_choices(names, config.update.layers) if only is None else {"all": names}
    chosen = calibrate(model, images, labels, folds, relabel, choices, forget=forget, config=config, seed=seed)

    def fit(lr: float) -> Run:
        return fit_labels(
            model,
            images,
            labels,
            relabel=relabel,
            project=project,
            names=chosen.names,
            update=replace(config.update, lr=lr),
            generator=generator_for(seed, "update"),
        )

    started, plain = time.perf_counter(), len(forget_labels)
    run, remaining, failed = _final_run(fit, images[:plain], labels[:plain], chosen, update=config.update)
    seconds = time.perf_counter() - started
    before, after = (logits_of(one, channels_last(statistics.proxies.barely)) for one in (model, run.model))
    damage = None if run.diverged else held_out_damage(before, after, forget=forget)
    layers = _layers(model, project, folds, frozen, chosen.names, free)
    return Made(chosen, run, failed, layers, remaining, damage, seconds, relabel, project)


def fit_views(
    model: nn.Module,
    forget_labels: Tensor,
    statistics: ProxyStatistics,
    made: Made,
    *,
    lr: float,
    config: UnlearnConfig,
    seed: int,
) -> Run:
    """Repeat the final run at another rate, with the layers that were chosen: what curves over rates need."""
    images = channels_last(statistics.views.images)
    return fit_labels(
        model,
        images,
        forget_labels[statistics.views.sources.to(forget_labels.device)],
        relabel=made.relabel,
        project=made.project,
        names=made.calibration.names,
        update=replace(_of_views(config.update), lr=lr),
        generator=generator_for(seed, "update"),
    )


def _of_views(update: UpdateConfig) -> UpdateConfig:
    return update if update.min_steps is not None else replace(update, min_steps=STEPS)


def calibrate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    folds: Sequence[Fold],
    relabel: PseudoLabeler,
    choices: dict[str, tuple[str, ...]],
    *,
    forget: Sequence[int],
    config: UnlearnConfig,
    seed: int,
) -> Calibration:
    """Search layers and rate by trials on the folds; a rate that is fixed is tried once for each choice of layers."""
    done = 0

    def at(layers: str, lr: float) -> Trial:
        nonlocal done
        trial = attempt(
            model,
            images,
            labels,
            folds=folds,
            relabel=relabel,
            forget=forget,
            layers=layers,
            names=choices[layers],
            update=replace(config.update, lr=lr),
            seed=seed,
        )
        done += 1
        step("calibration", done, done + 2)
        return trial

    def search(layers: str, start: int) -> Search:
        if config.update.lr is None:
            return search_rate(lambda lr: at(layers, lr), start=start)
        trial = at(layers, config.update.lr)
        return Search((trial,), 0 if trial.forgot else None, False)

    layers, found, trials = choose(search, layers=tuple(choices), start=START)
    best = found.trials[found.best] if found.best is not None else least_bad(found.trials)
    return Calibration(layers, choices[layers], best, tuple(trials), found.at_edge)


def _final_run(
    fit: Callable[[float], Run], images: Tensor, labels: Tensor, chosen: Calibration, *, update: UpdateConfig
) -> tuple[Run, float | None, tuple[Trial, ...]]:
    """Fit at the chosen rate; should the images not be forgotten at that, at neighbouring rates.

    Args:
        fit: Fits all views at a rate.
        images: The forget images without their views, shape (n, C, H, W).
        labels: Their classes, shape (n,).
        chosen: Layers and rate.
        update: Goal; a fixed ``lr`` has no neighbours.

    Returns:
        The first run that forgets the images, else the sound one that forgets most of them; the share of the images
        that it still recognizes (None if it diverged); and the other runs as trials.
    """
    place = min(range(SMALLEST, LARGEST + 1), key=lambda one: abs(rate_at(one) - chosen.trial.lr))
    rates = [chosen.trial.lr, *(rate_at(place + later) for later in LATER)]
    runs: list[tuple[float | None, Run]] = []
    for index, lr in enumerate(rates if update.lr is None else rates[:1]):
        step("unlearning", index, index + 1)
        run = fit(lr)
        right = logits_of(run.model, images).argmax(1) == labels
        left = None if run.diverged else right.double().mean().item()
        runs.append((left, run))
        if left is not None and left <= update.forget_accuracy:
            break
    remaining, kept = min(runs, key=lambda one: 2.0 if one[0] is None else one[0])
    failed = [
        Trial(
            layers=chosen.layers,
            lr=run.lr,
            forget_accuracy=left,
            drift=None,
            forgot=False,
            seconds=sum(epoch.seconds for epoch in run.history),
        )
        for left, run in runs
        if run is not kept
    ]
    return kept, remaining, tuple(failed)


@torch.no_grad()
def free_shares(model: nn.Module, images: Tensor, project: Projector) -> dict[str, float]:
    """Return, per weight, the share of its input rows' energy that a projector leaves free, in [0, 1].

    Args:
        model: Not changed.
        images: Shape (n, C, H, W).
        project: A hard or soft projector P; the share is sum ||P a||^2 / sum ||a||^2.
    """
    free: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    alike = project.like(dict(model.named_parameters()))

    def visit(name: str, rows: Tensor, _outputs: Outputs | None) -> None:
        if name in alike.factors:
            free[name] = free.get(name, 0) + alike.energy(name, rows)
            whole[name] = whole.get(name, 0) + energy_of(rows)

    with watching(model, visit):
        for (x,) in chunks(images):
            model(x)
    tiny = torch.finfo(torch.float64).tiny  # a dead layer has no energy
    shares = [(free[name] / total.clamp_min(tiny)).clamp_min(0) for name, total in whole.items()]
    return dict(zip(whole, torch.stack(shares).tolist() if shares else [], strict=True))


def free_dimension(project: Projector) -> dict[str, int]:
    """Return, per weight, the directions a projector leaves free (its trace, rounded down for a soft one)."""
    free = {}
    for name, (form, matrix) in project.factors.items():
        if form == "times":
            trace = matrix.diagonal(dim1=1, dim2=2).sum().item()
        else:
            used = matrix.square().sum().item()
            trace = used if form == "keep" else len(matrix) * matrix.shape[1] - used
        free[name] = int(trace + 1e-6)
    return free


def _layers(
    model: nn.Module,
    project: Projector,
    folds: Sequence[Fold],
    frozen: Mapping[str, str],
    moved: Sequence[str],
    free: Mapping[str, int],
) -> tuple[Layer, ...]:
    """Say of every weight how much of held-out proxies and of held-out forget samples its projector leaves free."""
    leaks = [free_shares(model, fold.barely[:LOOKED_AT], fold.project) for fold in folds]
    forgets = [free_shares(model, fold.unseen[:LOOKED_AT], fold.project) for fold in folds]
    layers = []
    for name, (_, matrix) in project.factors.items():
        reason = frozen.get(name, "")
        if not reason and not free[name]:
            reason = "the proxies leave no direction free"
        elif not reason and name not in moved:
            reason = "not among the layers that were chosen"
        layers.append(
            Layer(
                name=own_name(model, name),
                dimension=len(matrix) * matrix.shape[1],
                free=free[name],
                leak=sum(leak[name] for leak in leaks) / len(leaks),
                free_share=sum(share[name] for share in forgets) / len(forgets),
                moved=name in moved and free[name] > 0,
                reason=reason,
            )
        )
    parameters = dict(model.named_parameters())
    for name, reason in frozen.items():
        if name not in project.factors:
            weight = parameters.get(name)
            dimension = weight.numel() // len(weight) if weight is not None and weight.dim() and len(weight) else 0
            layers.append(Layer(own_name(model, name), dimension, 0, None, None, moved=False, reason=reason))
    return tuple(layers)
