"""What a few passes tell about a model before it is worked on: its logits, its gradients, its layout, what may move.

Everything runs on copies and on a handful of images. ``zspag.preflight.checks`` adds what the request is about.

Invariant: the model is not changed, and every refusal names the layer, the value and the remedy.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.activations import Outputs, watching
from zspag.preflight.classifiers import called, duplicate, own_name
from zspag.preflight.refusal import Refusal
from zspag.runtime import channels_last, copied, frozen

FEW = 4  # images per pass of a check
AGREE = 1e-3  # of the largest logit: rounding is far below
PRUNED = 0.05  # share of exact zeros from which a weight counts as pruned; trained weights hold none


def check_logits(model: nn.Module, images: Tensor, *, num_classes: int | None) -> Tensor:
    """Return the logits of a few images after one and several were passed.

    Raises:
        ValueError: If they are not one finite row of at least two unnormalized logits per image.
        Refusal: If there are not ``num_classes`` of them.
    """
    with torch.no_grad(), frozen(clone := duplicate(model)):
        for few in (images[:1], _few(images)):
            logits, count = called(clone, few.clone()), len(few)
            shape = tuple(logits.shape)
            rows = len(shape) == 2 and shape[0] == count and logits.is_floating_point()
            if not rows or shape[1] < 2:
                remedy = "return one row of logits per image"
                if logits.is_floating_point() and shape in ((count,), (count, 1)):
                    remedy += " (one sigmoid logit z becomes two, torch.cat([torch.zeros_like(z), z], 1))"
                raise ValueError(
                    f"the model must map {count} image(s) to logits of shape ({count}, {num_classes or 'K'}), got"
                    f" {shape} of {logits.dtype}: {remedy}"
                )
            if shape[1] != (num_classes or shape[1]):
                raise Refusal(
                    f"num_classes is {num_classes}, but the model has {shape[1]} outputs",
                    f"leave num_classes out, or pass {shape[1]}",
                    about="outputs",
                    numbers=(shape[1],),
                )
            if not bool(torch.isfinite(logits).all()):
                raise ValueError(
                    "the model's logits for the first forget images are not finite: check its weights (a class that"
                    " was masked with -inf is better masked with a large negative bias)"
                )
            num_classes = shape[1]
    return logits


def check_unbounded(logits: Tensor) -> None:
    """Refuse probabilities: of a softmax, and of sigmoids, whose rows add up to anything.

    Args:
        logits: What the model makes of all forget images, shape (n, K): of a few a net of large weights gives 0 and 1.

    Raises:
        ValueError: If every number lies between 0 and 1.
    """
    if bool((logits >= 0).all()) and bool((logits <= 1).all()):
        rows, end = "all lie between 0 and 1", "sigmoid"
        if bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
            rows, end = "each row adds up to 1", "softmax"
        raise ValueError(f"the model returns probabilities ({rows}), not logits: take the {end} off its end")


def _few(images: Tensor) -> Tensor:
    return images[:FEW] if len(images) > 1 else images.expand(2, -1, -1, -1)


def check_gradients(model: nn.Module, images: Tensor) -> None:
    """Pass a few images forward and backward and look whether gradients reach the images and the weights.

    Raises:
        ValueError: If no gradient arrives, or none that is finite; the message names the layer where it ends.
    """
    clone = duplicate(model)
    x = images[:FEW].clone().requires_grad_()
    weights = {name: weight for name, weight in clone.named_parameters() if weight.is_floating_point()}
    with frozen(clone), _losses_noted(clone) as lost:
        if not called(clone, x).requires_grad:
            where = lost[0] if lost else "look for detach(), .data, no_grad(), numpy() or rounding in the forward pass"
            raise ValueError(f"no gradient reaches the images, which the attack on them needs: {where}")
        for weight in weights.values():
            weight.requires_grad_()
        loss = _loss(called(clone, x))
        try:
            at_input, *at_weights = torch.autograd.grad(loss, [x, *weights.values()], allow_unused=True)
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0]
            raise ValueError(
                f"the model's backward pass fails ({type(error).__name__}: {reason}): the method needs gradients"
            ) from error
    if at_input is None or not bool(at_input.any()):
        raise ValueError(
            "the logits do not change with the images (all gradients are 0): does the model round or binarize its"
            " input, or are its activations dead?"
        )
    for name, gradient in (("the images", at_input), *zip(weights, at_weights, strict=True)):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"the gradient with respect to {own_name(clone, name)} is not finite: look for a square root, a"
                " logarithm or a division by 0 in the model's forward pass"
            )


@contextmanager
def _losses_noted(model: nn.Module) -> Generator[list[str], None, None]:
    # Note each layer whose output carries no gradient, and why, in the order in which the layers end.
    lost: list[str] = []

    def ended(part: nn.Module, given: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.requires_grad or not any(isinstance(one, Tensor) for one in given):
            return
        layer = f"layer {names[part]!r}" if names[part] else "the model"
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            lost.append(f"{layer} runs under torch.no_grad() or torch.inference_mode(); take that out")
        elif len(part._forward_hooks) > 1:  # one is ours
            lost.append(f"a forward hook of {layer} detaches its output; remove the hook")
        else:
            lost.append(f"it ends in or before {layer}; look for detach(), .data, no_grad(), numpy() or rounding there")

    names = {part: own_name(model, name) for name, part in model.named_modules()}
    hooks = [part.register_forward_hook(ended) for part in names]
    try:
        yield lost
    finally:
        for hook in hooks:
            hook.remove()


def _loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.detach().topk(2, dim=1).indices[:, 1], reduction="sum")


def layout_of(model: nn.Module, images: Tensor, logits: Tensor) -> str:
    """Return "channels_last" if the model works with channels innermost and gives the same ``logits``, else "plain".

    A model may rely on the order of memory (``x.view(len(x), -1)`` behind a convolution). Only to try tells.
    """
    clone = copied(model)
    with frozen(clone):
        for weight in clone.parameters():
            weight.requires_grad_(weight.is_floating_point())
        try:
            turned = clone(channels_last(_few(images).clone()).requires_grad_())
            _loss(turned).backward()
        except Exception:  # noqa: BLE001  whatever it raises: it did not in plain layout
            return "plain"
    return "channels_last" if _agree(turned, logits) else "plain"


def _agree(first: Tensor, second: Tensor) -> bool:
    return bool(((first - second).abs() <= AGREE * second.abs().max() + 1e-6).all())


@torch.no_grad()
def inconstancy(model: nn.Module, images: Tensor, logits: Tensor) -> tuple[str, ...]:
    """Return a warning if answers are random, or depend on the other images of a batch."""
    few = _few(images)
    with frozen(clone := duplicate(model)):
        if not _agree(called(clone, few.clone()), logits):
            return ("the model gives two answers to the same images in eval mode (a dropout that is always on?)",)
        if not _agree(called(clone, few[:1].clone()), logits[:1]):
            return (
                "the model's answer to an image depends on the other images of its batch (a batch norm without running"
                " statistics?)",
            )
    return ()


def immovable(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Return the weights (parameters of two axes or more) that must not or cannot move, with the reason.

    Raises:
        ValueError: If no weight is left.
    """
    seen: set[str] = set()

    def visit(name: str, _rows: Tensor, _outputs: Outputs | None) -> None:
        seen.add(name)

    with torch.no_grad(), watching(clone := duplicate(model), visit) as unprojectable:
        clone(images[:1].clone())
    reasons = dict(unprojectable)
    for name, _ in model.named_parameters():  # from these a layer computes the weight that it uses
        path, _, last = name.rpartition(".")
        if ".parametrizations." in f".{name}":
            reasons[name] = "parametrized; torch.nn.utils.parametrize.remove_parametrizations would set it free"
        elif last.endswith("_orig") and hasattr(model.get_submodule(path), last.removesuffix("_orig") + "_mask"):
            reasons[name] = "pruned by a mask, which an update would not see"
    projectable = seen - set(reasons)
    for name, weight in model.named_parameters():
        zeros = (weight == 0).double().mean().item() if name in projectable else 0.0
        if weight.dim() > 1 and not weight.requires_grad:
            reasons[name] = "requires_grad=False"
        elif zeros > PRUNED:
            reasons[name] = f"{100 * zeros:.0f} % of its entries are exactly 0, which an update would fill (pruned)"
    if projectable <= set(reasons):
        why = [f"{own_name(model, name)}: {reason}" for name, reason in reasons.items()] or ["it has no weights"]
        listed = "; ".join(why[:6]) + (f"; and {len(why) - 6} more" if len(why) > 6 else "")
        raise ValueError(
            f"no convolution, linear or attention layer of the model may move ({listed}): let one move, for example"
            " with requires_grad_(True)"
        )
    return reasons
