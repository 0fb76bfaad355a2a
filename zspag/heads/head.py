"""The head: the last layer that the logits depend on, found by running the model.

Which layer that is cannot be read off the order in which modules were registered. So every linear layer and convolution
of a forward pass is noted, and from the last one backwards its output is replaced by noise: the first one whose noise
reaches the logits is the head. If the logits then *are* the noise, nothing follows it, and its rows are the classes.

Invariant: the model is given back as it was found, and replaced outputs live in these passes only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zspag.activations import CONVOLUTION_ARGUMENTS, CONVOLUTIONS, bind, holds_floats, tensors_in
from zspag.runtime import chunks, device_of, frozen, plain_attention

FEW = 5  # images of a pass that only asks which layer is the head
SCALES = (1e-2, 1.0, 1e2, 1e4)  # of the noise: a cap or a clamp on the logits shows at one of them
EVERY = -1


class NoHeadError(ValueError):
    """No linear layer or convolution makes the logits."""


@dataclass(frozen=True)
class Head:
    """The last layer that the logits depend on.

    Attributes:
        name: Name of its weight; "" where the weight is no parameter of the model.
        bias: Name of its bias; "" where there is none that is a parameter.
        call: Its place among the linear layers and convolutions of a forward pass.
        obstacle: Why its rows are not the classes, or cannot be written; "" where they are and can.
    """

    name: str
    bias: str
    call: int
    obstacle: str


@dataclass(frozen=True)
class LayerCall:
    """One execution of a linear layer or convolution: the function, its arguments by name, and what it gave."""

    function: Callable[..., Tensor]
    arguments: dict[str, Any]
    output: Tensor


def find_head(model: nn.Module, images: Tensor) -> Head:
    """Find the head of a classifier by forward passes on the first few images.

    Args:
        model: Maps images to logits, shape (n, K). Not changed.
        images: At least one, shape (n, C, H, W).

    Returns:
        The head, with the reason why its rows cannot be closed, if there is one.

    Raises:
        NoHeadError: If the model does not return logits, or no linear layer or convolution reaches them.
    """
    images = images[:FEW]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    logits, watch = _passed(model, images, _Calls())
    if logits.dim() != 2 or len(logits) != len(images):
        raise NoHeadError(f"the model returns shape {tuple(logits.shape)} for {len(images)} images, not (n, K) logits")
    for index in reversed(range(watch.count)):
        noise = _noise(watch.seen[index].output, 1.0)
        changed, _ = _passed(model, images, _Calls(index, answer=noise))
        if not torch.equal(changed, logits):
            obstacle = _obstacle(model, images, watch, index, logits, trainable)
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            weight, bias = (names.get(id(watch.seen[index].arguments.get(part)), "") for part in ("weight", "bias"))
            return Head(weight, bias, index, obstacle)
    raise NoHeadError(
        "the logits depend on no linear layer or convolution: they come from other operations, such as matmul"
    )


def head_inputs(model: nn.Module, images: Tensor, head: Head) -> Tensor:
    """Return the features: what enters the head, shape (n, d), float64 on the CPU; the mean over several positions.

    Raises:
        ValueError: If what enters the head does not divide among the images.
    """
    rows = []
    for (batch,) in chunks(images.to(device_of(model))):
        call = head_call(model, batch, head)
        entered = positions(call.arguments["input"], len(batch), linear=call.function is F.linear)
        rows.append(entered.double().mean(1).cpu())
    return torch.cat(rows)


def features_and_logits(model: nn.Module, images: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return what enters the head, shape (n, d), and the logits (n, K) of one pass, both with their graph.

    Args:
        model: Parameters that require grad get gradients through both.
        images: Shape (n, C, H, W), on the model's device.
        head: From ``find_head``; over several positions its inputs are averaged.
    """
    watch = _Calls(head.call)
    with plain_attention(), watch:
        logits = model(images)
    call = watch.seen[head.call]
    entered = positions(call.arguments["input"], len(images), linear=call.function is F.linear)
    return entered.mean(1), logits


def logits_under_head(original: nn.Module, changed: nn.Module, images: Tensor, head: Head) -> Tensor:
    """Return the logits (n, K) that the original's head gives to the features of another model.

    No weight is copied: what enters the head is replaced, so a normed or computed head is no exception.

    Args:
        original: Whose head reads; not changed.
        changed: Whose features are read, of the same architecture; not changed.
        images: Shape (n, C, H, W).
        head: The head of both.
    """
    answers = []
    for (batch,) in chunks(images.to(device_of(original))):
        features = head_call(changed, batch, head).arguments["input"]
        answers.append(_passed(original, batch, _Calls(head.call, given=features))[0])
    return torch.cat(answers)


def head_call(model: nn.Module, images: Tensor, head: Head) -> LayerCall:
    """Return the head's call in one pass over all ``images``: function, arguments by name, output."""
    return _passed(model, images, _Calls(head.call))[1].seen[head.call]


class _Calls(TorchFunctionMode):
    """Note linear layers and convolutions; at call ``at`` take other inputs, or give another output."""

    def __init__(self, at: int = EVERY, *, given: Tensor | None = None, answer: Tensor | None = None) -> None:
        super().__init__()
        self.at, self.given, self.answer = at, given, answer
        self.count = 0
        self.seen: dict[int, LayerCall] = {}
        self.elsewhere: set[int] = set()  # parameters that other functions take

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear and func not in CONVOLUTIONS:
            output = func(*args, **kwargs)
            if holds_floats(output):
                taken = tensors_in((args, tuple(kwargs.values())))
                self.elsewhere |= {
                    id(tensor) for tensor in taken if isinstance(tensor, nn.Parameter) and tensor is not output
                }
            return output
        bound = bind(("input", "weight", "bias") if func is F.linear else CONVOLUTION_ARGUMENTS, args, kwargs)
        index, self.count = self.count, self.count + 1
        if index == self.at and self.given is not None:
            bound["input"] = self.given
        output = func(**bound)
        if self.at in (index, EVERY):
            entered = bound["input"].clone() if self.at == index else bound["input"]  # what follows may work in place
            self.seen[index] = LayerCall(func, bound | {"input": entered}, output)
        return self.answer.clone() if index == self.at and self.answer is not None else output


@torch.no_grad()
def _passed(model: nn.Module, images: Tensor, watch: _Calls) -> tuple[Tensor, _Calls]:
    images = images.to(device_of(model), copy=True)  # a model may normalize in place
    with frozen(model), plain_attention(), watch:
        logits = model(images)
    if not isinstance(logits, Tensor):
        raise NoHeadError(f"the model returns {type(logits).__name__}, not a tensor of logits")
    return logits, watch


def _noise(like: Tensor, scale: float) -> Tensor:
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)) * scale
    return drawn.to(like)


def _obstacle(model: nn.Module, images: Tensor, watch: _Calls, index: int, logits: Tensor, trainable: set[int]) -> str:
    """Say why the rows of the layer at ``index`` cannot be closed, or return ""."""
    call = watch.seen[index]
    weight, bias = call.arguments["weight"], call.arguments.get("bias")
    known = {id(parameter) for parameter in model.parameters()}
    others = [other.arguments for place, other in watch.seen.items() if place != index]
    elsewhere = watch.elsewhere | {id(other.get(part)) for other in others for part in ("weight", "bias", "input")}
    if id(weight) not in known:
        return "its weight is no parameter: it is computed at every pass (parametrized, pruned or normed rows)"
    if len(weight) != logits.shape[1] or call.arguments.get("groups", 1) != 1:
        return f"its {len(weight)} outputs are not the {logits.shape[1]} logits"
    if not all(_follows_nothing(model, images, index, call, scale) for scale in SCALES):
        return "its outputs are changed before they are returned (scaled, shifted, capped, rectified or mixed)"
    if bias is None:
        return "it has no bias: at features of 0 all logits tie"
    if id(bias) not in known:
        return "its bias is no parameter: it is computed at every pass"
    if {id(weight), id(bias)} & elsewhere:
        return "its weight or bias is used elsewhere in the model, too (tied)"
    if not {id(weight), id(bias)} <= trainable:
        return "its weight or bias is frozen (requires_grad=False)"
    return ""


def _follows_nothing(model: nn.Module, images: Tensor, index: int, call: LayerCall, scale: float) -> bool:
    """Tell whether the model returns what the layer gives, at one position or on average, or its log-softmax."""
    noise, linear = _noise(call.output, scale), call.function is F.linear
    returned, _ = _passed(model, images, _Calls(index, answer=noise))
    try:
        rows = positions(noise, len(images), linear=linear).double()
    except ValueError:  # rows of several images at once
        return False
    precision = max(torch.finfo(kind).eps for kind in (noise.dtype, returned.dtype))
    wanted = [rows.mean(1), *(rows.unbind(1) if rows.shape[1] > 1 else ())]
    wanted += [one.log_softmax(1) for one in wanted]
    return any(torch.allclose(returned.double(), one, rtol=4 * precision, atol=8 * precision * scale) for one in wanted)


def positions(entries: Tensor, count: int, *, linear: bool) -> Tensor:
    """Bring what enters or leaves a layer to shape (count, positions or tokens, features).

    Raises:
        ValueError: If the layer's rows do not divide among ``count`` images.
    """
    if not linear:
        entries = (entries if entries.dim() > 3 or len(entries) == count else entries[None]).movedim(1, -1)
    elif len(entries) != count and entries.shape[1:2] == (count,):
        entries = entries.transpose(0, 1)  # tokens first
    if entries.shape[:-1].numel() % count:
        raise ValueError(f"features of shape {tuple(entries.shape)} do not divide among {count} images")
    return entries.reshape(count, -1, entries.shape[-1])
