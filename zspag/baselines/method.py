"""What a method is: the one signature, the entry in the table, and the loop that most of them share.

Invariant: a rate never depends on another, and no rule sees anything but the forget set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.material import Material
from zspag.runtime import generator_for
from zspag.sgd import BatchLoss, Ladder, climb, descend

FORGET, PROXIES, ORACLE = "forget set", "forget set, proxies made from it", "forget set and RETAIN SET (oracle)"


class Run(Protocol):
    """The signature of every method."""

    def __call__(
        self,
        model: nn.Module,
        forget_images: Tensor,
        forget_labels: Tensor,
        *,
        num_classes: int,
        config: UnlearnConfig,
        generator: torch.Generator,
        material: Material,
    ) -> Ladder:
        """Return the runs of the method over the learning rates of ``config.update``."""


@dataclass(frozen=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        title: Name in figures and tables.
        run: The method; None for an oracle.
        oracle: Takes ``retain_images`` as well; None for a forget-only method.
        reads: What data it touches, in words.
        reference: Where it comes from.
        ladder: Which of ``config.Ladders`` it is run at.
    """

    title: str
    run: Run | None
    oracle: Callable[..., Ladder] | None
    reads: str
    reference: str
    ladder: str


def forget_classes(forget_labels: Tensor) -> tuple[int, ...]:
    """Return the classes to forget, in order."""
    return tuple(sorted(set(forget_labels.tolist())))


def layer_of(weight: str) -> str:
    """Return the name of the layer that a weight belongs to, "" for the model itself."""
    return weight.rpartition(".")[0]


def head_names(model: nn.Module, material: Material) -> list[str]:
    """Return the names of all parameters of the last layer that can be projected."""
    head = layer_of(material.names[-1])
    return [name for name, _ in model.named_parameters() if layer_of(name) == head]


def descend_all(
    model: nn.Module,
    forget_images: Tensor,
    forget_labels: Tensor,
    *,
    update: UpdateConfig,
    seed: int,
    make_loss: Callable[[torch.Generator], BatchLoss],
    names: Sequence[str] | None = None,
) -> Ladder:
    """Minimize a loss at every rate; all parameters move unless ``names`` says which.

    ``make_loss`` receives the generator of the loss's own draws, afresh for every rate: no rate depends on another.
    """
    moving = [name for name, _ in model.named_parameters()] if names is None else names
    return climb(
        lambda lr: descend(
            model, forget_images, forget_labels, loss=make_loss(generator_for(seed, "loss")), names=moving,
            project=None, update=replace(update, lr=lr), generator=generator_for(seed, "update"),
        ),
        update=update,
    )  # fmt: skip
