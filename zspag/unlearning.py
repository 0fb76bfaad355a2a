"""Projected unlearning, and ZS-PAG on one page: ``zero_shot_unlearn``.

The forget samples are fitted to their pseudo-labels by plain SGD, every weight gradient G replaced by G P. Biases, norm
affine parameters and norm statistics stay frozen and dropout is off, so nothing else moves.

Invariant: the caller's model is only read; all work happens on a copy. Nothing here can be handed retain data.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.influence import soft_cross_entropy
from zspag.proxies import ProxySet, generate
from zspag.pseudo_labels import Relabel, relabeler, retained_classes
from zspag.runtime import channels_last, copied, evaluating, frozen, generator_for, logits_of, sent
from zspag.subspaces import ClassMoments, Projector, averaged, folded, projector, second_moments

BatchLoss = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Epoch:
    """One pass over the fitted samples: mean loss, accuracy on the judged ones afterwards (a fraction), seconds."""

    loss: float
    forget_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Descent:
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
class Ladder:
    """Runs at increasing learning rates, and the one that the forget-only rule takes.

    Attributes:
        runs: One per rate that was tried, smallest rate first.
        chosen: Index of the first run that forgets; if none does, of the last one that did not diverge.
    """

    runs: tuple[Descent, ...]
    chosen: int

    @property
    def kept(self) -> Descent:
        """The chosen run."""
        return self.runs[self.chosen]


@dataclass(frozen=True)
class Material:
    """What the method derives from model and forget set before the first update.

    Attributes:
        proxies: Stand-ins of the retained classes.
        moments: Input moments of the proxies, one per retained class where they fit in memory, and their means.
        seconds: Wall-clock seconds per stage ("proxies", "subspaces").
    """

    proxies: ProxySet
    moments: ClassMoments
    seconds: dict[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Weights that can be projected, in the order in which the model uses them."""
        return tuple(self.moments.pooled.second)

    @property
    def frozen(self) -> dict[str, str]:
        """Weights that cannot be projected and stay frozen, by name, with the reason."""
        return self.moments.pooled.unprojectable


@dataclass(frozen=True)
class Report:
    """How a result came about.

    Attributes:
        forget_classes: Classes that were forgotten, each of them whole.
        already_forgotten: Classes that were named as forgotten before.
        eps: Radius of the attack, in pixels.
        lr: Learning rate used.
        reached: Whether the forget set's accuracy fell to ``forget_accuracy`` or below.
        tried: Every rate the rule tried, with the forget-set accuracy it ended at; None where the run diverged.
        history: One entry per epoch of the run that was kept.
        free_dimension: Directions left to the update, per weight.
        frozen: Weights that could not be projected, with the reason.
        seconds: Wall-clock seconds per stage.
    """

    forget_classes: tuple[int, ...]
    already_forgotten: tuple[int, ...]
    eps: float
    lr: float
    reached: bool
    tried: dict[float, float | None]
    history: tuple[Epoch, ...]
    free_dimension: dict[str, int]
    frozen: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Unlearned:
    """The unlearned model and how it came about."""

    model: nn.Module
    report: Report


@torch.enable_grad()
def zero_shot_unlearn(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    num_classes: int,
    already_forgotten: Sequence[int] = (),
    config: UnlearnConfig | None = None,
    seed: int = 0,
) -> Unlearned:
    """Make a classifier forget whole classes, given nothing but the model and samples of those classes.

    Args:
        model: Any module of convolution, linear and attention layers that maps [0, 1] images to logits; if it expects
            normalized input, put ``Normalize`` in front. It is not changed.
        forget_images: Shape (n, C, H, W), values in [0, 1].
        forget_labels: Their classes, shape (n,); these classes are forgotten whole.
        num_classes: Width K of the logits.
        already_forgotten: Classes that earlier requests made ``model`` forget: they are not protected, and no forget
            sample is fitted to them. A class that is left out counts as retained, and comes back in part.
        config: Options of every stage; the defaults search the attack's radius and the learning rate.
        seed: Same seed, same threads, same result.

    Returns:
        The unlearned copy and a report.

    Raises:
        ValueError: If the input cannot work; the message says what, where, the value and the remedy.

    Note:
        A label names a class, not the samples that bear it. Half of a class's images are no different, seen from here,
        from a class of half the size: the other half is forgotten with them (``zspag.requests`` measures it). Samples
        spread over all classes are refused, those of more than half of the classes warned about: one or two images of
        each are enough to lose most of what these classes were known by. L2UL (Cha et al., AAAI 2024) was made for
        single samples; it aims at a wrong answer on them, which a model retrained without them does not give.

    Example:
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> images, labels = torch.rand(12, 1, 4, 4), torch.zeros(12, dtype=torch.long)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> result = zero_shot_unlearn(model, images, labels, num_classes=3)
        >>> result.report.forget_classes
        (0,)
    """
    config = config or UnlearnConfig()
    check_inputs(model, forget_images, forget_labels, num_classes=num_classes)
    forget_images = channels_last(forget_images)
    forget = tuple(sorted(set(forget_labels.tolist())))
    gone = tuple(sorted({*forget, *already_forgotten}))
    check_request(forget, gone, num_classes=num_classes)
    material = prepare(
        model, forget_images, forget=gone, num_classes=num_classes, config=config,
        generator=generator_for(seed, "material"),
    )  # fmt: skip
    started = time.perf_counter()
    keep_out = projector(material.moments, config=config.subspace)
    names = tuple(keep_out.factors)
    relabel = relabeler(
        model, forget_images, forget=gone, proxies=material.proxies, moments=averaged(material.moments),
        projector=keep_out, names=names, config=config.labels, generator=generator_for(seed, "labels"),
    )  # fmt: skip
    labels_done = time.perf_counter()
    ladder = climb(
        lambda lr: fit_labels(
            model, forget_images, forget_labels, relabel=relabel, project=keep_out, names=names,
            update=replace(config.update, lr=lr), generator=generator_for(seed, "update"),
        ),
        update=config.update,
    )  # fmt: skip
    seconds = material.seconds | {"labels": labels_done - started, "update": time.perf_counter() - labels_done}
    run = ladder.kept
    tried = {one.lr: None if one.diverged else one.history[-1].forget_accuracy for one in ladder.runs}
    report = Report(
        forget, tuple(already_forgotten), material.proxies.eps, run.lr,
        run.reached(config.update.forget_accuracy), tried, run.history, free_dimension(keep_out), material.frozen,
        seconds,
    )  # fmt: skip
    return Unlearned(run.model, report)


def prepare(
    model: nn.Module,
    forget_images: Tensor,
    *,
    forget: Sequence[int],
    num_classes: int,
    config: UnlearnConfig,
    generator: torch.Generator,
) -> Material:
    """Make proxies of every retained class and collect what they feed into each layer.

    Raises:
        ValueError: If a class cannot be reached by the attack, or no layer can be projected.
    """
    retained = retained_classes(num_classes, forget).tolist()
    started = time.perf_counter()
    proxies = generate(model, forget_images, retained=retained, config=config.proxies, generator=generator)
    attacked = time.perf_counter()
    moments = folded(
        (second_moments(model, proxies.of_class(label)) for label in retained),
        classes=len(retained), merge_at=config.subspace.merge_at,
    )  # fmt: skip
    seconds = {"proxies": attacked - started, "subspaces": time.perf_counter() - attacked}
    material = Material(proxies, moments, seconds)
    if not material.names:
        reasons = "; ".join(f"{name}: {why}" for name, why in material.frozen.items()) or "it has no weights"
        raise ValueError(f"the model has no convolution, linear or attention layer to project ({reasons})")
    return material


def fit_labels(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    relabel: Relabel,
    project: Projector | None,
    names: Sequence[str],
    update: UpdateConfig,
    generator: torch.Generator,
) -> Descent:
    """Fit the forget samples to pseudo-labels that ``relabel`` gives before every epoch."""
    labels = torch.empty(0)

    def before_epoch(current: nn.Module) -> None:
        nonlocal labels
        labels = relabel(current)

    def loss(current: nn.Module, batch: Tensor) -> Tensor:
        return soft_cross_entropy(current(forget_images[batch]), labels[batch])

    return descend(
        model, forget_images, forget_labels, loss=loss, names=names, project=project, update=update,
        generator=generator, before_epoch=before_epoch,
    )  # fmt: skip


def descend(
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
) -> Descent:
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
        raise ValueError("descend needs a learning rate: set update.lr, or use the forget-only rule")
    changed = copied(model)
    parameters = dict(changed.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    moving = {name: parameters[name] for name in names}
    velocity = {name: torch.zeros_like(parameter) for name, parameter in moving.items()}
    project = None if project is None else project.like(parameters)
    history: list[Epoch] = []
    diverged = False
    fitted, held = _parted(len(forget_images), update.held_out, generator)
    judged_images, judged_labels = forget_images, forget_labels
    if len(held):
        judged_images, judged_labels = channels_last(forget_images[held]), forget_labels[held]
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
    return Descent(changed, update.lr, tuple(history), diverged)


def _parted(count: int, held_out: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the indices that are fitted and those that are held out.

    Raises:
        ValueError: If nothing is left to fit.
    """
    held = math.ceil(held_out * count)
    if held == count:
        raise ValueError(f"held_out={held_out} of {count} forget samples leaves none to fit: pass more, or held_out=0")
    order = torch.randperm(count, generator=generator) if held else torch.arange(count)
    return order[held:], order[:held]


def _finished(history: Sequence[Epoch], update: UpdateConfig) -> bool:
    """Stop at the cap if nothing is forgotten by then; a run that has forgotten goes on ``settle`` as long again."""
    if 2 * len(history) >= update.epochs and history[-1].forget_accuracy > update.give_up:
        return True  # a rate this far from forgetting at half time does not make it
    first = next((i for i, epoch in enumerate(history, 1) if epoch.forget_accuracy <= update.forget_accuracy), None)
    return len(history) >= (update.epochs if first is None else math.ceil(first * (1 + update.settle)))


def batch_size(count: int, update: UpdateConfig) -> int:
    """Return the batch size for ``count`` samples: small forget sets are cut into at least ``min_steps`` batches."""
    return max(1, min(update.batch_size, math.ceil(count / update.min_steps)))


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
    """Take a step per batch and return the losses up to the first that is not finite, after which nothing moves.

    A GPU that is asked for every loss stands still between two batches. There a bad loss is found out at the end, and
    the steps after it have length 0; a CPU leaves the loop.
    """
    costs: list[Tensor] = []
    sound = None if batches[0].device.type == "cpu" else torch.ones((), dtype=torch.bool, device=batches[0].device)
    for batch in batches:
        value = loss(changed, batch)
        costs.append(value.detach())
        if sound is not None:
            sound = sound & costs[-1].isfinite()
        elif not math.isfinite(costs[-1]):
            break
        _step_(moving, velocity, value, project=project, update=update, sound=sound)
    read: list[float] = torch.stack(costs).tolist()
    return read[: next((index for index, cost in enumerate(read, 1) if not math.isfinite(cost)), len(read))]


def _step_(
    moving: dict[str, nn.Parameter],
    velocity: dict[str, Tensor],
    value: Tensor,
    *,
    project: Projector | None,
    update: UpdateConfig,
    sound: Tensor | None,
) -> None:
    """Move the parameters in place by one projected step of SGD with momentum; not at all where ``sound`` is false."""
    assert update.lr is not None
    gradients = torch.autograd.grad(value, list(moving.values()), allow_unused=True)
    with torch.no_grad():
        for (name, parameter), gradient in zip(moving.items(), gradients, strict=True):
            if gradient is None:
                continue
            step = gradient if project is None else project(name, gradient)
            velocity[name].mul_(update.momentum).add_(step)
            move = update.lr * velocity[name]
            parameter.sub_(move if sound is None else torch.where(sound, move, 0))


def climb(run: Callable[[float], Descent], *, update: UpdateConfig) -> Ladder:
    """Run at ``update.lr``, or by the forget-only rule at the rates of ``update.ladder``.

    The rule takes the smallest rate whose run ends with at most ``forget_accuracy`` on the forget set. No forget-only
    signal sees retained damage, so the gentlest rate that does the job is the safe choice. ``whole_ladder`` runs the
    rates above it too, which trade-off curves need.
    """
    runs: list[Descent] = []
    chosen = None
    for lr in (update.lr,) if update.lr is not None else update.ladder:
        runs.append(run(lr))
        if chosen is None and runs[-1].reached(update.forget_accuracy):
            chosen = len(runs) - 1
            if not update.whole_ladder:
                break
    if chosen is None:
        chosen = max((index for index, one in enumerate(runs) if not one.diverged), default=0)
    return Ladder(tuple(runs), chosen)


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


def check_inputs(model: nn.Module, forget_images: Tensor, forget_labels: Tensor, *, num_classes: int) -> None:
    """Refuse what cannot work, with the value and the remedy.

    Raises:
        ValueError: See the messages below.
    """
    if len(forget_images) == 0:
        raise ValueError("the forget set is empty: pass at least one image of each class to forget")
    if not forget_images.is_floating_point():
        raise ValueError(f"forget_images must be float in [0, 1], got {forget_images.dtype}: divide uint8 by 255")
    if len(forget_labels) != len(forget_images):
        raise ValueError(
            f"{len(forget_images)} forget images but {len(forget_labels)} labels: pass one label per image"
        )
    if not bool(torch.isfinite(forget_images).all()):
        bad = int((~torch.isfinite(forget_images.flatten(1)).all(1)).nonzero()[0])
        raise ValueError(f"forget_images[{bad}] holds NaN or infinity: clean the images first")
    low, high = forget_images.min().item(), forget_images.max().item()
    if low < 0 or high > 1:
        raise ValueError(
            f"forget_images must lie in [0, 1], got [{low:.4g}, {high:.4g}]: pass unnormalized images and put"
            " Normalize(mean, std) in front of the model"
        )
    if forget_labels.is_floating_point() or forget_labels.dim() != 1:
        raise ValueError(
            f"forget_labels must be integers of shape (n,), got {forget_labels.dtype} of shape"
            f" {tuple(forget_labels.shape)}"
        )
    outside = forget_labels[(forget_labels < 0) | (forget_labels >= num_classes)]
    if len(outside):
        raise ValueError(
            f"forget_labels holds class {int(outside[0])}, outside 0..{num_classes - 1} (num_classes={num_classes})"
        )
    _check_logits(model, forget_images[:1], num_classes=num_classes)


def check_request(forget: Sequence[int], gone: Sequence[int], *, num_classes: int) -> None:
    """Refuse a request that leaves no class, and warn where single samples may have been meant.

    Args:
        forget: Classes to forget now.
        gone: The same and those that were forgotten before, sorted.
        num_classes: Width K of the logits.

    Raises:
        ValueError: If no class would be left, or a class of ``gone`` does not exist.

    Note:
        CHOICE: the warning begins at half of the classes, which .7 K samples drawn at random are enough to name. It is
        no refusal, for so many whole classes are forgotten as well as one.
    """
    if gone[0] < 0 or gone[-1] >= num_classes:
        outside = gone[0] if gone[0] < 0 else gone[-1]
        raise ValueError(
            f"already_forgotten holds class {outside}, outside 0..{num_classes - 1} (num_classes={num_classes})"
        )
    if len(gone) == num_classes:
        before = "" if len(forget) == num_classes else ", with those already forgotten,"
        raise ValueError(
            f"the forget set{before} holds all {num_classes} classes, and each is forgotten whole: at least one class"
            " must be retained. Single samples across classes are not supported, for no class would be left to make"
            " proxies of or to relabel to: retrain without them"
        )
    if 2 * len(forget) > num_classes:
        warnings.warn(
            f"the forget set names {len(forget)} of {num_classes} classes, and each is forgotten whole, images that are"
            " not in the set included: if single samples were meant, retrain without them instead",
            stacklevel=4,  # the caller's line: this function, zero_shot_unlearn and its decorator are passed over
        )


@torch.no_grad()
def _check_logits(model: nn.Module, image: Tensor, *, num_classes: int) -> None:
    with frozen(model):
        logits = model(image)
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must map one image to logits of shape (1, {num_classes}), got {shape}: check num_classes"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the model's logits for the first forget image are not finite: check its weights")
