"""The whole method against retraining, on the same machine, with the same code and threads.

Retraining is one epoch of the recipe without the forget class, timed, times the number of epochs. The quick
configuration is ``config.QUICK``; what it forgets and what it costs stands beside the defaults, on classes that had no
say in choosing it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from zspag import experiment
from zspag.bench.findings import Finding
from zspag.bench.machine import Machine
from zspag.bench.settings import Sizes
from zspag.bench.timing import Timing, timed
from zspag.config import QUICK, Profile, UnlearnConfig
from zspag.evaluation import Scores, score
from zspag.profiles import PROFILES
from zspag.runtime import threads
from zspag.training import train
from zspag.unlearning import zero_shot_unlearn

STAGE = "whole method"
CLASSES = (1, 2, 5, 6, 8)  # on test images of the others QUICK was found


def measure(sizes: Sizes, machine: Machine, device: torch.device) -> Iterator[Finding]:  # noqa: ARG001  (as all stages)
    """Yield what the small net on CIFAR-10 takes, recorded weights, several classes; tiny sizes take digits."""
    profile = PROFILES["smoke"]
    if not sizes.tiny:
        profile = replace(PROFILES["cpu"], recorded_models=True, retrained=False, classes=CLASSES)
    case = f"{profile.dataset}, {profile.arch} of width {profile.width}, {len(profile.classes)} classes"
    try:
        experiment.data_of(profile)
    except FileNotFoundError as error:
        yield Finding(STAGE, case, "retraining's time over unlearning's", None, at_least=50, note=str(error))
        return
    retraining = _retraining(profile, device)
    runs = {
        name: [_forget(profile, forget, config) for forget in profile.classes]
        for name, config in {"quick": QUICK, "defaults": profile.unlearn}.items()
    }
    for name, done in runs.items():
        slowest = max(seconds for seconds, _ in done)
        yield Finding(
            STAGE, f"{case}, {name}", "retraining's time over unlearning's, slowest class", retraining / slowest,
            at_least=50 if name == "quick" else None,
            seconds={"retraining": (retraining,) * 3, name: Timing(tuple(seconds for seconds, _ in done)).spread},
            note=f"one epoch of retraining, times {profile.train.epochs}",
        )  # fmt: skip
    yield from _results(case, {name: [scores for _, scores in done] for name, done in runs.items()})


def _retraining(profile: Profile, device: torch.device) -> float:
    data = experiment.data_of(profile)
    kept = data.train.select(data.train.labels != profile.classes[0])
    model, recipe = experiment.untrained(profile, 0), replace(experiment.recipe(profile), epochs=1)
    seconds = timed(
        lambda: train(model, kept.images, kept.labels, config=recipe, seed=0, device=device, title="retraining")
    )
    return seconds * profile.train.epochs


def _forget(profile: Profile, forget: int, config: UnlearnConfig) -> tuple[float, Scores]:
    case = experiment.Case(profile, 0, forget)
    with threads(profile.threads):  # a model that is trained here is stored as one of so many threads
        model = experiment.trained(profile, 0)
    images, labels = experiment.forget_set(case, experiment.guard_of(case))
    kept: list[Any] = []
    classes = experiment.data_of(profile).num_classes
    seconds = timed(
        lambda: kept.append(zero_shot_unlearn(model, images, labels, num_classes=classes, config=config, seed=0))
    )
    panel = experiment.panel_of(case)
    return seconds, score(panel.images.map_logits(kept[0].model), panel)


def _results(case: str, runs: dict[str, list[Scores]]) -> Iterator[Finding]:
    """Yield what the quick runs lose against the defaults, by the protocol's own bounds."""

    def note(name: str, scale: float) -> str:
        values = {way: [scale * getattr(scores, name) for scores in done] for way, done in runs.items()}
        return "; ".join(f"{way}: {', '.join(f'{one:.4g}' for one in each)}" for way, each in values.items())

    pairs = list(zip(runs["quick"], runs["defaults"], strict=True))
    yield Finding(
        STAGE, f"{case}, quick", "forget accuracy, worst class (%)", max(100 * quick.acc_forget for quick, _ in pairs),
        at_most=1, note=note("acc_forget", 100),
    )  # fmt: skip
    yield Finding(
        STAGE, f"{case}, quick", "over-unlearning beyond that of the defaults, worst class (points)",
        max(100 * (quick.over_unlearning - full.over_unlearning) for quick, full in pairs), at_most=0.5,
        note=note("over_unlearning", 100),
    )  # fmt: skip
    yield Finding(
        STAGE, f"{case}, quick", "drift over that of the defaults, mean of the classes",
        sum(quick.drift for quick, _ in pairs) / sum(full.drift for _, full in pairs), at_most=1,
        note=note("drift", 1),
    )  # fmt: skip
