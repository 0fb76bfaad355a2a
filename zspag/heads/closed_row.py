"""A row that no input can reach: forgotten classes are never answered, whatever comes before the head.

The head gives z = W h + b. For every forgotten class f, all of them together,

    w_f = mean_o w_o,    b_f = mean_o b_o - gap,    o over the retained classes,

so that z_f = mean_o z_o - gap < max_o z_o for *every* h, of any sign. Answers are then those of the masked original.

This is exact and free, so it is no evidence of forgetting: the untouched original with its rows closed forgets
completely and loses nothing. It is the control of every comparison; unlearned models are compared with their rows open.

Invariant: the rows of retained classes stay as they are, bit for bit; the caller's model is only read.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.heads.head import Head, NoHeadError, find_head, head_call, positions
from zspag.runtime import chunks, device_of

MEASURED = 256  # images that the size of the logits is measured on
# CHOICE: the closed model may be run in bfloat16 (autocast), and on images with far larger features than those at hand.
# A larger gap costs nothing: it only makes the forgotten classes still less probable.
REACH, REACH_BFLOAT16 = 100.0, 4.0
LEAST_GAP = 1.0  # nats: even logits without any size are told apart
ROUNDINGS = 12  # of numbers up to the size of the logits: weights, stored mean row, logits, a log-softmax; both sides


@dataclass(frozen=True)
class Closed:
    """A copy of a model, its rows closed if that can be done.

    Attributes:
        model: The copy; unchanged where the rows stay open.
        closed: Whether no input can be answered with one of the classes.
        reason: Why the rows stay open, a sentence; "" where they are closed.
        head: Name of the head's weight; "" where it has none.
        gap: How far a closed logit lies below the mean of the retained ones, in nats; 0 where the rows stay open.
        reach: Rounding included, the guarantee holds for features up to this many times the size of the largest that
            were measured; 0 where the rows stay open.
    """

    model: nn.Module
    closed: bool
    reason: str
    head: str
    gap: float
    reach: float


def close_rows(model: nn.Module, classes: Sequence[int], *, images: Tensor) -> Closed:
    """Return a copy of a model that answers no input with one of ``classes``, or the reason why there is none.

    Args:
        model: Maps images to logits, shape (n, K), or to their log-softmax. Not changed.
        classes: All classes forgotten now and before. One that is left out counts as retained: if its row was closed
            or pushed away before, what it was still sits in the rows closed now.
        images: At least one, shape (n, C, H, W); they show which layer is the head, and the size of the logits.

    Returns:
        The copy. Rows stay open, and ``reason`` says so, where the head has no bias, is not the last step (scaled,
        capped or normed logits), shares its weight, computes it, or is frozen.

    Raises:
        ValueError: If a class is not among the logits, none is given, or none would be left.

    Note:
        In exact arithmetic any gap above 0 is enough. In floating point the error of a logit grows with the size of
        its terms, S(h) = max_o sum_i |w_oi h_i| + |b_o|: with u the unit roundoff, a that of the sums and d terms,
        |error| <= (12 u + 2 d a) S for both sides together. The gap exceeds this bound for 100 times the largest S of
        ``images`` in the model's own precision, and for 4 times in bfloat16. Beyond, rounding may decide near ties.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> images = torch.rand(50, 1, 2, 2)
        >>> 2 in close_rows(net, [2], images=images).model(images).argmax(1)
        False
    """
    gone = sorted(set(classes))
    changed = copy.deepcopy(model)
    try:
        head = find_head(changed, images)
    except NoHeadError as error:
        return Closed(changed, False, str(error), "", 0.0, 0.0)
    if head.obstacle:
        return Closed(changed, False, f"the head {head.name or '(unnamed)'}: {head.obstacle}", head.name, 0.0, 0.0)
    parameters = dict(changed.named_parameters())
    weight, bias = parameters[head.name], parameters[head.bias]
    kept = [label for label in range(len(weight)) if label not in gone]
    if not gone or gone[0] < 0 or gone[-1] >= len(weight) or not kept:
        raise ValueError(f"classes to close must be some, and not all, of 0..{len(weight) - 1}, got {gone}")
    size, terms, kind = _size(changed, images[:MEASURED], head, kept)
    rounding = _rounding(kind, terms)
    gap = max(LEAST_GAP, size * REACH * rounding, size * REACH_BFLOAT16 * _rounding(torch.bfloat16, terms))
    within = gap * (1 - 2 * torch.finfo(kind).eps) / rounding  # sizes at which rounding decides nothing
    reach = min(within, torch.finfo(kind).max - gap) / size if size else math.inf  # and no logit overflows
    if not reach >= REACH_BFLOAT16:
        reason = f"the head {head.name}: logits of size {size:.3g} leave no room for a gap of {gap:.3g} in {kind}"
        return Closed(changed, False, reason, head.name, 0.0, 0.0)
    with torch.no_grad():
        weight[gone] = weight[kept].double().mean(0).to(weight)
        bias[gone] = (bias[kept].double().mean() - gap).to(bias)
    return Closed(changed, True, "", head.name, gap, reach)


def original_row_closed(model: nn.Module, classes: Sequence[int], *, images: Tensor) -> nn.Module:
    """Return the control of every table: the untouched original, its rows closed. Arguments: ``close_rows``.

    Raises:
        ValueError: If the rows cannot be closed; the message says why.
    """
    closed = close_rows(model, classes, images=images)
    if not closed.closed:
        raise ValueError(f"there is no control with closed rows: {closed.reason}")
    return closed.model


def _rounding(kind: torch.dtype, terms: int) -> float:
    """Return the bound on the error of two compared logits, as a share of the size of their terms."""
    sums = torch.finfo(torch.float64 if kind == torch.float64 else torch.float32).eps / 2
    return ROUNDINGS * torch.finfo(kind).eps / 2 + 2 * terms * sums


@torch.no_grad()
def _size(model: nn.Module, images: Tensor, head: Head, kept: Sequence[int]) -> tuple[float, int, torch.dtype]:
    """Return the largest S of the images over the retained classes, the terms of a sum, and the coarsest dtype."""
    largest = []
    for (batch,) in chunks(images.to(device_of(model))):
        call = head_call(model, batch, head)
        parts = {
            name: value.abs().double() if isinstance(value, Tensor) else value for name, value in call.arguments.items()
        }
        sizes = positions(call.function(**parts), len(batch), linear=parts["weight"].dim() == 2)
        largest.append(sizes[..., list(kept)].max())
    weight = call.arguments["weight"]
    coarsest = max((call.output.dtype, weight.dtype), key=lambda kind: torch.finfo(kind).eps)
    return torch.stack(largest).max().item(), weight[0].numel() + sizes.shape[1], coarsest
