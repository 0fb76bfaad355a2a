"""The grid: every method on every class and seed, over its whole ladder, each as a job and a file of its own.

A finished job is a file named by everything that determines it, so an interrupted grid goes on where it stopped and a
second call computes nothing.

Invariant: a method runs under the data guard, and one that is forget-only and reads anything else does not get a row.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from zspag.config import UnlearnConfig, to_dict
from zspag.heads.head import NoHeadError, find_head, logits_under_head
from zspag.lab import cache
from zspag.lab.data import Guard
from zspag.lab.evaluation import Masked, Parts, References, Scores, accuracy, masked_parts, score
from zspag.lab.experiment.cases import (
    Case,
    cases_of,
    data_of,
    forget_set,
    guard_of,
    made_now,
    references_of,
    trained,
    training_key,
)
from zspag.lab.experiment.statistics import statistics_of
from zspag.lab.methods import FAMILIES, METHODS, Problem
from zspag.profiles import Profile
from zspag.projected_sgd import RateSearch
from zspag.proxy_statistics import ProxyStatistics
from zspag.report import provenance, results
from zspag.report.files import repository_root
from zspag.runtime import generator_for, pick_device, pool_map

REFERENCES = ("original", "masked", "retrained")
TITLES = {
    "original": "original",
    "masked": "masked original",
    "row_only": "original, one row edited",  # a control of audits alone
    "retrained": "retrained",
} | {name: method.title for name, method in METHODS.items()}
READS = {name: method.reads for name, method in METHODS.items()}


# Carries jobs to processes, as ``runtime.pool_map`` does: yields each job with its answer or its exception.
Spread = Callable[..., Iterable[tuple[Any, Any]]]


class RunsFailed(RuntimeError):  # noqa: N818  reads as a fact
    """Some runs of a grid failed; the others are finished and kept."""


class RetainDataRead(RuntimeError):  # noqa: N818  reads as a fact
    """A forget-only method read samples it may not see."""


def answered(
    profile: Profile,
    spread: Spread,
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    title: str,
    name: Callable[[Any], str],
) -> dict[Any, Any]:
    """Do jobs that need each other and return their answers by job.

    Args:
        profile: Says workers and threads.
        spread: What carries the jobs to processes.
        function: Does a job.
        jobs: Hashable jobs.
        title: Title of the progress bar.
        name: Names a job that failed, for the message.

    Raises:
        RunsFailed: If a job failed; what the others finished is kept.
    """
    answers = {}
    for job, answer in spread(function, jobs, workers=profile.workers, threads_each=profile.threads, title=title):
        if isinstance(answer, Exception):
            raise RunsFailed(f"{name(job)}: {answer}") from answer
        answers[job] = answer
    return answers


def compute_grid(profile: Profile, methods: Sequence[str], *, spread: Spread = pool_map) -> pd.DataFrame:
    """Run methods on every class and seed of a profile, and return one row per run.

    Every method of a class and seed is a job and a file of its own, so what is lost with a worker is one job.

    Args:
        profile: Says classes, seeds, rates and workers.
        methods: Names of ``methods.METHODS``.
        spread: What carries jobs to processes: ``runtime.pool_map``, or a cluster's.

    Returns:
        Rows of all references and methods: method, forget, seed, lr, chosen, epochs, seconds (of the chosen run those
        of trials, and of whatever else the method did beside its runs, as well), retain_samples_read, restored
        (references and chosen rates only) and the fields of ``Scores``. References have no rate; without retrained
        models what needs them is NaN.

    Raises:
        ValueError: If a method is unknown.
        RunsFailed: If runs failed; the others are finished and kept. The message names each.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}; known are {', '.join(METHODS)}")
    data_of(profile)  # a missing data set is said once, not by every worker
    cases = cases_of(profile)
    missing = [(case, name) for case in cases for name in methods if not rows_path(case, name).exists()]
    started = {case for case, _ in missing}
    bare = [case for case in cases if case in started or not rows_path(case, "references").exists()]
    failures: dict[Any, Exception] = {}

    def do(function: Callable[[Any], None], jobs: Iterable[Any], title: str) -> None:
        options = {"workers": profile.workers, "threads_each": profile.threads, "title": title}
        answers = spread(function, list(jobs), **options)  # without jobs no process is started
        failures.update({job: answer for job, answer in answers if isinstance(answer, Exception)})

    do(_train_original, dict.fromkeys((profile, case.seed) for case in bare), "originals")
    do(_prepare_case, [case for case in bare if (profile, case.seed) not in failures], "classes and seeds")
    ready = [job for job in missing if job[0] not in failures and (profile, job[0].seed) not in failures]
    do(_compute_method, ready, "methods")
    if failures:
        lines = "\n".join(f"  {_name(job)}: {type(error).__name__}: {error}" for job, error in failures.items())
        raise RunsFailed(
            f"{len(failures)} job{'s' * (len(failures) > 1)} of the grid failed; the others are kept:\n{lines}"
        )
    finished = [rows_path(case, name) for case in cases for name in ("references", *methods)]
    frame = pd.DataFrame([row for path in finished for row in cache.read_rows(path)])
    return frame.astype({item.name: float for item in fields(Scores)})  # a column of None alone is no number otherwise


def _name(job: Any) -> str:
    """Name an original (profile, seed), a case, or a method of a case (case, method)."""
    if isinstance(job, Case):
        return f"seed {job.seed}, class {job.forget}"
    first, last = job
    return f"{_name(first)}, {last}" if isinstance(first, Case) else f"seed {last}"


def _train_original(job: tuple[Profile, int]) -> None:
    trained(*job)


def _prepare_case(case: Case) -> None:
    """Compute what all methods of a case share: the retrained model, the references' rows, the statistics."""
    kept_rows(case, "references", lambda: _reference_rows(case))
    statistics_of(case)


def _compute_method(job: tuple[Case, str]) -> None:
    case, name = job
    model, statistics, references = _at_hand(case, repository_root())
    kept_rows(case, name, lambda: _ladder_rows(case, name, model, statistics, references))


@lru_cache(maxsize=1)
def _at_hand(case: Case, _root: Path) -> tuple[nn.Module, ProxyStatistics, References]:
    """Load what the methods of a case share once for all that a process runs in a row."""
    return trained(case.profile, case.seed), statistics_of(case), references_of(case)


def _reference_rows(case: Case) -> list[dict[str, Any]]:
    references, original = references_of(case), trained(case.profile, case.seed)
    masked = Masked(original, forget=references.forget, num_classes=data_of(case.profile).num_classes)
    models_and_logits = {
        "original": (original, references.original),
        "masked": (masked.to(pick_device()), masked_parts(references)),
    }
    if references.retrained is not None:
        models_and_logits["retrained"] = (trained(case.profile, case.seed, case.forget), references.retrained)
    return [
        _row(case, name, logits, references) | {"restored": restored(original, model, references)}
        for name, (model, logits) in models_and_logits.items()
    ]


def _ladder_rows(
    case: Case, name: str, model: nn.Module, statistics: ProxyStatistics, references: References
) -> list[dict[str, Any]]:
    """Run a method and judge what it made at every rate."""
    started = time.perf_counter()
    ladder, guard = run_method(case, name, model=model, statistics=statistics)
    spent = [sum(epoch.seconds for epoch in run.history) for run in ladder.runs]
    beside = max(0.0, time.perf_counter() - started - sum(spent))  # trials that chose the rate
    rows = []
    for index, run in enumerate(ladder.runs):
        chosen = index == ladder.chosen
        row = _row(case, name, references.images.map_logits(run.model), references)
        row |= {
            "lr": run.lr,
            "chosen": chosen,
            "reached": run.reached(case.profile.unlearn.update.forget_accuracy),
            "epochs": len(run.history),
            "seconds": spent[index] + (beside if chosen else 0.0),
            "retain_samples_read": guard.retain_samples_read,
            "restored": restored(model, run.model, references) if chosen else None,
        }
        rows.append(row)
    return rows


def _row(case: Case, name: str, logits: Parts, references: References) -> dict[str, Any]:
    return {"method": name, "forget": case.forget, "seed": case.seed} | asdict(score(logits, references))


def restored(original: nn.Module, changed: nn.Module, references: References) -> float | None:
    """Return the share of forget test images that the original's head recognizes in the features of another model.

    What it still recognizes was never taken out of the features. None where no layer makes the logits.
    """
    images, labels = references.images.forget_test, references.labels.forget_test
    try:
        head = find_head(original, images)
    except NoHeadError:
        return None
    return accuracy(logits_under_head(original, changed, images, head), labels)


@lru_cache(maxsize=1)
def _taken_rates(path: Path) -> dict[tuple[str, int], float]:
    """Return, per method and class, the rate that the forget-only rule took in a recorded sweep, on its first original.

    Raises:
        ValueError: If there is no such file, or it holds no sweep.
    """
    if not path.is_file():
        raise ValueError(f"no recorded sweep {path}: zspag sweep --record writes one")
    rows = results.read(path).measurements.get("rows")
    if not isinstance(rows, dict) or "chosen" not in rows:
        raise ValueError(f"{path} holds no rates: name a file that zspag sweep wrote")
    frame = pd.DataFrame(rows)
    taken = frame[frame["chosen"].eq(True) & frame["seed"].eq(frame["seed"].iloc[0])]
    return {(row.method, row.forget): row.lr for row in taken.itertuples()}


def whole_ladder(profile: Profile, method: str, forget: int) -> UnlearnConfig:
    """Return the profile's configuration with every rate of a method's ladder run, as trade-off curves need.

    With ``rates_of`` the ladder is the one rate that was taken there for this method and class.

    Raises:
        ValueError: If nothing was recorded there of the method and class.
    """
    if profile.rates_of is None:
        ladder = getattr(profile.ladders, METHODS[method].ladder)
        return replace(
            profile.unlearn, update=replace(profile.unlearn.update, lr=None, ladder=ladder, whole_ladder=True)
        )
    taken = _taken_rates(repository_root() / profile.rates_of)
    if (method, forget) not in taken:
        there = ", ".join(sorted({name for name, known in taken if known == forget})) or "no method"
        raise ValueError(f"{profile.rates_of} has no rate of {method} for class {forget}; of it there is {there}")
    rate = taken[method, forget]
    return replace(profile.unlearn, update=replace(profile.unlearn.update, lr=rate, ladder=(rate,)))


def run_method(
    case: Case, name: str, *, model: nn.Module, statistics: ProxyStatistics, whole: bool = True
) -> tuple[RateSearch, Guard]:
    """Run one method over its ladder under the data guard.

    Args:
        case: Class and seed.
        name: Name of the method.
        model: The original.
        statistics: Proxies and moments, for those that use them.
        whole: Run every rate; otherwise the rule stops at the one it takes, as it does for a user.

    Raises:
        RetainDataRead: If a forget-only method read anything but its forget set.
    """
    method, guard, config = METHODS[name], guard_of(case), whole_ladder(case.profile, name, case.forget)
    images, labels = forget_set(case, guard)
    classes = data_of(case.profile).num_classes
    generator = generator_for(case.seed, "method")  # the same stream for all: methods differ, luck does not
    problem = Problem(model, images, labels, classes, generator, statistics)
    with guard.method():
        if method.oracle:
            retain_images, retain_labels = guard.retain_train(case.profile.retain_samples)
            problem = replace(problem, retain=(retain_images.to(images.device), retain_labels.to(images.device)))
        ladder = method.run(problem, replace(config, update=replace(config.update, whole_ladder=whole)))
    if guard.retain_samples_read and not method.oracle:
        raise RetainDataRead(f"{name} read {guard.retain_samples_read} samples beyond its forget set")
    return ladder, guard


def kept_rows(
    case: Case, name: str, compute: Callable[[], Iterable[dict[str, Any]]], *, code: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of one part of a case from its file, computing and writing them first if there is none.

    Args:
        case: What the rows are of.
        name: Name of the part.
        compute: Makes the rows, of what JSON holds.
        code: See ``rows_path``.

    Raises:
        ValueError: If the file's rows are not those that were written.
    """
    made = partial(made_now, case.profile, seed=case.seed)
    return cache.kept_rows(rows_path(case, name, code), compute, made=made)


def rows_path(case: Case, name: str, code: Sequence[str] = ()) -> Path:
    """Return where the rows of one part of a case lie, or would lie.

    Args:
        case: What the rows are of.
        name: Name of the part: a method, "references", or another.
        code: Modules beside those of the grid whose edit, or that of anything they import, voids the file; with any,
            all methods count. Without, only the family of the method itself does.
    """
    method, profile = METHODS.get(name), case.profile
    own = () if method is None else (method.run.__module__,)
    others = {family.__name__ for family in FAMILIES}.difference(own)
    key = training_key(profile, case.seed, None) | {
        "forget": case.forget,
        "forget_samples": profile.forget_samples,
        "config": to_dict(profile.unlearn if method is None else whole_ladder(profile, name, case.forget)),
        "method": name,
        "recorded_models": profile.recorded_models,
        "test_half": profile.test_half,
        "retrained": profile.retrained,
        "code": cache.code_of(profile, __name__, *own, *code, without=() if code else others),
    }
    if method is not None and method.oracle and profile.retain_samples is not None:
        key["retain_samples"] = profile.retain_samples  # nobody else is handed any
    folder = repository_root() / "runs" / profile.name / "grid"
    return folder / f"{name}-class{case.forget}-seed{case.seed}-{provenance.digest(key)[:16]}.json"
