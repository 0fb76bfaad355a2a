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
from benchmarks.stages.findings import Finding, compared
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import Sizes
from benchmarks.stages.timing import interleaved
from zspag.config import SubspaceConfig, UnlearnConfig, UpdateConfig
from zspag.lab import experiment
from zspag.lab.evaluation import Scores, captured, score
from zspag.lab.methods import METHODS, Problem
from zspag.profiles import Profile
from zspag.proxy_statistics import prepare
from zspag.runtime import generator_for
from zspag.subspaces import accumulate, by_energy, second_moments

STAGE = "precision"
EXACT = torch.float64
ONE_RATE = UnlearnConfig(update=UpdateConfig(lr=1.0, layers="all"))  # two searches may end at different rates
CLASSES = 1  # of those of the whole method: it is forgotten twice and judged


def measure(sizes: Sizes, _machine: Machine, device: torch.device) -> Iterator[Finding]:
    """Yield speed and error of moments and bases, then of the whole method, on the experiment of ``whole``."""
    profile = whole.profile_of(sizes)
    profile = replace(profile, classes=profile.classes[:CLASSES])
    yield from _of_moments(profile, sizes, device)
    yield from _of_results(profile, f"{whole.case_of(profile)}, one rate")


def _of_moments(profile: Profile, sizes: Sizes, device: torch.device) -> Iterator[Finding]:
    first = experiment.Case(profile, 0, profile.classes[0])
    images, _ = experiment.forget_set(first, experiment.guard_of(first))
    model, x = whole.trained_of(profile).to(device), images[: sizes.per_class].to(device)
    case = f"{profile.dataset}, {profile.arch} of width {profile.width}, {len(x)} images of a class"
    ways = {"float64": lambda: second_moments(model, x, precision=EXACT), "float32": lambda: second_moments(model, x)}
    timings = interleaved(ways, repeats=sizes.repeats)
    what = "moments: time with products in float64 over that in float32"
    yield compared(STAGE, case, what, timings, "float64", "float32")
    exact, ours = (way() for way in ways.values())
    errors = {
        name: float((ours.second[name] - second).abs().max() / second.abs().max())
        for name, second in exact.second.items()
    }
    energy = SubspaceConfig().energy
    before, after = (captured(by_energy(one, energy=energy), exact) for one in (exact, ours))
    lost = {name: abs(before[name] - after[name]) for name in before}
    for what, numbers, most in (
        ("moments: error over the largest entry, worst layer", errors, 1e-6),
        ("bases: captured energy that changes, worst layer (share)", lost, 1e-4),
    ):
        note = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
        yield Finding(STAGE, case, what, max(numbers.values()), at_most=most, note=note)


def _of_results(profile: Profile, case: str) -> Iterator[Finding]:
    """Yield what the method leaves with moments as they are, beside exact ones."""
    done = [_both(experiment.Case(profile, 0, label)) for label in profile.classes]
    for what, name in (("forget accuracy", "acc_forget"), ("over-unlearning", "over_unlearning")):
        pairs = [(100 * getattr(ours, name), 100 * getattr(exact, name)) for ours, exact in done]
        note = "; ".join(f"{one:.4g} and {two:.4g}" for one, two in pairs)
        what = f"{what} beyond that of float64 (points)"
        yield Finding(STAGE, case, what, max(one - two for one, two in pairs), at_most=0.5, note=note)
    drifts = [[one.drift for one in each] for each in zip(*done, strict=True)]
    note = "; ".join(f"{one:.4g} and {two:.4g}" for one, two in zip(*drifts, strict=True))
    what = "drift over that of float64"
    yield Finding(STAGE, case, what, sum(drifts[0]) / sum(drifts[1]), at_most=1.1, note=note)


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
    references, scores = experiment.references_of(case), []
    for statistics in (ours, exact):
        problem = Problem(model, images, labels, classes, generator_for("bench"), statistics)
        unlearned = METHODS["zs_pag"].run(problem, ONE_RATE).kept.model
        scores.append(score(references.images.map_logits(unlearned), references))
    return scores[0], scores[1]
