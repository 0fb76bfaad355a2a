"""What a few passes tell about a model before it is worked on: its logits, its gradients, its layout, what may move.

Everything runs on copies and on a handful of images. ``zspag.preflight.checks`` adds what the request is about.

Invariant: the model is not changed, and every refusal names the layer, the value and the remedy.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.activations import Outputs, watching
from zspag.preflight.classifiers import called, duplicate
from zspag.runtime import channels_last, copied, frozen

FEW = 4  # images per pass of a check
AGREE = 1e-3  # of the largest logit: rounding is far below
PRUNED = 0.05  # share of exact zeros from which a weight counts as pruned; trained weights hold none


def check_logits(model: nn.Module, images: Tensor, *, num_classes: int | None) -> Tensor:
    """Return the logits of a few images after one and several were passed.

    Args:
        model: Maps a batch to a tensor (``classifiers.classifier``).
        images: Shape (n, C, H, W).
        num_classes: Width K that the caller expects, or None.

    Raises:
        ValueError: If they are not one finite row of at least two unnormalized logits per image.
    """
    with torch.no_grad(), frozen(clone := duplicate(model)):
        one = called(clone, images[:1].clone())
        _check_shape(one, 1, num_classes)
        if not bool(torch.isfinite(one).all()):
            raise ValueError(
                "the model's logits for the first forget image are not finite: check its weights"
                " (a class that was masked with -inf is better masked with a large negative bias)"
            )
        few = images[:FEW] if len(images) > 1 else images.expand(2, -1, -1, -1)
        logits = called(clone, few.clone())
        _check_shape(logits, len(few), one.shape[1])
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the model's logits for the first forget images are not finite: check its weights")
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise ValueError(
            "the model returns probabilities (each row adds up to 1), not logits: take the softmax off its end"
        )
    return logits


def _check_shape(logits: Tensor, count: int, num_classes: int | None) -> None:
    shape = tuple(logits.shape)
    fits = len(shape) == 2 and shape[0] == count and 1 < shape[1] == (num_classes or shape[1])
    if fits and logits.is_floating_point():
        return
    many = "one image" if count == 1 else f"{count} images"
    wanted = f"the model must map {many} to logits of shape ({count}, {num_classes or 'K'}), got {shape}"
    if not logits.is_floating_point():
        advice = f"of {logits.dtype}, perhaps the class itself; it has to return what the argmax is taken of"
    elif shape in {(count,), (count, 1)}:
        advice = "one sigmoid logit z is not supported; return two, torch.cat([torch.zeros_like(z), z], 1)"
    elif len(shape) == 2 and shape[0] == count:
        advice = "check num_classes, or leave it out"
    elif len(shape) == 1:
        advice = "the axis of the images is gone; take a squeeze() out of the model's end, or check num_classes"
    elif len(shape) > 2:
        advice = "more than one answer per image (segmentation, tokens) is not supported"
    else:
        advice = "every image needs a row of its own"
    raise ValueError(f"{wanted}: {advice}")


# ---- Gradients


def check_gradients(model: nn.Module, images: Tensor) -> None:
    """Pass a few images forward and backward and look whether gradients reach the images and the weights.

    Raises:
        ValueError: If no gradient arrives, or none that is finite; the message names the layer where it ends.
    """
    clone = duplicate(model)
    x = images[:FEW].clone().requires_grad_()
    passed: list[tuple[str, nn.Module, bool, bool]] = []
    weights = {name: weight for name, weight in clone.named_parameters() if weight.is_floating_point()}
    with frozen(clone), _tracing(clone, passed):
        logits = called(clone, x)
        if not logits.requires_grad:
            raise ValueError(f"no gradient reaches the images, which the attack on them needs: {_end(passed)}")
        for weight in weights.values():
            weight.requires_grad_()
        (at_input, *at_weights) = _gradients(called(clone, x), [x, *weights.values()])
    if at_input is None or not bool(at_input.any()):
        raise ValueError(
            "the logits do not change with the images (all gradients are 0): does the model round or binarize its"
            " input, or are its activations dead?"
        )
    for name, gradient in (("the images", at_input), *zip(weights, at_weights, strict=True)):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"the gradient with respect to {name} is not finite: look for a square root, a logarithm or a division"
                " by 0 in the model's forward pass"
            )


def _gradients(logits: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(_towards_second(logits), inputs, allow_unused=True)
    except Exception as error:
        raise ValueError(
            f"the model's backward pass fails ({type(error).__name__}: {str(error).strip().splitlines()[0]}): the"
            " method needs gradients of the logits"
        ) from error


def _towards_second(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.detach().topk(2, dim=1).indices[:, 1], reduction="sum")


@contextmanager
def _tracing(model: nn.Module, passed: list[tuple[str, nn.Module, bool, bool]]) -> Generator[None, None, None]:
    """Append, as each layer ends: its name, itself, whether gradients were on when it began, whether it kept one.

    Yields:
        Nothing.
    """
    begun: dict[nn.Module, bool] = {}
    names = {part: name for name, part in model.named_modules()}

    def begin(part: nn.Module, _given: Any) -> None:
        begun[part] = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()

    def end(part: nn.Module, given: Any, output: Any) -> None:
        entered = [value for value in given if isinstance(value, Tensor)]
        if entered and isinstance(output, Tensor):
            passed.append((names[part], part, begun[part], output.requires_grad))

    hooks = [part.register_forward_pre_hook(begin) for part in names]
    hooks += [part.register_forward_hook(end) for part in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _end(passed: list[tuple[str, nn.Module, bool, bool]]) -> str:
    """Name the first layer whose output carries no gradient, and why."""
    for name, part, enabled, kept in passed:
        if kept:
            continue
        place = f"layer {name.removeprefix('inner.')!r}" if name.removeprefix("inner.") else "the model"
        if not enabled:
            return f"{place} runs under torch.no_grad() or torch.inference_mode(); take that out of the forward pass"
        if len(part._forward_hooks) > 1:  # one is ours
            return f"a forward hook of {place} detaches its output; remove the hook"
        return f"it ends in or before {place}; look for detach(), .data, no_grad(), numpy() or rounding there"
    return "look for detach(), .data, no_grad(), numpy() or rounding in the model's forward pass"


# ---- Layout, constancy


def layout_of(model: nn.Module, images: Tensor, logits: Tensor) -> str:
    """Return "channels_last" if the model works with channels innermost and answers the same, else "plain".

    Args:
        model: Works in plain layout.
        images: Shape (n, C, H, W).
        logits: What ``check_logits`` returned for them.

    Note:
        A model may rely on the order of memory (``x.view(len(x), -1)`` behind a convolution). Only to try tells.
    """
    few = images[:FEW] if len(images) > 1 else images.expand(2, -1, -1, -1)
    clone = copied(model)
    with frozen(clone):
        for weight in clone.parameters():
            weight.requires_grad_(weight.is_floating_point())
        try:
            turned = clone(channels_last(few.clone()).requires_grad_())
            _towards_second(turned).backward()
        except Exception:  # noqa: BLE001  whatever it raises: it did not in plain layout
            return "plain"
    return "channels_last" if _agree(turned, logits) else "plain"


def _agree(first: Tensor, second: Tensor) -> bool:
    return bool(((first - second).abs() <= AGREE * second.abs().max() + 1e-6).all())


@torch.no_grad()
def inconstancy(model: nn.Module, images: Tensor, logits: Tensor) -> tuple[str, ...]:
    """Return warnings about answers that are random, or depend on the other images of a batch."""
    few = images[:FEW] if len(images) > 1 else images.expand(2, -1, -1, -1)
    with frozen(clone := duplicate(model)):
        if not _agree(called(clone, few.clone()), logits):
            return (
                "the model gives two answers to the same images in eval mode (a dropout that is always on?): results"
                " will vary with them",
            )
        if not _agree(called(clone, few[:1].clone()), logits[:1]):
            return (
                "the model's answer to an image depends on the other images of its batch (a batch norm without running"
                " statistics?): results will vary with the batches",
            )
    return ()


# ---- What may move


def immovable(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Return the weights (parameters of two axes or more) that must not or cannot move, with the reason.

    Args:
        model: Its ``requires_grad`` flags are honoured.
        images: One of them is passed.

    Raises:
        ValueError: If no weight is left.
    """
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters() if parameter.dim() > 1}
    seen: set[str] = set()

    def visit(name: str, _rows: Tensor, _outputs: Outputs | None) -> None:
        seen.add(name)

    with torch.no_grad(), watching(clone := duplicate(model), visit) as unprojectable:
        clone(images[:1].clone())
    frozen_names = {**unprojectable, **_computed(model)}
    projectable = seen - set(frozen_names)
    for name, weight in model.named_parameters():
        zeros = (weight == 0).double().mean().item() if name in projectable else 0.0
        if not wanted.get(name, True):
            frozen_names[name] = "requires_grad=False"
        elif zeros > PRUNED:
            frozen_names[name] = (
                f"{100 * zeros:.0f} % of its entries are exactly 0, which an update would fill (pruned)"
            )
    if projectable <= set(frozen_names):
        raise ValueError(_none_left(frozen_names, projectable))
    return frozen_names


def _computed(model: nn.Module) -> dict[str, str]:
    """Name the parameters from which parametrizations and pruning masks compute the weight that a layer uses."""
    found = {}
    for name, _ in model.named_parameters():
        path, _, last = name.rpartition(".")
        if ".parametrizations." in f".{name}":
            found[name] = "parametrized; torch.nn.utils.parametrize.remove_parametrizations would set it free"
        elif last.endswith("_orig") and hasattr(model.get_submodule(path), last.removesuffix("_orig") + "_mask"):
            found[name] = "pruned by a mask, which an update would not see"
    return found


def _none_left(reasons: Mapping[str, str], projectable: set[str]) -> str:
    told = [f"{name.removeprefix('inner.')}: {why}" for name, why in reasons.items()]
    listed = "; ".join(told[:6]) + (f"; and {len(told) - 6} more" if len(told) > 6 else "") or "it has no weights"
    if not projectable:
        return f"the model has no convolution, linear or attention layer to project ({listed})"
    remedy = "let at least one of them move"
    if all(reasons[name] == "requires_grad=False" for name in projectable):
        remedy = "call requires_grad_(True) on the layers that may move"
    return f"no layer of the model may move ({listed}): {remedy}"
