"""The whole method against retraining, on the same machine, with the same code and threads.

Retraining is one epoch of the recipe without the forget class, timed, times the number of epochs. On a GPU the paper's
ResNet-18 is raced as well.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.stages.findings import Finding
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes
from benchmarks.stages.timing import Timing, timed
from zspag.config import UnlearnConfig
from zspag.lab import experiment
from zspag.lab.evaluation import Scores, score
from zspag.lab.training import train
from zspag.profiles import PROFILES, Profile
from zspag.runtime import threads
from zspag.unlearning import zero_shot_unlearn

STAGE = "whole method"
RATIO = "retraining's time over unlearning's, slowest class"
CLASSES = (1, 2, 5, 6, 8)
LARGE = replace(PROFILES["paper"], retrained=False)


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield what the small net on CIFAR-10 takes, recorded weights, several classes; a GPU takes a ResNet-18 as well.

    Tiny sizes take digits.
    """
    profile = profile_of(sizes)
    yield from _raced(profile, {"defaults": (profile.unlearn, 15)}, device)
    if device.type == "cpu" or sizes.tiny:
        yield Finding(STAGE, case_of(LARGE), RATIO, None, at_least=10, note="it takes a GPU")
    else:
        yield from _raced(LARGE, {"defaults": (LARGE.unlearn, 10)}, device)


def _raced(
    profile: Profile, ways: Mapping[str, tuple[UnlearnConfig, float | None]], device: torch.device
) -> Generator[Finding, None, dict[str, list[Scores]]]:
    """Yield how often unlearning fits into retraining, way by way (config, times wanted), and return the scores."""
    case = case_of(profile)
    try:
        experiment.data_of(profile)
    except FileNotFoundError as error:
        yield Finding(STAGE, case, RATIO, None, at_least=max(times or 0 for _, times in ways.values()), note=str(error))
        return {}
    retraining = _retraining(profile, device)
    scores = {}
    for name, (config, wanted) in ways.items():
        done = [_forget(profile, label, config) for label in profile.classes]
        taken = Timing(tuple(seconds for seconds, _ in done))
        scores[name] = [one for _, one in done]
        yield Finding(
            STAGE,
            f"{case}, {name}",
            RATIO,
            retraining / max(taken.seconds),
            at_least=wanted,
            seconds={"retraining": (retraining,) * 3, name: taken.spread},
            note=f"one epoch of retraining, times {profile.train.epochs}",
        )
    return scores


def profile_of(sizes: Sizes) -> Profile:
    """Return the experiment on which trained nets are measured."""
    if sizes.tiny:
        return PROFILES["smoke"]
    return replace(PROFILES["cpu"], recorded_models=True, retrained=False, classes=CLASSES)


def case_of(profile: Profile) -> str:
    """Return the experiment in words."""
    return f"{profile.dataset}, {profile.arch} of width {profile.width}, {len(profile.classes)} classes"


def _retraining(profile: Profile, device: torch.device) -> float:
    data = experiment.data_of(profile)
    kept = data.train.select(data.train.labels != profile.classes[0])
    model, recipe = experiment.untrained(profile, 0), replace(experiment.recipe(profile), epochs=1)
    seconds = timed(
        lambda: train(model, kept.images, kept.labels, config=recipe, seed=0, device=device, title="retraining")
    )
    return seconds * profile.train.epochs


def _forget(profile: Profile, label: int, config: UnlearnConfig) -> tuple[float, Scores]:
    case, model = experiment.Case(profile, 0, label), trained_of(profile)
    images, labels = experiment.forget_set(case, experiment.guard_of(case))
    kept: list[Any] = []
    classes = experiment.data_of(profile).num_classes
    seconds = timed(
        lambda: kept.append(zero_shot_unlearn(model, images, labels, num_classes=classes, config=config, seed=0))
    )
    return seconds, scored(case, kept[0].open_model)


def scored(case: experiment.Case, model: nn.Module) -> Scores:
    """Return the scores of an unlearned model."""
    references = experiment.references_of(case)
    return score(references.images.map_logits(model), references)


def trained_of(profile: Profile) -> nn.Module:
    """Return the original; one that is trained here is stored as one of the profile's threads."""
    with threads(profile.threads):
        return experiment.trained(profile, 0)


def told(runs: Mapping[str, Sequence[Scores]], name: str, scale: float) -> str:
    """Return a score of every run, way by way."""
    values = {way: [scale * getattr(scores, name) for scores in done] for way, done in runs.items()}
    return "; ".join(f"{way}: {', '.join(f'{one:.4g}' for one in each)}" for way, each in values.items())


def beyond(
    stage: str, case: str, runs: Mapping[str, Sequence[Scores]], *, against: str, drift: float = 1.0
) -> Iterator[Finding]:
    """Yield what the first of two ways loses to the second; ``drift`` bounds the ratio of their drifts."""
    ours, theirs = runs.values()
    pairs = list(zip(ours, theirs, strict=True))
    yield Finding(
        stage,
        case,
        f"over-unlearning beyond that of {against}, worst class (points)",
        max(100 * (one.over_unlearning - two.over_unlearning) for one, two in pairs),
        at_most=0.5,
        note=told(runs, "over_unlearning", 100),
    )
    yield Finding(
        stage,
        case,
        f"drift over that of {against}, mean of the classes",
        sum(one.drift for one in ours) / sum(two.drift for two in theirs),
        at_most=drift,
        note=told(runs, "drift", 1),
    )
