"""Every refusal, before any work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zspag.inputs import ForgetSet


@dataclass(frozen=True)
class Preflight:
    """What a look at model and forget set says.

    Attributes:
        num_classes: Width K of the logits.
        already_forgotten: Classes that earlier requests removed, in increasing order.
        original_accuracy: Accuracy of the model on the forget set, a fraction.
        frozen: Weights and other parameters that must not move, by the name they have in ``model``, with the reason.
        layout: "channels_last", or "plain" where the model fails with channels innermost (``plain_layout``).
        warnings: What the caller should be told, one sentence each.
    """

    num_classes: int
    already_forgotten: tuple[int, ...]
    original_accuracy: float
    frozen: Mapping[str, str]
    layout: str
    warnings: tuple[str, ...]


def preflight(
    model: nn.Module, forget: ForgetSet, *, num_classes: Any = None, already_forgotten: Any = ()
) -> Preflight:
    """Look at everything that can be known before the first second of work.

    Args:
        model: What ``inputs.classifier`` returned. It is not changed.
        forget: What ``inputs.forget_set`` returned.
        num_classes: What the caller says the width of the logits is, or None.
        already_forgotten: Classes that earlier requests removed; one int stands for itself.

    Raises:
        ValueError: If the request cannot work; the message says what, where, the value and the remedy.
    """
    raise NotImplementedError
