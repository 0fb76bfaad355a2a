"""The whole method against retraining and against two other methods: what they take, and what they leave.

Retraining is one epoch of the recipe on a part of the retained images, times what is left out. It is timed anew for
every class that is forgotten: a class is a round. DELETE and boundary shrink are those of the laboratory, at the
smallest rate of their ladder that forgets. Only that rate counts as their time, as if it were known; ours searches its
own. On a GPU the paper's ResNet-18 is raced too.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.stages.findings import Finding, compared
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes
from benchmarks.stages.timing import Timing, timed
from zspag.lab import experiment
from zspag.lab.evaluation import Scores, score
from zspag.lab.training import train
from zspag.profiles import PROFILES, Ladders, Profile
from zspag.projected_sgd import RateSearch
from zspag.runtime import threads
from zspag.unlearning import zero_shot_unlearn

STAGE = "whole method"
RATIO = "retraining's time over that of zero_shot_unlearn"
CLASSES = (1, 5, 8)
RATES = 4  # of a peer's ladder, the largest; the others only cost time
PART = 5  # retraining takes every fifth image
OURS, PEERS = "zero_shot_unlearn", {"DELETE": "delete", "boundary shrink": "boundary_shrink"}
LARGE = replace(PROFILES["paper"], retrained=False)


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield what the small net on CIFAR-10 takes, recorded weights, several classes; a GPU takes a ResNet-18 as well.

    Tiny sizes take digits.
    """
    yield from _raced(profile_of(sizes), device, wanted=50)
    if device.type == "cpu" or sizes.tiny:
        yield Finding(STAGE, case_of(LARGE), RATIO, None, at_least=20, note="it takes a GPU")
    else:
        yield from _raced(LARGE, device, wanted=20)


def profile_of(sizes: Sizes) -> Profile:
    """Return the experiment on which trained nets are measured."""
    if sizes.tiny:
        return PROFILES["smoke"]
    return replace(PROFILES["cpu"], recorded_models=True, retrained=False, classes=CLASSES)


def case_of(profile: Profile) -> str:
    """Return the experiment in words."""
    return f"{profile.dataset}, {profile.arch} of width {profile.width}, {len(profile.classes)} classes"


def _raced(profile: Profile, device: torch.device, *, wanted: float) -> Iterator[Finding]:
    """Yield times and what is left, class by class; every class is a round."""
    case = case_of(profile)
    try:
        experiment.data_of(profile)
    except FileNotFoundError as error:
        yield Finding(STAGE, case, RATIO, None, at_least=wanted, note=str(error))
        return
    ways = {OURS: _ours} | {title: partial(_peer, name=name) for title, name in PEERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("retraining", *ways)}
    left: dict[str, list[Scores]] = {name: [] for name in ways}
    for label in profile.classes:
        one, model = experiment.Case(profile, 0, label), trained_of(profile)
        references = experiment.references_of(one)
        seconds["retraining"].append(_retraining(profile, label, device))
        for name, way in ways.items():
            spent, unlearned = way(one, model)
            seconds[name].append(spent)
            left[name].append(score(references.images.map_logits(unlearned), references))
    timings = {name: Timing(tuple(each)) for name, each in seconds.items()}
    note = f"an epoch on every {PART}th image, times {PART} x {profile.train.epochs} epochs"
    yield compared(STAGE, case, RATIO, timings, "retraining", OURS, at_least=wanted, note=note)
    for peer in PEERS:
        yield compared(STAGE, case, f"time over that of {peer} at a known rate", timings, OURS, peer)
    for name in ways:
        unseen = [100 * one.acc_forget for one in left[name]]
        what = f"unseen images of the class that {name} leaves recognized, worst class (%)"
        note = ", ".join(f"{share:.3g}" for share in unseen)
        yield Finding(STAGE, case, what, max(unseen), at_most=1 if name == OURS else None, note=note)
    for peer in PEERS:
        losses = [(one.nll_retain, two.nll_retain) for one, two in zip(left[OURS], left[peer], strict=True)]
        rounds, what = tuple(one / two for one, two in losses), f"retained loss over that of {peer}"
        note = "in nats: " + "; ".join(f"{one:.3f} and {two:.3f}" for one, two in losses)
        yield Finding(STAGE, case, what, statistics.median(rounds), at_most=1, rounds=rounds, note=note)


def _retraining(profile: Profile, label: int, device: torch.device) -> float:
    """Return the seconds of retraining without a class, by those of an epoch on a part of the images."""
    train_split = experiment.data_of(profile).train
    kept = train_split.select(train_split.labels != label)
    part = kept.select(torch.arange(0, len(kept.labels), PART))
    model, recipe = experiment.untrained(profile, 0), replace(experiment.recipe(profile), epochs=1)
    seconds = timed(
        lambda: train(model, part.images, part.labels, config=recipe, seed=0, device=device, title="retraining")
    )
    return seconds * profile.train.epochs * len(kept.labels) / len(part.labels)


def _ours(case: experiment.Case, model: nn.Module) -> tuple[float, nn.Module]:
    images, labels = experiment.forget_set(case, experiment.guard_of(case))
    run = partial(zero_shot_unlearn, num_classes=experiment.data_of(case.profile).num_classes, seed=0)
    kept: list[nn.Module] = []
    spent = timed(lambda: kept.append(run(model, images, labels, config=case.profile.unlearn).open_model))
    return spent, kept[0]


def _peer(case: experiment.Case, model: nn.Module, *, name: str) -> tuple[float, nn.Module]:
    ladders = case.profile.ladders
    upper = Ladders(low=ladders.low[-RATES:], middle=ladders.middle[-RATES:], high=ladders.high[-RATES:])
    case = replace(case, profile=replace(case.profile, ladders=upper))
    statistics: Any = None  # these methods take neither proxies nor moments
    kept: list[RateSearch] = []
    run = partial(experiment.run_method, model=model, statistics=statistics, whole=False)
    spent = timed(lambda: kept.append(run(case, name)[0]))
    (search,) = kept
    in_vain = sum(epoch.seconds for one in search.runs if one is not search.kept for epoch in one.history)
    return spent - in_vain, search.kept.model


def trained_of(profile: Profile) -> nn.Module:
    """Return the original; one that is trained here is stored as one of the profile's threads."""
    with threads(profile.threads):
        return experiment.trained(profile, 0)
