"""The all-convolutional net (Springenberg et al., 2015): strides take the place of poolings, 1x1 kernels of a head."""

from torch import nn

from zspag.lab.models.layers import block, require_size


def allcnn(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return nine convolutions (w, w, w, then 2w) whose last one gives a map per class; published: w = 96 ("C").

    Batch norm takes the place of the published dropout, every 3x3 convolution is padded, and the maps of the classes
    are averaged without a ReLU, so that logits may be negative.
    """
    require_size(image_size, 8, "allcnn")
    return nn.Sequential(
        *block(in_channels, width),
        *block(width, width),
        *block(width, width, stride=2),
        *block(width, 2 * width),
        *block(2 * width, 2 * width),
        *block(2 * width, 2 * width, stride=2),
        *block(2 * width, 2 * width),
        *block(2 * width, 2 * width, kernel=1),
        nn.Conv2d(2 * width, num_classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
