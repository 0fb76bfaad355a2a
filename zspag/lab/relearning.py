"""Relearning: how soon a forgotten class comes back in training on its images, or on images of other classes.

What was removed has to be learned again; what was only suppressed comes back within a few steps. Somebody without
images of the class has images of other classes: in training on these, what was pushed aside in shared layers may come
back, what the last layer suppresses may not. Retained accuracy stands beside it: a ruined model relearns slowly, and
training on one class alone destroys the others. AIN, the anamnesis index, is a model's steps over those of a retrained
network; 1 was meant to be ideal (Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023). Under the own head
it measures one row of the head, whatever the features hold: see ``audit.head_row``.

Invariant: with the same generator every model is shown the same images in the same order, and the model passed in stays
as it is.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zspag.lab.evaluation import recognized
from zspag.runtime import channels_last, copied, logits_of, sent

# At 1e-2 the masked original is back within one step, at 1e-3 within four: nothing to tell models apart by. At 3e-4 it
# takes about eight, on digits and on CIFAR-10, and the retrained network some two hundred.
RATE = 3e-4
MOMENTUM = 0.9
BATCH = 64
MOST_STEPS = 400  # a retrained network may take longer; an index is then an upper bound
SHARE = 0.5  # of the original's forget accuracy

# Rates of an audit and their steps. At the other two a retrained network arrives as well (on digits after some 90 and
# 15 steps), but a masked one after three and one, and at 1e-2 all other classes are lost by then.
RATES = {RATE: MOST_STEPS, 1e-3: 200, 1e-2: 50}
# Other classes' images are already known, so their gradients are small: on digits nothing moved below 1e-2.
RATES_OF_OTHERS = {1e-2: 100, 1e-1: 100}
SHARES = (SHARE, 0.9)
FOLLOWED = 10  # steps that a curve is followed at least where it may end early


def checkpoints(most_steps: int) -> list[int]:
    """Return every step to 40 and then about every twentieth part: a number of steps read off is at most 5 % too large.

    Example:
        >>> checkpoints(50)[-8:]
        [38, 39, 40, 42, 44, 46, 48, 50]
    """
    steps = [0]
    while steps[-1] < most_steps:
        steps.append(min(most_steps, max(steps[-1] + 1, steps[-1] * 21 // 20)))
    return steps


def relearning_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    judged: Mapping[str, tuple[Tensor, Tensor]],
    lr: float,
    steps: Sequence[int],
    generator: torch.Generator,
    enough: float = math.inf,
) -> Iterator[dict[str, float]]:
    """Train a copy of a model by SGD with momentum and judge it after given numbers of steps.

    Args:
        model: Not changed. All parameters of the copy move; norm statistics stay.
        images: What is shown, shape (n, C, H, W), float in [0, 1].
        labels: Their labels, shape (n,).
        judged: Images and labels by name; none of them should be among those shown.
        lr: Learning rate.
        steps: Numbers of steps after which to judge, rising; 0 is the untouched model.
        generator: CPU generator of the order of the images.
        enough: Share of "acc_forget" at which the class is back: the curve is then followed for as many steps again,
            at least ``FOLLOWED``, and ends.

    Yields:
        One row per number of steps, as soon as it is known: "step", "samples" shown so far (repeated ones count again),
        and under each name of ``judged`` the share of its images that is recognized. A model whose loss is not finite
        is not trained further.

    Raises:
        ValueError: If there is nothing to show, or the steps do not rise from 0 or more.
    """
    if not len(images):
        raise ValueError(f"nothing to train on: images have shape {tuple(images.shape)}")
    if list(steps) != sorted({max(step, 0) for step in steps}):
        raise ValueError(f"steps must rise from 0 or more, got {tuple(steps)}")
    changed = copied(model).eval().requires_grad_()
    optimizer = torch.optim.SGD(changed.parameters(), lr=lr, momentum=MOMENTUM)
    batches, done, shown, ruined, end = _batches(len(images), generator), 0, 0, False, math.inf
    for wanted in steps:
        if wanted > end:
            return
        for batch in itertools.islice(batches, wanted - done):
            shown += len(batch)
            if ruined:
                continue
            chosen = sent(batch, images.device)
            loss = functional.cross_entropy(changed(channels_last(images[chosen])), labels[chosen])
            ruined = not bool(torch.isfinite(loss))
            if not ruined:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        done = wanted
        accuracies = {name: share_recognized(changed, *part) for name, part in judged.items()}
        yield {"step": done, "samples": shown} | accuracies
        if accuracies.get("acc_forget", 0.0) >= enough:
            end = min(end, max(2 * done, FOLLOWED))


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches for ever, epoch after epoch in a new order, of nearly equal sizes."""
    while True:
        yield from torch.randperm(count, generator=generator).tensor_split(math.ceil(count / BATCH))


def share_recognized(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose label a model answers."""
    return recognized(logits_of(model, images), labels).double().mean().item()
