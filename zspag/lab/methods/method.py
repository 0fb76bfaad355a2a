"""What a method is: the problem it is handed, its entry in the table, and the two loops that methods share.

Invariant: a rate never depends on another, and no rule sees anything but the forget set.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig
from zspag.profiles import Ladders
from zspag.projected_sgd import RateSearch, Run, fit_labels, projected_sgd, rate_search
from zspag.proxy_statistics import ProxyStatistics
from zspag.pseudo_labels import PseudoLabeler
from zspag.runtime import generator_for, seed_of
from zspag.subspaces import Projector

FORGET, PROXIES, ORACLE = "forget set", "forget set, proxies made from it", "forget set and RETAIN SET (oracle)"


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method is handed."""

    model: nn.Module  # the original; a method works on a copy
    forget_images: Tensor  # shape (n, C, H, W), values in [0, 1]
    forget_labels: Tensor  # shape (n,)
    num_classes: int  # width K of the logits
    generator: torch.Generator  # on the CPU, of all that a method draws
    statistics: ProxyStatistics  # views, proxies and moments, derived from model and forget images alone
    retain: tuple[Tensor, Tensor] | None = None  # images and labels of an oracle; None for a forget-only method

    @cached_property
    def forget_classes(self) -> tuple[int, ...]:
        """Classes to forget, in increasing order."""
        return tuple(sorted(set(self.forget_labels.tolist())))

    @cached_property
    def seed(self) -> int:
        """Seed of the method's streams, drawn from ``generator`` once, at the first use."""
        return seed_of(self.generator)

    @property
    def head(self) -> str:
        """Name of the last layer that can be projected, "" for the model itself."""
        return self.statistics.names[-1].rpartition(".")[0]

    @property
    def head_names(self) -> list[str]:
        """Names of all parameters of that layer."""
        return [name for name, _ in self.model.named_parameters() if name.rpartition(".")[0] == self.head]

    @property
    def oracle_data(self) -> tuple[Tensor, Tensor]:
        """Retain images and labels.

        Raises:
            ValueError: If the method is no oracle.
        """
        if self.retain is None:
            raise ValueError("a forget-only method asked for retain data: only an oracle is handed any")
        return self.retain


@dataclass(frozen=True)
class Method:
    """An entry of the table of methods."""

    title: str  # name in figures and tables
    run: Callable[[Problem, UnlearnConfig], RateSearch]  # gives runs at the learning rates of ``config.update``
    reads: str  # what data it touches, in words
    reference: str  # where it comes from
    ladder: str  # which of ``profiles.Ladders`` it is run at
    fixed: tuple[str, ...] = ()  # names of the numbers that its code fixes, constants of its module

    @property
    def oracle(self) -> bool:
        """Whether it is handed retain data."""
        return self.reads == ORACLE


def listing(methods: Mapping[str, Method], *, ladders: Ladders) -> Iterator[str]:
    """Yield the lines of ``zspag methods``; rates are those of ``ladders``."""
    for name, method in methods.items():
        yield f"{name}: {method.title}"
        yield "  " + (method.run.__doc__ or "").partition("\n")[0]
        yield f"  reads: {method.reads}"
        yield f"  reference: {method.reference}"
        yield f"  ladder: {method.ladder}, " + ", ".join(f"{rate:g}" for rate in getattr(ladders, method.ladder))
        if method.fixed:
            module = sys.modules[method.run.__module__]
            yield "  fixed: " + ", ".join(f"{number} = {getattr(module, number):g}" for number in method.fixed)


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
    """Fit the forget samples to pseudo-labels at one rate; the arguments are those of ``sgd_at_every_rate``."""
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


def sgd_at_every_rate(
    problem: Problem,
    config: UnlearnConfig,
    loss: Callable[[nn.Module, Tensor, Any], Tensor],
    *,
    project: Projector | None = None,
    names: Sequence[str] | None = None,
    start: nn.Module | None = None,
    stream: Callable[[torch.Generator], Any] = lambda drawing: drawing,
) -> RateSearch:
    """Minimize a loss over batches of the forget set at every rate.

    Args:
        problem: Model, forget set and seed.
        config: Rates, steps and epochs.
        loss: Maps the current model, the indices of a batch, and what ``stream`` returned to a scalar.
        project: Applied to every gradient; None leaves gradients as they are.
        names: Parameters that move; None moves all.
        start: The model to move, where that is not the original.
        stream: Makes the third argument of the loss from a generator that starts alike at every rate; by default it is
            the generator itself.
    """
    model = problem.model if start is None else start

    def at(lr: float) -> Run:
        drawing = stream(generator_for(problem.seed, "loss"))
        return projected_sgd(
            model,
            problem.forget_images,
            problem.forget_labels,
            loss=lambda current, batch: loss(current, batch, drawing),
            names=[name for name, _ in model.named_parameters()] if names is None else names,
            project=project,
            update=replace(config.update, lr=lr),
            generator=generator_for(problem.seed, "update"),
        )

    return rate_search(at, update=config.update)
