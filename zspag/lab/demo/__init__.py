"""A trained net of 60,000 weights and real digits that come with the package: ``zspag demo``, and six lines of Python.

``python -m benchmarks.demo_net`` trained the net. The digits are the test images of "Optical Recognition of Handwritten
Digits" (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0), 8 x 8 pixels. The net saw ``train`` images, and never ``test``.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
NET, IMAGES = FOLDER / "net.safetensors", FOLDER / "digits.npz"
CLASSES = 10


def untrained() -> nn.Sequential:
    """Return the net before it was trained: digits (n, 1, 8, 8) on [0, 1] to logits (n, 10)."""
    first = [nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 48, 3, padding=1, stride=2), nn.ReLU()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def net() -> nn.Module:
    """Return the trained net, in eval mode."""
    model = untrained()
    model.load_state_dict(load_file(NET))
    return model.eval()


def digits(part: Literal["train", "test"], *, only: int | None = None) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 8, 8) on [0, 1] and their classes (n,).

    Args:
        part: "train" or "test".
        only: A class, to get its images alone; None gives all.

    Raises:
        ValueError: If there is no such part or class.

    Example:
        >>> images, labels = digits("train", only=3)
        >>> images.shape[1:], labels.unique().tolist()
        (torch.Size([1, 8, 8]), [3])
    """
    if part not in ("train", "test") or only not in (None, *range(CLASSES)):
        raise ValueError(f"part is 'train' or 'test' and only a class from 0 to 9, got {part!r} and {only!r}")
    with np.load(IMAGES) as kept:
        images, labels = (torch.from_numpy(kept[f"{part}_{name}"]) for name in ("images", "labels"))
    chosen = slice(None) if only is None else labels == only
    return images[chosen, None].float() / 16, labels[chosen].long()
