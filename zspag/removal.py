"""Removal: a class is taken out of the features, and not only out of the answers. Ours; the paper ends at the answers.

A network that never answers a class may still carry it to its last layer: a probe finds it there, and so does the
original's head, put back. Here the head stays as it is, so that the features have to move. With f the network, h its
features, f0 and h0 those of the original, x a view of a forget sample, q its pseudo-label and x' an *anchor*,

    CE(f(x), q) + a R2(h(x), h(x')) + k (KL(f0(x') || f(x')) + |h(x') - h0(x')|^2 / s^2)

is minimized; f0 without the forget classes, s^2 the variance of h0. R2 is what a ridge probe explains of the question
"forget sample or anchor?" on a batch: the adversary. It is solved anew at every step, from running moments of the
batches so far, so there is no second loop. An anchor weighs as much as the pseudo-labels have of its class: forget
samples shall look like the classes that they are answered as, not like all classes alike.

Anchors lie between a proxy and the same proxy pulled back until it only just hits. Confident proxies alone stayed
where they were while retained images moved.

DIFFERS: Adam in place of projected SGD. Patches of forget samples lie in the span of the proxies' patches, so that
projection leaves the class where it is; it is an option (``RemovalConfig.projected``).

Invariant: nothing but the model, forget samples and proxies made from them is read; the head, biases and norms stay.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zspag.activations import projectable
from zspag.calibration.cross_fitting import Calibration, Made, free_dimension
from zspag.calibration.trials import FLOOR, Fold, held_out_damage, make_folds, recognized_of_each
from zspag.config import RemovalConfig, UnlearnConfig
from zspag.heads.head import Head, features_and_logits, find_head, head_inputs
from zspag.influence import soft_cross_entropy
from zspag.outcome import REMOVAL, Epoch, Layer, Trial
from zspag.preflight.classifiers import own_name
from zspag.process.progress import step
from zspag.projected_sgd import Run
from zspag.proxies import generate
from zspag.proxy_statistics import ProxyStatistics
from zspag.pseudo_labels import PseudoLabeler, masked_log_probabilities, pseudo_labeler, retained_classes
from zspag.runtime import channels_last, chunks, copied, evaluating, generator_for, logits_of, sent, spread_evenly
from zspag.subspaces import Projector, averaged, projector
from zspag.views import Change, recognized_changes

RIDGE = 0.01  # penalty of the adversary, beside features of variance 1
DECAY = 0.9  # of its running moments; CHOICE: of one batch alone, d features and 96 rows, a probe explains noise
TOWARDS = 2.0  # power of a uniform draw: most anchors lie near the border, where answers change first
LOOKS = 4  # times per run that the forget set is judged
UNSEEN = 0.02  # accuracy on held-out forget samples up to which a share counts as forgetting
JUDGED = 200  # forget samples that are judged then, at most, evenly spaced


@dataclass(frozen=True, eq=False)
class Material:
    """What a run is fitted to.

    Attributes:
        images: Forget samples and views, shape (n, C, H, W).
        labels: Their classes, shape (n,).
        targets: Their pseudo-labels, shape (n, K).
        confident: Proxies, shape (m, C, H, W).
        barely: The same proxies, pulled back until they only just hit.
        weights: Share of each proxy in the adversary's question, shape (m,).
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    confident: Tensor
    barely: Tensor
    weights: Tensor

    def part(self, samples: Tensor, proxies: Tensor) -> "Material":
        """Return some of the samples and proxies, by index or mask."""
        return Material(
            self.images[samples],
            self.labels[samples],
            self.targets[samples],
            self.confident[proxies],
            self.barely[proxies],
            self.weights[proxies],
        )


class RunningProbe:
    """The adversary: a ridge probe that tells forget samples (y = 1/2) from anchors (y = -1/2) by their features.

    With z the standardized features and a constant, S = E[z z^T] and c = E[y z], it is (S + RIDGE I)^-1 c.

    Args:
        features: What features look like before the first step, shape (n, d): they set each one's mean and deviation.
    """

    def __init__(self, features: Tensor) -> None:
        deviation = features.std(0)
        alive = deviation > torch.finfo(torch.float32).eps * features.abs().amax(0)
        self.mean = features.mean(0)
        self.scale = torch.where(alive, 1 / deviation, 0.0)  # a unit that never moved says nothing
        self.moments: tuple[Tensor, Tensor] | None = None

    def explained(self, forget: Tensor, anchors: Tensor, weights: Tensor) -> Tensor:
        """Return the share of y's variance that the probe explains on a batch, at least 0, with its graph.

        Args:
            forget: Features of forget samples, shape (n, d).
            anchors: Features of anchors, shape (m, d).
            weights: Of the anchors, shape (m,). Both kinds count one half.
        """
        z = (torch.cat([forget, anchors]) - self.mean) * self.scale
        z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        w = 0.5 * torch.cat(
            [z.new_full((len(forget),), 1 / len(forget)), weights / weights.sum().clamp_min(torch.finfo(z.dtype).tiny)]
        )
        y = torch.cat([z.new_full((len(forget),), 0.5), z.new_full((len(anchors),), -0.5)])
        with torch.no_grad():
            now = z.T @ (w[:, None] * z), z.T @ (w * y)
            second, cross = self.moments or now
            self.moments = second, cross = second.lerp(now[0], 1 - DECAY), cross.lerp(now[1], 1 - DECAY)
            ridge = RIDGE * torch.eye(len(cross), dtype=z.dtype, device=z.device)
            ridge[-1, -1] = torch.finfo(z.dtype).eps  # the constant is not penalized
            probe = torch.linalg.solve(second + ridge, cross)
        return (1 - 4 * (w * (y - z @ probe).square()).sum()).clamp_min(0)


def removable_head(model: nn.Module, images: Tensor, *, frozen: Collection[str]) -> Head:
    """Return the head that stays while features move.

    Args:
        model: The original. Not changed.
        images: Forget images, shape (n, C, H, W).
        frozen: Names of weights that must not or cannot move.

    Raises:
        ValueError: If no linear layer with weights of its own makes the logits, with what does; or if no weight before
            it can move.
    """
    advice = "use goal='suppress'"
    try:
        head = find_head(model, images)
        head_inputs(model, images[:1], head)
    except ValueError as error:
        raise ValueError(f"goal='remove' needs features under a linear head, but {error}: {advice}") from error
    if not head.name:
        raise ValueError(f"goal='remove' freezes the head, but {head.obstacle}: {advice}")
    if {*projectable(model, images[:1])} <= {head.name, *frozen}:
        name = own_name(model, head.name)
        raise ValueError(f"goal='remove' freezes the head, {name}, and no other weight can move: {advice}")
    return head


@dataclass(frozen=True, eq=False)
class Removal:
    """What all runs of one removal share.

    Attributes:
        model: The original.
        material: All views with their pseudo-labels, and all anchors.
        sources: Index of the view behind each anchor, shape (m,), on the CPU.
        changes: Make views of forget samples and anchors, anew at every step.
        head: The head, which stays.
        names: Weights that move.
        frozen: Weights that do not, with the reason.
        forget: Classes that are gone, earlier ones included.
        config: Options.
        seed: Seed of batches, anchors and views.
        relabel: Gives the pseudo-labels.
        project: Takes out what all proxies use.
    """

    model: nn.Module
    material: Material
    sources: Tensor
    changes: tuple[Change, ...]
    head: Head
    names: tuple[str, ...]
    frozen: dict[str, str]
    forget: tuple[int, ...]
    config: RemovalConfig
    seed: int
    relabel: PseudoLabeler
    project: Projector

    def fit(self, material: Material, *, stream: str, project: Projector) -> Run:
        """Fit some of the material; ``project`` counts where the options ask for it."""
        return fit_features(
            self.model,
            material,
            changes=self.changes,
            forget=self.forget,
            head=self.head,
            names=self.names,
            config=self.config,
            generator=generator_for(self.seed, stream),
            project=project if self.config.projected else None,
        )


def anchor_weights(targets: Tensor, labels: Tensor) -> Tensor:
    """Return what each anchor weighs: all of a class together what the pseudo-labels have of it.

    Args:
        targets: Pseudo-labels of the forget samples, shape (n, K).
        labels: Classes of the anchors, shape (m,).
    """
    return (targets.mean(0) / labels.bincount(minlength=targets.shape[1]).clamp_min(1))[labels]


def prepare_removal(
    model: nn.Module,
    forget_labels: Tensor,
    statistics: ProxyStatistics,
    *,
    forget: Sequence[int],
    config: UnlearnConfig,
    seed: int,
    frozen: Mapping[str, str] | None = None,
) -> Removal:
    """Make pseudo-labels and anchors; arguments are those of ``remove_with``.

    Raises:
        ValueError: See ``remove_with``.
    """
    images, proxies, options = channels_last(statistics.views.images), statistics.proxies, config.removal
    labels = forget_labels[statistics.views.sources.to(forget_labels.device)]
    frozen = {**statistics.frozen, **(frozen or {})}
    head = removable_head(model, images, frozen=frozen)
    frozen[head.name] = "the head stays, so that no feature hides behind it"
    project = projector(statistics.moments, config=config.subspace)
    free = free_dimension(project) if options.projected else dict.fromkeys(statistics.names, 1)
    frozen |= {name: "the proxies leave no direction free" for name in statistics.names if not free[name]}
    if not (names := tuple(name for name in statistics.names if name not in frozen)):
        raise ValueError("the proxies leave no direction of any weight free: leave out removal.projected")
    relabel = pseudo_labeler(
        model,
        images,
        forget=forget,
        proxies=proxies,
        moments=averaged(statistics.moments),
        projector=project,
        names=names,
        config=config.labels,
        generator=generator_for(seed, "labels"),
    )
    targets = relabel(model)
    width = targets.shape[1]
    anchors = generate(
        model,
        images,
        retained=retained_classes(width, forget).tolist(),
        config=replace(config.proxies, eps=proxies.eps, per_class=options.per_class),
        generator=generator_for(seed, "anchors"),
    )
    weights = anchor_weights(targets, anchors.labels)
    changes = recognized_changes(model, images[: len(forget_labels)], generator=generator_for(seed, "changes"))
    return Removal(
        model=model,
        material=Material(images, labels, targets, anchors.images, anchors.barely, weights),
        sources=anchors.sources.cpu(),
        changes=tuple(changes.values()),
        head=head,
        names=names,
        frozen=frozen,
        forget=tuple(forget),
        config=options,
        seed=seed,
        relabel=relabel,
        project=project,
    )


def remove_with(
    model: nn.Module,
    forget_labels: Tensor,
    statistics: ProxyStatistics,
    *,
    forget: Sequence[int],
    config: UnlearnConfig,
    seed: int,
    frozen: Mapping[str, str] | None = None,
) -> Made:
    """Take the forget classes out of the features; arguments and answer are those of ``unlearn_with``.

    How far the weights go is chosen as a rate is: either half of the forget samples is fitted, and barely hit proxies
    made from the other half tell, for every share of the way, how far answers on retained classes moved.

    Raises:
        ValueError: If there is no linear head, or nothing before it that can move; with ``projected`` also if the
            proxies leave no direction free.
    """
    removal = prepare_removal(model, forget_labels, statistics, forget=forget, config=config, seed=seed, frozen=frozen)
    folds = make_folds(model, statistics, forget_labels, subspace=config.subspace)
    runs = _fold_runs(removal, folds, statistics.half_of)
    shares = removal.config.shares
    trials = [_trial(model, runs, folds, share, forget=forget) for share in shares]
    chosen, at_edge = largest(trials, damage=removal.config.damage)
    step("removal", len(folds), len(folds) + 1)
    started, plain = time.perf_counter(), len(forget_labels)  # the images themselves come before their views
    run = removal.fit(removal.material, stream="update", project=removal.project)
    images, labels = removal.material.images[:plain], removal.material.labels[:plain]
    for place in range(chosen, len(trials)):  # a larger share, should this one not forget on all of the images
        moved = part_of_the_way(model, run.model, shares[place])
        remaining = (logits_of(moved, images).argmax(1) == labels).double().mean().item()
        if remaining <= config.update.forget_accuracy:
            break
    if not run.diverged:
        ended = replace(run.history[-1], forget_accuracy=remaining)
        run = replace(run, model=moved, history=(*run.history[:-1], ended))
    seconds = time.perf_counter() - started
    before, after = (logits_of(one, channels_last(statistics.proxies.barely)) for one in (model, run.model))
    return Made(
        calibration=Calibration(REMOVAL, removal.names, trials[place], tuple(trials), at_edge),
        run=run,
        trials=(),
        layers=_layers(removal),
        remaining=None if run.diverged else remaining,
        damage=None if run.diverged else held_out_damage(before, after, forget=forget),
        seconds=seconds,
        relabel=removal.relabel,
        project=removal.project,
    )


def _fold_runs(removal: Removal, folds: Sequence[Fold], half_of: Tensor) -> list[Run]:
    """Fit either half of the forget samples, with the anchors made from it."""
    half_of, device, runs = half_of[removal.sources], removal.material.labels.device, []
    for half, fold in enumerate(folds):
        step("calibration", half, len(folds) + 1)
        own = half_of == half if bool((half_of == half).any()) else half_of >= 0
        part = removal.material.part(fold.fitted.to(device), own.to(device))
        runs.append(removal.fit(part, stream="fold", project=fold.project))
    return runs


@torch.no_grad()
def part_of_the_way(original: nn.Module, changed: nn.Module, share: float) -> nn.Module:
    """Return a copy of the original whose weights lie this share of the way to those of ``changed``.

    Reference:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: on this line a fine-tuned network keeps
        more of what it knew than it loses of what it was tuned for.
    """
    between = copied(original)
    for ours, theirs in zip(between.parameters(), changed.parameters(), strict=True):
        ours.lerp_(theirs, share)
    return between.to(memory_format=torch.contiguous_format)


def largest(trials: Sequence[Trial], *, damage: float) -> tuple[int, bool]:
    """Return the index of the largest share that does little damage, and whether there is none that forgets.

    Args:
        trials: One per share, smallest first.
        damage: Most nats on held-out proxies. Where each share that forgets does more, the smallest of them is taken;
            where none forgets, the last.
    """
    forgetting = [index for index, trial in enumerate(trials) if trial.forgot]
    harmless = [index for index in forgetting if (trials[index].drift or 0.0) <= damage]
    if harmless:
        return harmless[-1], False
    return forgetting[0] if forgetting else len(trials) - 1, True


def _trial(
    model: nn.Module,
    runs: Sequence[Run],
    folds: Sequence[Fold],
    share: float,
    *,
    forget: Sequence[int],
) -> Trial:
    """Judge a share of the runs of both folds, each by the half of the forget samples that it has not seen."""
    started, damages, known = time.perf_counter(), [], []
    for run, fold in zip(runs, folds, strict=True):
        moved = part_of_the_way(model, run.model, share)
        damages.append(held_out_damage(fold.before, logits_of(moved, fold.barely), forget=forget))
        known.append((logits_of(moved, fold.unseen).argmax(1) == fold.unseen_labels).cpu())
    sound = not any(run.diverged for run in runs) and all(map(math.isfinite, damages))
    right, labels = torch.cat(known), torch.cat([fold.unseen_labels.cpu() for fold in folds])
    left = right.double().mean().item()
    return Trial(
        layers=REMOVAL,
        lr=share,
        forget_accuracy=left if sound else None,
        drift=sum(damages) / len(damages) if sound else None,
        forgot=sound and left <= UNSEEN,
        seconds=time.perf_counter() - started,
        unseen=recognized_of_each(right, labels) if sound else {},
    )


def fit_features(
    model: nn.Module,
    material: Material,
    *,
    changes: Sequence[Change],
    forget: Sequence[int],
    head: Head,
    names: Sequence[str],
    config: RemovalConfig,
    generator: torch.Generator,
    project: Projector | None = None,
) -> Run:
    """Minimize the loss at the top of this module on a copy of the original.

    Args:
        model: The original. Not changed.
        material: What is fitted, and what stays.
        changes: Make views of forget samples and anchors, anew at every step.
        forget: Classes that are gone, earlier ones included.
        head: The head, which stays.
        names: Weights that move.
        config: Steps, rate, batch size, weights of adversary and anchors.
        generator: CPU generator of batches, anchors and views.
        project: Keeps weights on the directions that it leaves free. Adam bends a step out of them, so the whole way
            from the original's weights is projected after each one.
    """
    changed = copied(model)
    parameters = dict(changed.named_parameters())
    origin = {} if project is None else {name: parameters[name].detach().clone() for name in names}
    project = None if project is None else project.like(parameters)
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    some = spread_evenly(torch.arange(len(material.weights)), JUDGED)
    judged = spread_evenly(torch.arange(len(material.images)), JUDGED)
    with evaluating(model), torch.no_grad():
        both = torch.cat([material.images[judged], material.confident[some]])
        features = torch.cat([features_and_logits(model, channels_last(x), head)[0] for (x,) in chunks(both)])
    variance, probe = features.var(0).sum(), RunningProbe(features)
    optimizer = torch.optim.Adam([parameters[name] for name in names], lr=config.lr)
    losses: list[float] = []
    history: list[Epoch] = []
    started = time.perf_counter()

    def views(images: Tensor) -> Tensor:
        for change in changes:
            images = change(images, generator)
        return channels_last(images)

    with evaluating(model), evaluating(changed):
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)
        for done in range(config.steps):
            drawn = torch.randperm(len(material.images), generator=generator)[: config.batch_size]
            chosen = torch.randperm(len(material.weights), generator=generator)[: 2 * config.batch_size]
            place = sent(torch.rand(len(chosen), 1, 1, 1, generator=generator) ** TOWARDS, material.barely.device)
            anchors = views(material.barely[chosen].lerp(material.confident[chosen], place.to(material.barely)))
            with torch.no_grad():
                before, logits = features_and_logits(model, anchors, head)
                kept = masked_log_probabilities(logits, forget=forget).clamp_min(FLOOR)
            images = views(material.images[drawn])
            entered, logits = features_and_logits(changed, torch.cat([images, anchors]), head)
            own, theirs = entered.tensor_split([len(drawn)])
            fitted = soft_cross_entropy(logits[: len(drawn)], material.targets[drawn])
            explained = probe.explained(own, theirs, material.weights[chosen])
            answers = (kept.exp() * (kept - logits[len(drawn) :].log_softmax(1))).sum(1).mean()
            moved = (theirs - before).square().sum(1).mean() / variance
            loss = fitted + config.strength * explained + config.keep * (answers + moved)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = config.lr * min(1.0, 2 * (1 - done / config.steps))
            optimizer.step()
            if project is not None:
                with torch.no_grad():
                    for name, weight in origin.items():
                        parameters[name].copy_(weight + project(name, parameters[name] - weight))
            if (done + 1) % math.ceil(config.steps / LOOKS) == 0 or done + 1 == config.steps:
                answered = logits_of(changed, channels_last(material.images[judged])).argmax(1)
                left = (answered == material.labels[judged]).double().mean().item()
                history.append(Epoch(sum(losses) / len(losses), left, time.perf_counter() - started))
                losses, started = losses[:0], time.perf_counter()
    for name, parameter in parameters.items():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
    diverged = bool(losses) or not bool(logits_of(changed, material.images[judged]).isfinite().all())
    return Run(changed.to(memory_format=torch.contiguous_format), config.lr, tuple(history), diverged)


def _layers(removal: Removal) -> tuple[Layer, ...]:
    """Say of every weight whether it moved, and how many directions of its input were free to."""
    free, layers = free_dimension(removal.project) if removal.config.projected else {}, []
    for name, weight in removal.model.named_parameters():
        if name in removal.names or name in removal.frozen:
            dimension, reason = weight[0].numel() if weight.dim() else 0, removal.frozen.get(name, "")
            moved = free.get(name, dimension) if name in removal.names else 0
            own = own_name(removal.model, name)
            layers.append(Layer(own, dimension, moved, None, None, moved=not reason, reason=reason))
    return tuple(layers)
