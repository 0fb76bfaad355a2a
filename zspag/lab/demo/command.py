"""``zspag demo``: forget a digit in some seconds, and show on test images what happened."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zspag.lab.demo import CLASSES, digits, net
from zspag.lab.evaluation import accuracy, masked
from zspag.runtime import logits_of
from zspag.unlearning import zero_shot_unlearn

SHOWN = 10  # images per row of the picture


def run(forget: int, picture: Path) -> Iterator[str]:
    """Forget one digit, judge on test images, and draw the picture.

    Args:
        forget: The digit, 0 to 9.
        picture: File to write, a PNG.

    Yields:
        Lines for the reader.

    Raises:
        ValueError: If the digit is none.
    """
    if forget not in range(CLASSES):
        raise ValueError(f"a digit is a number from 0 to 9, got {forget}")
    model = net()
    images, labels = digits("train", only=forget)
    yield f"a trained net and {len(images)} images of digit {forget}: nothing else is read"
    result = zero_shot_unlearn(model, images, labels, num_classes=CLASSES, seed=0, progress=False)
    test, truth = digits("test")
    before, after = logits_of(model, test), logits_of(result.open_model, test)
    hidden = masked(before, forget=(forget,))  # the yardstick of the rest
    kept = truth != forget
    own = [_share(logits, truth, ~kept) for logits in (before, after)]
    others = [_share(logits, truth, kept) for logits in (hidden, after)]
    yield f"digit {forget}, unseen images recognized: {own[0]} before, {own[1]} after"
    yield f"other digits recognized: {others[0]} if only the answer is forbidden, {others[1]} after"
    yield f"goal reached by the method's own report, without these test images: {result.report.reached}"
    _draw(test, truth, before.argmax(1), after.argmax(1), forget, picture)
    yield f"wrote {picture}"


def _share(logits: Tensor, truth: Tensor, of: Tensor) -> str:
    return f"{accuracy(logits[of], truth[of]):.1%}"


def _draw(test: Tensor, truth: Tensor, before: Tensor, after: Tensor, forget: int, picture: Path) -> None:
    from matplotlib.figure import Figure

    from zspag.report.files import replacing

    own = (truth == forget).nonzero().flatten()[:SHOWN]
    others = torch.stack([(truth == label).nonzero()[0, 0] for label in range(CLASSES) if label != forget])
    rows = {f"forgotten: {forget}": own, "one of each other digit": others}
    figure = Figure(figsize=(SHOWN * 0.75, 2.6), layout="constrained")
    parts = np.asarray(figure.subfigures(len(rows), 1))
    for part, (title, places) in zip(parts, rows.items(), strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=10)
        line = part.subplots(1, SHOWN)
        for axis in line:
            axis.set_axis_off()
        for axis, place in zip(line, places.tolist(), strict=False):
            axis.imshow(test[place, 0].numpy(), cmap="gray_r")
            changed = before[place] != after[place]
            axis.set_title(f"{before[place]} → {after[place]}", fontsize=9, color="#b2182b" if changed else "#333333")
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
