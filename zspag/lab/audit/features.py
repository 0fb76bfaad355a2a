"""What a model makes of images on the way to its answer: what enters each weight, and how alike that is in two models.

Invariant: features are float64 on the CPU, one row per image, and the model is given back as it was found.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.activations import Outputs, watching
from zspag.lab.evaluation import Masked
from zspag.runtime import chunks, device_of


def stage_features(model: nn.Module, images: Tensor, *, grid: int) -> dict[str, Tensor]:
    """Return what enters each weight that can be projected, in the order of their last use.

    Args:
        model: Not changed. A masked original gives the features, and the names, of the original.
        images: Shape (n, C, H, W), float in [0, 1], n at least 1.
        grid: Cells along each spatial axis, over which the inputs of a convolution are averaged. A position's input
            is the mean of its patch, channel by channel.

    Returns:
        Per weight, shape (n, d): for a convolution d = C_in * grid^2, for a linear layer or attention the mean over
        tokens.

    Raises:
        ValueError: If there are no images or cells, or the rows of a layer do not divide among the images.
    """
    if len(images) < 1 or grid < 1:
        raise ValueError(f"features need at least 1 image and 1 cell, got {len(images)} and grid={grid}")
    bare = unmasked(model)
    parts = [_features(bare, x, grid) for (x,) in chunks(images.to(device_of(bare)))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """Return what enters the last weight of a model, shape (n, d): the mean, where it is used at many positions."""
    *_, last = stage_features(model, images, grid=1).values()
    return last


def unmasked(model: nn.Module) -> nn.Module:
    """Return the original of a masked original, which differs from it by a bias alone; any other model as it is."""
    return model.model if isinstance(model, Masked) else model


def _features(model: nn.Module, images: Tensor, grid: int) -> dict[str, Tensor]:
    kernels = {name: parameter.shape[2:] for name, parameter in model.named_parameters()}
    seen: dict[str, Tensor] = {}

    def visit(name: str, rows: Tensor, outputs: Outputs | None) -> None:
        seen.pop(name, None)
        try:
            pooled = _per_image(rows, outputs, kernels[name], count=len(images), grid=grid)
        except RuntimeError as error:
            raise ValueError(
                f"the {rows.shape[1]} rows of {name} do not divide among {len(images)} images: {error}"
            ) from error
        seen[name] = pooled.transpose(0, 1).flatten(1).double().cpu()

    with torch.no_grad(), watching(model, visit) as unprojectable:
        model(images)
    return {name: rows for name, rows in seen.items() if name not in unprojectable}


def _per_image(rows: Tensor, outputs: Outputs | None, kernel: Sequence[int], *, count: int, grid: int) -> Tensor:
    """Average rows (blocks, R, d) of ``count`` images to shape (blocks, count, features)."""
    if outputs is None:  # attention: the first tokens of all images, the second ones, ...
        once = rows[:1] if bool((rows == rows[:1]).all()) else rows  # query, key and value are mostly one and the same
        return once.unflatten(1, (-1, count)).mean(1)
    shape = outputs.raw.shape
    if not kernel:
        tokens_first = shape[0] != count and shape[1:2] == (count,)
        sizes, axis = ((-1, count), 1) if tokens_first else ((count, -1), 2)
        return rows.unflatten(1, sizes).mean(axis)
    places = shape[-len(kernel) :]
    maps = rows.unflatten(2, (-1, math.prod(kernel))).mean(3).transpose(1, 2)  # (blocks, C / blocks, R)
    maps = maps.unflatten(2, (count, -1, *places)).mean(3)  # a model may cut each image into several
    pools: Sequence[Callable[..., Tensor]] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    pool = pools[len(places) - 1]
    cells = pool(maps.flatten(0, 1), [min(grid, place) for place in places])  # (C, count, *cells)
    return cells.unflatten(0, (len(rows), -1)).transpose(1, 2).flatten(2)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centred kernel alignment (Kornblith et al., ICML 2019) of features X (n, d_1) and Y (n, d_2).

    Centred, it is ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) in Frobenius norms, from 0 to 1: 1 where one is the other rotated
    and scaled, NaN where features are the same for all images or not finite. Independent features do not give 0 but
    about sqrt(d_1 d_2 / ((n + d_1) (n + d_2))): n must be far above d.

    Raises:
        ValueError: If the numbers of images differ.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0], [3.0, 0.0]], dtype=torch.float64)
        >>> round(linear_cka(x, 3 * x.flip(1) + 1), 12)
        1.0
    """
    if len(first) != len(second):
        raise ValueError(f"features must be of the same images, got {len(first)} and {len(second)} rows")
    x, y = _centred(first), _centred(second)
    size = (_overlap(x, x) * _overlap(y, y)) ** 0.5
    return _overlap(x, y) / size if size > 0 else math.nan  # NaN is not above 0 either


def _centred(features: Tensor) -> Tensor:
    """Subtract the mean; what is left by rounding (features come from a float32 network) is nothing."""
    centred = features.double() - features.double().mean(0)
    dead = centred.norm() <= torch.finfo(torch.float32).eps * features.double().norm()
    return torch.zeros_like(centred) if dead else centred


def _overlap(x: Tensor, y: Tensor) -> float:
    """Return ||Y^T X||^2 = tr(X X^T Y Y^T) by whichever product is smaller."""
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return (y.T @ x).square().sum().item()
    return ((x @ x.T) * (y @ y.T)).sum().item()
