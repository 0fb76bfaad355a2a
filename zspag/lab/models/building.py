"""A model by the name of its architecture, or from somebody's own file; the table of architectures stands here.

A new architecture is one function (num_classes, in_channels, image_size, width) -> module in a file of its own (an edit
of it then leaves the cached nets of the others valid) and one line of the table.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from zspag.lab.models.alexnet import alexnet
from zspag.lab.models.allcnn import allcnn
from zspag.lab.models.layers import Normalize
from zspag.lab.models.resnet import resnet18
from zspag.lab.models.small import conv7, digits_net
from zspag.lab.models.user_files import is_file_place, model_of
from zspag.lab.models.vgg import vgg11, vgg16
from zspag.lab.models.vit import vit

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "alexnet": alexnet,
    "allcnn": allcnn,
    "conv7": conv7,
    "digits": digits_net,
    "resnet18": resnet18,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vit": vit,
}


def build(
    arch: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a fresh model that maps images in [0, 1] to logits.

    Args:
        arch: A name of ``ARCHITECTURES`` or ``path/to/file.py:factory``; a factory is handed num_classes, in_channels
            and image_size, each if it has a parameter of that name.
        num_classes: Width K of the logits.
        in_channels: Channels C of an image.
        image_size: Height and width of an image, in pixels.
        width: Channels of the first block, or the hidden dimension of a transformer (a factory chooses its own).
        mean: Mean of each channel; with ``std`` it makes the first layer, without it there is none.
        std: Standard deviation of each channel.
        seed: Seed of the initial weights, leaving the global stream as it was; None draws from that stream.

    Raises:
        ValueError: If the architecture is unknown, the image is too small for it, or only one of mean and std is given.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std come together, got mean={mean} and std={std}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if is_file_place(arch):
            body = from_file(arch, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        else:
            if arch not in ARCHITECTURES:
                known = ", ".join(sorted(ARCHITECTURES))
                raise ValueError(f"unknown architecture {arch!r}; known are {known}, or path/to/file.py:factory")
            if width < 1:
                raise ValueError(f"width must be at least 1, got {width}")
            options = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
            body = ARCHITECTURES[arch](**options, width=width)
    if mean is None or std is None:
        return body
    if len(mean) != in_channels:
        raise ValueError(f"mean needs one value per channel: {in_channels} channels, {len(mean)} values")
    normalize = Normalize(mean, std)
    if isinstance(body, nn.Sequential):  # flat, so that layers are named 1, 4, 8 and not 1.0, 1.3, 1.7
        return nn.Sequential(normalize, *body)
    return nn.Sequential(normalize, body)


def from_file(place: str, **known: int) -> nn.Module:
    """Build a model of somebody else's: ``path/to/file.py:factory``, ``package.module:factory`` or ``timm:name``.

    ``known`` holds num_classes, in_channels and image_size as far as they are known; a factory gets those it takes.
    Errors are those of ``user_files.model_of``.
    """
    return model_of(place, known)[0]
