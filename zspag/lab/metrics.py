"""Metrics usable alone: a model, a loader and the forget classes in, a frozen ``Metrics`` out.

Unlike the method, this module may be handed retained and test images; no module of the method imports it. Every figure
is defined in ``zspag.lab.evaluation``; here data are read, batch by batch, and intervals are put around proportions.

Invariant: models and data are only read, and all models judge the same batches, drawn once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zspag.lab.evaluation import accuracy, finite, macro_accuracy, masked, mean_kl, per_class_accuracy
from zspag.preflight import inputs
from zspag.preflight.classifiers import logits_in, place_of
from zspag.runtime import CHUNK, chunks, frozen

QUANTILE = 1.959964  # of the normal distribution, for 95 % on both sides

Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """What a model does on labelled images; accuracies are fractions, intervals are Wilson's at 95 %.

    What there is no image for, or no original, is None. The masked original is the original with the logits of the
    forget classes at a floor: the yardstick of what was lost beyond removing a competitor.
    """

    forget_classes: tuple[int, ...]  # those that should be gone
    n_forget: int  # images of these classes
    n_retain: int  # images of all others
    acc_forget: float | None
    acc_forget_interval: Interval | None
    acc_retain: float | None  # macro: mean over the retained classes of each class's accuracy
    acc_retain_micro: float | None  # on all retained images
    acc_retain_micro_interval: Interval | None
    per_class: dict[int, float]  # of every class present
    per_class_interval: dict[int, Interval]
    over_unlearning: float | None  # acc_retain of the masked original minus acc_retain
    drift: float | None  # mean KL divergence from the masked original on the retained images, nats

    def __str__(self) -> str:
        shares = [
            ("forget accuracy", self.acc_forget, self.acc_forget_interval, f"{self.n_forget} images"),
            ("retained accuracy, macro", self.acc_retain, None, "mean over classes"),
            (
                "retained accuracy, micro",
                self.acc_retain_micro,
                self.acc_retain_micro_interval,
                f"{self.n_retain} images",
            ),
            ("over-unlearning", self.over_unlearning, None, "against the masked original"),
        ]
        lines = []
        for name, share, interval, note in shares:
            around = "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} % at 95 %, "
            lines.append(f"{name:<26}{'-' if share is None else f'{100 * share:.1f}':>8} %    ({around}{note})")
        lines.append(f"{'drift':<26}{'-' if self.drift is None else f'{self.drift:.4f}':>8} nats")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; class numbers become text."""
        plain = asdict(self) | {"forget_classes": list(self.forget_classes)}
        plain["per_class"] = {str(label): value for label, value in self.per_class.items()}
        plain["per_class_interval"] = {str(label): list(span) for label, span in self.per_class_interval.items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def evaluate(
    model: nn.Module,
    data: Any,
    forget_classes: int | Sequence[int],
    *,
    original: nn.Module | None = None,
    num_classes: int | None = None,
) -> Metrics:
    """Measure what a model does on the forget classes and on all others.

    Args:
        model: Maps the images of ``data`` as they are to logits (n, K), or to an answer that has ``logits``.
        data: A ``DataLoader`` or other iterable of batches, a map-style ``Dataset``, or a pair (images, labels) of
            tensors or arrays. Batches are pairs or dicts, as ``zero_shot_unlearn`` reads them. uint8 images are divided
            by 255; others are passed on unchanged, normalized or not.
        forget_classes: Classes that should be gone, those of earlier requests included.
        original: The model before unlearning; with it, ``over_unlearning`` and ``drift`` are measured.
        num_classes: Width K of the logits, where it shall be checked.

    Returns:
        The measurements. A row of logits that is not finite recognizes nothing.

    Raises:
        ValueError: If data, classes and models do not fit together; the message says what and the value.

    Note:
        Wilson's interval covers chance in the draw of independent images, not in training.

    Example:
        >>> images, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.tensor([0, 1, 2, 2])
        >>> found = evaluate(nn.Flatten(), (images, labels), 2)
        >>> found.acc_forget, found.acc_retain
        (0.5, 1.0)
    """
    numbers = np.ravel(forget_classes)
    if numbers.dtype.kind not in "iu":  # an empty list is one of floats
        raise ValueError(f"forget_classes must be one class number or several, got {forget_classes!r}")
    gone = tuple(sorted(set(numbers.tolist())))
    (logits, before), labels = _answers((model, original), data)
    _check(gone, logits, before, labels, num_classes)
    sound, judged = logits.isfinite().all(1), finite(logits.double())
    judged[~sound, labels[~sound]] = -2e6  # a row that was not finite recognizes nothing
    hidden = torch.isin(labels, torch.tensor(gone))
    n_forget, n_retain = int(hidden.sum()), int((~hidden).sum())
    kept, kept_labels = judged[~hidden], labels[~hidden]
    acc_forget = accuracy(judged[hidden], labels[hidden]) if n_forget else None
    acc_retain = macro_accuracy(kept, kept_labels) if n_retain else None
    acc_micro = accuracy(kept, kept_labels) if n_retain else None
    over_unlearning = drift = None
    if before is not None and acc_retain is not None:
        yardstick = masked(finite(before[~hidden]), forget=gone)
        over_unlearning = macro_accuracy(yardstick, kept_labels) - acc_retain
        drift = mean_kl(yardstick, finite(logits[~hidden]))
    counts = torch.bincount(labels).tolist()
    each = per_class_accuracy(judged, labels)
    return Metrics(
        forget_classes=gone,
        n_forget=n_forget,
        n_retain=n_retain,
        acc_forget=acc_forget,
        acc_forget_interval=None if acc_forget is None else wilson(acc_forget, n_forget),
        acc_retain=acc_retain,
        acc_retain_micro=acc_micro,
        acc_retain_micro_interval=None if acc_micro is None else wilson(acc_micro, n_retain),
        per_class=each,
        per_class_interval={label: wilson(share, counts[label]) for label, share in each.items()},
        over_unlearning=over_unlearning,
        drift=drift,
    )


def wilson(share: float, count: int) -> Interval:
    """Return Wilson's score interval of a proportion, at 95 %.

    Args:
        share: Proportion observed, a fraction.
        count: Independent trials behind it.

    Returns:
        Lowest and highest share from which the observed one is at most ``QUANTILE`` standard deviations away.

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Example:
        >>> [round(end, 3) for end in wilson(0.0, 20)]
        [0.0, 0.161]
    """
    square = QUANTILE**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = QUANTILE / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _answers(models: Sequence[nn.Module | None], data: Any) -> tuple[list[Any], Tensor]:
    """Return each model's logits (n, K), or None for no model, and the labels (n,), on the CPU, from one pass.

    Raises:
        ValueError: If there is no image.
    """
    logits: list[list[Tensor]] = [[] for _ in models]
    labels = []
    with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator, even without shuffling
        for images, numbers in _batches(data):
            labels.append(numbers)
            for answers, model in zip(logits, models, strict=True):
                if model is not None:
                    answers.append(_logits(model, images))
    if not labels:
        raise ValueError("there are no images to evaluate on: the data are empty")
    return [torch.cat(answers) if answers else None for answers in logits], torch.cat(labels)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits (n, K) on the CPU; a model that changes its input in place gets a clone.

    Raises:
        ValueError: If there are no logits in the model's answer.
    """
    device, dtype = place_of(model)
    found = []
    with frozen(model):
        for (x,) in chunks(images):
            answer = model(x.to(device, dtype, copy=True))
            found.append(answer if isinstance(answer, Tensor) else logits_in(answer))
            if not isinstance(found[-1], Tensor) or found[-1].shape[:1] != x.shape[:1] or found[-1].dim() != 2:
                shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise ValueError(
                    f"the model must map {len(x)} images to logits of shape ({len(x)}, K), got {shape}: wrap it so"
                    " that it returns the logits alone"
                )
    return torch.cat(found).cpu()


def _batches(data: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels on the CPU, single samples put together to batches."""
    waiting: list[Tensor] = []
    numbers: list[Tensor] = []
    for images, labels in inputs._read(data, True, torch.device("cpu"), torch.float32):
        waiting, numbers = [*waiting, images], [*numbers, labels]
        if sum(map(len, waiting)) >= CHUNK:
            yield torch.cat(waiting), torch.cat(numbers)
            waiting, numbers = [], []
    if waiting:
        yield torch.cat(waiting), torch.cat(numbers)


def _check(gone: Sequence[int], logits: Tensor, before: Tensor | None, labels: Tensor, num_classes: int | None) -> None:
    width = logits.shape[1]
    if num_classes is not None and num_classes != width:
        raise ValueError(f"the model has {width} logits, but num_classes={num_classes}")
    if before is not None and before.shape[1] != width:
        raise ValueError(
            f"the model has {width} logits, but the original {before.shape[1]}: pass the same architecture"
        )
    if min(gone) < 0 or max(gone) >= width:
        raise ValueError(f"forget_classes must name classes in 0..{width - 1}, got {list(gone)}")
    if len(gone) == width:
        raise ValueError(f"forget_classes names all {width} classes: there is no retained class to measure")
    outside = labels[(labels < 0) | (labels >= width)]
    if len(outside):
        raise ValueError(f"the data hold class {int(outside[0])}, outside 0..{width - 1} (the model's logits)")
