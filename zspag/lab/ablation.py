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

from torch import Tensor, nn

from zspag.calibration.cross_fitting import free_dimension, unlearn_with
from zspag.config import to_dict
from zspag.lab import adversarial_training, cache
from zspag.lab.evaluation import score
from zspag.lab.experiment import (
    Case,
    answered,
    data_of,
    forget_set,
    guard_of,
    kept_rows,
    made_now,
    references_against,
    statistics_of,
    trained,
    training_key,
)
from zspag.profiles import Profile
from zspag.projected_sgd import Run, fit_labels, rate_search
from zspag.proxy_statistics import ProxyStatistics, prepare
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
    layers: str = "all"  # weights that move, of ``LAYERS``; the rest stays frozen
    projected: bool = True  # whether gradients are projected
    adversarial: float = 0.0  # radius in pixels of an adversarial training of the original; 0 takes it as it is


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


LAYERS = ("all", "first half", "later half", "head")
STRATEGIES = ("soft", "second_best", "random", "influence", "process")
_SUBSPACES: dict[str, dict[str, Any]] = {
    "pool": {"combine": "pool", "kind": "hard"},
    "merge": {"combine": "merge", "kind": "hard"},
    "soft .1": {"kind": "soft", "damping": 0.1},
    "soft .01": {"kind": "soft", "damping": 0.01},
    "soft .001": {"kind": "soft", "damping": 0.001},
}
OWN = Variant("own", "own")  # the profile as it is


def axes(profile: Profile) -> dict[str, tuple[Variant, ...]]:
    """Return every axis by name; in a trial profile only the first and the last variant of each."""
    proxies, subspace, labels = "unlearn.proxies.", "unlearn.subspace.", "unlearn.labels."
    radii = [part / 255 for part in (16, 32, 48, 64, 128, 255)]
    energies, betas = (0.8, 0.9, 0.95, 0.99, 0.995, 0.999), (0.0, 0.5, 2.0, 4.0)
    nearer, each = (proxies + "margin", 1.0), profile.unlearn.proxies.per_class
    counts = sorted({1, 3, 10, each, 2 * each})
    every = ("unlearn.update.layers", "all")  # no other choice of layers is looked for
    whole = ("unlearn.update.ladder", profile.ladders.low)  # a whole gradient needs smaller rates
    widths = sorted({8 * max(1, math.ceil(profile.width * part / 8)) for part in (1 / 3, 2 / 3, 1, 3 / 2)})
    found: dict[str, tuple[Variant, ...]] = {}

    def add(name: str, path: str, values: Sequence[Any], *further: tuple[str, Any], **options: Any) -> None:
        """Add an axis that gives one option several values; further changes and options hold for all of them."""
        variants = (Variant(name, "all" if one is None else one, (*further, (path, one)), **options) for one in values)
        found[name] = tuple(variants)

    for norm in ("l2", "linf"):
        add(f"radius {norm}", proxies + "eps", radii, (proxies + "norm", norm))
    add("radius by the rule", proxies + "norm", ("l2", "linf"))
    add("steps", proxies + "steps", (2, 5, 10, 20))
    add("proxies", proxies + "per_class", counts)
    add("samples", "forget_samples", (1, 4, 16, 64, profile.forget_samples))
    add("energy", subspace + "energy", energies)
    found["subspace"] = tuple(
        Variant("subspace", name, tuple((subspace + option, value) for option, value in options.items()))
        for name, options in _SUBSPACES.items()
    )
    found["layers"] = tuple(Variant("layers", layers, (every,), layers=layers) for layers in LAYERS)
    add("labels", labels + "strategy", STRATEGIES)
    add("labels, not projected", labels + "strategy", STRATEGIES, whole, projected=False)
    add("beta, process", labels + "beta", betas, (labels + "strategy", "process"))
    add("beta, tilted once", labels + "beta", betas, (labels + "strategy", "influence"))
    add("solver", labels + "solver", ("identity", "kfac", "cg"), (labels + "strategy", "influence"))
    add("rate", "unlearn.update.lr", profile.ladders.high[:6])
    for name, changes in (("hardened", ()), ("hardened, margin", (nearer,))):
        found[name] = tuple(Variant(name, radius, changes, adversarial=radius) for radius in (0.0, 0.1, 0.2))
    add("width", "width", widths)
    add("width, margin", "width", widths, nearer)
    return {name: (axis[0], axis[-1]) if profile.trial and len(axis) > 1 else axis for name, axis in found.items()}


def table(cases: Sequence[Case], chosen: Mapping[str, Sequence[Variant]]) -> list[dict[str, Any]]:
    """Run every variant of every axis on every case and return their rows, from files where they are finished.

    Args:
        cases: Classes and seeds, all of one profile.
        chosen: Axes, from ``axes``.

    Returns:
        One row per case and variant: see ``rows``.

    Raises:
        RunsFailed: If a job failed; what the others finished is kept.
    """
    jobs = [(case, tuple(axis)) for axis in chosen.values() for case in cases]
    originals = [(case, OWN) for case in {case.seed: case for case in reversed(cases)}.values()]

    def net(case: Case, variant: Variant) -> str:
        key = training_key(changed(case.profile, variant.changes), case.seed, None)
        return provenance.digest([key, variant.adversarial])

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
    _net(_within(case, variant), variant.adversarial)
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
        name = f"ablation-{variant.layers.replace(' ', '')}-{kind}-{variant.adversarial:g}"
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
    model = _net(case, variant.adversarial)
    images, labels = forget_set(case, guard_of(case))
    if variant.adversarial:
        classes, generator = data_of(case.profile).num_classes, generator_for(case.seed, "material")
        statistics = prepare(
            model, images, forget=(case.forget,), num_classes=classes, config=config, generator=generator
        )
    else:
        statistics = _statistics(case)
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


def _net(case: Case, radius: float) -> nn.Module:
    """Return the original, or the original after an adversarial training of this radius, from the cache or made."""
    profile, seed = case.profile, case.seed
    model = trained(profile, seed)
    if not radius:
        return model
    key = {
        "original": training_key(profile, seed, None),
        "radius": radius,
        "recipe": [to_dict(adversarial_training.TRAINING), to_dict(adversarial_training.ATTACK)],
        "code": cache.code_of(profile, adversarial_training.__name__),
    }

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        train, generator = data_of(profile).train, generator_for(seed, "hardening")
        changed = adversarial_training.adversarially_trained(
            model, train.float(), train.labels, radius=radius, generator=generator
        )
        return changed.state_dict(), {}

    path = cache.tensors_path(profile, "adversarially_trained", key)
    weights, _ = cache.kept_tensors(path, make, made=partial(made_now, profile, seed=seed, config=key))
    model.load_state_dict(weights)
    return model
