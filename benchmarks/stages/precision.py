"""Precision: what single precision costs beside double, on a trained net and photographs, and what it saves.

The rows of a net in float32 are float32, and so are the products that their second moments are added up from; the
reference multiplies the same rows in float64. Both moments are cut at the same energy, and the energy that either basis
holds is taken from the exact moment C: tr(U^T C U) / tr(C).

The whole method is run with either, on the same proxies: nothing else differs.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.stages import whole
from benchmarks.stages.findings import Finding, spread
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes
from benchmarks.stages.timing import interleaved
from zspag.config import SubspaceConfig, UnlearnConfig, UpdateConfig
from zspag.lab import experiment
from zspag.lab.evaluation import Scores, captured
from zspag.lab.methods import METHODS, Problem
from zspag.profiles import Profile
from zspag.proxy_statistics import prepare
from zspag.runtime import generator_for
from zspag.subspaces import accumulate, by_energy, second_moments

STAGE = "precision"
EXACT = torch.float64
ONE_RATE = UnlearnConfig(update=UpdateConfig(lr=1.0, layers="all"))  # two searches may end at different rates
CLASSES = 3  # of those of the whole method: every one is forgotten twice and judged


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield speed and error of moments and bases, then of the whole method, on the experiment of ``whole``."""
    profile = whole.profile_of(sizes)
    profile = replace(profile, classes=profile.classes[:CLASSES])
    yield from _of_moments(profile, sizes, device)
    yield from _of_results(profile, whole.case_of(profile))


def _of_moments(profile: Profile, sizes: Sizes, device: torch.device) -> Iterator[Finding]:
    first = experiment.Case(profile, 0, profile.classes[0])
    images, _ = experiment.forget_set(first, experiment.guard_of(first))
    model, x = whole.trained_of(profile).to(device), images[: sizes.per_class].to(device)
    case = f"{profile.dataset}, {profile.arch} of width {profile.width}, {len(x)} images of a class"
    timings = interleaved(
        {"float32": lambda: second_moments(model, x), "float64": lambda: second_moments(model, x, precision=EXACT)},
        repeats=sizes.repeats,
    )
    yield Finding(
        STAGE,
        case,
        "moments: time with products in float64 over that in float32",
        timings["float64"].over(timings["float32"]),
        seconds=spread(timings),
    )
    ours, exact = second_moments(model, x), second_moments(model, x, precision=EXACT)
    errors = {
        name: float((ours.second[name] - second).abs().max() / second.abs().max())
        for name, second in exact.second.items()
    }
    yield Finding(
        STAGE,
        case,
        "moments: error over the largest entry, worst layer",
        max(errors.values()),
        at_most=1e-6,
        note=_by_layer(errors),
    )
    energy = SubspaceConfig().energy
    before, after = (captured(by_energy(one, energy=energy), exact) for one in (exact, ours))
    lost = {name: abs(before[name] - after[name]) for name in before}
    yield Finding(
        STAGE,
        case,
        "bases: captured energy that changes, worst layer (share)",
        max(lost.values()),
        at_most=1e-4,
        note=_by_layer(lost),
    )


def _of_results(profile: Profile, case: str) -> Iterator[Finding]:
    done = [_both(experiment.Case(profile, 0, label)) for label in profile.classes]
    scores = {"float32": [ours for ours, _ in done], "float64": [exact for _, exact in done]}
    yield Finding(
        STAGE,
        f"{case}, one rate",
        "forget accuracy beyond that of float64, worst class (points)",
        max(100 * (ours.acc_forget - exact.acc_forget) for ours, exact in done),
        at_most=0.5,
        note=whole.told(scores, "acc_forget", 100),
    )
    yield from whole.beyond(STAGE, f"{case}, one rate", scores, against="float64", drift=1.1)


def _both(case: experiment.Case) -> tuple[Scores, Scores]:
    """Forget a class with moments as they are and with exact ones."""
    model, classes = whole.trained_of(case.profile), experiment.data_of(case.profile).num_classes
    images, labels = experiment.forget_set(case, experiment.guard_of(case))
    ours = prepare(
        model, images, forget=(case.forget,), num_classes=classes, config=ONE_RATE, generator=generator_for("bench")
    )
    retained = ours.proxies.labels.unique().tolist()
    parts = (second_moments(model, ours.proxies.of_class(label), precision=EXACT) for label in retained)
    exact = replace(ours, moments=accumulate(parts, classes=len(retained)))
    one, two = (
        METHODS["zs_pag"].run(Problem(model, images, labels, classes, generator_for("bench"), statistics), ONE_RATE)
        for statistics in (ours, exact)
    )
    return whole.scored(case, one.kept.model), whole.scored(case, two.kept.model)


def _by_layer(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
