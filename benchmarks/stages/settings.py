"""What is measured on: nets, images and sizes.

Invariant: only the whole method needs a trained net and real photographs; everywhere else time does not depend on the
values, and the images are drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.config import SubspaceConfig
from zspag.lab import models
from zspag.runtime import channels_last, generator_for
from zspag.subspaces import ClassMoments, accumulate, combine, second_moments


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the tiny ones only show that every line runs.

    Attributes:
        nets: Nets (architecture, width) of the stages, smallest first.
        wide: The net of the largest layers.
        image: Channels, height and width.
        classes: Number of classes K.
        per_class: Proxies per class m.
        forget: Forget samples n.
        steps: Steps of the attack.
        repeats: Repetitions.
        side: Side of the matrices of the machine's own rate.
        copied: Bytes of the block whose copy is timed.
        grown: Factors of the counts n and m of the growth curves.
        many: Numbers of classes K of the growth curves.
        depths: Numbers of layers of the growth curves.
        widths: Widths d of the growth curves, multiples of 9: inputs of a 3 x 3 convolution.
        tiny: Whether the numbers mean nothing.
    """

    nets: tuple[tuple[str, int], ...] = (("conv7", 20), ("allcnn", 48))
    wide: tuple[str, int] = ("vgg16", 64)
    image: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    per_class: int = 50
    forget: int = 256
    steps: int = 10
    repeats: int = 5
    side: int = 2048
    copied: int = 2**28
    grown: tuple[int, ...] = (1, 2, 4)
    many: tuple[int, ...] = (10, 30, 100)
    depths: tuple[int, ...] = (4, 8, 16)
    widths: tuple[int, ...] = (576, 1152, 2304, 4608)
    tiny: bool = False


TINY = Sizes(
    nets=(("digits", 4),),
    wide=("digits", 8),
    image=(1, 8, 8),
    classes=4,
    per_class=3,
    forget=6,
    steps=2,
    repeats=2,
    side=64,
    copied=2**16,
    grown=(1, 2),
    many=(4, 6),
    depths=(2, 3),
    widths=(18, 36),
    tiny=True,
)


def net(arch: str, width: int, sizes: Sizes, *, device: torch.device) -> nn.Module:
    """Return an untrained net in eval mode."""
    channels, side, _ = sizes.image
    built = models.build(
        arch,
        num_classes=sizes.classes,
        in_channels=channels,
        image_size=side,
        width=width,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        seed=0,
    )
    return built.eval().to(device)


def images(count: int, sizes: Sizes, *, device: torch.device) -> Tensor:
    """Return ``count`` images of noise in [0, 1], channels innermost."""
    return channels_last(torch.rand(count, *sizes.image, generator=generator_for("bench")).to(device))


def weight_names(model: nn.Module) -> list[str]:
    """Return the names of the weights that an update may move."""
    return [name for name, parameter in model.named_parameters() if parameter.dim() > 1]


def pooled_bases(model: nn.Module, x: Tensor, *, classes: int) -> ClassMoments:
    """Return the moments of ``x``, taken as those of ``classes`` classes, once the bases of all layers are cut."""
    moments = accumulate((second_moments(model, x) for _ in range(classes)), classes=classes)
    combine(moments, config=SubspaceConfig())
    return moments
