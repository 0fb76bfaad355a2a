"""What enters each convolution, linear and attention layer, as rows of a matrix.

For a weight seen as a matrix ``W`` (d_out x d), the layer computes ``W a`` for each of its input rows ``a``: one row
per patch position of a convolution, one per leading index of a linear layer. A weight may consist of blocks of output
rows with separate inputs: the groups of a grouped convolution, or query, key and value of packed attention.

The rows are caught where the arithmetic happens (``F.linear``, ``F.conv*d``, ``F.multi_head_attention_forward``) and
matched to parameters by identity. So a weight is covered whichever module calls it, a tied weight takes the rows of all
its uses, padding modes need no special case, and no hook is left on anybody's model.

Invariant: ``as_blocks(W) @ rows^T`` is the layer's output without bias.
"""

import inspect
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zspag.runtime import frozen, plain_attention


@dataclass(frozen=True)
class Outputs:
    """What a layer returned for its rows.

    Attributes:
        raw: The layer's output as the model goes on with it, part of the graph.
        rows: Brings ``raw``, or its gradient, to the layout of the rows, shape (blocks, R, d_out / blocks).
    """

    raw: Tensor
    rows: Callable[[Tensor], Tensor]


Visit = Callable[[str, Tensor, Outputs | None], None]


def as_blocks(weight: Tensor, blocks: int) -> Tensor:
    """View a weight (or its gradient) as stacked matrices, shape (blocks, d_out / blocks, d)."""
    return weight.reshape(blocks, weight.shape[0] // blocks, -1)


@contextmanager
def watching(model: nn.Module, visit: Visit) -> Generator[dict[str, str], None, None]:
    """Call ``visit(name, rows, outputs)`` for every weight that a forward pass of ``model`` multiplies with something.

    Args:
        model: Runs in eval mode, frozen, with plain attention; all restored afterwards.
        visit: Receives the parameter's name, its input rows (blocks, R, d) and its outputs (None inside attention,
            where they cannot be seen).

    Yields:
        Weights that cannot be projected, by name, with the reason; complete once the forward passes are done.
    """
    watch = _Watch(model, visit)
    with frozen(model), plain_attention(), watch:
        yield watch.unprojectable


@torch.no_grad()
def projectable(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Return the names of the weights that can be projected, as a pass of ``images`` (n, C, H, W) uses them."""
    seen: dict[str, None] = {}
    with watching(model, lambda name, _rows, _outputs: seen.setdefault(name)) as unprojectable:
        model(images)
    return tuple(name for name in seen if name not in unprojectable)


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module, visit: Visit) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.visit = visit
        self.blocks: dict[str, int] = {}
        self.unprojectable = {
            name: "no forward pass used it" for name, parameter in model.named_parameters() if parameter.dim() > 1
        }
        self.other_uses: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.linear:
            bound = bind(("input", "weight", "bias"), args, kwargs)
            outputs = Outputs(output, lambda raw: linear_rows(raw)[None])
            self._see(bound["weight"], linear_rows(bound["input"])[None], outputs)
        elif func in CONVOLUTIONS:
            bound = bind(CONVOLUTION_ARGUMENTS, args, kwargs)
            self._see_convolution(bound, output)
        elif func is F.multi_head_attention_forward:
            self._see_attention(inspect.signature(func).bind(*args, **kwargs).arguments)
        elif holds_floats(output):
            for argument in tensors_in((args, tuple(kwargs.values()))):
                name = self.names.get(id(argument))
                if name is not None and argument.dim() > 1:
                    reason = f"used by {getattr(func, '__name__', func)}, which is no conv or linear layer"
                    self._refuse(name, reason)
        return output

    def _see(self, weight: Any, rows: Tensor, outputs: Outputs | None) -> None:
        name = self.names.get(id(weight))
        if name is None or name in self.other_uses:
            return
        if self.blocks.setdefault(name, len(rows)) != len(rows):
            self._refuse(name, "its uses group the inputs differently")
            return
        self.unprojectable.pop(name, None)
        self.visit(name, rows.detach(), outputs)

    def _refuse(self, name: str, reason: str) -> None:
        self.other_uses.add(name)
        self.unprojectable[name] = reason

    def _see_convolution(self, bound: dict[str, Any], output: Tensor) -> None:
        weight, groups = bound["weight"], bound.get("groups", 1)
        if id(weight) not in self.names:
            return

        def output_rows(raw: Tensor) -> Tensor:
            batched = raw if raw.dim() == weight.dim() else raw[None]
            positions = batched.flatten(2).transpose(1, 2)  # (B, positions, d_out)
            return positions.reshape(-1, groups, weight.shape[0] // groups).transpose(0, 1)

        self._see(weight, rows_of_convolution(bound), Outputs(output, output_rows))

    def _see_attention(self, call: dict[str, Any]) -> None:
        """Take the rows of the packed input projection and, by a second call, of the output projection."""
        query, key, value = (linear_rows(call[part]) for part in ("query", "key", "value"))
        if call.get("use_separate_proj_weight"):
            for part, rows in (("q", query), ("k", key), ("v", value)):
                self._see(call[f"{part}_proj_weight"], rows[None], None)
        else:
            # Three blocks of one length: zero rows dilute the mean of a a^T, and the scale restores it.
            longest = max(len(query), len(key), len(value))
            padded = [
                F.pad(part * (longest / len(part)) ** 0.5, (0, 0, 0, longest - len(part)))
                for part in (query, key, value)
            ]
            self._see(call["in_proj_weight"], torch.stack(padded), None)
        for part in ("bias_k", "bias_v"):
            if (name := self.names.get(id(call.get(part)))) is not None:
                self._refuse(name, "a token that attention appends, which multiplies nothing")
        out_weight = call["out_proj_weight"]
        if id(out_weight) in self.names:
            # With the identity as output projection, attention returns the rows that enter the real one.
            identity = torch.eye(out_weight.shape[1], dtype=out_weight.dtype, device=out_weight.device)
            inner = {**call, "out_proj_weight": identity, "out_proj_bias": None}
            rows = linear_rows(F.multi_head_attention_forward(**inner)[0])
            self._see(out_weight, rows[None], None)


CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, ``names`` being the order in which the function takes them."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def tensors_in(value: Any) -> Generator[Tensor, None, None]:
    """Yield the tensors of a tensor, or of nested tuples and lists."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Tensor):
        yield value


def holds_floats(output: Any) -> bool:
    """Tell whether what a function returned holds a tensor of floats."""
    return any(item.is_floating_point() for item in tensors_in(output))


def linear_rows(inputs: Tensor) -> Tensor:
    """Return what enters a linear layer, any leading dimensions, as shape (R, d)."""
    return inputs.reshape(-1, inputs.shape[-1])


def rows_of_convolution(bound: dict[str, Any]) -> Tensor:
    """Return the rows (groups, R, d) that a convolution multiplies with its weight, from its arguments by name."""
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given = {name: bound.get(name, default) for name, default in options.items()}
    return convolution_rows(bound["input"], bound["weight"].shape[2:], **given)


def convolution_rows(
    inputs: Tensor,
    kernel: tuple[int, ...],
    *,
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
) -> Tensor:
    """Return the patches that a 1-, 2- or 3-d convolution multiplies with its weight.

    Args:
        inputs: Shape (B, C, *spatial) or (C, *spatial).
        kernel: Spatial size of the weight.
        stride: As in ``F.conv2d``.
        padding: As in ``F.conv2d``, "same" and "valid" included.
        dilation: As in ``F.conv2d``.
        groups: Groups of channels.

    Returns:
        Shape (groups, B * positions, C / groups * prod(kernel)).
    """
    rank = len(kernel)
    x = inputs if inputs.dim() == rank + 2 else inputs[None]
    strides, dilations = _each(stride, rank), _each(dilation, rank)
    spans = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    if padding == "same":
        pads = [(span // 2, span - span // 2) for span in spans]
    else:
        pads = [(amount, amount) for amount in _each(0 if padding == "valid" else padding, rank)]
    x = F.pad(x, [amount for pair in reversed(pads) for amount in pair])
    for axis, (span, step, gap) in enumerate(zip(spans, strides, dilations, strict=True)):
        x = x.unfold(2 + axis, span + 1, step)[..., ::gap]  # (B, C, *positions, *kernel)
    x = x.unflatten(1, (groups, -1))  # (B, groups, C / groups, *positions, *kernel)
    channels, positions, patch = x.shape[2], range(3, 3 + rank), range(3 + rank, 3 + 2 * rank)
    # Two copies take half the time of one: channels, which lie together, are read in runs before they are turned.
    x = x.permute(1, 0, *positions, *patch, 2).reshape(groups, -1, math.prod(kernel), channels)
    return x.transpose(2, 3).reshape(groups, -1, channels * math.prod(kernel))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values
