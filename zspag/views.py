"""Views of the forget samples: shifted, mirrored or noisy copies that the model still recognizes.

Twenty images are not a class. A model that is fitted to their views, too, forgets more of the images that were not
given. Which kinds of view keep the class depends on the data: a mirrored 3 is no 3. So the model decides. A kind is
used if the model answers nearly all such views as it answers the images.

Invariant: the images themselves come first, unchanged; nothing but them and the model is read.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.runtime import logits_of, sent

NOISE = 0.03  # standard deviation of the noise, in pixels on [0, 1]
SHIFT = 16  # a view is shifted by at most one part in this many of the image's side, and at least by one pixel
LOST = 0.1  # share of views of a kind that may be answered differently; CHOICE: kinds differ by far more or far less
ASKED = 100  # views per kind on which this is measured, at least

Change = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Views:
    """Images and their views.

    Attributes:
        images: The images, then their views, shape (v, C, H, W) in [0, 1].
        sources: Index of the image behind each, shape (v,), on the CPU.
        answers: Class that the model answers to the image behind each, shape (v,), on the CPU.
        kinds: Names of the changes that were used.
    """

    images: Tensor
    sources: Tensor
    answers: Tensor
    kinds: tuple[str, ...]


def make_views(model: nn.Module, images: Tensor, *, least: int, generator: torch.Generator) -> Views:
    """Add views of all images until there are about ``least``.

    Args:
        model: The original.
        images: Shape (n, C, H, W), values in [0, 1].
        least: Images and views wanted; with as many images or more there are no views.
        generator: CPU generator of the changes.

    Returns:
        At most ``n * ceil(least / n)`` images; the n images alone where no kind of view is recognized. A view that
        the model answers differently from its image is left out.
    """
    answers, own = logits_of(model, images).argmax(1), torch.arange(len(images))
    copies = math.ceil(least / len(images)) - 1
    kinds = recognized_changes(model, images, generator=generator) if copies > 0 else {}
    parts, sources = [images], [own]
    for _ in range(copies if kinds else 0):
        view = images
        for change in kinds.values():
            view = change(view, generator)
        alike = logits_of(model, view).argmax(1) == answers
        parts.append(view[alike])
        sources.append(own[alike.cpu()])
    behind = torch.cat(sources)
    return Views(torch.cat(parts), behind, answers.cpu()[behind], tuple(kinds))


def recognized_changes(model: nn.Module, images: Tensor, *, generator: torch.Generator) -> dict[str, Change]:
    """Return the kinds of view of which the model answers nearly all as it answers the images (n, C, H, W)."""
    answers = logits_of(model, images).argmax(1)

    def recognized(change: Change) -> bool:
        rounds = math.ceil(ASKED / len(images))
        same = [logits_of(model, change(images, generator)).argmax(1) == answers for _ in range(rounds)]
        return torch.cat(same).double().mean().item() >= 1 - LOST

    return {name: used for name, (asked, used) in KINDS.items() if recognized(asked)}


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image (n, C, H, W) by some pixels in both directions; what leaves the border is repeated there."""
    height, width = images.shape[-2:]
    most = max(1, min(height, width) // SHIFT)
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    corners = torch.randint(2 * most + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([padded[i, :, top : top + height, left : left + width] for i, (top, left) in enumerate(corners)])


def mirrored(images: Tensor, _generator: torch.Generator) -> Tensor:
    """Mirror every image (n, C, H, W) left to right."""
    return images.flip(-1)


def sometimes_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image (n, C, H, W) left to right with probability 1/2."""
    chosen = sent(torch.rand(len(images), generator=generator) < 0.5, images.device)
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of deviation ``NOISE`` and stay in [0, 1]."""
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return (images + NOISE * sent(noise, images.device)).clamp(0, 1)


# Per kind, the change of which the model is asked, and the one that is used.
KINDS: dict[str, tuple[Change, Change]] = {
    "shift": (shifted, shifted),
    "mirror": (mirrored, sometimes_mirrored),
    "noise": (noisy, noisy),
}
