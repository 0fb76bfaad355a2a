"""Rules of forward mode for the layers of a convolutional net; torch's own rules do the rest, and every unusual case.

Torch's rule for batch norm takes the layer apart into a dozen passes over the activations, although in eval mode it is
one affine map. Its rule for a convolution adds two products out of place. That for max pooling moves channels outermost
and back.

Invariant: outputs and derivatives are those of torch's own rules, up to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FastTangents(TorchFunctionMode):
    """Forward mode inside goes through the rules of this module where they apply."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(func)
        return (func if rule is None else partial(rule, func))(*args, **(kwargs or {}))


def _convolution(
    func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    (x, dx), (w, dw) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(weight)
    if dw is None or (bias is not None and forward_ad.unpack_dual(bias).tangent is not None):
        return func(input, weight, bias, *rest, **options)
    tangent = func(x, dw, None, *rest, **options)
    if dx is not None:
        tangent += func(dx, w, None, *rest, **options)
    return forward_ad.make_dual(func(x, w, bias, *rest, **options), tangent)


def _batch_norm(
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    (x, dx), fixed = forward_ad.unpack_dual(input), (running_mean, running_var, weight, bias)
    moves = any(part is not None and forward_ad.unpack_dual(part).tangent is not None for part in fixed)
    if dx is None or moves or training or running_mean is None:
        return func(input, *fixed, training, momentum, eps)
    outputs = func(x, *fixed, training, momentum, eps)
    tangent = func(dx, torch.zeros_like(running_mean), running_var, weight, None, training, momentum, eps)
    return forward_ad.make_dual(outputs, tangent)  # the same map without its constant


def _max_pool(
    func: Callable[..., Tensor],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    (x, dx), window = forward_ad.unpack_dual(input), (kernel_size, stride, padding, dilation, ceil_mode)
    if dx is None or return_indices or x.dim() != 4:
        return func(input, *window, return_indices)
    outputs, winners = F.max_pool2d_with_indices(x, *window)
    taken = dx.movedim(1, 3).flatten(1, 2).gather(1, winners.movedim(1, 3).flatten(1, 2))
    return forward_ad.make_dual(outputs, taken.unflatten(1, outputs.shape[2:]).movedim(3, 1))


_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.batch_norm: _batch_norm,
    F.max_pool2d: _max_pool,
}
