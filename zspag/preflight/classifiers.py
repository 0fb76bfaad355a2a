"""A user's model as the method needs it: a copy in float32 or float64 that maps a batch to a tensor of logits.

Invariant: the user's own model is only read, and can be had back from what is made here, with its own type and names.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zspag.preflight.refusal import Refusal
from zspag.process.surroundings import plain_layout
from zspag.runtime import copied, frozen, without_graph

TYPES = ("dtype", "data type", "scalar type", "Input type", "Half", "BFloat16", "Double")  # by which torch names them


class Classifier(nn.Module):
    """A model whose answers are brought to the form that the method works on: a batch in, a tensor of logits out.

    Attributes:
        inner: The user's own model.
        entry: The part of ``inner`` that is called ("module" of ``DataParallel``); "" calls ``inner`` itself.
        clones: The model changes its input in place, so that it has to be given a clone.
        unwraps: The logits have to be taken out of what the model returns.
    """

    def __init__(self, inner: nn.Module, *, entry: str, clones: bool, unwraps: bool) -> None:
        super().__init__()
        self.inner, self.entry, self.clones, self.unwraps = inner, entry, clones, unwraps

    def forward(self, images: Tensor) -> Any:
        """Return the logits, shape (n, K)."""
        answer = self.inner.get_submodule(self.entry)(images.clone() if self.clones else images)
        return logits_in(answer) if self.unwraps else answer


def own_name(model: nn.Module, name: str) -> str:
    """Return the name that a parameter of ``model``, wrapped or not, has in the user's own model."""
    return name.removeprefix("inner.") if isinstance(model, Classifier) else name


def own_model(model: nn.Module) -> nn.Module:
    """Return the user's own model from ``model``, wrapped or not."""
    return model.inner if isinstance(model, Classifier) else model


def logits_in(answer: Any) -> Any:
    """Return what an answer calls its logits (an attribute or a key), or None if it has no such part."""
    if isinstance(answer, Mapping):
        return answer.get("logits")
    return getattr(answer, "logits", None)


def classifier(model: nn.Module, images: Tensor, *, num_classes: int | None = None) -> nn.Module:
    """Return ``model`` itself if it maps a batch to a tensor, or a ``Classifier`` around it that does.

    Args:
        model: What ``working_copy`` returned. It is not changed, and becomes part of the answer.
        images: Forget images, shape (n, C, H, W); one is passed through a copy of the model.
        num_classes: For messages.

    Raises:
        ValueError: If the model fails on an image, or returns nothing that could be its logits.
    """
    entry = ""  # of wrappers that hide the layers from whoever watches them work
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        entry = "module"
    elif type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):  # the import takes a second
        entry = "_orig_mod"
    clone, given = duplicate(model), images[:1].clone()
    with torch.no_grad(), frozen(clone):
        answer = called(clone.get_submodule(entry), given)
    clones = given._version > 0 or not torch.equal(given, images[:1])
    unwraps = not isinstance(answer, Tensor)
    if unwraps and not isinstance(logits_in(answer), Tensor):
        got = type(answer).__name__
        if isinstance(answer, Mapping):
            got += f" with the keys {list(answer)}"
        elif isinstance(answer, tuple | list):
            got += f" of {[tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in answer]}"
        raise ValueError(
            f"the model must map one image to logits of shape (1, {num_classes or 'K'}), got {got}: wrap the model so"
            " that it returns its logits alone, for example output[0] of a tuple"
        )
    if entry or clones or unwraps:
        return Classifier(model, entry=entry, clones=clones, unwraps=unwraps)
    return model


def called(model: nn.Module, images: Tensor) -> Any:
    """Call ``model`` on ``images``; the caller sees to eval mode.

    Raises:
        Refusal: If the model raises anything; the message names the layer that was entered last.
    """
    entered: list[tuple[str, nn.Module]] = []
    hooks = [
        part.register_forward_pre_hook(lambda part, _, name=name: entered.append((own_name(model, name), part)))
        for name, part in model.named_modules()
        if not next(part.children(), None) and not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        return model(images)
    except Exception as error:
        where = "which it is called on as model(images), before any layer"
        if entered:
            name, part = entered[-1]
            where = f"in or after layer {name!r}, {' '.join(repr(part).split()):.80}"
        reason = (str(error).strip() or "no message").splitlines()[0]
        about, remedy = "pixels", "bring the images to the channels and the size that it was trained on"
        if any(word in reason for word in TYPES):
            about, remedy = "types", f"let it take {images.dtype}, without casts to other types"
        raise Refusal(
            f"the model fails on a forget image of shape {tuple(images.shape[1:])}, {where} ({type(error).__name__}:"
            f" {reason})",
            remedy,
            about=about,
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of a model's first floating-point parameter (the CPU and float32 if it has none)."""
    floats = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    first = next(floats, torch.empty(0, device="cpu", dtype=torch.float32))
    return first.device, first.dtype


def working_copy(model: Any) -> nn.Module:
    """Return a copy of a model to work on, with float16 and bfloat16 turned into float32; the original is only read.

    Raises:
        ValueError: If it is no model, cannot be copied, or has layers that cannot be trained or looked into.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model must be a torch.nn.Module, got {type(model).__name__}: pass an instance, Net(...), that has loaded"
            " its trained weights (load_state_dict)"
        )
    for name, part in model.named_modules():
        layer = f"layer {name!r} ({type(part).__name__})" if name else f"the model ({type(part).__name__})"
        if ".quantized" in type(part).__module__:
            raise ValueError(f"{layer} is quantized, so it has no gradient: unlearn the float model, then quantize it")
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(f"{layer} is TorchScript: pass the Python model that it was made from, then script it")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            why = "has no shape yet" if nn.parameter.is_lazy(tensor) else "is on the meta device"
            raise ValueError(f"{name} {why} and holds no numbers: load the model's trained weights")
    working = duplicate(model)
    for tensor in (*working.parameters(), *working.buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
            tensor.data = tensor.data.float()
    return working


def cast_back(model: nn.Module, like: nn.Module) -> nn.Module:
    """Return ``model`` with the dtypes of the model that it was copied from: itself where they agree, else a copy."""
    wanted = {name: tensor.dtype for name, tensor in (*like.named_parameters(), *like.named_buffers())}

    def strange(one: nn.Module) -> list[tuple[str, Tensor]]:
        tensors = (*one.named_parameters(), *one.named_buffers())
        return [(name, tensor) for name, tensor in tensors if tensor.dtype != wanted.get(name, tensor.dtype)]

    if not strange(model):
        return model
    result = duplicate(model)
    for name, tensor in strange(result):
        tensor.data = tensor.data.to(wanted[name])
    return result


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy, its memory in the order that the original has.

    Raises:
        ValueError: If something inside cannot be copied; the message names it.
    """
    try:
        with plain_layout():
            return copied(model)
    except Exception as error:
        culprit, memory = "one of its parts", without_graph(model)
        for name, part in model.named_modules():
            for key, value in vars(part).items():
                try:
                    copy.deepcopy(None if key == "_modules" else value, dict(memory))
                except Exception:  # noqa: BLE001  whatever it raises, this is the culprit
                    culprit = f"its attribute {f'{name}.{key}'.strip('.')!r} ({type(value).__name__})"
        raise ValueError(
            f"the model cannot be copied, because {culprit} cannot ({error}): take it off the model first"
        ) from error
