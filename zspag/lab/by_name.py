"""All methods by their names: ``unlearn_by`` runs any forget-only method on the same forget data.

``zspag methods`` lists the names, what each method reads and where it comes from.

Invariant: "zs_pag" and "remove" are ``zero_shot_unlearn`` with one goal each, and nothing else. No method gets anything
but the model and the forget set.
"""

import difflib
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zspag.config import UnlearnConfig, UpdateConfig
from zspag.lab.methods import METHODS, Method, Problem
from zspag.outcome import Report, Trial
from zspag.preflight.checks import Preflight, look, unsound
from zspag.preflight.classifiers import cast_back, own_model
from zspag.preflight.inputs import ForgetSet
from zspag.process.surroundings import plain_layout, surroundings
from zspag.profiles import LADDERS
from zspag.projected_sgd import RateSearch
from zspag.proxy_statistics import prepare
from zspag.runtime import channels_last, generator_for, logits_of
from zspag.unlearning import Unlearned, zero_shot_unlearn

GOALS = {"zs_pag": "suppress", "remove": "remove"}  # of the methods that are the public call


def unlearn_by(
    name: str,
    model: nn.Module,
    forget_images: Any,
    forget_labels: Any = None,
    *,
    num_classes: int | None = None,
    lr: float | None = None,
    limit: int | None = None,
    config: UnlearnConfig | None = None,
    seed: int = 0,
) -> Unlearned:
    """Make a classifier forget whole classes by the method of this name.

    Args:
        name: As ``zspag methods`` lists it: "zs_pag", "delete", "salun", ...
        model: As for ``zero_shot_unlearn``, like the next three. It is not changed.
        forget_images: Images to forget.
        forget_labels: Their classes.
        num_classes: Width K of the logits; None takes it from the model.
        lr: Learning rate. None leaves "zs_pag" to its own search, and "remove" to ``config.removal.lr``; every other
            method tries the rates that ``zspag methods`` lists for it, smallest first, and keeps the first that forgets
            the forget set.
        limit: As for ``zero_shot_unlearn``.
        config: Options of every stage; the name decides on the goal, and the learning rates of ``config.update`` count
            only where ``config.update.lr`` is set.
        seed: Same seed, same threads, same result.

    Returns:
        The unlearned copy and a report. ``model`` and ``open_model`` are one and the same, except for "zs_pag" and
        "remove", the only methods that close rows: compare open models.

    Raises:
        ValueError: If there is no such method, or it reads retain data, or the input cannot work.

    Note:
        The rule for the rate sees the forget set alone, and cannot tell what a rate costs on retained classes. Under a
        whole gradient that can be everything: measure it, with ``zspag.evaluate``, before a model is used.
    """
    method = method_named(name)
    config = config or UnlearnConfig()
    if lr is not None:
        config = replace(config, update=replace(config.update, lr=lr), removal=replace(config.removal, lr=lr))
    if name in GOALS:
        config = replace(config, goal=GOALS[name])
        return zero_shot_unlearn(
            model, forget_images, forget_labels, num_classes=num_classes, limit=limit, config=config, seed=seed
        )
    config = replace(config, update=replace(config.update, ladder=getattr(LADDERS, method.ladder)))
    with surroundings(model):
        started = time.perf_counter()
        net, forget, found = look(model, forget_images, forget_labels, num_classes=num_classes, limit=limit)
        checked = time.perf_counter()
        with plain_layout(found.layout == "plain"):
            images, classes = channels_last(forget.images), found.num_classes
            statistics = prepare(
                net,
                images,
                forget=forget.classes,
                num_classes=classes,
                config=config,
                generator=generator_for(seed, "material"),
            )
            prepared = time.perf_counter()
            problem = Problem(net, images, forget.labels, classes, generator_for(seed, "method"), statistics)
            ladder = method.run(problem, config)
            seconds = {"checks": checked - started, **statistics.seconds, "method": time.perf_counter() - prepared}
            report, made = _report(name, net, forget, ladder, found, config.update, seconds)
            given = cast_back(own_model(made), model)
            return Unlearned(given, given, report)


def method_named(name: str) -> Method:
    """Return the forget-only method of this name.

    Raises:
        ValueError: If there is none, with the names that come nearest, or if it is an oracle.
    """
    if name not in METHODS:
        usable = [known for known, method in METHODS.items() if not method.oracle]
        nearest = difflib.get_close_matches(str(name).lower().replace("-", "_"), usable, n=3, cutoff=0.5)
        raise ValueError(
            f"there is no method {name!r}: "
            + (f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else f"choose from {', '.join(usable)}; ")
            + "`zspag methods` lists them"
        )
    if METHODS[name].oracle:
        raise ValueError(
            f"{name!r} ({METHODS[name].title}) is an oracle: it reads retain data, which this function never takes."
            " It serves for comparison, in `zspag sweep`"
        )
    return METHODS[name]


def _report(
    name: str,
    net: nn.Module,
    forget: ForgetSet,
    ladder: RateSearch,
    found: Preflight,
    update: UpdateConfig,
    seconds: dict[str, float],
) -> tuple[Report, nn.Module]:
    # Report on the chosen run and return its model, or the original's copy where every rate ruined the model.
    run, target = ladder.kept, update.forget_accuracy
    ruined = run.diverged or bool(unsound(run.model))
    made = net if ruined else run.model
    reached = run.reached(target) and not ruined
    at_edge = update.lr is None and len(update.ladder) > 1 and (not reached or ladder.chosen == 0)
    warnings = list(found.warnings)
    if ruined:
        warnings.append("every rate made the model's weights infinite: the model is a copy of the original")
    elif not reached:
        warnings.append(f"not forgotten: {100 * run.history[-1].forget_accuracy:.1f} % of the forget set is recognized")
    elif at_edge:
        warnings.append(f"the smallest rate, {run.lr:g}, forgot already: a smaller one may cost less")
    after = dict(made.named_parameters())
    moved = [key for key, one in net.named_parameters() if not one.requires_grad and not torch.equal(one, after[key])]
    if moved:
        warnings.append(
            f"{name} moved {len(moved)} parameters that were frozen, {moved[0]} first: only zs_pag heeds it"
        )
    answers = logits_of(made, forget.images).argmax(1)
    report = Report(
        forget_classes=forget.classes,
        already_forgotten=(),
        samples=len(forget.labels),
        original_accuracy=found.original_accuracy,
        forget_accuracy=(answers == forget.labels).double().mean().item(),
        unseen_accuracy=None,
        eps=0.0,
        hits={},
        layers=(),
        chosen=name,
        lr=run.lr,
        tried=tuple(
            Trial(
                layers=name,
                lr=one.lr,
                forget_accuracy=None if one.diverged else one.history[-1].forget_accuracy,
                drift=None,
                forgot=one.reached(target),
                seconds=sum(epoch.seconds for epoch in one.history),
            )
            for one in ladder.runs
        ),
        history=run.history,
        drift=None,
        remainder=None,
        reached=reached,
        silenced=False,
        at_edge=at_edge,
        warnings=tuple(warnings),
        seconds=seconds,
        left_open=f"{name} closes none",
        left_out=forget.left_out,
    )
    return report, made
