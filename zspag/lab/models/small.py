"""Small convolutional nets: minutes on a CPU. Committed checkpoints depend on their layer names and initial weights."""

from torch import nn

from zspag.lab.models.layers import block, pooled_head, require_size


def digits_net(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return three 3x3 convolutions (w, 2w, 2w) with batch norm and a linear head, for 8x8 images."""
    require_size(image_size, 4, "digits")
    return nn.Sequential(
        *block(in_channels, width),
        *block(width, 2 * width),
        nn.MaxPool2d(2),
        *block(2 * width, 2 * width),
        *pooled_head(2 * width, num_classes),
    )


def conv7(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return six 3x3 convolutions (w, w, 2w, 2w, 4w, 4w) with batch norm and a linear head, for 28x28 or 32x32."""
    require_size(image_size, 4, "conv7")
    return nn.Sequential(
        *block(in_channels, width),
        *block(width, width),
        nn.MaxPool2d(2),
        *block(width, 2 * width),
        *block(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *block(2 * width, 4 * width),
        *block(4 * width, 4 * width),
        *pooled_head(4 * width, num_classes),
    )
