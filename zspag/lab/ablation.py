"""One change at a time: what each option of ZS-PAG does to the outcome.

An axis is a few variants; a variant is a value and the changes that it makes to a profile, as data. Every variant runs
as a user would run it, by the forget-only rule, which stops at the first rate that forgets.

Invariant: a variant differs from the profile in what it names and in nothing else. One that cannot work is a row that
says so.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from zspag.calibration.cross_fitting import free_dimension, unlearn_with
from zspag.lab.evaluation import score
from zspag.lab.experiment import (
    Case,
    answered,
    forget_set,
    guard_of,
    kept_rows,
    references_against,
    statistics_of,
    trained,
    training_key,
)
from zspag.profiles import Profile
from zspag.projected_sgd import Run, fit_labels, rate_search
from zspag.proxy_statistics import ProxyStatistics
from zspag.pseudo_labels import pseudo_labeler
from zspag.report import provenance
from zspag.runtime import channels_last, generator_for, pool_map, seed_of
from zspag.subspaces import averaged

T = TypeVar("T")
SCORES = ("acc_forget", "acc_retain", "over_unlearning", "drift")  # columns of ``Scores`` without a retrained model


@dataclass(frozen=True)
class Variant:
    """One point of an axis."""

    axis: str
    value: float | str  # where on the axis it lies
    changes: tuple[tuple[str, Any], ...] = ()  # dotted names of options of the profile with their new values
    layers: str = "all"  # weights that move: "all", "first half", "later half" or "head"; the rest stays frozen
    projected: bool = True  # whether gradients are projected


def changed(profile: Profile, changes: Sequence[tuple[str, Any]]) -> Profile:
    """Return the profile with options set by their dotted names.

    Raises:
        ValueError: If there is no such option.

    Example:
        >>> from zspag.profiles import PROFILES
        >>> changed(PROFILES["digits"], [("unlearn.proxies.eps", 0.1)]).unlearn.proxies.eps
        0.1
    """
    for path, value in changes:
        try:
            profile = _with(profile, path.split("."), value)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"a profile has no option {path!r}") from error
    return profile


def _with(config: T, path: Sequence[str], value: Any) -> T:
    first, *rest = path
    inner = _with(getattr(config, first), rest, value) if rest else value
    return replace(config, **{first: inner})  # type: ignore[type-var]


OWN = Variant("own", "own")  # the profile as it is


def table(cases: Sequence[Case], chosen: Mapping[str, Sequence[Variant]]) -> list[dict[str, Any]]:
    """Run every variant of every axis on every case and return their rows, from files where they are finished.

    Args:
        cases: Classes and seeds, all of one profile.
        chosen: Axes by name.

    Returns:
        One row per case and variant: see ``rows``.

    Raises:
        RunsFailed: If a job failed; what the others finished is kept.
    """
    jobs = [(case, tuple(axis)) for axis in chosen.values() for case in cases]
    originals = [(case, OWN) for case in {case.seed: case for case in reversed(cases)}.values()]

    def net(case: Case, variant: Variant) -> str:
        return provenance.digest(training_key(changed(case.profile, variant.changes), case.seed, None))

    own = {net(*job) for job in originals}
    nets = {net(case, variant): (case, variant) for case, axis in reversed(jobs) for variant in reversed(axis)}
    others = [job for name, job in nets.items() if name not in own]
    # What several jobs share comes first, or each of them would make it.
    do = partial(answered, cases[0].profile, pool_map, title="ablations", name=_name)
    do(_make_shared, originals)
    do(_make_shared, [*((case, OWN) for case in cases), *others])
    answers = do(_rows, jobs)
    return [row for job in jobs for row in answers[job]]


def _name(job: tuple[Case, Any]) -> str:
    return f"seed {job[0].seed}, class {job[0].forget}"


def _make_shared(job: tuple[Case, Variant]) -> None:
    """Make the net of a variant, and of a profile as it is the statistics, too."""
    case, variant = job
    trained(_within(case, variant).profile, case.seed)
    if variant == OWN:
        _statistics(case)


def _rows(job: tuple[Case, tuple[Variant, ...]]) -> list[dict[str, Any]]:
    return rows(*job)


def rows(case: Case, axis: Sequence[Variant]) -> list[dict[str, Any]]:
    """Run ZS-PAG on a case under every variant of an axis, or read what is finished.

    Two axes that meet in a variant share its file.

    Returns:
        One row per variant: axis, value, forget, seed, failed (why it could not run, or ""), and where it ran the
        columns ``SCORES``, lr, reached, eps (radius used, in pixels), hit_rate (mean over classes), free (mean over
        layers of the share of directions left to the update), samples (forget images) and seconds.
    """
    found = []
    for variant in axis:
        kind = "projected" if variant.projected else "unprojected"
        name = f"ablation-{variant.layers.replace(' ', '')}-{kind}"
        own = _within(case, variant)
        (row,) = kept_rows(own, name, partial(_outcome, own, variant), code=(__name__,))
        found.append({"axis": variant.axis, "value": variant.value} | row)
    return found


def _within(case: Case, variant: Variant) -> Case:
    return replace(case, profile=changed(case.profile, variant.changes))


def _outcome(case: Case, variant: Variant) -> list[dict[str, Any]]:
    place = {"forget": case.forget, "seed": case.seed}
    try:
        return [place | {"failed": ""} | _run(case, variant)]
    except ValueError as error:  # the method's own refusals, such as a class that the attack cannot reach
        return [place | {"failed": str(error)}]


def _run(case: Case, variant: Variant) -> dict[str, Any]:
    """Do what ``zero_shot_unlearn`` does, with the laboratory's switches, and judge what comes out."""
    config = case.profile.unlearn
    model, statistics = trained(case.profile, case.seed), _statistics(case)
    images, labels = forget_set(case, guard_of(case))
    started = time.perf_counter()
    names = moving(statistics.names, variant.layers)
    sizes = {name: second.shape[0] * second.shape[1] for name, second in statistics.moments.pooled.second.items()}
    if variant.projected:
        only = None if variant.layers == "all" else names
        seed = seed_of(generator_for(case.seed, "method"))  # as in the grid
        made = unlearn_with(model, labels, statistics, forget=(case.forget,), config=config, seed=seed, only=only)
        run, names, free = made.run, made.calibration.names, free_dimension(made.project)
    else:
        run, free = _unprojected(case, model, statistics, names), sizes
    seconds = sum(statistics.seconds.values()) + time.perf_counter() - started
    references = references_against(case, original=model, retrained=None)  # SCORES compares with the original alone
    scores = asdict(score(references.images.map_logits(run.model), references))
    hits = statistics.proxies.hits.values()
    return {name: scores[name] for name in SCORES} | {
        "lr": run.lr,
        "reached": run.reached(config.update.forget_accuracy),
        "eps": statistics.proxies.eps,
        "hit_rate": sum(hits) / len(hits),
        "free": sum(free[name] / sizes[name] for name in names) / len(sizes),
        "samples": len(images),
        "seconds": seconds,
    }


def _unprojected(case: Case, model: nn.Module, statistics: ProxyStatistics, names: Sequence[str]) -> Run:
    """Fit the same labels with whole gradients, at the first rate of the ladder that forgets."""
    config = case.profile.unlearn
    images = channels_last(statistics.views.images)
    _, labels = forget_set(case, guard_of(case))
    labels = labels[statistics.views.sources.to(labels.device)]
    relabel = pseudo_labeler(
        model,
        images,
        forget=[case.forget],
        proxies=statistics.proxies,
        moments=averaged(statistics.moments),
        projector=None,
        names=names,
        config=config.labels,
        generator=generator_for(case.seed, "labels"),
    )

    def fitted(lr: float) -> Run:
        update, generator = replace(config.update, lr=lr), generator_for(case.seed, "update")
        return fit_labels(
            model, images, labels, relabel=relabel, project=None, names=names, update=update, generator=generator
        )

    return rate_search(fitted, update=config.update).kept


def moving(names: Sequence[str], layers: str) -> tuple[str, ...]:
    """Return the weights of a part of the net, in the order in which the model uses them.

    Raises:
        ValueError: If the part is unknown.

    Example:
        >>> moving(["a", "b", "c"], "first half"), moving(["a", "b", "c"], "later half")
        (('a', 'b'), ('c',))
    """
    half = math.ceil(len(names) / 2)
    parts = {"all": names, "first half": names[:half], "later half": names[half:], "head": names[-1:]}
    if layers not in parts:
        raise ValueError(f"layers must be one of {', '.join(parts)}, got {layers!r}")
    return tuple(parts[layers])


def _statistics(case: Case) -> ProxyStatistics:
    """Return statistics made once for all subspaces: a merge can be cut from the moments of single classes later."""
    pool = replace(case.profile.unlearn, subspace=replace(case.profile.unlearn.subspace, combine="pool"))
    statistics = statistics_of(replace(case, profile=replace(case.profile, unlearn=pool)))
    if case.profile.unlearn.subspace.merge_at is None or statistics.moments.per_class is not None:
        return statistics
    return statistics_of(case)
