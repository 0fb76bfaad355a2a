"""What a method is: the problem it is handed, its entry in the table, and the loops that most methods share.

Invariant: a rate never depends on another, and no rule sees anything but the forget set.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig
from zspag.profiles import Ladders
from zspag.projected_sgd import BatchLoss, RateSearch, Run, fit_labels, projected_sgd, rate_search
from zspag.proxy_statistics import ProxyStatistics
from zspag.pseudo_labels import PseudoLabeler
from zspag.runtime import generator_for, seed_of
from zspag.subspaces import Projector

FORGET, PROXIES, ORACLE = "forget set", "forget set, proxies made from it", "forget set and RETAIN SET (oracle)"


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method is handed.

    Attributes:
        model: The original; a method works on a copy.
        forget_images: Images to forget, shape (n, C, H, W), values in [0, 1].
        forget_labels: Their classes, shape (n,).
        num_classes: Width K of the logits.
        generator: CPU generator of all that a method draws.
        statistics: Views, proxies and moments, derived from model and forget images alone.
        retain: Retain images (m, C, H, W) and labels (m,) of an oracle; None for a forget-only method.
    """

    model: nn.Module
    forget_images: Tensor
    forget_labels: Tensor
    num_classes: int
    generator: torch.Generator
    statistics: ProxyStatistics
    retain: tuple[Tensor, Tensor] | None = None

    @cached_property
    def forget_classes(self) -> tuple[int, ...]:
        """Classes to forget, in increasing order."""
        return tuple(sorted(set(self.forget_labels.tolist())))

    @cached_property
    def seed(self) -> int:
        """Seed of the method's streams, drawn from ``generator`` once, at the first use."""
        return seed_of(self.generator)

    @property
    def retain_images(self) -> Tensor:
        """Retain images of an oracle, shape (m, C, H, W)."""
        return self._retained()[0]

    @property
    def retain_labels(self) -> Tensor:
        """Their classes, shape (m,)."""
        return self._retained()[1]

    def _retained(self) -> tuple[Tensor, Tensor]:
        if self.retain is None:
            raise ValueError("a forget-only method asked for retain data: only an oracle is handed any")
        return self.retain


@dataclass(frozen=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        title: Name in figures and tables.
        run: Maps a problem and a configuration to runs at the learning rates of ``config.update``.
        reads: What data it touches, in words.
        reference: Where it comes from.
        ladder: Which of ``profiles.Ladders`` it is run at.
        oracle: It is handed retain data.
        fixed: Names of the numbers that its code fixes, constants of its module.
    """

    title: str
    run: Callable[[Problem, UnlearnConfig], RateSearch]
    reads: str
    reference: str
    ladder: str
    oracle: bool = False
    fixed: tuple[str, ...] = ()


def listing(methods: Mapping[str, Method], *, ladders: Ladders) -> Iterator[str]:
    """Yield what ``zspag methods`` prints, line by line.

    Args:
        methods: The table of methods.
        ladders: Those of the profile whose rates are printed.
    """
    for name, method in methods.items():
        yield f"{name}: {method.title}"
        yield "  " + (method.run.__doc__ or "").partition("\n")[0]
        yield f"  reads: {method.reads}"
        yield f"  reference: {method.reference}"
        yield f"  ladder: {method.ladder}, " + ", ".join(f"{rate:g}" for rate in getattr(ladders, method.ladder))
        if method.fixed:
            module = sys.modules[method.run.__module__]
            yield "  fixed: " + ", ".join(f"{number} = {getattr(module, number):g}" for number in method.fixed)


def head_names(problem: Problem) -> list[str]:
    """Return the names of all parameters of the last layer that can be projected."""
    head = layer_of(problem.statistics.names[-1])
    return [name for name, _ in problem.model.named_parameters() if layer_of(name) == head]


def layer_of(weight: str) -> str:
    """Return the name of the layer that a weight belongs to, "" for the model itself."""
    return weight.rpartition(".")[0]


def fit(
    problem: Problem,
    config: UnlearnConfig,
    labeler: PseudoLabeler,
    *,
    lr: float,
    project: Projector | None,
    names: Sequence[str],
    start: nn.Module | None = None,
) -> Run:
    """Fit the forget samples to pseudo-labels at one rate, gradients projected; arguments as in ``sgd``."""
    return fit_labels(
        problem.model if start is None else start,
        problem.forget_images,
        problem.forget_labels,
        relabel=labeler,
        project=project,
        names=names,
        update=replace(config.update, lr=lr),
        generator=generator_for(problem.seed, "update"),
    )


def sgd(
    problem: Problem,
    config: UnlearnConfig,
    loss: BatchLoss,
    *,
    lr: float,
    project: Projector | None = None,
    names: Sequence[str] | None = None,
    start: nn.Module | None = None,
) -> Run:
    """Minimize a loss over batches of the forget set at one rate.

    Args:
        problem: Model, forget set and seed.
        config: Steps and epochs.
        loss: Maps the current model and the indices of a batch to a scalar.
        lr: Learning rate.
        project: Applied to every gradient; None leaves gradients as they are.
        names: Parameters that move; None moves all.
        start: The model to move, where that is not the original.
    """
    model = problem.model if start is None else start
    return projected_sgd(
        model,
        problem.forget_images,
        problem.forget_labels,
        loss=loss,
        names=[name for name, _ in model.named_parameters()] if names is None else names,
        project=project,
        update=replace(config.update, lr=lr),
        generator=generator_for(problem.seed, "update"),
    )


def sgd_at_every_rate(
    problem: Problem,
    config: UnlearnConfig,
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    *,
    project: Projector | None = None,
    names: Sequence[str] | None = None,
    start: nn.Module | None = None,
) -> RateSearch:
    """Minimize a loss at every rate; the other arguments are those of ``sgd``.

    The third argument of the loss is the generator of its own draws. Every rate gets a fresh one with the same seed, so
    that no rate depends on another.
    """

    def at(lr: float) -> Run:
        drawing = generator_for(problem.seed, "loss")

        def drawn(current: nn.Module, batch: Tensor) -> Tensor:
            return loss(current, batch, drawing)

        return sgd(problem, config, drawn, lr=lr, project=project, names=names, start=start)

    return rate_search(at, update=config.update)
