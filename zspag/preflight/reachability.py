"""Logits that no input raises: outputs that were never trained, and rows that were closed by an earlier request.

Invariant: a class that is not named here was the model's answer to some image that was looked at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zspag.runtime import frozen, sent

Stage = tuple[int, int, float]

FEW = 4  # images whose logits say which classes are the least likely
# Starts, steps and the first step's length, in pixels on [0, 1], of each try; a class that one misses gets the next.
# Long steps alone leave the images that a net was fitted to: one that knows each of 39 faces answered up to 9 of them
# on no image that long steps led to, and all of them within 11 steps of .02.
STAGES: tuple[Stage, ...] = ((2, 8, 0.02), (8, 40, 0.05), (8, 40, 0.3))
SHORTEST = 0.006  # length of the last step: a little more than 1/255
MOST = 32  # classes that are tried
AT_ONCE = 32  # images per pass


def unreachable(
    model: nn.Module,
    images: Tensor,
    classes: tuple[int, ...],
    *,
    stages: Sequence[Stage] | None = None,
) -> dict[int, float]:
    """Return the classes that no image in [0, 1] was found for, with how far their logit stayed below the largest.

    Gradient steps, short ones first, from forget images, their negatives, noise and grey, not bound to any radius.
    Unused outputs and closed rows are found so.

    Args:
        model: Not changed.
        images: Forget images, shape (n, C, H, W).
        classes: The classes that must be reachable; of more than ``MOST`` those with the lowest logits are tried.
        stages: Fewer tries than ``STAGES``, where a class that is missed costs nothing.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.tensor(classes, device=images.device)
    gaps = {}
    with frozen(model):
        if len(left) > MOST:
            with torch.no_grad():
                margins = model(images[:FEW].clone())
            margins = (margins - margins.amax(1, keepdim=True)).amax(0)[left]
            left = left[margins.argsort()[:MOST]]
        for starts, steps, longest in STAGES if stages is None else stages:
            if len(left):
                parts, points = left.split(AT_ONCE // starts), _starts(images, starts, generator)
                best = torch.cat([_largest_margin(model, part, points, steps, longest) for part in parts])
                gaps = {label: -gap for label, gap in zip(left.tolist(), best.tolist(), strict=True) if gap < 0}
                left = left[best < 0]
    return {label: gaps[label] for label in left.tolist()}


def _starts(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` starting points: forget images and noise in turns, and from 4 on a negative and grey."""
    points = sent(torch.rand((count, *images.shape[1:]), generator=generator, dtype=images.dtype), images.device)
    for place in range(0, count, 2):
        points[place] = images[place % len(images)]
    if count > 3:
        points[2], points[3] = 1 - images[0], 0.5
    return points


def _largest_margin(model: nn.Module, targets: Tensor, starts: Tensor, steps: int, longest: float) -> Tensor:
    """Return, per target, the largest margin z_target - max_other z on the way from every start; 0 or more is a hit."""
    best = torch.full((len(targets),), -torch.inf, dtype=starts.dtype, device=starts.device)
    left = torch.arange(len(targets), device=starts.device)
    x = starts.repeat(len(targets), 1, 1, 1)
    for step in range(steps + 1):
        labels = targets[left].repeat_interleave(len(starts))
        x = x.detach().requires_grad_()
        logits = model(x)
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        margin = logits.gather(1, labels[:, None])[:, 0] - others
        best[left] = torch.maximum(best[left], margin.detach().view(len(left), -1).amax(1))
        missed = best[left] < 0
        if step == steps or not bool(missed.any()):
            break
        (gradient,) = torch.autograd.grad(margin.sum(), x)
        length = longest * (SHORTEST / longest) ** (step / steps)
        x = (x.detach() + length * gradient.sign()).clamp(0, 1)
        x, left = x.view(len(left), *starts.shape)[missed].flatten(0, 1), left[missed]
    return best
