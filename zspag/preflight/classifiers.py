"""A user's model as the method needs it: a copy in float32 or float64 that maps a batch to a tensor of logits.

Invariant: the user's own model is only read, and can be had back from what is made here, with its own type and names.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zspag.preflight.surroundings import plain_layout
from zspag.runtime import copied, frozen, without_graph


class Classifier(nn.Module):
    """A model whose answers are brought to the form that the method works on: a batch in, a tensor of logits out.

    Attributes:
        inner: The user's own model.
    """

    def __init__(self, inner: nn.Module, *, entry: str, clones: bool, unwraps: bool) -> None:
        """Say what has to be done.

        Args:
            inner: The user's own model.
            entry: The part of ``inner`` that is called ("module" of ``DataParallel``); "" calls ``inner`` itself.
            clones: The model changes its input in place, so that it has to be given a clone.
            unwraps: The logits have to be taken out of what the model returns.
        """
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
        num_classes: Width K of the logits, if it is known, for messages.

    Raises:
        ValueError: If the model fails on an image, or returns nothing that could be its logits.
    """
    entry = next((name for name in ("module", "_orig_mod") if _delegates(model, name)), "")
    clone, given = duplicate(model), images[:1].clone()
    with torch.no_grad(), frozen(clone):
        answer = called(clone.get_submodule(entry), given, clone)
    clones = given._version > 0 or not torch.equal(given, images[:1])
    unwraps = not isinstance(answer, Tensor)
    if unwraps and not isinstance(logits_in(answer), Tensor):
        raise ValueError(
            "the model must map one image to logits of shape"
            f" (1, {num_classes or 'K'}), got {type(answer).__name__}: {_advice(answer)}"
        )
    if entry or clones or unwraps:
        return Classifier(model, entry=entry, clones=clones, unwraps=unwraps)
    return model


def _delegates(model: nn.Module, name: str) -> bool:
    """Tell ``DataParallel`` and compiled models, which hide the layers from whoever watches them work."""
    if name == "module":
        return isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return type(model).__name__ == "OptimizedModule" and hasattr(model, name)  # to import the type takes a second


def _advice(answer: Any) -> str:
    """Say how to get at the logits of an answer that is no tensor."""
    if isinstance(answer, Mapping):
        return f"none of its keys ({', '.join(map(repr, answer))}) is 'logits': wrap the model so that it returns them"
    if isinstance(answer, tuple | list):
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in answer]
        for index, part in enumerate(answer):
            if isinstance(part, Tensor) and part.dim() == 2 and part.shape[1] > 1:
                return (
                    f"element {index}, of shape {shapes[index]}, looks like the logits: wrap the model so that it"
                    f" returns output[{index}] alone"
                )
        return (
            f"no element (of {', '.join(map(str, shapes))}) looks like logits: wrap the model so that it returns them"
        )
    return "wrap the model so that it returns a tensor of logits"


def called(model: nn.Module, images: Tensor, whole: nn.Module | None = None) -> Any:
    """Call ``model`` on ``images``, and say in words where it fails.

    Args:
        model: Eval mode is the caller's business.
        images: Shape (n, C, H, W).
        whole: The model of which ``model`` is a part, whose names the message uses.

    Raises:
        ValueError: If the model raises anything; the message names the layer in which it did.
    """
    entered: list[tuple[str, nn.Module, Any]] = []
    names = {part: name for name, part in own_model(whole or model).named_modules()}
    hooks = [
        part.register_forward_pre_hook(lambda part, given: entered.append((names.get(part, ""), part, given)))
        for part in model.modules()
        if not next(part.children(), None) and not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        return model(images)
    except Exception as error:
        raise ValueError(
            f"the model fails on a forget image of shape {tuple(images.shape[1:])}{_where(entered, images, error)}"
            f" ({type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _where(entered: list[tuple[str, nn.Module, Any]], images: Tensor, error: Exception) -> str:
    """Name the layer that was entered last, and what it expects."""
    if not entered:
        return ", which it is called on as model(images), before any layer: see what its forward pass asks for"
    name, part, given = entered[-1]
    shape = tuple(given[0].shape) if given and isinstance(given[0], Tensor) else ()
    if isinstance(part, nn.Conv2d) and len(shape) == 4 and shape[1] != part.in_channels:
        channels = f"{part.in_channels} channel" + "s" * (part.in_channels > 1)
        remedy = f"bring the images to {channels}"
        if (part.in_channels, images.shape[1]) == (3, 1):
            remedy += ", for example with images.expand(-1, 3, -1, -1)"
        return f": convolution {name!r} expects {channels} and got {shape[1]}; {remedy}"
    if isinstance(part, nn.Linear) and shape and shape[-1] != part.in_features:
        return (
            f": linear layer {name!r} expects {part.in_features} features and got {shape[-1]}; bring the images to the"
            " height and width (and channels) that the model was trained on"
        )
    if "dtype" in str(error) or "scalar type" in str(error):
        return (
            f" in or behind {name!r} ({type(part).__name__}): the method works in {images.dtype}, on a copy if the"
            " model is in half precision; take the casts to other types out of the forward pass"
        )
    return f" in or behind {name!r} ({type(part).__name__}): bring the images to the size that it was trained on"


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
    _check_kind(model)
    copied_model = duplicate(model)
    for tensor in (*copied_model.parameters(), *copied_model.buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
            tensor.data = tensor.data.float()
    return copied_model


def cast_back(model: nn.Module, like: nn.Module) -> nn.Module:
    """Return ``model`` with the dtypes of the model that it was copied from: itself where they agree, else a copy."""
    wanted = {**dict(like.named_parameters()), **dict(like.named_buffers())}
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if all(name not in wanted or found[name].dtype == wanted[name].dtype for name in found):
        return model
    result = duplicate(model)
    for name, tensor in (*result.named_parameters(), *result.named_buffers()):
        if name in wanted:
            tensor.data = tensor.data.to(wanted[name].dtype)
    return result


def _check_kind(model: Any) -> None:
    if not isinstance(model, nn.Module):
        remedy = "pass an nn.Module"
        if isinstance(model, type):
            remedy = f"pass an instance, {model.__name__}(...), with its trained weights"
        elif isinstance(model, Mapping):
            remedy = "this looks like a state dict: load it into its module with load_state_dict, and pass that"
        raise ValueError(f"model must be a torch.nn.Module, got {model!r:.60} ({type(model).__name__}): {remedy}")
    for name, part in model.named_modules():
        place = f"layer {name!r}" if name else "the model"
        module = type(part).__module__
        if ".quantized" in module:
            raise ValueError(
                f"{place} is quantized ({module}.{type(part).__name__}): it passes no gradient and holds no weights"
                " that could move; unlearn the float model, then quantize the result"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"{place} is TorchScript ({type(part).__name__}), whose layers cannot be looked into: pass the Python"
                " model that it was made from, and script the result"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet: pass one batch through the model and load its trained weights")
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device, which holds no numbers: load the model's trained weights")


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy, its memory in the order that the original has.

    Raises:
        ValueError: If something inside cannot be copied; the message names it.
    """
    try:
        with plain_layout():
            return copied(model)
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied, because {_uncopied(model)} cannot ({error}): take it off the model first"
        ) from error


def _uncopied(model: nn.Module) -> str:
    """Find the attribute that deepcopy fails on, by trying each of them."""
    memory = without_graph(model)
    for name, part in model.named_modules():
        for attribute, value in vars(part).items():
            if attribute == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memory))
            except Exception:  # noqa: BLE001  whatever it raises, this is the culprit
                path = f"{name}.{attribute}" if name else attribute
                return f"its attribute {path!r} ({type(value).__name__})"
    return "one of its parts"
