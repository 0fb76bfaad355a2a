"""Batch norm folded into the convolution before it, for the many passes of an attack.

In eval mode a batch norm is one affine map per channel, y = s (W x + b - mean) + beta with s = gamma / sqrt(var + eps):
W may be scaled instead of every activation. Forward and backward then save a pass over the activations per layer each,
a tenth to a third of an attack's time. The scaled weight stays a function of W, so all gradients are those of the plain
model, up to rounding. Updates do without: they gain a few per cent on larger nets and lose as much on small ones.

A pass of one image shows which convolution's output enters a batch norm and nothing else. To look takes as long as the
passes of ten images, so nothing is folded when little work is ahead.

Invariant: a model whose folded logits differ from its own is not folded, and the model is never changed.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zspag.activations import CONVOLUTION_ARGUMENTS, CONVOLUTIONS, bind, holds_floats, tensors_in
from zspag.runtime import channels_last, frozen

NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
WORTH = 200  # passes of one image from which on folded norms save more than it takes to look for them
AGREE = 1e-3  # of the largest logit: rounding is far below, a pair that does not belong together far above


@dataclass(frozen=True, eq=False)
class Pair:
    """A convolution's weight and the batch norm behind it: the model's own tensors, whose values may change."""

    weight: Tensor
    mean: Tensor
    variance: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the name of the field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def called_with(self, others: Mapping[Tensor, Tensor]) -> "Pair":
        """Return the pair of a model that is called with ``others`` in the place of its own tensors."""
        instead: dict[str, Any] = {name: others.get(tensor, tensor) for name, tensor in self.tensors.items()}
        return replace(self, **instead)


@torch.no_grad()
def conv_bn_pairs(model: nn.Module, images: Tensor, *, passes: float = math.inf) -> tuple[Pair, ...]:
    """Return the batch norms of ``model``, in eval mode, that may be folded into the convolution before them.

    Args:
        model: Not changed; hooks on it see one pass, and a second one if there are pairs.
        images: Shape (n, C, H, W); the first one is passed.
        passes: How often all images are going to be passed, a derivative counting as one more; few are not worth it.

    Returns:
        Pairs in the order of use; none if the folded model's logits are not the plain one's.
    """
    if passes * len(images) < WORTH:
        return ()
    with frozen(model):
        watch = _Uses({id(tensor) for tensor in (*model.parameters(), *model.buffers())})
        with watch:
            plain = model(images[:1])
        pairs = watch.pairs()
        if not pairs:
            return ()
        with fuse_conv_bn(pairs):
            other = model(images[:1])
    limit = AGREE * plain.abs().max()
    return pairs if bool(((other - plain).abs() <= limit).all()) else ()  # NaN is not below


@contextmanager
def fuse_conv_bn(pairs: Sequence[Pair]) -> Generator[None, None, None]:
    """Fold the norms of ``pairs`` in every pass of their model, in eval mode; passes of other models go on as ever.

    Where nothing requires grad the weights are scaled in the first pass, once: they must not change before the end.
    """
    if not pairs:
        yield
        return
    with _Fused({id(pair.weight): pair for pair in pairs}):
        yield


class _Uses(TorchFunctionMode):
    """Records which calls make and use every tensor of a pass."""

    def __init__(self, own: Set[int]) -> None:
        super().__init__()
        self.own = own  # the model's parameters and buffers, by id
        self.made: dict[int, Tensor] = {}  # a convolution's output, and its weight
        self.norms: list[tuple[int, Pair]] = []  # what entered a batch norm, and the norm
        self.uses: Counter[int] = Counter()
        self.calls: Counter[int] = Counter()
        self.alive: list[Tensor] = []  # what is forgotten may give its id to another

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if holds_floats(output):
            given = list(tensors_in((args, tuple(kwargs.values()))))
            self.alive += [*given, *tensors_in((output,))]
            self.uses.update(map(id, given))
        if func in CONVOLUTIONS:
            weight = bind(CONVOLUTION_ARGUMENTS, args, kwargs)["weight"]
            if id(weight) in self.own:
                self.made[id(output)] = weight
                self.calls[id(weight)] += 1
        elif func is F.batch_norm:
            self._see_norm(bind(NORM_ARGUMENTS, args, kwargs))
        return output

    def _see_norm(self, bound: dict[str, Any]) -> None:
        entered = id(bound["input"])
        mean, variance, gamma, beta = (bound.get(part) for part in NORM_ARGUMENTS[1:5])
        own = all(part is None or id(part) in self.own for part in (mean, variance, gamma, beta))
        if bound.get("training") or not own or mean is None or variance is None or entered not in self.made:
            return
        self.norms.append((entered, Pair(self.made[entered], mean, variance, gamma, beta, bound.get("eps", 1e-5))))

    def pairs(self) -> tuple[Pair, ...]:
        """Return those whose convolution is called once, and its output used once."""
        return tuple(pair for entered, pair in self.norms if self.uses[entered] == self.calls[id(pair.weight)] == 1)


class _Fused(TorchFunctionMode):
    """Scales the weights of some convolutions, and passes over the batch norms behind them."""

    def __init__(self, pairs: Mapping[int, Pair]) -> None:
        super().__init__()
        self.pairs = pairs
        self.scaled: dict[int, tuple[Tensor, Tensor]] = {}
        self.normed: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS:
            bound = bind(CONVOLUTION_ARGUMENTS, args, kwargs)
            if (pair := self.pairs.get(id(bound["weight"]))) is not None:
                weight, bias = self._once(pair, bound.get("bias"))
                output = func(**(bound | {"weight": weight, "bias": bias}))
                self.normed[id(output)] = output
                return output
        elif func is F.batch_norm:
            entered = bind(NORM_ARGUMENTS, args, kwargs)["input"]
            if self.normed.pop(id(entered), None) is not None:
                return entered
        return func(*args, **kwargs)

    def _once(self, pair: Pair, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if any(tensor.requires_grad for tensor in (*pair.tensors.values(), *tensors_in(bias))):
            return _scaled(pair, bias)  # an update may be under way, and every backward pass needs its own graph
        if id(pair.weight) not in self.scaled:
            self.scaled[id(pair.weight)] = _scaled(pair, bias)
        return self.scaled[id(pair.weight)]


def _scaled(pair: Pair, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that does the norm's work too."""
    scale = (pair.variance + pair.eps).rsqrt()
    if pair.gamma is not None:
        scale = scale * pair.gamma
    shift = (-pair.mean if bias is None else bias - pair.mean) * scale
    if pair.beta is not None:
        shift = shift + pair.beta
    scaled = pair.weight * scale.view(-1, *(1,) * (pair.weight.dim() - 1))
    # A CPU convolves faster with channels innermost, and goes by the weight where the images do not say.
    return channels_last(scaled), shift
