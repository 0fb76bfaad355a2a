"""How soon a forgotten class comes back: steps of training on its images until half of them are recognized again.

What was removed has to be learned anew; what was only suppressed comes back at a touch. A network that was retrained
without the class is the measure: AIN, the anamnesis index, is a model's steps over the retrained model's, and 1 is what
one would wish for (Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023).

Invariant: every model is shown the same images in the same order, and recognition is judged on images it is not shown.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from zspag.lab.evaluation import recognized
from zspag.runtime import channels_last, copied, evaluating, logits_of, sent

# At 1e-2 the masked original is back within one step, at 1e-3 within four: nothing to tell models apart by. At 3e-4 it
# takes about eight, on digits and on CIFAR-10, and the retrained network some two hundred.
RATE = 3e-4
MOMENTUM = 0.9
BATCH = 64
MOST_STEPS = 400  # a retrained network may take longer; an index is then an upper bound
SHARE = 0.5  # of the original's forget accuracy


def relearning_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    judged_images: Tensor,
    judged_labels: Tensor,
    level: float,
    lr: float,
    most_steps: int,
    generator: torch.Generator,
) -> list[float]:
    """Train a copy of the model on forget images by SGD with momentum and follow how many others it recognizes.

    Args:
        model: Not changed. All parameters move; norm statistics stay.
        images: Forget images that are shown, shape (n, C, H, W), float in [0, 1].
        labels: Their labels, shape (n,).
        judged_images: Forget images that are not shown, on which recognition is judged.
        judged_labels: Their labels.
        level: Accuracy, a fraction, at which to stop.
        lr: Learning rate.
        most_steps: Steps after which to give up.
        generator: CPU generator of the order of the images.

    Returns:
        The accuracy on the judged images after 0, 1, 2, ... steps; the last one is the first at or above ``level``,
        unless there is none. A model whose loss is no longer finite is not trained further.
    """
    changed = copied(model)
    curve = [share_recognized(changed, judged_images, judged_labels)]
    with evaluating(changed):
        moving = list(changed.requires_grad_().parameters())
        optimizer = torch.optim.SGD(moving, lr=lr, momentum=MOMENTUM)
        for batch in itertools.islice(batches(len(images), generator), most_steps):
            if curve[-1] >= level:
                break
            chosen = sent(batch, images.device)
            loss = functional.cross_entropy(changed(channels_last(images[chosen])), labels[chosen])
            if not bool(torch.isfinite(loss)):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(share_recognized(changed, judged_images, judged_labels))
    return curve


def steps_until(curve: list[float], level: float, *, most_steps: int) -> int:
    """Return the first step of a curve at or above ``level``, or ``most_steps`` where there is none.

    Example:
        >>> steps_until([0.0, 0.2, 0.7, 0.6], 0.5, most_steps=200), steps_until([0.0, 0.2], 0.5, most_steps=200)
        (2, 200)
    """
    return next((step for step, accuracy in enumerate(curve) if accuracy >= level), most_steps)


def batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches for ever, epoch after epoch in a new order, of nearly equal sizes."""
    while True:
        yield from torch.randperm(count, generator=generator).tensor_split(math.ceil(count / BATCH))


def share_recognized(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose label a model answers."""
    return recognized(logits_of(model, images), labels).double().mean().item()
