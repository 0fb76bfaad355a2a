"""One data set, one architecture, one class after another: train, forget, evaluate, write files.

``run`` is the engineer's experiment (``zspag run``): the defaults of ``zero_shot_unlearn`` on a trained net, timed by
stage.

Invariant: the method is handed forget samples only, the guard counts everything else, and the count is in the file.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from zspag.lab import cache, experiment
from zspag.lab.data.listing import is_number
from zspag.lab.data.loading import NAMED
from zspag.lab.evaluation import masked_parts, per_class_accuracy, score
from zspag.lab.experiment import Case
from zspag.preflight.refusal import Refusal
from zspag.profiles import Profile
from zspag.report import files, plots
from zspag.report.results import Result
from zspag.runtime import pool_map, threads
from zspag.unlearning import zero_shot_unlearn

RECORDED_BYTES = 1_000_000  # the largest checkpoint that is committed; a larger net is trained again

TRIAL = ("layers", "lr", "forget_accuracy", "drift", "forgot")  # of a trial in a file: all but its time


def class_numbers(profile: Profile, names: Sequence[str]) -> tuple[int, ...]:
    """Return class numbers for names or numbers given as text.

    Raises:
        ValueError: If a name is no class of the data set, or a class is named twice; the message lists the classes.
    """
    classes = experiment.data_of(profile).classes
    numbers = []
    for name in names:
        if name in classes:
            numbers.append(classes.index(name))
        elif name.isdecimal() and int(name) < len(classes):
            numbers.append(int(name))
        else:
            raise ValueError(f"{profile.dataset} has no class {name!r}; its classes are {', '.join(classes)}")
        if numbers[-1] in numbers[:-1]:
            raise ValueError(f"class {name!r} is named twice (class {numbers[-1]}): each class is forgotten once")
    return tuple(numbers)


def folder_lines(profile: Profile) -> Iterator[str]:
    """Say which folder became which class, where the data set is an image folder, and what was left out of it.

    Yields:
        Lines for the reader; none for a data set of a name, whose classes are known.
    """
    if profile.dataset in NAMED:
        return
    data = experiment.data_of(profile)
    if all(map(is_number, data.classes)):
        yield f"a folder's name is the number of its class, 0 to {data.num_classes - 1}"
    else:
        yield "folders by class number: " + ", ".join(f"{number} {name}" for number, name in enumerate(data.classes))
    yield f"{data.name}: {data.data_source}"


def run(profile: Profile, *, record: bool) -> Iterator[str]:
    """Train what is missing, forget every class of the profile with every seed, and write results.

    Args:
        profile: Data, architecture, classes, seeds and configuration.
        record: Write results and checkpoints to ``results/<profile>`` too.

    Yields:
        Lines for the reader.

    Raises:
        ValueError: If the profile leaves out the retrained models, which a run shows beside the unlearned ones.
        RunsFailed: If the method refused a class, after all others are finished and kept.
    """
    if not profile.retrained:
        raise ValueError("a run shows retrained models beside the unlearned ones: leave retrained=False to sweeps")
    started = time.time()
    cases = experiment.cases_of(profile)
    for case in cases:
        experiment.guard_of(case)  # a missing data set or class is said now, and not by a worker after an hour
    nets = list(dict.fromkeys((profile, case.seed, without) for case in cases for without in (None, case.forget)))
    # One thread each: single-threaded trainings side by side use the cores best.
    trainings = pool_map(_train, nets, workers=profile.workers, threads_each=profile.threads, title="trainings")
    for _, answer in trainings:
        if isinstance(answer, Exception):
            raise answer
    rows, refused = [], []
    for case in cases:
        try:
            row = forget_class(case)
        except ValueError as error:  # the method's own words; the other classes are not lost with this one
            refused.append(f"seed {case.seed}, class {case.forget}")
            yield f"{refused[-1]}: {_sentence(error)}"
            continue
        rows.append(row)
        yield _line(row)
    if refused:
        raise experiment.RunsFailed(
            f"{len(refused)} of {len(cases)} not done, the others are kept: {'; '.join(refused)}"
        )
    name = f"run_{experiment.case_name(profile)}"
    yield from publish(_result(profile, name, rows, started), record=record)
    if record:
        for net in nets:
            yield _record_checkpoint(*net)


def _sentence(error: ValueError) -> str:
    """Return the refusal's words, with the remedy that a run has: it knows of no earlier requests."""
    if isinstance(error, Refusal) and error.about == "unreachable":
        return f"{error.fact}: train the net for longer (--epochs)"
    return str(error)


def _train(net: tuple[Profile, int, int | None]) -> None:
    experiment.trained(*net)


def publish(result: Result, *, record: bool) -> Iterator[str]:
    """Write a result file to ``runs/`` (and to ``results/`` if it is to be kept) and draw its figure.

    Yields:
        Lines for the reader.
    """
    root, name, profile = files.repository_root(), result.name, result.profile
    folders = [root / "runs" / profile / "results"] + ([root / "results" / profile] if record else [])
    for folder in folders:
        files.write_json(folder / f"{name}.json", result.to_dict())
        yield f"wrote {files.shown(folder / name)}.json"
    figure = root / "figures" / profile / f"{name}.png"
    plots.save(result.to_dict(), figure)
    yield f"wrote {files.shown(figure)}"


def forget_class(case: Case) -> dict[str, Any]:
    """Forget one class with all cores and the profile's configuration; return the scores, stages and counts.

    A class that was forgotten before comes from its file, so an interrupted run goes on where it stopped.
    """
    all_cores = case.profile.workers * case.profile.threads  # other counts give other bits
    (row,) = experiment.kept_rows(case, f"run-{all_cores}threads", lambda: [_forget_class(case, all_cores)])
    return row


def _forget_class(case: Case, all_cores: int) -> dict[str, Any]:
    profile, guard = case.profile, experiment.guard_of(case)
    data, references = experiment.data_of(profile), experiment.references_of(case)
    model = experiment.trained(profile, case.seed)
    images, labels = experiment.forget_set(case, guard)
    with threads(all_cores), guard.method():
        started = time.perf_counter()
        unlearned = zero_shot_unlearn(
            model, images, labels, num_classes=data.num_classes, config=profile.unlearn, seed=case.seed
        )
        seconds = time.perf_counter() - started
    assert references.retrained is not None, "run refuses a profile without retrained models"
    judged = {
        "original": references.original,
        "masked": masked_parts(references),
        "retrained": references.retrained,
        "unlearned": references.images.map_logits(unlearned.open_model),  # closing rows is free, and not judged
    }
    truth = torch.cat([references.labels.forget_test, references.labels.retain_test])
    tests = {name: torch.cat([parts.forget_test, parts.retain_test]) for name, parts in judged.items()}
    report = unlearned.report
    return {
        "forget": case.forget,
        "class_name": data.classes[case.forget],
        "seed": case.seed,
        "scores": {name: asdict(score(parts, references)) for name, parts in judged.items()},
        "per_class": {name: list(per_class_accuracy(logits, truth).values()) for name, logits in tests.items()},
        "eps": report.eps,
        "lr": report.lr,
        "reached": report.reached,
        "at_edge": report.at_edge,
        "chosen": report.chosen,
        "tried": [{name: trial[name] for name in TRIAL} for trial in report.to_dict()["tried"]],
        "epochs": len(report.history),
        "free_dimension": report.free_dimension,
        "frozen": report.frozen,
        "forget_samples": len(images),
        "retain_samples_read": guard.retain_samples_read,
        "threads": all_cores,
        "seconds": {"total": seconds} | report.seconds,
    }


def _line(row: dict[str, Any]) -> str:
    scores = row["scores"]
    return (
        f"{row['class_name']}, seed {row['seed']}: forget {100 * scores['original']['acc_forget']:.1f} ->"
        f" {100 * scores['unlearned']['acc_forget']:.1f} %, retain {100 * scores['unlearned']['acc_retain']:.2f} %"
        f" (masked original {100 * scores['masked']['acc_retain']:.2f}), drift {scores['unlearned']['drift']:.4f} nats,"
        f" eps {row['eps']:.3f}, rate {row['lr']:g}, {row['seconds']['total']:.1f} s on {row['threads']} threads,"
        f" {row['retain_samples_read']} retain samples read"
    )


def _result(profile: Profile, name: str, rows: Sequence[dict[str, Any]], started: float) -> Result:
    """Return a result file: the rows, headline numbers, and the figure's panels."""
    numbers: dict[str, list[float | None]] = {}
    data = experiment.data_of(profile)
    for row in rows:
        tag = f"{row['class_name']} seed {row['seed']}"
        numbers[f"{tag} acc_forget"] = [row["scores"]["unlearned"]["acc_forget"], 0.01]
        numbers[f"{tag} over_unlearning"] = [row["scores"]["unlearned"]["over_unlearning"], 0.01]
        numbers[f"{tag} seconds"] = [row["seconds"]["total"], None]
    made_by = experiment.made_now(profile, seed=profile.seeds[0], started=started)
    return Result(
        name=name,
        profile=profile.name,
        draw="bars",
        caption="Test accuracy per class before and after forgetting one class.",
        numbers=numbers,
        data={"panels": list(_panels(rows, data.classes)), "columns": 1, "size": [9, 3.2]},
        measurements={"rows": list(rows), "data_source": data.data_source},
        provenance=made_by | {"threads": profile.workers * profile.threads},
    )


def _panels(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the figure's panels: per forget class the test accuracy of every class, seeds averaged."""
    labels = {"original": "original", "masked": "masked original", "retrained": "retrained", "unlearned": "ZS-PAG"}
    for forget in dict.fromkeys(row["forget"] for row in rows):
        own = [row for row in rows if row["forget"] == forget]
        each = {key: zip(*(row["per_class"][key] for row in own), strict=True) for key in labels}
        seeds = f"seed {own[0]['seed']}" if len(own) == 1 else f"mean over {len(own)} seeds"
        yield {
            "title": f"forget {own[0]['class_name']} ({seeds})",
            "groups": list(classes),
            "series": {labels[key]: [100 * fmean(values) for values in each[key]] for key in labels},
            "ylabel": "test accuracy (%)",
            "ylim": [0, 100],
        }


def _record_checkpoint(profile: Profile, seed: int, without: int | None) -> str:
    """Copy a trained model to the committed folder; its record holds the recipe and the file its own SHA-256."""
    kind = "original" if without is None else "retrained"
    source = cache.tensors_path(profile, kind, experiment.training_key(profile, seed, without))
    net = f"{Path(profile.dataset).name}-{Path(profile.arch.split(':')[0]).stem}"
    name = f"{kind}-{net}-seed{seed}" + ("" if without is None else f"-without{without}")
    target = experiment.recorded_folder(profile) / f"{name}.safetensors"
    place = files.shown(target)
    if not source.exists():
        return f"left {place} as it was: this run took a recorded model"
    if source.stat().st_size > RECORDED_BYTES:
        return f"left out {place}: {source.stat().st_size / 1e6:.1f} MB are too much for a repository"
    with files.replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    return f"wrote {place}"
