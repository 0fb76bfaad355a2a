"""ResNet (He et al., 2016) for images of 32 pixels: the first layer is 3x3 at stride 1, and no pooling follows it."""

import torch
from torch import Tensor, nn

from zspag.lab.models.layers import block, pooled_head, require_size


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which follows a change of shape with a 1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        *second, _ = block(channels_out, channels_out)  # the last ReLU comes after the sum
        self.convolutions = nn.Sequential(*block(channels_in, channels_out, stride=stride), *second)
        *projection, _ = block(channels_in, channels_out, kernel=1, stride=stride)
        unchanged = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if unchanged else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, channels_out, H / stride, W / stride), sizes rounded up."""
        return torch.relu(self.shortcut(x) + self.convolutions(x))


def resnet18(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Sequential:
    """Return eight residual blocks, two each of w, 2w, 4w and 8w channels; published: w = 64."""
    require_size(image_size, 8, "resnet18")
    layers, channels = block(in_channels, width), width
    for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        wide = factor * width
        layers += [Residual(channels, wide, stride=stride), Residual(wide, wide, stride=1)]
        channels = wide
    return nn.Sequential(*layers, *pooled_head(channels, num_classes))
