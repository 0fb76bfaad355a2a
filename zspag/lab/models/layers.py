"""Layers that several architectures share: normalization of the input, convolution blocks, heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Map images in [0, 1] to ``(images - mean) / std``, channel by channel; both are on [0, 1].

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise ValueError(f"mean and std need one value per channel, got {len(mean)} and {len(std)} values")
        if min(std) <= 0:
            raise ValueError(f"every std must be positive, got {tuple(std)}: a constant channel cannot be normalized")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize ``images`` of shape (n, C, H, W)."""
        return (images - self.mean) / self.std


def block(channels_in: int, channels_out: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return convolution, batch norm and ReLU; at stride 1 the image keeps its size (odd kernels)."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)  # the norm shifts
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


def pooled_head(channels: int, num_classes: int) -> list[nn.Module]:
    """Return the mean over all positions and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def require_size(image_size: int, smallest: int, arch: str) -> None:
    """Refuse images of which the poolings of ``arch`` would leave nothing.

    Raises:
        ValueError: If ``image_size`` is below ``smallest`` pixels.
    """
    if image_size < smallest:
        raise ValueError(f"image_size must be at least {smallest} pixels for {arch!r}, got {image_size}")
