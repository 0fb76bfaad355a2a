"""AlexNet (Krizhevsky et al., 2012) for images of 32 pixels: five convolutions and two wide hidden layers."""

from torch import nn

from zspag.lab.models.layers import block, require_size


def alexnet(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return five convolutions (w, 3w, 6w, 4w, 4w) and hidden layers of 64w, dropout before each; published: w = 64.

    The channels are those of the one-column form (Krizhevsky, 2014). Kernels 5, 5, 3, 3, 3 at stride 1 take the place
    of 11 at stride 4 and 5; the classifier sees 2x2 positions whatever the image size; and batch norm takes the place
    of local response normalization: without it no one rate trained this network and the others.
    """
    require_size(image_size, 16, "alexnet")
    return nn.Sequential(
        *block(in_channels, width, kernel=5),
        _overlapping_pool(),
        *block(width, 3 * width, kernel=5),
        _overlapping_pool(),
        *block(3 * width, 6 * width),
        *block(6 * width, 4 * width),
        *block(4 * width, 4 * width),
        _overlapping_pool(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * width * 2 * 2, 64 * width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64 * width, 64 * width),
        nn.ReLU(),
        nn.Linear(64 * width, num_classes),
    )


def _overlapping_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, padding=1)  # halves the size, rounding up: 28 -> 14 -> 7 -> 4
