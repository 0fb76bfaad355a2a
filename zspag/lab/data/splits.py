"""What a data set is: two splits of uint8 images with labels, class names, and a hash of all of it.

Invariant: ``Dataset.sha256`` is always that of its contents.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zspag.runtime import spread_evenly

FEWEST = 32  # images of a class that a thinned data set keeps, where the class has them
HALVES = ("first", "second")
MOST_CLASSES = 10  # classes that it keeps: a net that hardly sees an image cannot tell a hundred apart


@dataclass(frozen=True)
class Split:
    """Images with their labels."""

    images: Tensor  # shape (n, C, H, W), uint8 on 0..255
    labels: Tensor  # shape (n,), int64

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 of shape (n, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            raise ValueError(
                f"labels must be int64 of shape ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def float(self) -> Tensor:
        """Return the images on [0, 1], shape (n, C, H, W), float32."""
        return self.images.float() / 255

    def select(self, chosen: Tensor) -> "Split":
        """Return the images at ``chosen``, indices (m,) or a mask (n,)."""
        return Split(self.images[chosen], self.labels[chosen])

    def members(self, labels: Iterable[int]) -> list[Tensor]:
        """Return the indices of each class's images, in their order."""
        return [(self.labels == label).nonzero().flatten() for label in labels]


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same classes.

    Raises:
        ValueError: If a split is empty, or a label is not that of a class.
    """

    name: str  # name it was loaded by
    classes: tuple[str, ...]  # name of every label, in the order of the labels
    train: Split
    test: Split
    augment_hint: str  # label-preserving augmentation of ``TrainConfig.augment``: "none", "shift" or "shift_flip"
    data_source: str  # where the pixels came from, in words; lossy coding is named, as in "JPEG-coded (lossy)"
    sha256: str = field(init=False)  # of class names, shapes, images and labels in their order, whatever the format

    def __post_init__(self) -> None:
        splits = {"training": self.train, "test": self.test}
        for part, split in splits.items():
            if len(split) == 0:
                raise ValueError(f"the {part} split of {self.name} is empty")
            if split.labels.min() < 0 or split.labels.max() >= self.num_classes:
                raise ValueError(f"the {part} labels of {self.name} must lie in 0..{self.num_classes - 1}")
        shapes = [list(split.images.shape) for split in splits.values()]
        digest = hashlib.sha256(json.dumps([list(self.classes), shapes]).encode())
        for split in splits.values():
            digest.update(split.images.contiguous().numpy().data)
            digest.update(split.labels.contiguous().numpy().data)
        object.__setattr__(self, "sha256", digest.hexdigest())

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels C of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.train.images.shape[2]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images of every class, by split."""
        return {
            part: dict(zip(self.classes, split.labels.bincount(minlength=self.num_classes).tolist(), strict=True))
            for part, split in (("train", self.train), ("test", self.test))
        }


def thinned(dataset: Dataset, share: float) -> Dataset:
    """Return the data set with this share of every class's images in both splits, evenly spaced, at least ``FEWEST``.

    Of many classes the first ``MOST_CLASSES`` are kept.

    Raises:
        ValueError: If the share lies outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    if share == 1:
        return dataset
    classes, splits = dataset.classes[:MOST_CLASSES], []
    for split in (dataset.train, dataset.test):
        members = split.members(range(len(classes)))
        chosen = torch.cat([spread_evenly(own, max(FEWEST, round(share * len(own)))) for own in members])
        splits.append(split.select(chosen.sort().values))
    train, test = splits
    return replace(dataset, classes=classes, train=train, test=test)


def halved(dataset: Dataset, half: str) -> Dataset:
    """Return the data set with one half of its test set, so that a choice made on one half is confirmed on the other.

    Of a class's test images numbered from 1, the odd ones are the "first" half and the even ones the "second": images
    that are sorted by kind reach both halves.

    Raises:
        ValueError: If there is no such half, or a class has a single test image.
    """
    if half not in HALVES:
        raise ValueError(f"a test half is {' or '.join(map(repr, HALVES))}, got {half!r}")
    members = dataset.test.members(range(dataset.num_classes))
    for name, own in zip(dataset.classes, members, strict=True):
        if len(own) < 2:
            raise ValueError(f"the test set of {dataset.name} cannot be halved: class {name!r} has {len(own)} image(s)")
    chosen = torch.cat([own[HALVES.index(half) :: 2] for own in members]).sort().values
    return replace(dataset, test=dataset.test.select(chosen))


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of every channel on [0, 1], for ``Normalize``.

    ``images`` has shape (n, C, H, W), uint8. The sums are exact integers: no order or thread count changes them.
    """
    channels, count = images.shape[1], images.numel() // images.shape[1]
    totals = images.sum((0, 2, 3), dtype=torch.int64).double()
    squares = torch.stack([images[:, c].flatten().long().square().sum() for c in range(channels)]).double()
    mean = totals / count / 255
    std = (squares / count / 255**2 - mean**2).sqrt()
    return mean.tolist(), std.tolist()
