"""Data that needs neither files nor a network: scikit-learn's digits, and Gaussians in the plane.

Invariant: the split of the digits and the points of the plane depend on nothing but their seed.
"""

import math

import torch
from torch import Tensor

from zspag.lab.data.splits import Dataset, Split, assemble
from zspag.runtime import generator_for

DIGITS_SPLIT_SEED = 0
DIGITS_TEST_SHARE = 0.2


def read_digits() -> Dataset:
    """Return scikit-learn's own 1797 digits, shape (n, 1, 8, 8), split 80/20 within every class by a fixed seed."""
    from sklearn.datasets import load_digits  # a second of import that a cached set does not need

    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator_for("digits split", DIGITS_SPLIT_SEED, label))
        in_test[members[order[: round(DIGITS_TEST_SHARE * len(members))]]] = True
    everything, classes = Split(images, labels), tuple(map(str, range(10)))
    train, test = everything.select(~in_test), everything.select(in_test)
    return assemble("digits", classes, train, test, augment_hint="shift", data_source="scikit-learn's own copy")


def gaussians2d(*, classes: int, per_class: int, spread: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points of the plane around centres on the unit circle, for the theory.

    Args:
        classes: Number of Gaussians K.
        per_class: Points of each.
        spread: Standard deviation of each, in units of the circle's radius.
        generator: Source of randomness.

    Returns:
        Points (K * per_class, 2), float32, and labels (K * per_class,), int64, class by class.

    Raises:
        ValueError: If a count is below 1 or the spread negative.
    """
    if classes < 1 or per_class < 1 or spread < 0:
        raise ValueError(
            f"classes and per_class must be at least 1 and spread not negative, got {classes}, {per_class}, {spread}"
        )
    labels = torch.arange(classes).repeat_interleave(per_class)
    angles = labels * (2 * math.pi / classes)
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    return centres + spread * torch.randn(len(labels), 2, generator=generator), labels
