"""A classifier as somebody outside this package would write it: the method has to take it as it is.

It holds what small nets of the package do not: grouped and strided convolutions, self-attention, dropout, residual
connections, both kinds of norm and a learned position that no projection covers.
"""

import torch
from torch import Tensor, nn


class ResidualConv(nn.Module):
    """x + relu(bn(conv(x))), the convolution grouped."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class AttentionBlock(nn.Module):
    """A transformer block: self-attention and an MLP, both behind layer norm and with dropout."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm1(tokens)
        tokens = tokens + self.dropout(self.attention(x, x, x, need_weights=False)[0])
        return tokens + self.dropout(self.mlp(self.norm2(tokens)))


class ExternalNet(nn.Module):
    """Convolutions down to a quarter of the image's side, then attention over the positions, then the mean token."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int, width: int = 48) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            ResidualConv(width, groups=4),
            nn.Conv2d(width, width, 3, stride=2, padding=1, groups=2),
            nn.ReLU(inplace=True),
        )
        side = (((image_size + 1) // 2) + 1) // 2
        self.position = nn.Parameter(torch.randn(1, side * side, width) * 0.02)
        self.block = AttentionBlock(width, heads=4, dropout=0.1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.features(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.block(tokens + self.position)).mean(1))


def external_model(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return an untrained net; called as ``zspag.lab.models.build`` calls any ``file.py:factory``."""
    return ExternalNet(num_classes, in_channels, image_size)
