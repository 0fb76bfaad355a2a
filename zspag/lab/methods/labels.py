"""Other ways to let influence choose the labels, and the same aim without labels: claim C3 at its widest.

All are ZS-PAG with the configured subspace. They differ from "zs_pag" in the labels alone ("distilled": in the loss
alone), fit the same batches, and tilt the soft labels as "process_labels" does, but by ``BETA``.

Invariant: drift is measured on proxies, against the masked original; a label has no mass on a forget class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zspag.config import UnlearnConfig
from zspag.influence import (
    Direction,
    add,
    inner_product,
    label_scores,
    loss_gradient,
    soft_cross_entropy,
    weights_of,
)
from zspag.lab.methods.method import PROXIES, Method, Problem, RunMethod
from zspag.projected_sgd import BatchLoss, RateSearch, Run, fit_labels, projected_sgd, rate_search
from zspag.proxies import ProxySet
from zspag.pseudo_labels import PseudoLabeler, masked_log_probabilities, standardized, tilted_labels
from zspag.runtime import frozen, generator_for, logits_of, plain_attention, sent
from zspag.subspaces import Projector, projector

# Of a tilt, in nats per standard deviation of the scores. CHOICE: a fifth of what "process_labels" takes, which drifts
# several times as far as soft labels on the first half of CIFAR-10's test images, however the scores are made.
BETA = 0.1
LOOKAHEAD_EPOCHS = 1  # epochs that a simulated run takes before its drift is measured
UNROLLED_STEPS = 3  # projected steps that a bilevel problem is differentiated through; together they see every sample
ROUNDS = 3  # steps on the labels of a bilevel problem
# Of the proxies' loss beside the forget samples'. CHOICE: the projection leaves so little of its gradient that 1 and
# 10 changed nothing on CIFAR-10; at 1000 a digits net no longer forgot.
DISTILLED_WEIGHT = 100.0


@dataclass(frozen=True)
class Setting:
    """What every strategy here starts from.

    Attributes:
        images: Forget samples, shape (n, C, H, W).
        forget: Forget classes.
        masked: log p_masked of the original on them, shape (n, K).
        proxies: Stand-ins of the retained classes.
        teacher: p_masked of the original on the proxies, shape (m, K).
        project: Keeps updates out of the protected subspace.
        names: Weights that an update may move.
        beta: Strength of a tilt, in nats per standard deviation of the scores.
    """

    images: Tensor
    forget: tuple[int, ...]
    masked: Tensor
    proxies: ProxySet
    teacher: Tensor
    project: Projector
    names: tuple[str, ...]
    beta: float


def setting_of(problem: Problem, config: UnlearnConfig) -> Setting:
    """Return what the strategies need, from what a method is handed."""
    images, forget, statistics = problem.forget_images, problem.forget_classes, problem.statistics
    masked, teacher = (
        masked_log_probabilities(logits_of(problem.model, seen), forget=forget)
        for seen in (images, statistics.proxies.images)
    )
    project = projector(statistics.moments, config=config.subspace)
    return Setting(images, forget, masked, statistics.proxies, teacher.exp(), project, statistics.names, BETA)


def tilted(current: nn.Module, setting: Setting, direction: Direction) -> Tensor:
    """Return soft labels (n, K) tilted by their influence at the current weights along a direction."""
    scores = standardized(label_scores(current, setting.images, direction), forget=setting.forget)
    return tilted_labels(setting.masked, scores, beta=setting.beta)


def projected(direction: Direction, project: Projector) -> Direction:
    """Return P v, weight by weight."""
    return {name: project(name, part) for name, part in direction.items()}


def drift_by_class(current: nn.Module, setting: Setting) -> dict[int, float]:
    """Return mean KL(masked original, current) over each retained class's proxies, in nats."""
    log_p = logits_of(current, setting.proxies.images).double().log_softmax(1)
    teacher = setting.teacher.double()
    each = (torch.special.xlogy(teacher, teacher) - teacher * log_p).sum(1)
    return {label: each[setting.proxies.labels == label].mean().item() for label in sorted(setting.proxies.hits)}


def class_gradient(current: nn.Module, setting: Setting, label: int) -> Direction:
    """Return P g_c: the projected gradient of the drift on one class's proxies."""
    own = setting.proxies.labels == label
    gradient = loss_gradient(current, setting.proxies.images[own], setting.teacher[own], names=setting.names)
    return projected(gradient, setting.project)


def worst_class(current: nn.Module, setting: Setting) -> Tensor:
    """Tilt by the class that has drifted furthest: v = P g_c, c the worst class at the current weights."""
    drifts = drift_by_class(current, setting)
    return tilted(current, setting, class_gradient(current, setting, max(drifts, key=drifts.__getitem__)))


def balanced_classes(current: nn.Module, setting: Setting) -> Tensor:
    """Tilt by all classes alike: v = sum of P g_c / ||P g_c||, so that no class with a long gradient dominates."""
    total: Direction | None = None
    for label in sorted(setting.proxies.hits):
        part = class_gradient(current, setting, label)
        length = inner_product(part, part).sqrt().clamp_min(1e-30)
        unit = {name: value / length for name, value in part.items()}
        total = unit if total is None else add(total, unit, 1.0)
    assert total is not None
    return tilted(current, setting, total)


def look_ahead(current: nn.Module, setting: Setting, simulate: Callable[[nn.Module], Run]) -> Tensor:
    """Tilt by the drift that is still to come: v = P g_r at the weights where a simulated run ends.

    Where that run diverges, the drift at the current weights has to do.
    """
    ahead = simulate(current)
    end = current if ahead.diverged else ahead.model
    gradient = loss_gradient(end, setting.proxies.images, setting.teacher, names=setting.names)
    return tilted(current, setting, projected(gradient, setting.project))


def unrolled_loss(model: nn.Module, setting: Setting, labels: Tensor, *, lr: float, steps: int) -> Tensor:
    """Return the proxies' loss after projected steps on the labels, as a differentiable function of the labels (n, K).

    Step s fits samples s, s + steps, s + 2 steps, ...; each sample is fitted once.
    """
    weights = {name: part.clone().requires_grad_(True) for name, part in weights_of(model, setting.names).items()}
    with frozen(model), plain_attention():
        for first in range(min(steps, len(labels))):
            logits = functional_call(model, weights, (setting.images[first::steps],))
            loss = soft_cross_entropy(logits, labels[first::steps])
            parts = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
            weights = {
                name: weight - lr * setting.project(name, part)
                for (name, weight), part in zip(weights.items(), parts, strict=True)
            }
        return soft_cross_entropy(functional_call(model, weights, (setting.proxies.images,)), setting.teacher)


def bilevel(model: nn.Module, setting: Setting, *, lr: float, steps: int, rounds: int) -> Tensor:
    """Return labels (n, K) that lower the proxies' loss after ``steps`` projected steps, by mirror descent.

    A round tilts the labels by their own derivative, standardized; all rounds together are as strong as one tilt.

    Args:
        model: The original model.
        setting: Samples, proxies and projection.
        lr: Rate of the steps that are differentiated through.
        steps: Number of those steps.
        rounds: Steps on the labels. They end early where the loss stops being finite.
    """
    logs = setting.masked
    for _ in range(rounds):
        labels = logs.exp().requires_grad_(True)
        (slope,) = torch.autograd.grad(unrolled_loss(model, setting, labels, lr=lr, steps=steps), labels)
        if not bool(torch.isfinite(slope).all()):
            break
        scores = standardized(-slope, forget=setting.forget)
        logs = (logs + setting.beta / rounds * scores).log_softmax(1)
    return logs.exp()


@dataclass(frozen=True)
class Attempt:
    """A run at one rate, before it starts.

    Attributes:
        setting: What labels are made from.
        model: The original model.
        lr: Rate of the run.
        seed: Seed of the method's streams, the same at every rate.
        simulate: Runs ``LOOKAHEAD_EPOCHS`` from a model on soft labels, on the run's own first batches.
    """

    setting: Setting
    model: nn.Module
    lr: float
    seed: int
    simulate: Callable[[nn.Module], Run]


Plan = Callable[[Attempt], PseudoLabeler]


def _every_epoch(strategy: Callable[[nn.Module, Setting], Tensor]) -> Plan:
    return lambda attempt: lambda current: strategy(current, attempt.setting)


def _ahead(attempt: Attempt) -> PseudoLabeler:
    return lambda current: look_ahead(current, attempt.setting, attempt.simulate)


def _searched(attempt: Attempt) -> PseudoLabeler:
    labels = bilevel(attempt.model, attempt.setting, lr=attempt.lr, steps=UNROLLED_STEPS, rounds=ROUNDS)
    return lambda _current: labels


def _by_lot(attempt: Attempt) -> PseudoLabeler:
    masked = attempt.setting.masked
    drawn = torch.randn(masked.shape, generator=generator_for(attempt.seed, "labels")).to(masked)
    scores = standardized(drawn, forget=attempt.setting.forget)
    labels = tilted_labels(masked, scores, beta=attempt.setting.beta)
    return lambda _current: labels


def _fit(problem: Problem, config: UnlearnConfig, plan: Plan) -> RateSearch:
    """Run ZS-PAG with the labels of ``plan``, which is made anew for every rate."""
    model, setting = problem.model, setting_of(problem, config)

    def fit(start: nn.Module, relabel: PseudoLabeler, lr: float, **changes: float) -> Run:
        return fit_labels(
            start,
            problem.forget_images,
            problem.forget_labels,
            relabel=relabel,
            project=setting.project,
            names=setting.names,
            update=replace(config.update, lr=lr, **changes),  # type: ignore[arg-type]
            generator=generator_for(problem.seed, "update"),
        )

    def run(lr: float) -> Run:
        soft = setting.masked.exp()

        def simulate(current: nn.Module) -> Run:
            return fit(current, lambda _current: soft, lr, epochs=LOOKAHEAD_EPOCHS, settle=0.0)

        return fit(model, plan(Attempt(setting, model, lr, problem.seed, simulate)), lr)

    return rate_search(run, update=config.update)


def worst_class_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels before every epoch by the drift of the class that has drifted furthest."""
    return _fit(problem, config, _every_epoch(worst_class))


def balanced_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels before every epoch by the drift of all classes, each with a gradient of length 1."""
    return _fit(problem, config, _every_epoch(balanced_classes))


def lookahead_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels before every epoch by the drift at the end of a simulated epoch on soft labels."""
    return _fit(problem, config, _ahead)


def bilevel_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Choose the labels before the run as variables of the proxies' loss after a few projected steps.

    Note:
        The graph of all steps is held at once, so memory grows with the forget set.
    """
    return _fit(problem, config, _searched)


def noise_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels by lot, as strongly as the others do by influence: does influence beat chance?"""
    return _fit(problem, config, _by_lot)


def distilled(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Keep the soft labels and add the drift on the proxies to the loss, the sum projected.

    Every batch takes as many proxies beside it, drawn anew. Cross-entropy to the masked original differs from the KL
    by a constant.
    """
    setting = setting_of(problem, config)
    soft = setting.masked.exp()

    def run(lr: float) -> Run:
        return projected_sgd(
            problem.model,
            problem.forget_images,
            problem.forget_labels,
            loss=_with_proxies(setting, soft, generator_for(problem.seed, "loss"), DISTILLED_WEIGHT),
            names=setting.names,
            project=setting.project,
            update=replace(config.update, lr=lr),
            generator=generator_for(problem.seed, "update"),
        )

    return rate_search(run, update=config.update)


def _with_proxies(setting: Setting, soft: Tensor, drawing: torch.Generator, weight: float) -> BatchLoss:
    images = setting.proxies.images

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        beside = sent(torch.randint(len(images), (len(batch),), generator=drawing), images.device)
        fitted, kept = current(torch.cat([setting.images[batch], images[beside]])).chunk(2)
        return soft_cross_entropy(fitted, soft[batch]) + weight * soft_cross_entropy(kept, setting.teacher[beside])

    return loss


_RUNS: Sequence[tuple[str, str, RunMethod]] = (
    ("worst_class_labels", "ZS-PAG, labels for the worst class", worst_class_labels),
    ("balanced_labels", "ZS-PAG, labels for balanced classes", balanced_labels),
    ("lookahead_labels", "ZS-PAG, labels that look ahead", lookahead_labels),
    ("bilevel_labels", "ZS-PAG, bilevel labels", bilevel_labels),
    ("noise_labels", "ZS-PAG, labels tilted by lot", noise_labels),
    ("distilled", "ZS-PAG, proxies distilled", distilled),
)
METHODS: dict[str, Method] = {name: Method(title, run, PROXIES, "ours", "high") for name, title, run in _RUNS}
