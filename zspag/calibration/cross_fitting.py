"""Which layers move, and how fast: chosen on held-out forget samples and held-out proxies, without retained data.

The forget samples are halved. Each half is a *fold*: its proxies make a basis, its views are fitted, and the other half
judges. A run is good if it forgets what it has not fitted and leaves the *barely hit* proxies of the other half where
they were. Proxies that lie well inside their class, or that helped to make the basis, stay where they are long after
retained images have moved; barely hit ones of other sources show the damage first.

The rate is searched without edges: the search ends when a gentler rate does not forget and a larger one is no better.

Invariant: nothing but the model, forget samples and proxies made from them is read.
"""

import time
from collections.abc import Mapping, Sequence
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
from zspag.config import SubspaceConfig, UnlearnConfig, UpdateConfig
from zspag.outcome import Layer, Trial
from zspag.preflight.classifiers import own_name
from zspag.preflight.progress import step
from zspag.projected_sgd import Run, fit_labels
from zspag.proxy_statistics import ProxyStatistics
from zspag.pseudo_labels import PseudoLabeler, masked_log_probabilities, pseudo_labeler
from zspag.runtime import channels_last, chunks, generator_for, logits_of
from zspag.subspaces import (
    Moments,
    Projector,
    averaged,
    by_energy,
    energy_of,
    hard_projector,
    projector,
    soft_projector,
)

FITTED = 128  # views of a fold that a trial fits at most; the final run fits all
LOOKED_AT = 64  # samples of a fold that leaks are taken from at most; each gives a row per position
HURRY = 4  # part of the epochs within which a trial must forget; CHOICE: gentler rates do no less damage
STEPS = 10  # batches per epoch at least; CHOICE: of views, 10 do what 20 do, in half the time on small nets
FLOOR = -30.0  # log-probability below which a difference is none
START = -3  # first step of the scale: 0.03, from which most nets are one or two steps away
LATER = (1, 2, -1)  # steps of the scale from the chosen rate, should the final run not forget at that


@dataclass(frozen=True, eq=False)
class Fold:
    """One half of the forget samples fits, the other half judges.

    Attributes:
        fitted: Indices of the views that are fitted.
        unseen: Images of the other half, shape (n, C, H, W).
        unseen_labels: Their classes, shape (n,).
        project: Keeps updates out of what this half's proxies use.
        barely: Barely hit proxies of the other half, shape (m, C, H, W).
        before: The original's logits on them, shape (m, K).
    """

    fitted: Tensor
    unseen: Tensor
    unseen_labels: Tensor
    project: Projector
    barely: Tensor
    before: Tensor


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


def held_out_damage(before: Tensor, after: Tensor, *, forget: Sequence[int]) -> float:
    """Return how far answers on retained classes moved, in nats per sample.

    Args:
        before: The original's logits on held-out proxies, shape (m, K).
        after: The current model's.
        forget: Classes that are forgotten.

    Returns:
        Mean KL divergence from the masked original's to the masked model's probabilities, plus the mean rise of
        -log(1 - p_forget). The first is drift among retained classes, the second what was pushed into a forgotten one.
        That a proxy *loses* probability of a forgotten class is wanted, and costs nothing. Infinite if the logits are.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> held_out_damage(logits, logits - torch.tensor([5.0, 0.0, 0.0]), forget=[0])
        0.0
    """
    if not bool(after.isfinite().all()):
        return float("inf")
    before, after = before.double(), after.double()
    p, q = (masked_log_probabilities(logits, forget=forget).clamp_min(FLOOR) for logits in (before, after))
    moved = (p.exp() * (p - q)).sum(1).mean()

    def pushed(logits: Tensor) -> Tensor:
        retained = logits.log_softmax(1).clone()
        for label in forget:  # a list as an index would be copied to the device, and waited for
            retained[:, label] = -torch.inf
        return -retained.logsumexp(1)

    return max(0.0, (moved + (pushed(after) - pushed(before)).clamp_min(0).mean()).item())


def attempt(
    model: nn.Module,
    views: Tensor,
    labels: Tensor,
    *,
    folds: Sequence[Fold],
    relabel: PseudoLabeler,
    forget: Sequence[int],
    layers: str,
    names: Sequence[str],
    update: UpdateConfig,
    seed: int,
) -> Trial:
    """Fit every fold at ``update.lr`` and let the samples and proxies of the other one judge.

    Args:
        model: The original.
        views: Forget samples and their views, shape (v, C, H, W).
        labels: Their classes, shape (v,).
        folds: Two folds.
        relabel: Gives pseudo-labels (v, K) before every epoch.
        forget: Classes that are forgotten, earlier ones included.
        layers: Name of the choice of layers, for the trial.
        names: Weights that move.
        update: Rate, batches and stopping rule. A trial must forget within a quarter of ``update.epochs``, so that the
            final run, which differs a little, forgets within all of them.
        seed: Seed of the order of the batches.
    """
    started = time.perf_counter()
    hurried = replace(update, epochs=max(1, update.epochs // HURRY), held_out=0.0)
    damages, mistakes, forgot = [], [], True
    for fold in folds:
        run = fit_fold(model, views, labels, fold, relabel=relabel, names=names, update=hurried, seed=seed)
        if run.diverged:
            damages.append(float("inf"))
            mistakes.append(torch.ones(1, dtype=torch.bool))
            forgot = False
            break
        forgot = forgot and run.reached(update.forget_accuracy)
        damages.append(held_out_damage(fold.before, logits_of(run.model, fold.barely), forget=forget))
        mistakes.append((logits_of(run.model, fold.unseen).argmax(1) == fold.unseen_labels).cpu())
        if not forgot:
            break  # the other fold cannot change it
    ruined = not all(damage < float("inf") for damage in damages)
    return Trial(
        layers=layers,
        lr=update.lr or 0.0,
        forget_accuracy=None if ruined else torch.cat(mistakes).double().mean().item(),
        drift=None if ruined else sum(damages) / len(damages),
        forgot=forgot and not ruined,
        seconds=time.perf_counter() - started,
    )


def fit_fold(
    model: nn.Module,
    views: Tensor,
    labels: Tensor,
    fold: Fold,
    *,
    relabel: PseudoLabeler,
    names: Sequence[str],
    update: UpdateConfig,
    seed: int,
) -> Run:
    """Fit the views of one fold."""
    chosen = fold.fitted[:FITTED].to(views.device)
    return fit_labels(
        model,
        views[chosen],
        labels[chosen],
        relabel=lambda current: relabel(current)[chosen],
        project=fold.project,
        names=names,
        update=update,
        generator=generator_for(seed, "fold"),
    )


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


@dataclass(frozen=True, eq=False)
class Made:
    """A calibrated run.

    Attributes:
        calibration: What was chosen, and all trials.
        run: The final run, on all views.
        trials: Final runs that did not forget, before the one that was kept.
        layers: Every weight that could be looked at.
        damage: Of the final run on all barely hit proxies, in nats; None where the run diverged.
        seconds: Wall-clock seconds of the final runs.
        relabel: Gives pseudo-labels of all views before every epoch.
        project: Keeps updates out of what all proxies use.
    """

    calibration: Calibration
    run: Run
    trials: tuple[Trial, ...]
    layers: tuple[Layer, ...]
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
    if config.update.min_steps is None:
        config = replace(config, update=replace(config.update, min_steps=STEPS))
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
    started = time.perf_counter()
    run, failed = _final_run(
        model, images, labels, relabel, project, chosen, plain=len(forget_labels), config=config, seed=seed
    )
    seconds = time.perf_counter() - started
    before, after = (logits_of(one, channels_last(statistics.proxies.barely)) for one in (model, run.model))
    damage = None if run.diverged else held_out_damage(before, after, forget=forget)
    layers = _layers(model, project, folds, frozen, chosen.names, free)
    return Made(chosen, run, failed, layers, damage, seconds, relabel, project)


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
        update=replace(config.update, lr=lr),
        generator=generator_for(seed, "update"),
    )


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


def make_folds(
    model: nn.Module, statistics: ProxyStatistics, forget_labels: Tensor, *, subspace: SubspaceConfig
) -> tuple[Fold, Fold]:
    """Return the two folds: either half of the forget samples fits, and the other judges."""
    folds = []
    images, proxies = statistics.views.images, statistics.proxies
    plain = torch.arange(len(images)) < len(forget_labels)  # the images themselves come before their views
    made_from = statistics.half_of[proxies.sources.cpu()]
    for half in (0, 1):
        project = pooled_projector(statistics.halves[half], config=subspace)
        # A single image lies in one half only, and without views the other half is empty: then everything serves.
        fitted = _some(statistics.half_of == half, torch.ones_like(plain)).nonzero()[:, 0]
        unseen = _some((statistics.half_of != half) & plain, plain).nonzero()[:, 0]
        judging = _some(made_from != half, torch.ones_like(made_from, dtype=torch.bool)).nonzero()[:, 0]
        barely = channels_last(proxies.barely[judging.to(proxies.labels.device)])
        folds.append(
            Fold(
                fitted=fitted,
                unseen=channels_last(images[unseen.to(images.device)]),
                unseen_labels=forget_labels[unseen.to(forget_labels.device)],
                project=project,
                barely=barely,
                before=logits_of(model, barely),
            )
        )
    return folds[0], folds[1]


def _some(chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Return a mask, or another one where it chooses nothing."""
    return chosen if bool(chosen.any()) else otherwise


def pooled_projector(pooled: Moments, *, config: SubspaceConfig) -> Projector:
    """Return the projector of pooled moments, hard or soft; "merge" needs single classes, which halves do not keep."""
    if config.kind == "soft":
        return soft_projector(pooled, damping=config.damping)
    return hard_projector(by_energy(pooled, energy=config.energy))


def _final_run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    relabel: PseudoLabeler,
    project: Projector,
    chosen: Calibration,
    *,
    plain: int,
    config: UnlearnConfig,
    seed: int,
) -> tuple[Run, tuple[Trial, ...]]:
    """Fit all views at the chosen rate; should the images not be forgotten at that, at neighbouring rates.

    Returns:
        The first run that forgets the first ``plain`` images, which are no views; else the sound one that forgets most
        of them; and what was tried in vain, as trials.
    """
    place = min(range(SMALLEST, LARGEST + 1), key=lambda one: abs(rate_at(one) - chosen.trial.lr))
    rates = [chosen.trial.lr, *(rate_at(place + later) for later in LATER)]
    runs: list[tuple[float, Run]] = []
    for index, lr in enumerate(rates if config.update.lr is None else rates[:1]):
        step("unlearning", index, index + 1)
        run = fit_labels(
            model,
            images,
            labels,
            relabel=relabel,
            project=project,
            names=chosen.names,
            update=replace(config.update, lr=lr),
            generator=generator_for(seed, "update"),
        )
        answers = logits_of(run.model, images[:plain]).argmax(1)
        left = 2.0 if run.diverged else (answers == labels[:plain]).double().mean().item()
        runs.append((left, run))
        if left <= config.update.forget_accuracy:
            break
    kept = min(range(len(runs)), key=lambda index: runs[index][0])
    failed = tuple(
        Trial(
            layers=chosen.layers,
            lr=run.lr,
            forget_accuracy=None if run.diverged else left,
            drift=None,
            forgot=False,
            seconds=sum(epoch.seconds for epoch in run.history),
        )
        for index, (left, run) in enumerate(runs)
        if index != kept
    )
    return runs[kept][1], failed


def _why_frozen(name: str, frozen: Mapping[str, str], moved: Sequence[str], free: Mapping[str, int]) -> str:
    if name in frozen:
        return frozen[name]
    if not free[name]:
        return "the proxies leave no direction free"
    return "" if name in moved else "not among the layers that were chosen"


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
    layers = [
        Layer(
            name=own_name(model, name),
            dimension=len(matrix) * matrix.shape[1],
            free=free[name],
            leak=sum(leak[name] for leak in leaks) / len(leaks),
            free_share=sum(share[name] for share in forgets) / len(forgets),
            moved=name in moved and free[name] > 0,
            reason=_why_frozen(name, frozen, moved, free),
        )
        for name, (_, matrix) in project.factors.items()
    ]
    sizes = {
        name: parameter.numel() // len(parameter)
        for name, parameter in model.named_parameters()
        if parameter.dim() and len(parameter)
    }
    unseen = [
        Layer(own_name(model, name), sizes.get(name, 0), 0, None, None, moved=False, reason=reason)
        for name, reason in frozen.items()
        if name not in project.factors
    ]
    return (*layers, *unseen)
