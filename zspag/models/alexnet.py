"""AlexNet (Krizhevsky et al., 2012) for images of 32 pixels: five convolutions, no norm, two wide hidden layers."""

import torch
from torch import nn

from zspag.models.layers import require_size, scale_for_relu_


def alexnet(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return five convolutions (w, 3w, 6w, 4w, 4w) and hidden layers of 64w, dropout before each; published: w = 64.

    The channels are those of the one-column form (Krizhevsky, 2014). Kernels 5, 5, 3, 3, 3 at stride 1 take the place
    of 11 at stride 4 and 5, and the classifier sees 2x2 positions whatever the image size.
    """
    require_size(image_size, 16, "alexnet")
    output = nn.Linear(64 * width, num_classes)
    net = nn.Sequential(
        *_convolution(in_channels, width, kernel=5),
        _overlapping_pool(),
        *_convolution(width, 3 * width, kernel=5),
        _overlapping_pool(),
        *_convolution(3 * width, 6 * width, kernel=3),
        *_convolution(6 * width, 4 * width, kernel=3),
        *_convolution(4 * width, 4 * width, kernel=3),
        _overlapping_pool(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * width * 2 * 2, 64 * width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64 * width, 64 * width),
        nn.ReLU(),
        output,
    )
    scale_for_relu_(net)
    with torch.no_grad():
        output.weight /= 10  # maxima over positions made the signal grow; training starts from nearly equal logits
    return net


def _convolution(channels_in: int, channels_out: int, *, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2), nn.ReLU()]


def _overlapping_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, padding=1)  # halves the size, rounding up: 28 -> 14 -> 7 -> 4
