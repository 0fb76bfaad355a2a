"""Other ways to let influence choose the labels, and the same aim without labels: claim C3 at its widest.

All are ZS-PAG with the configured subspace. They differ from "zs_pag_fixed" in the labels alone ("distilled": in the
loss alone) and fit the same batches. They tilt the soft labels as "process_labels" does, but by ``BETA``.

Invariant: drift is measured on proxies, against the masked original; a label has no mass on a forget class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

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
from zspag.lab.methods.method import PROXIES, Method, Problem, fit, sgd_at_every_rate
from zspag.projected_sgd import RateSearch, Run, rate_search
from zspag.proxies import ProxySet
from zspag.pseudo_labels import masked_log_probabilities, standardized, tilted_labels
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
    """What every strategy here starts from."""

    images: Tensor  # forget samples, shape (n, C, H, W)
    forget: tuple[int, ...]  # their classes
    masked: Tensor  # log p_masked of the original on them, shape (n, K)
    proxies: ProxySet
    teacher: Tensor  # p_masked of the original on the proxies, shape (m, K)
    project: Projector
    names: tuple[str, ...]  # weights that an update may move
    beta: float  # strength of a tilt, in nats per standard deviation of the scores

    @classmethod
    def of(cls, problem: Problem, config: UnlearnConfig) -> "Setting":
        """Return the setting of a problem."""
        images, forget, statistics = problem.forget_images, problem.forget_classes, problem.statistics
        masked, teacher = (
            masked_log_probabilities(logits_of(problem.model, seen), forget=forget)
            for seen in (images, statistics.proxies.images)
        )
        project = projector(statistics.moments, config=config.subspace)
        return cls(images, forget, masked, statistics.proxies, teacher.exp(), project, statistics.names, BETA)


def _fit_at_every_rate(
    problem: Problem, config: UnlearnConfig, setting: Setting, label: Callable[[nn.Module, float], Tensor]
) -> RateSearch:
    """Run ZS-PAG at every rate, with labels (n, K) that are made from the current model and the rate."""

    def at(lr: float) -> Run:
        return fit(
            problem, config, lambda current: label(current, lr), lr=lr, project=setting.project, names=setting.names
        )

    return rate_search(at, update=config.update)


def drift_gradient(current: nn.Module, setting: Setting, label: int | None = None) -> Direction:
    """Return the projected gradient P g of the drift on all proxies, or on those of one class."""
    own = slice(None) if label is None else setting.proxies.labels == label
    gradient = loss_gradient(current, setting.proxies.images[own], setting.teacher[own], names=setting.names)
    return {name: setting.project(name, part) for name, part in gradient.items()}


def tilted(current: nn.Module, setting: Setting, direction: Direction) -> Tensor:
    """Return soft labels (n, K) tilted by their influence at the current weights along a direction."""
    scores = standardized(label_scores(current, setting.images, direction), forget=setting.forget)
    return tilted_labels(setting.masked, scores, beta=setting.beta)


def worst_class_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels before every epoch by the drift of the class that has drifted furthest."""
    setting = Setting.of(problem, config)
    return _fit_at_every_rate(problem, config, setting, lambda current, _lr: worst_class(current, setting))


def worst_class(current: nn.Module, setting: Setting) -> Tensor:
    """Tilt by v = P g_c, c the class whose proxies have drifted furthest at the current weights."""
    drifts = drift_by_class(current, setting)
    return tilted(current, setting, drift_gradient(current, setting, max(drifts, key=drifts.__getitem__)))


def drift_by_class(current: nn.Module, setting: Setting) -> dict[int, float]:
    """Return mean KL(masked original, current) over each retained class's proxies, in nats."""
    log_p = logits_of(current, setting.proxies.images).double().log_softmax(1)
    teacher = setting.teacher.double()
    each = (torch.special.xlogy(teacher, teacher) - teacher * log_p).sum(1)
    return {label: each[setting.proxies.labels == label].mean().item() for label in sorted(setting.proxies.hits)}


def balanced_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels before every epoch by the drift of all classes, each with a gradient of length 1."""
    setting = Setting.of(problem, config)
    return _fit_at_every_rate(problem, config, setting, lambda current, _lr: balanced_classes(current, setting))


def balanced_classes(current: nn.Module, setting: Setting) -> Tensor:
    """Tilt by v = sum of P g_c / ||P g_c||, so that no class with a long gradient dominates."""
    units: list[Direction] = []
    for label in sorted(setting.proxies.hits):
        part = drift_gradient(current, setting, label)
        length = inner_product(part, part).sqrt().clamp_min(1e-30)
        units.append({name: value / length for name, value in part.items()})
    total = units[0]
    for unit in units[1:]:
        total = add(total, unit, 1.0)
    return tilted(current, setting, total)


def lookahead_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels before every epoch by the drift at the end of a simulated epoch on soft labels.

    Where the simulated epoch diverges, the drift at the current weights is used.
    """
    setting = Setting.of(problem, config)
    short = replace(config, update=replace(config.update, epochs=LOOKAHEAD_EPOCHS, settle=0.0))
    soft, project, names = setting.masked.exp(), setting.project, setting.names

    def labels(current: nn.Module, lr: float) -> Tensor:
        ahead = fit(problem, short, lambda _: soft, lr=lr, project=project, names=names, start=current)
        end = current if ahead.diverged else ahead.model
        return tilted(current, setting, drift_gradient(end, setting))

    return _fit_at_every_rate(problem, config, setting, labels)


def bilevel_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Choose the labels before the run as variables of the proxies' loss after a few projected steps.

    The graph of all steps is held at once, so memory grows with the forget set.
    """
    setting = Setting.of(problem, config)

    @cache
    def labels_at(lr: float) -> Tensor:
        return bilevel(problem.model, setting, lr=lr, steps=UNROLLED_STEPS, rounds=ROUNDS)

    return _fit_at_every_rate(problem, config, setting, lambda _current, lr: labels_at(lr))


def bilevel(model: nn.Module, setting: Setting, *, lr: float, steps: int, rounds: int) -> Tensor:
    """Return labels (n, K) that lower the proxies' loss after ``steps`` projected steps, by mirror descent.

    A round tilts the labels by their own derivative, standardized; all rounds together are as strong as one tilt. They
    end early where the loss stops being finite.
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


def noise_labels(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Tilt the labels at random, as strongly as the others do by influence: does influence beat chance?"""
    setting = Setting.of(problem, config)
    drawn = torch.randn(setting.masked.shape, generator=generator_for(problem.seed, "labels")).to(setting.masked)
    labels = tilted_labels(setting.masked, standardized(drawn, forget=setting.forget), beta=setting.beta)
    return _fit_at_every_rate(problem, config, setting, lambda _current, _lr: labels)


def distilled(problem: Problem, config: UnlearnConfig) -> RateSearch:
    """Keep the soft labels and add the drift on the proxies to the loss, the sum projected.

    Every batch takes as many proxies beside it, drawn anew.
    """
    setting = Setting.of(problem, config)
    soft, proxies, teacher = setting.masked.exp(), setting.proxies.images, setting.teacher

    def loss(current: nn.Module, batch: Tensor, drawing: torch.Generator) -> Tensor:
        beside = sent(torch.randint(len(proxies), (len(batch),), generator=drawing), proxies.device)
        fitted, kept = current(torch.cat([setting.images[batch], proxies[beside]])).chunk(2)
        return soft_cross_entropy(fitted, soft[batch]) + DISTILLED_WEIGHT * soft_cross_entropy(kept, teacher[beside])

    return sgd_at_every_rate(problem, config, loss, project=setting.project, names=setting.names)


_AHEAD = ("BETA", "LOOKAHEAD_EPOCHS")
_BILEVEL = ("BETA", "UNROLLED_STEPS", "ROUNDS")
METHODS: dict[str, Method] = {
    "worst_class_labels": Method(
        "ZS-PAG, labels for the worst class", worst_class_labels, PROXIES, "ours", "high", ("BETA",)
    ),
    "balanced_labels": Method(
        "ZS-PAG, labels for balanced classes", balanced_labels, PROXIES, "ours", "high", ("BETA",)
    ),
    "lookahead_labels": Method("ZS-PAG, labels that look ahead", lookahead_labels, PROXIES, "ours", "high", _AHEAD),
    "bilevel_labels": Method("ZS-PAG, bilevel labels", bilevel_labels, PROXIES, "ours", "high", _BILEVEL),
    "noise_labels": Method("ZS-PAG, randomly tilted labels", noise_labels, PROXIES, "ours", "high", ("BETA",)),
    "distilled": Method("ZS-PAG, proxies distilled", distilled, PROXIES, "ours", "high", ("DISTILLED_WEIGHT",)),
}
