"""ZS-PAG on one page: ``zero_shot_unlearn``.

Proxies of every retained class are made from the forget samples; what they feed into each layer spans the directions
that updates keep out of; the forget samples and their views are fitted to pseudo-labels with what is left. Layers and
rate are chosen on held-out forget samples and proxies (``zspag.calibration``). Last, the rows of the forgotten classes
are closed in the head, which is exact, free, and no evidence: whether the method *reached* its goal is judged before.

With ``config.goal="remove"`` the update is another one, ours (``zspag.removal``); all else is the same.

Invariant: the caller's model is only read; all work happens on a copy. Nothing here can be handed retain data.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from zspag.calibration.cross_fitting import Made, unlearn_with
from zspag.calibration.verdict import Damage, cautions, damage_of, shortfall
from zspag.config import UnlearnConfig
from zspag.heads.closed_row import Closed, close_rows
from zspag.heads.remainder import measure_remainder
from zspag.outcome import Layer, Remainder, Report
from zspag.preflight.checks import Preflight, look
from zspag.preflight.classifiers import cast_back, own_model
from zspag.preflight.inputs import ForgetSet
from zspag.process import progress as bars
from zspag.process.surroundings import plain_layout, surroundings
from zspag.proxy_statistics import HALVABLE, ProxyStatistics, prepare
from zspag.removal import removable_head, remove_with
from zspag.runtime import channels_last, generator_for, seed_of


@dataclass(frozen=True)
class Unlearned:
    """What comes out.

    Attributes:
        model: The unlearned model, the forgotten classes' rows closed where that is possible.
        open_model: What the updates alone made; compare methods by this one, for closing rows costs nobody anything.
        report: How it came about.
    """

    model: nn.Module
    open_model: nn.Module
    report: Report


def zero_shot_unlearn(
    model: nn.Module,
    forget_images: Any,
    forget_labels: Any = None,
    *,
    num_classes: int | None = None,
    already_forgotten: Sequence[int] | int = (),
    limit: int | None = None,
    config: UnlearnConfig | None = None,
    seed: int = 0,
    progress: bool | bars.Listener | None = None,
) -> Unlearned:
    """Make a classifier forget whole classes, given nothing but the model and samples of those classes.

    Args:
        model: Any module of convolution, linear and attention layers that maps [0, 1] images to logits (or to an output
            with ``.logits``); if it expects normalized input, put ``Normalize`` in front. It is not changed.
        forget_images: Images of the classes to forget, shape (n, C, H, W): a tensor or array, float in [0, 1] or uint8;
            or a ``Dataset`` or ``DataLoader`` that brings the labels, too. It is read once, and need not fit in memory.
        forget_labels: Their classes: one int for all, or n of them. These classes are forgotten whole.
        num_classes: Width K of the logits, if it shall be checked.
        already_forgotten: Classes that earlier requests made ``model`` forget: they are not protected, no forget sample
            is fitted to them, and their rows are closed again. A class that is left out counts as retained, and comes
            back in part.
        limit: Most forget images that are used. Of a larger set the method takes as many of each class, drawn with a
            fixed seed; the report says how many of how many. None takes as many as fit in 1 GiB, and warns if that is
            not all. At its peak the method needs some 3.5 times what the used images take in float32.
        config: Options of every stage; the defaults search the attack's radius, the layers and the learning rate.
        seed: Same seed, same threads, same result, whatever torch's ambient settings are.
        progress: None shows a bar where somebody watches, False never; a function gets (stage, done, total).

    Returns:
        The unlearned copy, the copy before its rows were closed, and a report. ``print(result.report)`` is a page.

    Raises:
        ValueError: If the input cannot work; the message says what, where, the value and the remedy.

    Note:
        A label names a class, not the samples that bear it. Half of a class's images are no different, seen from here,
        from a class of half the size: the other half is forgotten with them (``lab.scenarios`` measures it). Samples
        spread over all classes are refused, those of more than half of the classes warned about: one or two images of
        each are enough to lose most of what these classes were known by. L2UL (Cha et al., AAAI 2024) was made for
        single samples; it aims at a wrong answer on them, which a model retrained without them does not give.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> images, layer = torch.rand(12, 1, 4, 4), nn.Linear(16, 3)
        >>> layer.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0]))  # the model answers 0
        tensor([1., 0., 0.])
        >>> result = zero_shot_unlearn(nn.Sequential(nn.Flatten(), layer), images, 0)
        >>> result.report.forget_classes
        (0,)
    """
    config = config or UnlearnConfig()
    with surroundings(model), bars.watched(progress):
        started = time.perf_counter()
        net, forget, found = look(
            model,
            forget_images,
            forget_labels,
            num_classes=num_classes,
            already_forgotten=already_forgotten,
            limit=limit,
        )
        gone = tuple(sorted({*forget.classes, *found.already_forgotten}))
        removing = config.goal == "remove"
        if removing:  # what cannot work is said now, and not after the attack
            removable_head(net, forget.images, frozen=found.frozen)
        checked = time.perf_counter()
        with plain_layout(found.layout == "plain"):
            statistics = prepare(
                net,
                channels_last(forget.images),
                forget=gone,
                num_classes=found.num_classes,
                config=config,
                generator=generator_for(seed, "material"),
            )
            prepared = time.perf_counter()
            drawn = seed_of(generator_for(seed, "method"))  # as the grid draws it: a recorded row is this call
            made = (remove_with if removing else unlearn_with)(
                net, forget.labels, statistics, forget=gone, config=config, seed=drawn, frozen=found.frozen
            )
            fitted = time.perf_counter()
            damage = damage_of(net, made, statistics, forget=gone)
            opened = net if damage.ruin else made.run.model
            bars.step("closing rows", 0, 1)
            closed = close_rows(opened, gone, images=forget.images)
            bars.step("remainder", 0, 1)
            remainder = measure_remainder(
                net,
                opened,
                forget_images=statistics.views.images,
                forget_labels=forget.labels[statistics.views.sources.to(forget.labels.device)],
                forget_sources=statistics.views.sources,
                proxy_images=statistics.proxies.barely,
                proxy_sources=statistics.image_of,
                seed=seed,
            )
            seconds = {
                "checks": checked - started,
                **statistics.seconds,
                "calibration": fitted - prepared - made.seconds,
                "update": made.seconds,
                "closing": time.perf_counter() - fitted,
            }
            report = _report(forget, found, statistics, made, damage, opened, closed, remainder, config, seconds)
        result = Unlearned(
            cast_back(own_model(closed.model), like=model), cast_back(own_model(opened), like=model), report
        )
    for warning in report.warnings:
        warnings.warn(warning, stacklevel=2)
    return result


def _report(
    forget: ForgetSet,
    found: Preflight,
    statistics: ProxyStatistics,
    made: Made,
    damage: Damage,
    opened: nn.Module,
    closed: Closed,
    remainder: Remainder,
    config: UnlearnConfig,
    seconds: dict[str, float],
) -> Report:
    """Judge the open model, and put everything that was measured into a report."""
    chosen, samples, ruined = made.calibration, len(forget.labels), damage.ruin != ""
    missed = shortfall(made, damage, opened, forget.images, forget.labels, config)
    warned = [*found.warnings, *([f"not reached: {missed}"] if missed else [])]
    if not ruined:
        counts = {label: int((forget.labels == label).sum()) for label in forget.classes}
        warned += cautions(made, damage, counts, statistics.proxies.hits, config)
    return Report(
        forget_classes=forget.classes,
        already_forgotten=found.already_forgotten,
        samples=samples,
        original_accuracy=found.original_accuracy,
        forget_accuracy=found.original_accuracy if ruined or made.remaining is None else made.remaining,
        unseen_accuracy=None if ruined or samples < HALVABLE else chosen.trial.forget_accuracy,
        eps=statistics.proxies.eps,
        hits=statistics.proxies.hits,
        layers=tuple(_left(layer) for layer in made.layers) if ruined else made.layers,
        chosen=chosen.layers,
        lr=chosen.trial.lr if config.goal == "remove" else made.run.lr,  # of a removal, the share that was gone
        tried=(*chosen.trials, *made.trials),
        history=made.run.history,
        drift=None if ruined else made.damage,
        remainder=remainder,
        reached=not missed,
        silenced=closed.closed,
        at_edge=chosen.at_edge,
        warnings=tuple(warned),
        seconds=seconds,
        left_open=closed.reason,
        left_out=forget.left_out,
    )


def _left(layer: Layer) -> Layer:
    return replace(layer, moved=False, reason=layer.reason or "nothing of the run was handed out")
