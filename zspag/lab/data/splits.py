"""What a data set is: two splits of uint8 images with labels, class names, and a hash of all of it."""

import hashlib
import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FEWEST = 32  # images of a class that a thinned data set keeps, where the class has them
HALVES = ("first", "second")
MOST_CLASSES = 10  # classes that it keeps: a net that hardly sees an image cannot tell a hundred apart


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: Shape (n, C, H, W), uint8 on 0..255.
        labels: Shape (n,), int64.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 of shape (n, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.images),):
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), got {self.labels.dtype}"
                f" {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def float(self) -> Tensor:
        """Return the images on [0, 1], shape (n, C, H, W), float32."""
        return self.images.float() / 255

    def select(self, chosen: Tensor) -> "Split":
        """Return the images at ``chosen``, indices (m,) or a mask (n,)."""
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same classes.

    Attributes:
        name: Name it was loaded by.
        classes: Name of every label, in the order of the labels.
        train: Training split.
        test: Test split.
        sha256: Hash of class names, images and labels in their order; independent of file formats.
        augment_hint: Label-preserving augmentation of ``TrainConfig.augment``: "none", "shift" or "shift_flip".
        data_source: Where the pixels came from, in words; lossy coding is named, as in "JPEG-coded (lossy)".
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    sha256: str
    augment_hint: str
    data_source: str

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


def assemble(
    name: str, classes: tuple[str, ...], train: Split, test: Split, *, augment_hint: str, data_source: str
) -> Dataset:
    """Return the data set with its hash.

    Raises:
        ValueError: If a split is empty, or a label is not that of a class.
    """
    for part, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise ValueError(f"the {part} split of {name} is empty")
        if split.labels.min() < 0 or split.labels.max() >= len(classes):
            raise ValueError(f"the {part} labels of {name} must lie in 0..{len(classes) - 1}")
    return Dataset(name, classes, train, test, content_hash(classes, train, test), augment_hint, data_source)


def content_hash(classes: tuple[str, ...], train: Split, test: Split) -> str:
    """Return the SHA-256 of class names, shapes, images and labels."""
    shapes = [list(split.images.shape) for split in (train, test)]
    digest = hashlib.sha256(json.dumps([list(classes), shapes]).encode())
    for split in (train, test):
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()


def thinned(dataset: Dataset, share: float) -> Dataset:
    """Return the data set with this share of every class's images in both splits, evenly spaced, at least ``FEWEST``.

    Of many classes the first ``MOST_CLASSES`` are kept. A share of 1 % proves that a command runs where the whole would
    take a GPU; its numbers mean nothing.

    Raises:
        ValueError: If the share lies outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    if share == 1:
        return dataset
    classes = dataset.classes[:MOST_CLASSES]
    train, test = (_thinned(split, len(classes), share) for split in (dataset.train, dataset.test))
    return replace(dataset, classes=classes, train=train, test=test, sha256=content_hash(classes, train, test))


def _thinned(split: Split, classes: int, share: float) -> Split:
    members = [(split.labels == label).nonzero().flatten() for label in range(classes)]
    return split.select(
        torch.cat([spread_evenly(own, max(FEWEST, round(share * len(own)))) for own in members]).sort().values
    )


def halved(dataset: Dataset, half: str) -> Dataset:
    """Return the data set with one half of its test set: every second image of each class, in the order of the set.

    What was chosen on one half can be confirmed on the other. Of a class's test images numbered from 1, the odd ones
    are the "first" half and the even ones the "second": whatever kinds the order comes in, both halves have them.

    Raises:
        ValueError: If there is no such half, or a class has a single test image.
    """
    if half not in HALVES:
        raise ValueError(f"a test half is {' or '.join(map(repr, HALVES))}, got {half!r}")
    members = [(dataset.test.labels == label).nonzero().flatten() for label in range(dataset.num_classes)]
    for name, own in zip(dataset.classes, members, strict=True):
        if len(own) < 2:
            raise ValueError(f"the test set of {dataset.name} cannot be halved: class {name!r} has {len(own)} image(s)")
    chosen = torch.cat([own[HALVES.index(half) :: 2] for own in members]).sort().values
    test = dataset.test.select(chosen)
    return replace(dataset, test=test, sha256=content_hash(dataset.classes, dataset.train, test))


def spread_evenly(indices: Tensor, limit: int | None) -> Tensor:
    """Return at most ``limit`` of the indices, evenly spaced: images sorted by name come in kinds."""
    if limit is None or limit >= len(indices):
        return indices
    return indices[torch.arange(limit) * len(indices) // limit]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of every channel on [0, 1], for ``Normalize``.

    Args:
        images: Shape (n, C, H, W), uint8.

    Returns:
        Two lists of C numbers, from exact integer sums, so that no order or thread count changes them.

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        ([0.5], [0.5])
    """
    channels, count = images.shape[1], images.numel() // images.shape[1]
    totals = images.sum((0, 2, 3), dtype=torch.int64).double()
    squares = torch.stack([images[:, c].flatten().long().square().sum() for c in range(channels)]).double()
    mean = totals / count / 255
    std = (squares / count / 255**2 - mean**2).sqrt()
    return mean.tolist(), std.tolist()
