"""The vision transformer (Dosovitskiy et al., 2021) of torchvision, for small images.

Size follows from ``width``, the hidden dimension: heads of 64 channels as published (two at least), one layer per 32
channels (2 to 12), MLPs of 4 w. 192 gives 6 layers of 3 heads; 384 and 768 give the published small and base encoders.

CHOICE: no dropout. A small net that sees its images for minutes has nothing to overfit, and the masks take as long to
draw on a CPU as everything else.
"""

import math

from torch import nn

from zspag.lab.models.layers import require_size


def vit(*, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Module:
    """Return the transformer over patches of 4x4 pixels (8x8 for images of 64 pixels and more), without dropout.

    Raises:
        ValueError: If the patches do not tile the image, or the heads cannot share the width.
    """
    from torchvision.models import VisionTransformer  # late: the other networks do without torchvision

    require_size(image_size, 8, "vit")
    patch, heads = 8 if image_size >= 64 else 4, max(2, width // 64)
    if image_size % patch:
        raise ValueError(f"image_size must be a multiple of the patch size {patch} for 'vit', got {image_size}")
    if width % heads:
        raise ValueError(f"width must be a multiple of 64, or an even number below 128, for 'vit', got {width}")
    net = VisionTransformer(
        image_size,
        patch,
        num_layers=min(12, max(2, width // 32)),
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=num_classes,
    )
    if in_channels != 3:  # torchvision takes colour images only
        net.conv_proj = nn.Conv2d(in_channels, width, patch, stride=patch)
        nn.init.trunc_normal_(net.conv_proj.weight, std=math.sqrt(1 / (in_channels * patch**2)))
        nn.init.zeros_(net.conv_proj.bias)
    return net
