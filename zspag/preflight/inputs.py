"""Forget data of any usual form (tensors, arrays, data sets, loaders) as images in [0, 1] with a class number each.

A set that is too large is read once from its beginning to its end, and a class-balanced sample of it is used.

Invariant: nothing of the caller's is changed or shared; what could be read in two ways is refused. Memory is bounded by
the limit, whatever the size of the set.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zspag.runtime import generator_for

IMAGE_KEYS = ("pixel_values", "image", "images", "img")
LABEL_KEYS = ("labels", "label")
ROUNDING = 1e-4  # resized images leave [0, 1] by a rounding error, which is cut off
DARK = 1.5 / 255  # images below this value were divided by 255 twice, or held only zeros and ones as bytes
BYTES = 16  # float images beyond this value were not divided by 255
# What the forget images may take as the method holds them, if the caller sets no limit; the method needs some 3.5 times
# as much at its peak. CHOICE: 1 GiB, which holds 1,783 images of 3 x 224 x 224. With 200 images of a class already, no
# net of results/external recognized more than 0.6 % of the class's unseen images.
FORGET_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """Samples of the classes to forget.

    Attributes:
        images: Shape (n, C, H, W), values in [0, 1], on the model's device and in the dtype that the method works in.
        labels: Their classes, int64, shape (n,).
        left_out: Images that the caller passed beyond the limit.
    """

    images: Tensor
    labels: Tensor
    left_out: int = 0

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that occur, in increasing order."""
        return tuple(sorted(set(self.labels.tolist())))


def forget_set(
    images: Any, labels: Any = None, *, device: torch.device, dtype: torch.dtype, limit: Any = None
) -> ForgetSet:
    """Read forget data of any usual form.

    Args:
        images: A tensor or array of shape (n, C, H, W), float in [0, 1] or uint8; a map-style ``Dataset``; or a
            ``DataLoader`` or other iterable. Samples and batches are pairs (image, label), dicts with "pixel_values",
            "image" or "images" and "labels" or "label", or, if ``labels`` are given, images alone.
        labels: One class per image (tensor, array, list, tuple), or one int for all; None if ``images`` brings them.
        device: Where the images go.
        dtype: What they are cast to.
        limit: Most images that are used; None uses as many as take ``FORGET_BYTES``. Of a larger set those that
            ``balanced`` takes are used, in the order in which they came; the others are not checked.

    Returns:
        A copy; the caller's images are only read.

    Raises:
        ValueError: If images, labels or limit cannot be used; the message holds the value and the remedy.

    Example:
        >>> white = np.full((2, 1, 4, 4), 255, dtype=np.uint8)
        >>> found = forget_set(white, 3, device=torch.device("cpu"), dtype=torch.float32)
        >>> found.images.max().item(), found.labels.tolist()
        (1.0, [3, 3])
    """
    most = None if limit is None else whole_number(limit)
    if limit is not None and (most is None or most < 1):
        raise ValueError(
            f"limit must be a whole number of at least 1, got {limit!r}: leave it out, or pass a larger one"
        )
    sample = _Sample(most)
    if _is_array(images):
        sample.take(images, labels, device, dtype)
    else:
        with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator, even without shuffling
            torch.manual_seed(0)
            sample.read(images, labels, device, dtype)
    if not sample.seen:
        dropped = " (its DataLoader has drop_last=True)" if getattr(images, "drop_last", False) else ""
        raise ValueError(f"the forget set is empty{dropped}: pass at least one image of each class to forget")
    found, numbers, places = sample.all()
    if not bool(torch.isfinite(found).all()):
        bad = places[(~torch.isfinite(found.flatten(1)).all(1)).nonzero()[0].cpu()].item()
        raise ValueError(f"forget_images[{bad}] holds NaN or infinity: clean the images first")
    low, high = found.min().item(), found.max().item()
    if low < -ROUNDING or high > 1 + ROUNDING:
        remedy = "pass unnormalized images and put Normalize(mean, std) in front of the model"
        counts = bool((found == found.round()).all())  # normalized pixels are not whole numbers, nor all positive
        if low >= 0 and (high > BYTES or counts):
            remedy = "divide them by the largest value that a pixel can have (255 for bytes)"
        raise ValueError(f"forget_images must lie in [0, 1], got [{low:.4g}, {high:.4g}]: {remedy}")
    if high <= DARK:
        raise ValueError(f"forget_images are black, their largest value is {high:.3g}: divide them by 255 once only")
    return ForgetSet(found.clamp_(0, 1), numbers.to(device), sample.seen - len(numbers))


def balanced(labels: Tensor, limit: int, *, draws: Tensor | None = None) -> Tensor:
    """Choose ``limit`` of n samples at random, the same number of each class as far as the classes have them.

    Every sample draws a number. Sorted by it, the samples of a class have ranks; those of the lowest ranks are taken.
    So a sample that is not among the chosen of a part of a set is not among those of the whole set either, and a stream
    can be thinned on its way.

    Args:
        labels: Classes, shape (n,), on the CPU.
        limit: How many are wanted.
        draws: The samples' numbers, shape (n,); None draws those that every set of n samples gets.

    Returns:
        Positions in increasing order, shape (min(n, limit),).

    Raises:
        ValueError: If there are more classes than that.

    Example:
        >>> labels = torch.tensor([7, 7, 7, 7, 7, 7, 5, 5])
        >>> labels[balanced(labels, 4)].tolist()
        [7, 7, 5, 5]
    """
    classes = len(labels.unique())
    if limit < classes:
        raise ValueError(f"limit={limit} is less than the {classes} classes to forget, each of which needs an image")
    draws = _numbers_drawn(len(labels), generator_for("forget set")) if draws is None else draws
    order = draws.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    ordered = labels[order]
    ranks = torch.arange(len(ordered), device="cpu") - torch.searchsorted(ordered, ordered)
    return order[ranks.argsort(stable=True)[:limit]].sort().values


def most_images(numbers: int) -> int:
    """Return how many images of so many numbers each fit ``FORGET_BYTES`` in float32."""
    return max(1, FORGET_BYTES // max(1, 4 * numbers))


def _numbers_drawn(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")


class _Sample:
    """Gathers images; once they are more than ``limit``, new ones take the places of those that ``balanced`` drops."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.seen = limit, 0
        self.generator = generator_for("forget set")
        self.pieces: list[Tensor] = []
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []  # class, place in the set and number drawn of each image

    def take(self, images: Any, labels: Any, device: torch.device, dtype: torch.dtype) -> None:
        """Take a whole tensor or array; of a large one, only what is used is read."""
        shape = tuple(np.shape(images))
        limit = self.limit or most_images(math.prod(shape[1:]))
        if len(shape) == 4 and shape[0] > limit:
            numbers = _class_numbers(labels, shape[0])
            self.seen, places = shape[0], balanced(numbers, limit)
            chosen = images[places.to(images.device)] if isinstance(images, Tensor) else images[places.numpy()]
            self.pieces = [_scaled(_tensor(chosen, "forget_images"), device, dtype)]
            self.kept = [(numbers[places], places, torch.zeros(len(places), device="cpu"))]
            return
        pieces = _scaled(_tensor(images, "forget_images"), device, dtype)
        if len(pieces):
            self.add(pieces, _class_numbers(labels, len(pieces)))

    def read(self, source: Any, labels: Any, device: torch.device, dtype: torch.dtype) -> None:
        """Read a data set or a loader from its beginning to its end.

        Raises:
            ValueError: If there is not one label per image.
        """
        number = whole_number(labels)
        listed = None if labels is None or number is not None else _class_numbers(labels, None)
        for images, brought in _read(source, labels is None, device, dtype):
            numbers = brought
            if number is not None:
                numbers = torch.full((len(images),), number, dtype=torch.int64, device="cpu")
            elif listed is not None:
                numbers = listed[self.seen : self.seen + len(images)]
                numbers = torch.cat([numbers, numbers.new_zeros(len(images) - len(numbers))])  # counted at the end
            self.add(images, numbers)
        if listed is not None and self.seen and len(listed) != self.seen:
            raise ValueError(_miscounted(self.seen, len(listed)))

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add images (b, C, H, W) and their classes (b,)."""
        self.limit = self.limit or most_images(images[0].numel())
        room = max(0, self.limit - self.seen)
        places = torch.arange(self.seen, self.seen + len(labels), device="cpu")
        self.kept.append((labels, places, _numbers_drawn(len(labels), self.generator)))
        self.seen += len(labels)
        if room:
            self.pieces.append(images[:room])
        if self.seen <= self.limit:
            return
        if room or len(self.pieces) > 1:  # one block from now on: what is left of many pieces would leave holes
            self.pieces = [torch.cat(self.pieces)]
        limit, block, more = self.limit, self.pieces[0], images[room:]
        labels, places, draws = (torch.cat(part) for part in zip(*self.kept, strict=True))
        chosen = balanced(labels, limit, draws=draws)
        slots = torch.arange(limit, device="cpu")
        slots[~torch.isin(slots, chosen)] = chosen[chosen >= limit]
        new = (slots >= limit).nonzero()[:, 0]
        block[new.to(block.device)] = more[(slots[new] - limit).to(block.device)]
        self.kept = [(labels[slots], places[slots], draws[slots])]

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, classes and places of what is used, in the order in which they came."""
        labels, places, _ = (torch.cat(part) for part in zip(*self.kept, strict=True))
        images = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)
        order = places.argsort()
        if bool((order[1:] > order[:-1]).all()):
            return images, labels, places
        return images[order.to(images.device)], labels[order], places[order]


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and not hasattr(value, "getbands"))  # PIL images


def _tensor(value: Any, what: str) -> Tensor:
    """Return a tensor with the values of a tensor or array; it may share the caller's memory.

    Raises:
        ValueError: If it holds no numbers, or none that torch has.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"{what} must be a dense tensor that holds numbers, got {value.layout} on {value.device}")
        own_data = type(value).__torch_dispatch__ is Tensor.__torch_dispatch__  # else the class holds the data
        return value.detach().as_subclass(Tensor) if own_data else value.detach()
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{what} is a masked array: fill the masked entries first, for example with filled(0)")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{what} has dtype {array.dtype}, which holds no plain numbers: pass numbers of one shape")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # A copy in native byte order: torch takes neither negative strides nor memory that it must not write to.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _scaled(images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a copy of (n, C, H, W) images on ``device``, uint8 divided by 255.

    Raises:
        ValueError: If shape or dtype leave open what the numbers mean.
    """
    shape = tuple(images.shape)
    if len(shape) != 4:
        raise ValueError(
            f"forget_images must have shape (n, C, H, W), got {shape}: pass images[None] for a single image,"
            " images[:, None] for grey images without a channel axis"
        )
    if shape[0] and 0 in shape:
        raise ValueError(f"forget_images of shape {shape} hold no pixels: pass images of shape (n, C, H, W)")
    if shape[3] in {1, 3, 4} and min(shape[1:3]) >= 8:  # nobody has images of three columns and many channels
        raise ValueError(
            f"forget_images of shape {shape} have their channels last: pass images.permute(0, 3, 1, 2)"
            " (for an array: images.transpose(0, 3, 1, 2))"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(
            f"forget_images must be float in [0, 1] or uint8, got {images.dtype}: divide them by the largest value"
            " that a pixel can have"
        )
    copy = images.to(device, dtype, copy=True)
    return copy / 255 if images.dtype == torch.uint8 else copy


def whole_number(value: Any) -> int | None:
    """Return the one whole number that ``value`` is, or None; a truth value is none."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool | np.bool_) else None


def _class_numbers(labels: Any, count: int | None) -> Tensor:
    """Return ``count`` class numbers, int64; None takes as many as there are, and no int for all.

    Raises:
        ValueError: If there is not one whole number per image.
    """
    if labels is None:
        raise ValueError("forget_labels are missing: pass one class number per image, or one int for all images")
    number = whole_number(labels)
    if number is not None and count is not None:
        return torch.full((count,), number, dtype=torch.int64, device="cpu")
    if _is_array(labels):
        numbers = _tensor(labels, "forget_labels")
    elif isinstance(labels, Iterable) and not isinstance(labels, str | bytes | Mapping | set | frozenset):
        items = list(labels)
        for index, item in enumerate(items):
            if whole_number(item) is None:
                raise ValueError(
                    f"forget_labels[{index}] is {item!r} ({type(item).__name__}): pass class numbers (ints); of one-hot"
                    " labels pass the position of the 1"
                )
        numbers = torch.tensor([whole_number(item) for item in items], dtype=torch.int64, device="cpu")
    else:
        raise ValueError(
            f"forget_labels must be class numbers, got {labels!r}: pass one int per image, or one int for all"
        )
    if numbers.dim() != 1 or numbers.dtype == torch.bool or numbers.is_floating_point():
        raise ValueError(
            f"forget_labels must be integers of shape (n,), got {numbers.dtype} of shape {tuple(numbers.shape)}: pass"
            " one class number per image, for example labels.long(), or labels.argmax(1) of one-hot labels"
        )
    if count is not None and len(numbers) != count:
        raise ValueError(_miscounted(count, len(numbers)))
    return numbers.to("cpu", torch.int64, copy=True)


def _miscounted(images: int, labels: int) -> str:
    return f"{images} forget images but {labels} labels: pass one class number per image"


# ---- Data sets and loaders


def _read(source: Any, with_labels: bool, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images of one size, and their labels (none where ``with_labels`` is False).

    Raises:
        ValueError: If an item is no image, has no label or one too many, or differs in shape.
    """
    first: tuple[int, ...] = ()
    for index, item in enumerate(_items(source)):
        image, label = _parts(item, index)
        if with_labels and label is None:
            raise ValueError(
                f"item {index} of forget_images has no label: pass forget_labels, or items (image, label) or dicts with"
                f" {' or '.join(map(repr, IMAGE_KEYS))} and {' or '.join(map(repr, LABEL_KEYS))}"
            )
        if not with_labels and label is not None:
            raise ValueError("the items of forget_images bring labels of their own: leave forget_labels out")
        if not _is_array(image):
            raise ValueError(
                f"item {index} of forget_images is of type {type(image).__name__}: pass tensors or arrays of shape"
                " (C, H, W), for example with transform=torchvision.transforms.ToTensor() or with_format('torch')"
            )
        batch = _tensor(image, f"item {index} of forget_images")
        if batch.dim() == 3:  # a single sample
            batch = batch[None]
            label = [label] if label is not None and np.ndim(label) == 0 else label
        shape = tuple(batch.shape[1:])
        first = first or shape
        if shape != first:
            raise ValueError(
                f"item {index} of forget_images has shape {shape}, the first one {first}: bring the images to one size"
            )
        scaled = _scaled(batch, device, dtype)
        numbers = (
            torch.empty(0, dtype=torch.int64, device="cpu") if label is None else _class_numbers(label, len(batch))
        )
        if len(scaled):
            yield scaled, numbers


def _items(source: Any) -> Iterable[Any]:
    """Return the samples of a data set, or the batches of a loader.

    Raises:
        ValueError: If ``source`` is neither, or a data set without a length.
    """
    if isinstance(source, Mapping):
        return [source]
    pair = isinstance(source, tuple | list) and len(source) == 2 and _is_array(source[0])
    if pair and np.ndim(source[0]) == 4 and np.ndim(source[1]) != 4:
        return [source]  # one batch and its labels
    if hasattr(source, "__iter__") and not isinstance(source, str | bytes):
        return iter(source)
    if isinstance(source, str | bytes) or not hasattr(source, "__getitem__"):
        raise ValueError(
            f"forget_images must be a tensor, an array, a Dataset or a DataLoader, got {type(source).__name__}"
            f" ({source!r:.60}): load the images first"
        )
    if not hasattr(source, "__len__"):
        raise ValueError(f"forget_images of type {type(source).__name__} have no __len__: give the data set its length")
    return (source[index] for index in range(len(source)))


def _parts(item: Any, index: int) -> tuple[Any, Any]:
    """Return image and label of one sample or batch; None stands for a label that is not there.

    Raises:
        ValueError: If it is not known which part is the image.
    """
    if isinstance(item, Mapping):
        images = [item[key] for key in IMAGE_KEYS if key in item]
        labels = [item[key] for key in LABEL_KEYS if key in item]
        if not images:
            raise ValueError(
                f"item {index} of forget_images has the keys {', '.join(map(repr, item))}: name the image"
                f" {' or '.join(map(repr, IMAGE_KEYS))} and the label {' or '.join(map(repr, LABEL_KEYS))}"
            )
        return images[0], labels[0] if labels else None
    if not isinstance(item, tuple | list):
        return item, None
    if len(item) not in (1, 2):
        raise ValueError(f"item {index} of forget_images has {len(item)} parts: pass pairs (image, label)")
    return item[0], item[1] if len(item) == 2 else None
