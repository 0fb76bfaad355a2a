"""Whether a forgotten class comes back: training on its images at three rates, and training on other classes' images.

Relearning shows the class again and counts steps. Recovery from other classes shows only what an attacker without the
class has: what was merely pushed aside in shared layers may come back by itself, what the head suppresses may not.
Retained accuracy stands beside it all along, for a ruined model relearns slowly, and training on one class alone
destroys the others.

Invariant: with the same generator every model is shown the same images in the same order, those of
``relearning.relearning_curve``, and the model passed in stays as it is.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from zspag.lab.relearning import MOMENTUM, MOST_STEPS, RATE, SHARE, batches, share_recognized
from zspag.runtime import channels_last, copied, generator_for, sent

# Rates, and the steps after which to give up. The main one tells apart what comes back early; a retrained network may
# not arrive within its steps, and an index is then a bound. At the other two a retrained one arrives as well (on digits
# after some 90 and 15 steps), but a masked one after three and one, and at 1e-2 all other classes are lost by then.
RATES = {RATE: MOST_STEPS, 1e-3: 200, 1e-2: 50}
# Other classes' images are already known, so their gradients are small: on digits nothing moved below 1e-2.
RATES_OF_OTHERS = {1e-2: 100, 1e-1: 100}
SHARES = (SHARE, 0.9)  # of the original's forget accuracy
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


def training_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    judged: Mapping[str, tuple[Tensor, Tensor]],
    lr: float,
    steps: Sequence[int],
    generator: torch.Generator,
    enough: float = math.inf,
) -> list[dict[str, float]]:
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

    Returns:
        One row per number of steps: "step", "samples" shown so far (repeated ones count again), and under each name of
        ``judged`` the share of its images that is recognized. A step whose loss is not finite moves nothing.

    Raises:
        ValueError: If there is nothing to show, or the steps do not rise from 0 or more.
    """
    if not len(images):
        raise ValueError(f"nothing to train on: images have shape {tuple(images.shape)}")
    if list(steps) != sorted({max(step, 0) for step in steps}):
        raise ValueError(f"steps must rise from 0 or more, got {tuple(steps)}")
    changed = copied(model).eval().requires_grad_()
    optimizer = torch.optim.SGD(changed.parameters(), lr=lr, momentum=MOMENTUM)
    following, done, shown, rows = batches(len(images), generator), 0, 0, []
    end = math.inf
    for wanted in steps:
        if wanted > end:
            break
        for batch in itertools.islice(following, wanted - done):
            chosen = sent(batch, images.device)
            _step(changed, images[chosen], labels[chosen], optimizer)
            shown += len(batch)
        done = wanted
        accuracies = {name: share_recognized(changed, *part) for name, part in judged.items()}
        rows.append({"step": done, "samples": shown} | accuracies)
        if accuracies.get("acc_forget", 0.0) >= enough:
            end = min(end, max(2 * done, FOLLOWED))
    return rows


def _step(model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss = functional.cross_entropy(model(channels_last(images)), labels)
    if bool(torch.isfinite(loss)):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def training_curves(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    judged: Mapping[str, tuple[Tensor, Tensor]],
    rates: Mapping[float, int],
    seeds: Sequence[int],
    enough: float = math.inf,
) -> pd.DataFrame:
    """Return the rows of ``training_curve`` at several rates and in several orders of the images.

    Args:
        model: Not changed.
        images: What is shown: forget images to relearn, retained images to see what comes back without them.
        labels: Their labels.
        judged: Images and labels by name, "acc_forget" among them for ``arrivals``.
        rates: Learning rates, each with its number of steps; judged at the ``checkpoints`` of that.
        seeds: One order of the images each; that of a case's own seed is the one ``experiment.relearn_steps`` uses.
        enough: As in ``training_curve``.

    Returns:
        Columns lr, seed, step, samples and the names of ``judged``.
    """
    rows = [
        {"lr": lr, "seed": seed} | row
        for lr, most_steps in rates.items()
        for seed in seeds
        for row in training_curve(
            model,
            images,
            labels,
            judged=judged,
            lr=lr,
            steps=checkpoints(most_steps),
            generator=generator_for(seed, "relearning"),
            enough=enough,
        )
    ]
    return pd.DataFrame(rows)


def arrivals(curves: pd.DataFrame, *, original: float, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """Return where each curve first has a share of the original's forget accuracy again.

    Args:
        curves: Rows of ``training_curves``.
        original: The original's accuracy on the judged forget images, a fraction.
        shares: Shares of it to reach.

    Returns:
        Per rate, seed and share the first row of the curve at or above the level, with "share" and "reached"; the
        last row, not reached, where there is none: its step is then the number of steps that did not suffice.
    """
    found = []
    for _, curve in curves.groupby(["lr", "seed"], sort=False):
        for share in shares:
            above = curve[curve["acc_forget"] >= share * original]
            row = curve.iloc[-1] if above.empty else above.iloc[0]
            found.append(row.to_dict() | {"share": share, "reached": not above.empty})
    return pd.DataFrame(found)


def anamnesis(own: pd.DataFrame, retrained: pd.DataFrame) -> pd.DataFrame:
    """Return the anamnesis index AIN: a model's steps over the retrained model's; 1 is what one would wish for.

    Args:
        own: Arrivals of the model.
        retrained: Arrivals of the retrained model, at the same rates, seeds and shares.

    Returns:
        One row per rate and share: "steps" and "steps_retrained", means over the seeds; "index", their ratio, NaN
        where the retrained model was at the level before its first step; "reached" and "reached_retrained", shares of
        the seeds. Below 1 the former makes the index a lower bound, the latter an upper one, both nothing at all.

    Raises:
        ValueError: If the two do not have the same rates, seeds and shares.
    """
    keys = ["lr", "share"]
    pairs = own.merge(retrained, on=[*keys, "seed"], how="outer", suffixes=("", "_retrained"), validate="one_to_one")
    if pairs[["step", "step_retrained"]].isna().any(axis=None):
        raise ValueError("a model and the retrained one must be compared at the same rates, seeds and shares")
    columns = ["step", "step_retrained", "reached", "reached_retrained"]
    table = pairs.groupby(keys)[columns].agg(lambda values: values.astype(float).mean()).reset_index()
    table = table.rename(columns={"step": "steps", "step_retrained": "steps_retrained"})
    started = table["steps_retrained"].where(table["steps_retrained"] > 0)
    return table.assign(index=table["steps"] / started)
