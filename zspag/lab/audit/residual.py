"""Residual knowledge: forget images that, moved a little, are recognized where a retrained model stays blind.

Hsu et al., "The Unseen Threat: Residual Knowledge in Machine Unlearning under Perturbed Samples", NeurIPS 2025. Moves
are random, the same for every model, or an attack towards the forgotten label on each model's own weights.

Invariant: a model compared with itself has none. What two retrained models of different seeds show is the floor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.config import ProxyConfig
from zspag.lab.evaluation import recognized
from zspag.proxies import attack
from zspag.runtime import logits_of, sent

RADII = (4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255)  # pixels
ATTACK = ProxyConfig(norm="linf")  # the ball that random moves fill


@dataclass(frozen=True)
class Residual:
    """How often moved forget images are recognized, by a model and by the retrained one; all are shares.

    Attributes:
        known: Share of images and draws that the model recognizes.
        known_retrained: The same of the retrained model.
        difference: The former minus the latter. A ratio would divide by zero: the retrained model may know none.
        exposed: Share of images the model recognizes in at least one draw and the retrained model in none.
        exposed_retrained: The reverse, which two retrained models would also show.
    """

    known: float
    known_retrained: float
    difference: float
    exposed: float
    exposed_retrained: float


def residual(known: Tensor, known_retrained: Tensor) -> Residual:
    """Compare what a model and the retrained one recognize among the same moved images.

    Args:
        known: What the model recognizes, booleans of shape (draws, n).
        known_retrained: The same of the retrained model.

    Returns:
        Shares over draws and images, and over images alone.

    Raises:
        ValueError: If the shapes differ.
    """
    if known.shape != known_retrained.shape:
        raise ValueError(
            f"both need the same draws, got shapes {tuple(known.shape)} and {tuple(known_retrained.shape)}"
        )
    share, share_retrained = known.double().mean().item(), known_retrained.double().mean().item()
    ever, ever_retrained = known.any(0), known_retrained.any(0)
    return Residual(
        known=share,
        known_retrained=share_retrained,
        difference=share - share_retrained,
        exposed=(ever & ~ever_retrained).double().mean().item(),
        exposed_retrained=(ever_retrained & ~ever).double().mean().item(),
    )


def recognized_nearby(
    model: nn.Module, images: Tensor, labels: Tensor, *, radius: float, draws: int, generator: torch.Generator
) -> Tensor:
    """Return whether a model recognizes images that were moved at random.

    Args:
        model: Maps [0, 1] images to logits.
        images: Forget images, shape (n, C, H, W), values in [0, 1].
        labels: Their labels, shape (n,).
        radius: Largest move of a pixel, in pixels; moves are uniform in the L-inf ball, then cut to [0, 1].
        draws: Moves per image.
        generator: CPU generator of the moves. In the same state it gives every model the same moved images, and every
            radius the same directions.

    Returns:
        Booleans, shape (draws, n).
    """
    seen = []
    for _ in range(draws):
        noise = sent(torch.rand(images.shape, generator=generator, dtype=images.dtype), images.device) * 2 - 1
        seen.append(recognized(logits_of(model, (images + radius * noise).clamp(0, 1)), labels))
    return torch.stack(seen)


def recognized_under_attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, radius: float, generator: torch.Generator
) -> Tensor:
    """Return whether a model recognizes images that were moved towards their own label, with its weights at hand.

    Args:
        model: Maps [0, 1] images to logits.
        images: Forget images, shape (n, C, H, W), values in [0, 1].
        labels: Their labels, shape (n,).
        radius: L-inf radius of the attack, in pixels. It is a lower bound on what a stronger attack would reach.
        generator: CPU generator of the random starts.

    Returns:
        Booleans, shape (1, n); every model is attacked on its own.
    """
    moved = attack(model, images, labels, eps=radius, config=ATTACK, generator=generator).images
    return recognized(logits_of(model, moved), labels)[None]
