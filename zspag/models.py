"""Small convolutional nets for 8x8 and 28x28/32x32 images, and any net from a file.

Invariant: the first layer normalizes, so every model takes images in [0, 1] and a radius ``eps`` is in pixel units.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Map images in [0, 1] to ``(images - mean) / std``, channel by channel.

    Args:
        mean: Mean of each channel, on [0, 1].
        std: Standard deviation of each channel, on [0, 1].

    Raises:
        ValueError: If the lengths differ or a deviation is not positive.

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise ValueError(f"mean and std need one value per channel, got {len(mean)} and {len(std)} values")
        if min(std) <= 0:
            raise ValueError(f"every std must be positive, got {tuple(std)}: a constant channel cannot be normalized")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize ``images`` of shape (n, C, H, W)."""
        return (images - self.mean) / self.std


def _block(channels_in: int, channels_out: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)  # the norm's shift is its bias
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


def _head(channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def digits_net(*, num_classes: int, in_channels: int, width: int) -> nn.Sequential:
    """Return three 3x3 convolutions (w, 2w, 2w) with batch norm and a linear head, for 8x8 images."""
    return nn.Sequential(
        *_block(in_channels, width),
        *_block(width, 2 * width),
        nn.MaxPool2d(2),
        *_block(2 * width, 2 * width),
        *_head(2 * width, num_classes),
    )


def conv7(*, num_classes: int, in_channels: int, width: int) -> nn.Sequential:
    """Return six 3x3 convolutions (w, w, 2w, 2w, 4w, 4w) with batch norm and a linear head, for 28x28 or 32x32."""
    return nn.Sequential(
        *_block(in_channels, width),
        *_block(width, width),
        nn.MaxPool2d(2),
        *_block(width, 2 * width),
        *_block(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *_block(2 * width, 4 * width),
        *_block(4 * width, 4 * width),
        *_head(4 * width, num_classes),
    )


ARCHITECTURES: dict[str, Callable[..., nn.Sequential]] = {"digits": digits_net, "conv7": conv7}


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
        arch: "digits", "conv7" or ``path/to/file.py:factory``; a factory is called as
            ``factory(num_classes=..., in_channels=..., image_size=...)``.
        num_classes: Width K of the logits.
        in_channels: Channels C of an image.
        image_size: Height and width of an image, in pixels.
        width: Channels of the first block (a factory chooses its own).
        mean: Mean of each channel; with ``std`` it makes the first layer, without it there is none.
        std: Standard deviation of each channel.
        seed: Seed of the initial weights, leaving the global stream as it was; None draws from that stream.

    Returns:
        A model in training mode.

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
        body = _body(arch, num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    if mean is None or std is None:
        return body
    if len(mean) != in_channels:
        raise ValueError(f"mean needs one value per channel: {in_channels} channels, {len(mean)} values")
    normalize = Normalize(mean, std)
    if isinstance(body, nn.Sequential):  # flat, so that layers are named 1, 4, 8 and not 1.0, 1.3, 1.7
        return nn.Sequential(normalize, *body)
    return nn.Sequential(normalize, body)


def from_file(place: str) -> nn.Module:
    """Build a model of somebody else's: ``path/to/file.py:factory``, called without arguments.

    Raises:
        ValueError: If the file or the factory is missing, or what it returns is no module.
    """
    if ".py:" not in place:
        raise ValueError(f"a model is given as path/to/file.py:factory, got {place!r}")
    return _module(_factory(place)(), place)


def _module(model: object, place: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{place} returned {type(model).__name__}; a factory must return a torch.nn.Module")
    return model


def _body(arch: str, *, num_classes: int, in_channels: int, image_size: int, width: int) -> nn.Module:
    if ".py:" in arch:
        return _module(_factory(arch)(num_classes=num_classes, in_channels=in_channels, image_size=image_size), arch)
    if arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"unknown architecture {arch!r}; known are {known}, or path/to/file.py:factory")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if image_size < 4:
        raise ValueError(f"image_size must be at least 4 pixels for {arch!r}, got {image_size}")
    return ARCHITECTURES[arch](num_classes=num_classes, in_channels=in_channels, width=width)


def _factory(arch: str) -> Callable[..., object]:
    file, _, name = arch.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no file {file} for the architecture {arch!r}; give the path of a Python file before ':'")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # a file with the suffix .py always has a spec
    assert spec.loader is not None  # and that a loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file} cannot be imported ({type(error).__name__}: {error})") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(f"{file} has no function {name!r}; give file.py:factory with a function defined there")
    return factory
