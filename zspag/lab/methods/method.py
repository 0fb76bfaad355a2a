"""What a method is: the problem it is handed, the entry in the table, and the loop that most of them share.

Invariant: a rate never depends on another, and no rule sees anything but the forget set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig
from zspag.projected_sgd import BatchLoss, RateSearch, Run, projected_sgd, rate_search
from zspag.proxy_statistics import ProxyStatistics
from zspag.runtime import generator_for, seed_of

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
        material: Views, proxies and moments, derived from model and forget images alone.
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
        """Seed of the method's streams, drawn from ``generator`` where it is first asked for, and only there."""
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


RunMethod = Callable[[Problem, UnlearnConfig], RateSearch]  # runs over the learning rates of ``config.update``


@dataclass(frozen=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        title: Name in figures and tables.
        run: The method.
        reads: What data it touches, in words.
        reference: Where it comes from.
        ladder: Which of ``config.Ladders`` it is run at.
        oracle: It is handed retain data.
    """

    title: str
    run: RunMethod
    reads: str
    reference: str
    ladder: str
    oracle: bool = False


def layer_of(weight: str) -> str:
    """Return the name of the layer that a weight belongs to, "" for the model itself."""
    return weight.rpartition(".")[0]


def head_names(problem: Problem) -> list[str]:
    """Return the names of all parameters of the last layer that can be projected."""
    head = layer_of(problem.statistics.names[-1])
    return [name for name, _ in problem.model.named_parameters() if layer_of(name) == head]


def sgd_at_every_rate(
    problem: Problem,
    config: UnlearnConfig,
    make_loss: Callable[[torch.Generator], BatchLoss],
    *,
    names: Sequence[str] | None = None,
    start: nn.Module | None = None,
) -> RateSearch:
    """Minimize a loss at every rate.

    Args:
        problem: Model, forget set and seed.
        config: Rates and steps.
        make_loss: Receives the generator of the loss's own draws, afresh for every rate: no rate depends on another.
        names: Parameters that move; None moves all.
        start: The model to move, where that is not the original.
    """
    model, update = problem.model if start is None else start, config.update
    moving = [name for name, _ in model.named_parameters()] if names is None else names

    def run(lr: float) -> Run:
        return projected_sgd(
            model,
            problem.forget_images,
            problem.forget_labels,
            loss=make_loss(generator_for(problem.seed, "loss")),
            names=moving,
            project=None,
            update=replace(update, lr=lr),
            generator=generator_for(problem.seed, "update"),
        )

    return rate_search(run, update=update)
