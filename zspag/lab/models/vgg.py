"""VGG (Simonyan and Zisserman, 2015) for images of 32 pixels: 3x3 convolutions with batch norm, five poolings."""

from collections.abc import Sequence

from torch import nn

from zspag.lab.models.layers import block, require_size


def vgg11(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return the network with eight convolutions; published: w = 64."""
    require_size(image_size, 16, "vgg11")
    return _vgg((1, 1, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, width=width)


def vgg16(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return the network with thirteen convolutions; published: w = 64."""
    require_size(image_size, 16, "vgg16")
    return _vgg((2, 2, 3, 3, 3), num_classes=num_classes, in_channels=in_channels, width=width)


def _vgg(depths: Sequence[int], *, num_classes: int, in_channels: int, width: int) -> nn.Sequential:
    # Five stages of so many convolutions, the mean over what positions are left, and one hidden layer of 8w.
    layers: list[nn.Module] = []
    channels = in_channels
    for depth, factor in zip(depths, (1, 2, 4, 8, 8), strict=True):
        for _ in range(depth):
            layers += block(channels, factor * width)
            channels = factor * width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounding down would leave nothing of 28 pixels
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(channels, channels),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(channels, num_classes),
    )
