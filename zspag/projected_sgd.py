"""Projected SGD: forget samples are fitted to pseudo-labels, every weight gradient G replaced by G P.

Biases, norm affine parameters and norm statistics stay frozen and dropout is off, so nothing else moves.

Invariant: the model passed in is only read; all work happens on a copy.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.config import UpdateConfig
from zspag.influence import soft_cross_entropy
from zspag.outcome import Epoch
from zspag.pseudo_labels import PseudoLabeler
from zspag.runtime import channels_last, copied, evaluating, logits_of, sent
from zspag.speedups.projected_inputs import ProjectedInputs
from zspag.subspaces import Projector

STEPS = 20  # batches per epoch at least
BatchLoss = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """What a run of SGD left behind.

    Attributes:
        model: The changed copy.
        lr: Learning rate of the run.
        history: One entry per epoch.
        diverged: The loss or the logits stopped being finite; such a run never counts as having forgotten.
    """

    model: nn.Module
    lr: float
    history: tuple[Epoch, ...]
    diverged: bool

    def reached(self, accuracy: float) -> bool:
        """Tell whether the run ended at or below this accuracy on the forget set."""
        return not self.diverged and self.history[-1].forget_accuracy <= accuracy


@dataclass(frozen=True)
class RateSearch:
    """Runs at increasing learning rates, and the one that the forget-only rule takes.

    Attributes:
        runs: One per rate that was tried, smallest rate first.
        chosen: Index of the first run that forgets; if none does, of the last one that did not diverge.
    """

    runs: tuple[Run, ...]
    chosen: int

    @property
    def kept(self) -> Run:
        """The chosen run."""
        return self.runs[self.chosen]


def fit_labels(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    relabel: PseudoLabeler,
    project: Projector | None,
    names: Sequence[str],
    update: UpdateConfig,
    generator: torch.Generator,
) -> Run:
    """Fit the forget samples to pseudo-labels that ``relabel`` gives before every epoch."""
    labels = torch.empty(0)

    def before_epoch(current: nn.Module) -> None:
        nonlocal labels
        labels = relabel(current)

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return soft_cross_entropy(current(forget_images[batch]), labels[batch])

    return projected_sgd(
        model,
        forget_images,
        forget_labels,
        loss=loss,
        names=names,
        project=project,
        update=update,
        generator=generator,
        before_epoch=before_epoch,
    )


def projected_sgd(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    loss: BatchLoss,
    names: Sequence[str],
    project: Projector | None,
    update: UpdateConfig,
    generator: torch.Generator,
    before_epoch: Callable[[nn.Module], None] | None = None,
) -> Run:
    """Run SGD with momentum on a copy of ``model``, over the forget set, gradients projected.

    Args:
        model: Not changed.
        forget_images: Shape (n, C, H, W).
        forget_labels: Shape (n,); read by the stopping rule only, which judges the samples that are held out, if any.
        loss: Maps the current model and the indices of a batch to a scalar.
        names: Parameters that may move; all others stay frozen.
        project: Applied to every gradient before momentum (projection is linear, so momentum stays projected too).
        update: Rate, momentum, batch size, epoch cap and stop accuracy.
        generator: CPU generator of the batch order.
        before_epoch: Called with the current model, in eval mode, before every epoch.

    Returns:
        The copy after the last epoch, with its history. Once a loss is not finite, nothing moves any more.

    Raises:
        ValueError: If ``update.lr`` is None, or ``update.held_out`` leaves nothing to fit.
    """
    if update.lr is None:
        raise ValueError("projected_sgd needs a learning rate: set update.lr, or use rate_search")
    changed = copied(model)
    parameters = dict(changed.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    moving = {name: parameters[name] for name in names}
    velocity = {name: torch.zeros_like(one) for name, one in moving.items()} if update.momentum else {}
    project = None if project is None else project.like(parameters)
    history: list[Epoch] = []
    diverged = False
    held, count = math.ceil(update.held_out * len(forget_images)), len(forget_images)
    if held == count:
        raise ValueError(
            f"held_out={update.held_out} of {count} forget samples leaves none to fit: pass more, or held_out=0"
        )
    fitted, judged_images, judged_labels = torch.arange(count), forget_images, forget_labels
    if held:
        shuffled = torch.randperm(count, generator=generator)
        fitted, judged_images = shuffled[held:], channels_last(forget_images[shuffled[:held]])
        judged_labels = forget_labels[shuffled[:held]]
    with evaluating(changed):
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in moving)
        while not diverged:
            started = time.perf_counter()
            if before_epoch is not None:
                before_epoch(changed)
            order = sent(fitted[torch.randperm(len(fitted), generator=generator)], forget_images.device)
            batches = order.split(batch_size(len(order), update))
            costs = _fit_(changed, batches, loss, moving, velocity, project=project, update=update)
            total = sum(cost * len(batch) for cost, batch in zip(costs, batches, strict=False) if math.isfinite(cost))
            logits = logits_of(changed, judged_images)
            sound = bool(torch.isfinite(logits).all())  # the last step may have blown up unseen
            diverged = not (sound and math.isfinite(costs[-1]))
            remaining = (logits.argmax(1) == judged_labels).double().mean().item()
            history.append(Epoch(total / len(order), remaining, time.perf_counter() - started))
            if _finished(history, update):
                break
        for name, parameter in parameters.items():
            parameter.requires_grad_(flags[name])
    changed = changed.to(memory_format=torch.contiguous_format)
    return Run(changed, update.lr, tuple(history), diverged)


def _finished(history: Sequence[Epoch], update: UpdateConfig) -> bool:
    """Stop at the cap if nothing is forgotten by then; a run that has forgotten goes on ``settle`` as long again."""
    if 2 * len(history) >= update.epochs and history[-1].forget_accuracy > update.give_up:
        return True  # a rate this far from forgetting at half time does not make it
    first = next((i for i, epoch in enumerate(history, 1) if epoch.forget_accuracy <= update.forget_accuracy), None)
    return len(history) >= (update.epochs if first is None else math.ceil(first * (1 + update.settle)))


def batch_size(count: int, update: UpdateConfig) -> int:
    """Return the batch size for ``count`` samples: small forget sets are cut into at least ``min_steps`` batches."""
    return max(1, min(update.batch_size, math.ceil(count / (update.min_steps or STEPS))))


def _fit_(
    changed: nn.Module,
    batches: Sequence[Tensor],
    loss: BatchLoss,
    moving: dict[str, nn.Parameter],
    velocity: dict[str, Tensor],
    *,
    project: Projector | None,
    update: UpdateConfig,
) -> list[float]:
    """Take a projected step per batch, and return the losses up to the first that is not finite.

    From a bad loss on nothing moves. A CPU leaves the loop there. A GPU that is asked for every loss would stand still
    between two batches: there the later steps have length 0, and the losses are read at the end.
    """
    assert update.lr is not None
    costs: list[Tensor] = []
    sound = None if batches[0].device.type == "cpu" else torch.ones((), dtype=torch.bool, device=batches[0].device)
    cheap = project is not None  # whether some layer's inputs are projected for less than its gradient: asked once
    for batch in batches:
        inside = ProjectedInputs(moving, project) if cheap and project is not None else None
        with inside or nullcontext():
            value = loss(changed, batch)
        costs.append(value.detach())
        if sound is not None:
            sound = sound & costs[-1].isfinite()
        elif not math.isfinite(costs[-1]):
            break
        done = inside.done if inside is not None else set()
        cheap = bool(done)
        gradients = torch.autograd.grad(value, list(moving.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(moving.items(), gradients, strict=True):
                if gradient is None:
                    continue
                if project is not None and name not in done:
                    gradient = project(name, gradient)
                if update.momentum:
                    gradient = velocity[name].mul_(update.momentum).add_(gradient)
                if sound is not None:
                    gradient = torch.where(sound, gradient, 0)
                parameter.sub_(gradient, alpha=update.lr)
    read: list[float] = torch.stack(costs).tolist()
    return read[: next((index for index, cost in enumerate(read, 1) if not math.isfinite(cost)), len(read))]


def rate_search(run: Callable[[float], Run], *, update: UpdateConfig) -> RateSearch:
    """Run at ``update.lr``, or search ``update.ladder`` by the forget-only rule.

    The rule takes the smallest rate whose run ends with at most ``forget_accuracy`` on the forget set. The forget set
    does not show retained damage, so the gentlest rate that forgets is the safe choice. ``whole_ladder`` also runs the
    rates above it, which trade-off curves need.
    """
    runs: list[Run] = []
    chosen = None
    for lr in (update.lr,) if update.lr is not None else update.ladder:
        runs.append(run(lr))
        if chosen is None and runs[-1].reached(update.forget_accuracy):
            chosen = len(runs) - 1
            if not update.whole_ladder:
                break
    if chosen is None:
        chosen = max((index for index, one in enumerate(runs) if not one.diverged), default=0)
    return RateSearch(tuple(runs), chosen)
