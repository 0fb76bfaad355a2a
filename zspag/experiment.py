"""From a profile to files: trained models, material, every method on every class and seed.

A finished run is a file named by everything that determines it, so an interrupted grid goes on where it stopped and a
second call computes nothing.

Invariant: this is the laboratory. It may read retain data; a method it runs may not, and the data guard counts.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from zspag import checkpoints, files, models, provenance
from zspag.activations import watching
from zspag.baselines import (
    METHODS,
    Method,
    forget_subspace,
    noise_subspace,
    random_subspace,
    retain_subspace,
)
from zspag.config import FolderConfig, Ladders, Profile, TrainConfig, UnlearnConfig, from_dict, to_dict
from zspag.data import Dataset, Guard, Split, channel_statistics, halved, load, spread_evenly, thinned
from zspag.evaluation import (
    Masked,
    Panel,
    Parts,
    Scores,
    accuracy,
    agreement,
    captured,
    masked_parts,
    mean_js,
    score,
    selectivity,
)
from zspag.files import repository_root
from zspag.profiles import PROFILES
from zspag.proxies import ProxySet
from zspag.relearning import MOST_STEPS, RATE, SHARE, relearning_curve, steps_until
from zspag.runtime import channels_last, chunks, device_of, generator_for, pick_device, pool_map
from zspag.subspaces import ClassMoments, Moments, combine, pooled, second_moments
from zspag.training import train
from zspag.unlearning import Ladder, Material, prepare

_TRAINING_CODE = ("zspag.models.building", "zspag.models.layers", "zspag.training")
_MATERIAL_CODE = ("zspag.proxies", "zspag.activations", "zspag.subspaces")
_METHOD_CODE = tuple(
    f"zspag.{name}"
    for name in ("influence", "pseudo_labels", "unlearning", "evaluation", "relearning", "baselines.method")
)
REFERENCES = ("original", "masked", "retrained")
JUDGED = 200  # forget test images, evenly spaced, that relearning is judged on after every step
TITLES = {"original": "original", "masked": "masked original", "retrained": "retrained"} | {
    name: method.title for name, method in METHODS.items()
}
READS = {name: method.reads for name, method in METHODS.items()}


@dataclass(frozen=True)
class Case:
    """One forget class of one seed, under one profile: the unit that a worker computes."""

    profile: Profile
    seed: int
    forget: int


class Spread(Protocol):
    """Carries jobs to processes, as ``runtime.pool_map`` does."""

    def __call__(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, workers: int, threads_each: int, title: str
    ) -> Iterable[tuple[Any, Any]]:
        """Yield each job with its answer, or with the exception it raised."""


class RunsFailed(RuntimeError):  # noqa: N818  reads as a fact
    """Some runs of a grid failed; the others are finished and kept."""


class RetainDataRead(RuntimeError):  # noqa: N818  reads as a fact
    """A forget-only method read samples it may not see."""


def data_of(profile: Profile) -> Dataset:
    """Return a profile's data set, loaded once per process."""
    return _data(profile.dataset, profile.share, profile.folder)


@lru_cache(maxsize=2)
def _data(name: str, share: float, folder: FolderConfig) -> Dataset:
    return thinned(load(name, **asdict(folder)), share)


def judged_on(profile: Profile) -> Dataset:
    """Return the data set that models are judged on: its test set is the profile's half, if the profile names one.

    Trainings and material are keyed by ``data_of``: what was made while one half judged serves the other as well.
    """
    half = profile.test_half
    return data_of(profile) if half is None else _half_of(profile.dataset, profile.share, profile.folder, half)


@lru_cache(maxsize=2)
def _half_of(name: str, share: float, folder: FolderConfig, half: str) -> Dataset:
    return halved(_data(name, share, folder), half)


def case_name(profile: Profile) -> str:
    """Return data set, architecture, forget classes and what was cut down, if anything, as part of a file name."""
    names = "-".join(data_of(profile).classes[forget] for forget in profile.classes)
    name = f"{Path(profile.dataset).name}_{Path(profile.arch.split(':')[0]).stem}_{names}"
    name += "" if profile.test_half is None else f"_{profile.test_half}-half"
    usual = PROFILES[profile.name].forget_samples if profile.name in PROFILES else profile.forget_samples
    name += "" if profile.forget_samples == usual else f"_{profile.forget_samples}-forget-images"
    return name.replace(" ", "").replace("/", "-")  # Fashion-MNIST has a class "T-shirt/top"


def store(profile: Profile) -> checkpoints.Store:
    """Return the checkpoint store of a profile."""
    return checkpoints.Store(repository_root() / "runs" / profile.name / "checkpoints")


def _code_of(profile: Profile, *further: str) -> str:
    """Hash the code that trains the profile's net, and further modules; other architectures do not count."""
    factory = models.ARCHITECTURES.get(profile.arch)  # a file of the user's is in the key itself
    return _code_hash((*_TRAINING_CODE, *(() if factory is None else (factory.__module__,)), *further))


@lru_cache(maxsize=8)
def _code_hash(code: tuple[str, ...]) -> str:
    """Hash once per process: the code that runs is the code that was there when it started, and parsing takes time."""
    return provenance.code_hash(code)


def recipe(profile: Profile) -> TrainConfig:
    """Return the training recipe with the augmentation that the data set bears, where the profile leaves it to it."""
    hint = data_of(profile).augment_hint if profile.train.augment == "hint" else profile.train.augment
    return replace(profile.train, augment=hint)


def training_key(profile: Profile, seed: int, without: int | None) -> dict[str, Any]:
    """Return everything that determines a trained model; ``without`` is the class that was left out."""
    architecture = profile.arch
    if ".py:" in architecture:  # the file's content counts, not where it lies
        file, _, factory = architecture.rpartition(":")
        architecture = f"{provenance.digest(Path(file).read_text(encoding='utf-8'))}:{factory}"
    return {
        "data": data_of(profile).sha256,
        "arch": architecture,
        "width": profile.width,
        "train": to_dict(recipe(profile)),
        "seed": seed,
        "without": without,
        "torch": torch.__version__,
        "device": pick_device().type,
        "threads": profile.threads,
        "code": _code_of(profile),
    }


def trained(profile: Profile, seed: int, without: int | None = None) -> nn.Module:
    """Return the original of a seed, or the model retrained without a class; train it if it is nowhere stored.

    Args:
        profile: Says data, architecture and recipe, and whether committed checkpoints of the same recipe will do.
        seed: Seed of initial weights, order and augmentation.
        without: Class left out of the training set; None trains the original.
    """
    data, key = data_of(profile), training_key(profile, seed, without)
    kind = "original" if without is None else "retrained"
    kept = data.train if without is None else data.train.select(data.train.labels != without)
    found = store(profile).get(kind, key) or (_recorded_checkpoint(profile, key) if profile.recorded_models else None)
    model = _build(profile, data, kept, seed)
    if found is not None:
        model.load_state_dict(found[0])
        return model.eval().to(pick_device())
    started, path = time.time(), store(profile).path(kind, key)
    state = path.with_suffix(".state.safetensors")
    result = train(
        model, kept.images, kept.labels, config=recipe(profile), seed=seed, device=pick_device(), state_path=state,
        title=f"{kind} {profile.dataset} seed {seed}" + ("" if without is None else f" without {without}"),
    )  # fmt: skip
    record = provenance.record(
        config=key, seed=seed, data_sha256=data.sha256, device=pick_device().type, threads=profile.threads,
        started=started,
    )  # fmt: skip
    store(profile).put(
        kind,
        key,
        result.model.state_dict(),
        record | {"history": [asdict(epoch) for epoch in result.history], "precision": result.precision},
    )
    state.unlink(missing_ok=True)
    return result.model


def _build(profile: Profile, data: Dataset, kept: Split, seed: int) -> nn.Module:
    mean, std = channel_statistics(kept.images)
    return models.build(
        profile.arch, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size,
        width=profile.width, mean=mean, std=std, seed=seed,
    )  # fmt: skip


def recorded_folder(profile: Profile) -> Path:
    """Return where a profile's committed checkpoints lie."""
    return repository_root() / "results" / profile.name / "checkpoints"


def _recorded_checkpoint(profile: Profile, key: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Find a committed checkpoint of the same recipe; a later edit of the code or another torch does not void it.

    An option of the recipe that is younger than the checkpoint had its default then.
    """
    ignored = {"code", "torch", "device", "threads"}
    for path in sorted(recorded_folder(profile).glob("*.safetensors")):
        tensors, record = checkpoints.load(path)
        made = record["config"] | {"train": to_dict(from_dict(TrainConfig, record["config"]["train"]))}
        if all(made.get(name) == value for name, value in key.items() if name not in ignored):
            return tensors, record
    return None


def guard_of(case: Case) -> Guard:
    """Return a fresh data guard for the case; of the test set it knows the profile's half."""
    return Guard(judged_on(case.profile), (case.forget,))


def forget_set(case: Case, guard: Guard) -> tuple[Tensor, Tensor]:
    """Return the forget samples a method is handed, on the profile's device."""
    images, labels = guard.forget_train(case.profile.forget_samples)
    return channels_last(images.to(pick_device())), labels.to(pick_device())


def material_of(case: Case) -> Material:
    """Return proxies and their input moments for a case, from the store or computed (and stored)."""
    config = case.profile.unlearn
    key = training_key(case.profile, case.seed, None) | {
        "forget": case.forget,
        "forget_samples": case.profile.forget_samples,
        "proxies": to_dict(config.proxies),
        "merge_at": config.subspace.merge_at,
        "code": _code_of(case.profile, *_MATERIAL_CODE),
    }
    if (found := store(case.profile).get("material", key)) is not None:
        return _unpack(*found)
    started, guard = time.time(), guard_of(case)
    images, _ = forget_set(case, guard)
    material = prepare(
        trained(case.profile, case.seed), images, forget=(case.forget,),
        num_classes=data_of(case.profile).num_classes, config=config,
        generator=generator_for(case.seed, "material"),
    )  # fmt: skip
    tensors, facts = _pack(material)
    record = provenance.record(
        config=key, seed=case.seed, data_sha256=key["data"], device=pick_device().type,
        threads=case.profile.threads, started=started,
    )  # fmt: skip
    store(case.profile).put("material", key, tensors, record | {"material": facts})
    return material


def material_with_classes(case: Case) -> Material:
    """Return the material with the moments of every single class, made again where they were too large to keep."""
    material = material_of(case)
    if material.moments.per_class is not None:
        return material
    model = trained(case.profile, case.seed)
    retained = sorted(material.proxies.hits)
    per_class = tuple(second_moments(model, material.proxies.of_class(label)) for label in retained)
    return replace(material, moments=replace(material.moments, per_class=per_class))


def _pack(material: Material) -> tuple[dict[str, Tensor], dict[str, Any]]:
    proxies, moments = material.proxies, material.moments
    tensors = {"images": proxies.images, "labels": proxies.labels, "sources": proxies.sources}
    means = [("pooled", moments.pooled), ("averaged", moments.averaged)]
    voted = [] if moments.votes is None else [("votes", moments.votes[1])]
    for place, part in [*means, *voted, *enumerate(moments.per_class or ())]:
        tensors |= {f"moment/{place}/{name}": second for name, second in part.second.items()}
    facts = {
        "hits": list(proxies.hits.items()),
        "eps": proxies.eps,
        "weights": list(material.names),
        "per_class": moments.per_class is not None,
        "merge_at": None if moments.votes is None else moments.votes[0],
        "rows_per_sample": moments.pooled.rows_per_sample,
        "unprojectable": material.frozen,
        "seconds": material.seconds,
    }
    return {name: tensor.cpu() for name, tensor in tensors.items()}, facts


def _unpack(tensors: dict[str, Tensor], record: dict[str, Any]) -> Material:
    facts, device = record["material"], pick_device()
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    proxies = ProxySet(
        tensors["images"], tensors["labels"], tensors["sources"], {int(k): v for k, v in facts["hits"]}, facts["eps"]
    )

    def part(place: object) -> Moments:
        second = {name: tensors[f"moment/{place}/{name}"] for name in facts["weights"]}
        return Moments(second, facts["rows_per_sample"], facts["unprojectable"])

    classes = len(proxies.hits)
    per_class = tuple(map(part, range(classes))) if facts["per_class"] else None
    votes = None if facts["merge_at"] is None else (facts["merge_at"], part("votes"))
    means = ClassMoments(part("pooled"), part("averaged"), classes, per_class, votes)
    return Material(proxies, means, facts["seconds"])


def panel_of(case: Case) -> Panel:
    """Return what a case's models are judged on: images, labels, the logits of the original and of the retrained model.

    The logits of the retrained model are None under a profile that leaves it out.
    """
    retrained = trained(case.profile, case.seed, case.forget) if case.profile.retrained else None
    return panel_against(case, original=trained(case.profile, case.seed), retrained=retrained)


def panel_against(case: Case, *, original: nn.Module, retrained: nn.Module | None) -> Panel:
    """Return the panel of a case with reference models of the caller's."""
    guard, device = guard_of(case), pick_device()
    parts = [guard.forget_train(case.profile.forget_samples), guard.forget_test(), guard.retain_test()]
    images = Parts(*(part[0].to(device) for part in parts))
    labels = Parts(*(part[1].to(device) for part in parts))
    beside = None if retrained is None else images.map_logits(retrained)
    return Panel(images, labels, images.map_logits(original), beside, (case.forget,))


def whole_ladder(profile: Profile, method: str) -> UnlearnConfig:
    """Return the profile's configuration with every rate of a method's ladder run, as trade-off curves need."""
    rates = getattr(profile.ladders, METHODS[method].ladder)
    update = replace(profile.unlearn.update, lr=None, ladder=rates, whole_ladder=True)
    return replace(profile.unlearn, update=update)


def run_method(case: Case, name: str, *, model: nn.Module, material: Material) -> tuple[Ladder, Guard]:
    """Run one method over the ladder under the data guard.

    Raises:
        RetainDataRead: If a forget-only method read anything but its forget set.
    """
    method, guard = METHODS[name], guard_of(case)
    images, labels = forget_set(case, guard)
    shared: dict[str, Any] = {
        "num_classes": data_of(case.profile).num_classes,
        "config": whole_ladder(case.profile, name),
        "generator": generator_for(case.seed, "method"),  # the same stream for all: methods differ, luck does not
        "material": material,
    }
    with guard.method():
        ladder = _call(method, guard, model, images, labels, case.profile.retain_samples, shared)
    if method.oracle is None and guard.retain_samples_read:
        raise RetainDataRead(f"{name} read {guard.retain_samples_read} samples beyond its forget set")
    return ladder, guard


def _call(
    method: Method,
    guard: Guard,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    most: int | None,
    shared: dict[str, Any],
) -> Ladder:
    if method.run is not None:
        return method.run(model, images, labels, **shared)
    assert method.oracle is not None
    retain_images, retain_labels = guard.retain_train(most)
    return method.oracle(
        model, images, labels, retain_images=retain_images.to(images.device),
        retain_labels=retain_labels.to(images.device), **shared,
    )  # fmt: skip


def compute_grid(profile: Profile, methods: Sequence[str], *, spread: Spread = pool_map) -> pd.DataFrame:
    """Run methods on every class and seed of a profile, and return one row per run.

    Every method of a class and seed is a job and a file of its own, so what is lost with a worker is one job.

    Args:
        profile: Says classes, seeds, rates and workers.
        methods: Names of ``baselines.METHODS``.
        spread: What carries jobs to processes: ``runtime.pool_map``, or a cluster's.

    Returns:
        Rows of all references and methods: method, forget, seed, lr, chosen, epochs, seconds, retain_samples_read,
        relearn_steps (references and chosen rates only) and the fields of ``Scores``. References have no rate;
        without retrained models what needs them is NaN.

    Raises:
        ValueError: If a method is unknown.
        RunsFailed: If runs failed; the others are finished and kept. The message names each.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}; known are {', '.join(METHODS)}")
    data_of(profile)  # a missing data set is said once, not by every worker
    finish = partial(_finish, profile, spread)
    failures = finish(_train_original, [(profile, seed) for seed in profile.seeds], "originals")
    lost = {seed for (_, seed), _ in failures}
    cases = [Case(profile, seed, forget) for seed in profile.seeds for forget in profile.classes]
    missing = [(case, name) for case in cases for name in methods if not _run_path(case, name).exists()]
    started = {case for case, _ in missing}
    bare = [case for case in cases if case in started or not _run_path(case, "references").exists()]
    failures += finish(_prepare_case, [(case,) for case in bare if case.seed not in lost], "classes and seeds")
    broken = {job[0] for job, _ in failures}
    ready = [job for job in missing if job[0].seed not in lost and job[0] not in broken]
    failures += finish(_compute_method, ready, "methods")
    if failures:
        lines = "\n".join(f"  {_name(job)}: {type(error).__name__}: {error}" for job, error in failures)
        raise RunsFailed(
            f"{len(failures)} job{'s' * (len(failures) > 1)} of the grid failed; the others are kept:\n{lines}"
        )
    rows = [
        row
        for case in cases
        for name in ("references", *methods)
        for row in files.read_json(_run_path(case, name))["rows"]
    ]
    frame = pd.DataFrame(rows)
    return frame.astype({item.name: float for item in fields(Scores)})  # a column of None alone is no number otherwise


def _finish(
    profile: Profile, spread: Spread, function: Callable[[Any], None], jobs: Sequence[Any], title: str
) -> list[tuple[Any, Exception]]:
    """Do the jobs and return those that failed, each with its exception."""
    answers = spread(function, jobs, workers=profile.workers, threads_each=profile.threads, title=title)
    return [(job, answer) for job, answer in answers if isinstance(answer, Exception)]


def _name(job: Any) -> str:
    first, *further = job
    if not isinstance(first, Case):
        return f"seed {job[1]}"
    return ", ".join([f"seed {first.seed}, class {first.forget}", *further])


def _train_original(job: tuple[Profile, int]) -> None:
    trained(*job)


def _run_path(case: Case, name: str, code: Sequence[str] = ()) -> Path:
    key = training_key(case.profile, case.seed, None) | {
        "forget": case.forget,
        "forget_samples": case.profile.forget_samples,
        "config": to_dict(whole_ladder(case.profile, name) if name in METHODS else case.profile.unlearn),
        "method": name,
        "recorded_models": case.profile.recorded_models,
        "test_half": case.profile.test_half,
        "retrained": case.profile.retrained,
        "code": _code_of(case.profile, *_MATERIAL_CODE, *_METHOD_CODE, *_family(name), *code),
    }
    if case.profile.retain_samples is not None and name in METHODS and METHODS[name].oracle is not None:
        key["retain_samples"] = case.profile.retain_samples  # nobody else is handed any
    folder = repository_root() / "runs" / case.profile.name / "grid"
    return folder / f"{name}-class{case.forget}-seed{case.seed}-{provenance.digest(key)[:16]}.json"


def _family(name: str) -> tuple[str, ...]:
    """Return the module a method stands in: an edit of another family leaves its runs as they are."""
    method = METHODS.get(name)
    return () if method is None else ((method.run or method.oracle).__module__,)


def _prepare_case(job: tuple[Case]) -> None:
    """Compute what all methods of a case share: the retrained model, the references' rows, the material."""
    (case,) = job
    kept_rows(case, "references", lambda: _reference_rows(case))
    material_of(case)


def _reference_rows(case: Case) -> list[dict[str, Any]]:
    panel, original = panel_of(case), trained(case.profile, case.seed)
    masked = Masked(original, forget=panel.forget, num_classes=data_of(case.profile).num_classes)
    models_and_logits = {
        "original": (original, panel.original),
        "masked": (masked.to(pick_device()), masked_parts(panel)),
    }
    if panel.retrained is not None:
        models_and_logits["retrained"] = (trained(case.profile, case.seed, case.forget), panel.retrained)
    return [
        _row(case, name, logits, panel) | {"relearn_steps": relearn_steps(case, model, panel)}
        for name, (model, logits) in models_and_logits.items()
    ]


def relearn_steps(case: Case, model: nn.Module, panel: Panel) -> int:
    """Return the steps of training on forget images until half as many test images of the class are recognized again.

    Half of what the original recognized; ``relearning.MOST_STEPS`` where that was not reached.
    """
    level = SHARE * accuracy(panel.original.forget_test, panel.labels.forget_test)
    judged = spread_evenly(torch.arange(len(panel.labels.forget_test)), JUDGED)
    curve = relearning_curve(
        model, panel.images.forget_train, panel.labels.forget_train, judged_images=panel.images.forget_test[judged],
        judged_labels=panel.labels.forget_test[judged], level=level, lr=RATE, most_steps=MOST_STEPS,
        generator=generator_for(case.seed, "relearning"),
    )  # fmt: skip
    return steps_until(curve, level, most_steps=MOST_STEPS)


@lru_cache(maxsize=1)
def _at_hand(case: Case, _root: Path) -> tuple[nn.Module, Material, Panel]:
    """Load what the methods of a case share once for all that a process runs in a row."""
    return trained(case.profile, case.seed), material_of(case), panel_of(case)


def _compute_method(job: tuple[Case, str]) -> None:
    """Compute one method of a case over its ladder."""
    case, name = job
    model, material, panel = _at_hand(case, repository_root())
    kept_rows(case, name, lambda: _ladder_rows(case, name, model, material, panel))


def _ladder_rows(case: Case, name: str, model: nn.Module, material: Material, panel: Panel) -> list[dict[str, Any]]:
    """Run a method and judge what it made at every rate."""
    ladder, guard = run_method(case, name, model=model, material=material)
    return [
        _row(case, name, panel.images.map_logits(run.model), panel)
        | {
            "lr": run.lr,
            "chosen": index == ladder.chosen,
            "reached": run.reached(case.profile.unlearn.update.forget_accuracy),
            "epochs": len(run.history),
            "seconds": sum(epoch.seconds for epoch in run.history),
            "retain_samples_read": guard.retain_samples_read,
            "relearn_steps": relearn_steps(case, run.model, panel) if index == ladder.chosen else None,
        }
        for index, run in enumerate(ladder.runs)
    ]


def _row(case: Case, name: str, logits: Parts, panel: Panel) -> dict[str, Any]:
    return {"method": name, "forget": case.forget, "seed": case.seed} | asdict(score(logits, panel))


def kept_rows(
    case: Case, name: str, compute: Callable[[], Iterable[dict[str, Any]]], *, code: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of one part of a case from its file, computing and writing them first if there is none.

    Args:
        case: What the rows are of.
        name: Name of the part.
        compute: Makes the rows, of what JSON holds.
        code: Modules beside those of every method, an edit of which voids the file.
    """
    path = _run_path(case, name, code)
    if not path.exists():
        started, rows = time.time(), list(compute())
        record = provenance.record(
            config=to_dict(case.profile), seed=case.seed, data_sha256=data_of(case.profile).sha256,
            device=pick_device().type, threads=case.profile.threads, started=started,
        )  # fmt: skip
        files.write_json(path, {"schema": 1, "rows": rows, "provenance": record})
    rows_read: list[dict[str, Any]] = files.read_json(path)["rows"]
    return rows_read


def subspace_table(case: Case) -> pd.DataFrame:
    """Compare subspaces of equal rank per layer on true retain data (a laboratory measurement, not part of the method).

    Returns:
        One row per subspace ("proxies", "forget", "noise", "random", "oracle") and weight: capture, its ratio to the
        oracle's, selectivity, rank and free dimension.
    """
    return pd.DataFrame(kept_rows(case, "subspaces", lambda: _subspace_rows(case)))


def _subspace_rows(case: Case) -> list[dict[str, Any]]:
    guard, model, material = guard_of(case), trained(case.profile, case.seed), material_of(case)
    images, _ = forget_set(case, guard)
    retain_images, retain_labels = guard.retain_train()
    own = combine(material.moments, config=case.profile.unlearn.subspace)
    draws = [generator_for(case.seed, "subspace", index) for index in range(3)]
    subspaces = {
        "proxies": own,
        "forget": forget_subspace(model, images, material, own, draws[0]),
        "noise": noise_subspace(model, images, material, own, draws[1]),
        "random": random_subspace(model, images, material, own, draws[2]),
        "oracle": retain_subspace(model, retain_images, retain_labels, own=own),
    }
    forget = second_moments(model, images)
    retain = pooled([second_moments(model, retain_images[retain_labels == c]) for c in retain_labels.unique()])
    best = captured(subspaces["oracle"], retain)
    rows = []
    for name, subspace in subspaces.items():
        inside, free = captured(subspace, retain), subspace.free_dimension()
        choosy = selectivity(subspace, forget=forget, retain=retain)
        rows += [
            {"subspace": name, "forget": case.forget, "seed": case.seed, "weight": weight, "capture": inside[weight],
             "of_oracle": inside[weight] / best[weight], "selectivity": choosy[weight],
             "rank": sum(subspace.ranks[weight]), "free": free[weight]}
            for weight in own.bases
        ]  # fmt: skip
    return rows


def stage_seconds(profile: Profile, frame: pd.DataFrame) -> dict[str, float]:
    """Return mean wall-clock seconds per stage of ZS-PAG and of retraining, over the profile's classes and seeds.

    Args:
        profile: The profile whose grid was computed.
        frame: Rows of ``compute_grid``, "zs_pag" among them.

    Returns:
        Seconds of "proxies", "subspaces", "update" (every rate the rule tried, labels included) and "retraining".
    """
    cases = [Case(profile, seed, forget) for seed in profile.seeds for forget in profile.classes]
    stages = [material_of(case).seconds for case in cases]
    own = frame[frame["method"] == "zs_pag"]
    chosen = own[own["chosen"].eq(True)].set_index(["forget", "seed"])["lr"]
    tried = own[own["lr"] <= own.set_index(["forget", "seed"]).index.map(chosen)]
    trainings = [store(profile).get("retrained", training_key(profile, case.seed, case.forget)) for case in cases]
    return {
        "proxies": sum(part["proxies"] for part in stages) / len(stages),
        "subspaces": sum(part["subspaces"] for part in stages) / len(stages),
        "update": float(tried["seconds"].sum()) / len(cases),
        "retraining": sum(found[1]["seconds"] for found in trainings if found) / len(cases),
    }


def retraining_noise(profile: Profile) -> pd.DataFrame:
    """Compare retrained models of neighbouring seeds: the floor below which a distance to retraining means nothing.

    Returns:
        One row per class and pair of seeds: agreement and Jensen-Shannon divergence (nats) on forget and retained test
        images. No rows with fewer than two seeds.

    Raises:
        ValueError: If the profile leaves the retrained models out.
    """
    rows = []
    for forget in profile.classes:
        panels = [panel_of(Case(profile, seed, forget)) for seed in profile.seeds]
        for first, second in itertools.pairwise(panels):
            ours, theirs = first.retrained, second.retrained
            if ours is None or theirs is None:
                raise ValueError("the profile leaves retrained models out (retrained=False): they have no spread")
            rows.append(
                {
                    "forget": forget,
                    "agreement_forget": agreement(ours.forget_test, theirs.forget_test),
                    "agreement_retain": agreement(ours.retain_test, theirs.retain_test),
                    "js_forget": mean_js(ours.forget_test, theirs.forget_test),
                    "js_retain": mean_js(ours.retain_test, theirs.retain_test),
                }
            )
    return pd.DataFrame(rows)


def shown_case(profile: Profile) -> Case:
    """Return the class and seed that stand for a profile where one has to be looked at: 8, or a class but 3.

    Class 3 is the one that was used in trials, so it shows nothing new; which class it is depends on no result.
    """
    order = sorted(profile.classes, key=lambda forget: (forget != 8, forget == 3))
    return Case(profile, profile.seeds[0], order[0])


def watched_run(case: Case, name: str, *, lr: float) -> tuple[nn.Module, pd.DataFrame]:
    """Run a method of the grid again at one rate, and judge it after every epoch.

    Looking changes nothing: the model is the grid's, bit for bit.

    Args:
        case: Class and seed.
        name: A method that updates by ``unlearning.descend``.
        lr: The rate.

    Returns:
        The unlearned model, and one row per epoch from 0 (the original): epoch and the fields of ``Scores``.

    Raises:
        ValueError: If the method does not go through the loop, so that its epochs could not be seen.
    """
    panel, original = panel_of(case), trained(case.profile, case.seed)
    rows: list[dict[str, float]] = []

    def look(current: nn.Module) -> None:
        rows.append({"epoch": len(rows)} | asdict(score(panel.images.map_logits(current), panel)))

    look(original)
    alone = replace(case, profile=replace(case.profile, ladders=Ladders(low=(lr,), middle=(lr,), high=(lr,))))
    ladder, _ = run_method(alone, name, model=_looked_at(original, look), material=material_of(case))
    if len(rows) != len(ladder.kept.history) + 1:
        raise ValueError(f"{name} has {len(ladder.kept.history)} epochs of which {len(rows) - 1} were seen")
    original.load_state_dict(ladder.kept.model.state_dict())  # without the hook
    return original, pd.DataFrame(rows)


def _looked_at(model: nn.Module, look: Callable[[nn.Module], None]) -> nn.Module:
    """Return a copy of a model whose own copies call ``look`` at the end of every epoch of ``unlearning.descend``.

    The loop fits with gradients and then judges the forget samples without: the first forward pass without gradients
    after one with them is the end of an epoch.
    """
    watched, fitting = copy.deepcopy(model), False

    def before_forward(current: nn.Module, _inputs: Any) -> None:
        nonlocal fitting
        if torch.is_grad_enabled():
            fitting = True
        elif fitting:
            fitting = False  # first, for looking passes forward too
            look(current)

    watched.register_forward_pre_hook(before_forward)
    return watched


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """Return what enters the last weight of a model, float64 on the CPU, one row per image (one per token, if many)."""
    return torch.cat([_last_rows(model, chunk) for (chunk,) in chunks(images.to(device_of(model)))])


def _last_rows(model: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), watching(model, lambda _name, rows, _outputs: seen.append(rows[0])):
        model(images)
    return seen[-1].double().cpu()
