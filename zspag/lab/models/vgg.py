"""VGG (Simonyan and Zisserman, 2015) for images of 32 pixels: 3x3 convolutions with batch norm, five poolings."""

from collections.abc import Sequence

from torch import nn

from zspag.lab.models.layers import block, require_size

# Convolutions of each stage; the channels of the stages are w, 2w, 4w, 8w, 8w.
_VGG11 = (1, 1, 2, 2, 2)
_VGG16 = (2, 2, 3, 3, 3)


def vgg11(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return the network with eight convolutions; published: w = 64."""
    require_size(image_size, 16, "vgg11")
    return _vgg(_VGG11, num_classes=num_classes, in_channels=in_channels, width=width)


def vgg16(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return the network with thirteen convolutions; published: w = 64."""
    require_size(image_size, 16, "vgg16")
    return _vgg(_VGG16, num_classes=num_classes, in_channels=in_channels, width=width)


def _vgg(depths: Sequence[int], *, num_classes: int, in_channels: int, width: int) -> nn.Sequential:
    """Return the stages, the mean over what positions are left, and one hidden layer of 8w, dropout before each layer.

    Poolings round up: rounding down would leave nothing of 28 pixels (14, 7, 3, 1, 0). Even sizes see no difference.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for depth, factor in zip(depths, (1, 2, 4, 8, 8), strict=True):
        for _ in range(depth):
            layers += block(channels, factor * width)
            channels = factor * width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
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
