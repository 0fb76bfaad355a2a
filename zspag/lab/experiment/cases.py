"""One forget class of one seed under one profile: its data, its trained models, and what they are judged on.

Invariant: whatever changes a model is in its key, all the code that its training imports included; an edit of other
code does not move it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zspag.config import from_dict, to_dict
from zspag.lab import cache, checkpoints, models
from zspag.lab.data import Dataset, Guard, Split, channel_statistics, halved, load, thinned
from zspag.lab.evaluation import Parts, References
from zspag.lab.training import train
from zspag.profiles import PROFILES, FolderConfig, Profile, TrainConfig, for_pair
from zspag.report import provenance
from zspag.report.files import repository_root
from zspag.runtime import channels_last, pick_device


@dataclass(frozen=True)
class Case:
    """One forget class of one seed, under one profile: the unit that a worker computes."""

    profile: Profile
    seed: int
    forget: int


def cases_of(profile: Profile) -> list[Case]:
    """Return every class of every seed of a profile, seed by seed."""
    return [Case(profile, seed, forget) for seed in profile.seeds for forget in profile.classes]


def data_of(profile: Profile) -> Dataset:
    """Return a profile's data set, loaded once per process."""
    return _data(profile.dataset, profile.share, profile.folder, None)


def judged_on(profile: Profile) -> Dataset:
    """Return the data set that models are judged on: its test set is the profile's half, if the profile names one.

    Trainings and statistics are keyed by ``data_of``: what was made while one half judged serves the other as well.
    """
    return _data(profile.dataset, profile.share, profile.folder, profile.test_half)


@lru_cache(maxsize=4)
def _data(name: str, share: float, folder: FolderConfig, half: str | None) -> Dataset:
    if half is not None:
        return halved(_data(name, share, folder, None), half)
    return thinned(load(name, **asdict(folder)), share)


def case_name(profile: Profile) -> str:
    """Return data set, architecture, forget classes and the chosen options as part of a file name."""
    return name_of(profile, [data_of(profile).classes[forget] for forget in profile.classes])


def name_of(profile: Profile, classes: Sequence[str]) -> str:
    """Return the same without the data: two commands that measure something else have two names.

    More originals of the same kind are not something else, nor are fewer: seeds are named unless they are the first.
    """
    own = PROFILES.get(profile.name, profile)
    # Of the pair: a net that is handed the whole class by its recipe is not cut down.
    usual = for_pair(own, dataset=profile.dataset, arch=profile.arch)
    seeds, rates = "-".join(map(str, profile.seeds)), "-".join(f"{rate:g}" for rate in profile.ladders.high)
    chosen = {
        f"{profile.test_half}-half": profile.test_half is not None,
        f"{profile.forget_samples or 'all'}-forget-images": profile.forget_samples != usual.forget_samples,
        f"{profile.train.epochs}-epochs": profile.train.epochs != usual.train.epochs,
        f"seeds-{seeds}": profile.seeds != tuple(range(len(profile.seeds))),
        f"rates-{rates}": profile.ladders != own.ladders,
        "fixed-rates": profile.rates_of is not None,
        "no-retrained": not profile.retrained,
    }
    places = [Path(profile.dataset).name, Path(profile.arch.split(":")[0]).stem, "-".join(classes)]
    name = "_".join(places + [option for option, holds in chosen.items() if holds])
    return name.replace(" ", "").replace("/", "-")  # Fashion-MNIST has a class "T-shirt/top"


def shown_case(profile: Profile) -> Case:
    """Return the class and seed that stand for a profile where one has to be looked at: 8, or a class but 3.

    Class 3 is the one that was used in trials, so it shows nothing new; which class it is depends on no result.
    """
    order = sorted(profile.classes, key=lambda forget: (forget != 8, forget == 3))
    return Case(profile, profile.seeds[0], order[0])


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
        "code": cache.code_of(profile),
    }


def made_now(profile: Profile, *, seed: int, started: float, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the provenance of what a profile's threads have just computed.

    Args:
        profile: Says data and threads.
        seed: Seed of the computation.
        started: ``time.time()`` when it began.
        config: What determined it; None means the whole profile.
    """
    return provenance.record(
        config=to_dict(profile) if config is None else dict(config),
        seed=seed,
        data_sha256=data_of(profile).sha256,
        device=pick_device().type,
        threads=profile.threads,
        started=started,
    )


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
    title = f"{kind} {profile.dataset} seed {seed}" + ("" if without is None else f" without {without}")
    return trained_on(kept, profile, seed, kind=kind, key=key, title=title)


def trained_on(kept: Split, profile: Profile, seed: int, *, kind: str, key: dict[str, Any], title: str) -> nn.Module:
    """Return the model of a profile and seed that has seen these training samples, from the cache or trained.

    Args:
        kept: The training samples.
        profile: Says architecture and recipe.
        seed: Seed of initial weights, order and augmentation.
        kind: What the model is, in the cache's file names: "original" or "retrained".
        key: Everything that determines the model, which samples it sees among it.
        title: Title of the progress bar.
    """
    path = cache.tensors_path(profile, kind, key)
    found = _recorded_checkpoint(profile, key) if profile.recorded_models and not path.exists() else None
    model, state = _build(profile, kept, seed), path.with_suffix(".state.safetensors")

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        result = train(
            model,
            kept.images,
            kept.labels,
            config=recipe(profile),
            seed=seed,
            device=pick_device(),
            state_path=state,
            title=title,
        )
        facts = {"history": [asdict(epoch) for epoch in result.history], "precision": result.precision}
        return result.model.state_dict(), facts

    if found is None:
        found, _ = cache.kept_tensors(path, make, made=partial(made_now, profile, seed=seed, config=key))
        state.unlink(missing_ok=True)
    model.load_state_dict(found)
    return model.eval().to(pick_device())


def untrained(profile: Profile, seed: int) -> nn.Module:
    """Return the original of a seed as it was before its first step."""
    return _build(profile, data_of(profile).train, seed).eval().to(pick_device())


def _build(profile: Profile, kept: Split, seed: int) -> nn.Module:
    data, (mean, std) = data_of(profile), channel_statistics(kept.images)
    return models.build(
        profile.arch,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        width=profile.width,
        mean=mean,
        std=std,
        seed=seed,
    )


def recorded_folder(profile: Profile) -> Path:
    """Return where a profile's committed checkpoints lie."""
    return repository_root() / "results" / profile.name / "checkpoints"


def _recorded_checkpoint(profile: Profile, key: dict[str, Any]) -> dict[str, Tensor] | None:
    """Find a committed checkpoint of the same recipe; a later edit of the code or another torch does not void it.

    An option of the recipe that is younger than the checkpoint had its default then.
    """
    ignored = {"code", "torch", "device", "threads"}
    for path in sorted(recorded_folder(profile).glob("*.safetensors")):
        tensors, record = checkpoints.load(path)
        made = record["config"] | {"train": to_dict(from_dict(TrainConfig, record["config"]["train"]))}
        if all(made.get(name) == value for name, value in key.items() if name not in ignored):
            return tensors
    return None


def guard_of(case: Case) -> Guard:
    """Return a fresh data guard for the case; of the test set it knows the profile's half."""
    return Guard(judged_on(case.profile), (case.forget,))


def forget_set(case: Case, guard: Guard) -> tuple[Tensor, Tensor]:
    """Return the forget samples a method is handed, on the profile's device."""
    images, labels = guard.forget_train(case.profile.forget_samples)
    return channels_last(images.to(pick_device())), labels.to(pick_device())


def references_of(case: Case) -> References:
    """Return what a case's models are judged on: images, labels, the logits of the original and of the retrained model.

    The logits of the retrained model are None under a profile that leaves it out.
    """
    retrained = trained(case.profile, case.seed, case.forget) if case.profile.retrained else None
    return references_against(case, original=trained(case.profile, case.seed), retrained=retrained)


def references_against(case: Case, *, original: nn.Module, retrained: nn.Module | None) -> References:
    """Return what a case's models are judged on, with reference models of the caller's."""
    guard, device = guard_of(case), pick_device()
    parts = [guard.forget_train(case.profile.forget_samples), guard.forget_test(), guard.retain_test()]
    images = Parts(*(channels_last(part[0].to(device)) for part in parts))
    labels = Parts(*(part[1].to(device) for part in parts))
    beside = None if retrained is None else images.map_logits(retrained)
    return References(images, labels, images.map_logits(original), beside, (case.forget,))
