"""The data guard: hands out forget and retain samples, and counts what is read while a method runs.

Invariant: inside ``guard.method()`` no sample leaves this package uncounted, except the guard's own forget training
samples. Tensors that a closure carries in are not seen; the signatures of the method have no place for them.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from zspag.lab.data.splits import Dataset, Split
from zspag.runtime import spread_evenly

# One stack for the whole process and not one per context: a method that reads from a thread of its own is seen too.
_active: list["Guard"] = []


class Guard:
    """Counts the samples that a method reads beyond the forget set it was given.

    Attributes:
        forget: Labels of the classes to forget, sorted.
        retain: Labels of the other classes, sorted.
        retain_samples_read: Samples read inside ``method()`` that a zero-shot method may not see.
        reads: Samples read outside, by part ("forget_train", "retain_train", "forget_test", "retain_test").

    Raises:
        ValueError: If ``forget`` is empty, holds every class, or names a class that does not exist.
    """

    def __init__(self, dataset: Dataset, forget: Sequence[int]) -> None:
        self.forget = tuple(sorted(set(forget)))
        if not self.forget:
            raise ValueError("forget is empty: name at least one class to forget")
        if self.forget[0] < 0 or self.forget[-1] >= dataset.num_classes:
            raise ValueError(f"forget must name classes in 0..{dataset.num_classes - 1}, got {self.forget}")
        if len(self.forget) == dataset.num_classes:
            raise ValueError(f"forget holds all {dataset.num_classes} classes: nothing would be retained")
        self.retain = tuple(label for label in range(dataset.num_classes) if label not in self.forget)
        self.retain_samples_read = 0
        self.reads: Counter[str] = Counter()
        self._dataset = dataset

    def forget_train(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return images (n, C, H, W) on [0, 1] and labels (n,), of each class at most ``limit``, evenly spaced."""
        return self._read("forget_train", self._dataset.train, self.forget, limit)

    def retain_train(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """As ``forget_train``, of the other classes."""
        return self._read("retain_train", self._dataset.train, self.retain, limit)

    def forget_test(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """As ``forget_train``, test samples."""
        return self._read("forget_test", self._dataset.test, self.forget, limit)

    def retain_test(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """As ``forget_train``, test samples of the other classes."""
        return self._read("retain_test", self._dataset.test, self.retain, limit)

    @contextmanager
    def method(self) -> Generator[None, None, None]:
        """Count, while the block runs, every sample that leaves this package by any way but ``forget_train``."""
        _active.append(self)
        try:
            yield
        finally:
            _active.remove(self)

    def _read(self, part: str, split: Split, labels: Sequence[int], limit: int | None) -> tuple[Tensor, Tensor]:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 sample per class, got {limit}")
        chosen = torch.cat([spread_evenly(members, limit) for members in split.members(labels)])
        if not _active:
            self.reads[part] += len(chosen)
        count_read(len(chosen), except_by=self if part == "forget_train" else None)
        samples = split.select(chosen.sort().values)
        return samples.float(), samples.labels


def count_read(samples: int, *, except_by: Guard | None = None) -> None:
    """Count samples that leave this package while a method runs, with every active guard but ``except_by``."""
    for guard in _active:
        if guard is not except_by:  # another guard's forget set may be this one's retain set
            guard.retain_samples_read += samples
