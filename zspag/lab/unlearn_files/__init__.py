"""The engineer's tool (``zspag unlearn``): a model, its weights and a folder of photos in; a model that forgot out.

Beside the weights OUT stand OUT.json, the report and how it was made, and OUT.png, which draws it; on demand, a page
of the result in one HTML file.

Invariant: what can be known to fail is known before the first second of work, the place for the answer included; no
file of the reader's is replaced; either all files are new and whole, or none is.
"""

import hashlib
import io
import json
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zspag.config import UnlearnConfig, to_dict
from zspag.lab.data.folders import ForgetFolder, labelled_folder
from zspag.lab.data.listing import read_classes
from zspag.lab.data.pictures import grey
from zspag.lab.models import Normalize
from zspag.lab.models.user_files import model_of
from zspag.lab.models.weights import State, facts_from, load_into, read_state, write_state
from zspag.lab.unlearn_files.remedies import in_options, runs_on, width_refused
from zspag.lab.unlearn_files.task import MADE_BY, Task, check_out
from zspag.preflight.refusal import Refusal
from zspag.report import files, provenance, unlearn_page
from zspag.report.unlearn_page import Example
from zspag.runtime import logits_of, pick_device
from zspag.unlearning import Unlearned, zero_shot_unlearn

__all__ = ["GoalNotReached", "Task", "unlearn_files"]

PROBED = 997  # classes of a trial model, to see which shapes depend on their number: no layer has that width
EXAMPLES = 12  # photos on the page


class GoalNotReached(Exception):  # noqa: N818  no error: the files are written
    """Part of the forget set is still recognized; the message says how much and what was written all the same."""


def unlearn_files(task: Task) -> Iterator[str]:
    """Forget the classes of a folder of photos with somebody's own model.

    Yields:
        Lines for the reader.

    Raises:
        ValueError: If a file or folder does not fit; nothing is written then.
        GoalNotReached: At the end, if part of the forget set is still recognized.
    """
    check_out(task)
    started, device, config = time.time(), pick_device(), UnlearnConfig(goal=task.goal)
    classes = None if task.classes_file is None else read_classes(task.classes_file)
    num_classes = task.num_classes if classes is None else len(classes)
    if task.num_classes not in (None, num_classes):
        raise ValueError(f"{task.classes_file} names {num_classes} classes, but --num-classes is {task.num_classes}")
    photos = labelled_folder(
        task.forget, classes=classes, label=task.label, image_size=task.image_size, limit=task.limit
    )
    yield from photos.remarks
    state, remarks = read_state(task.weights)
    inner, more = _loaded(task, state, num_classes, photos)
    model = inner
    if task.mean is not None and task.std is not None:
        model = nn.Sequential(OrderedDict(normalize=Normalize(task.mean, task.std), model=inner))
    images, fitting = _with_channels_for(model, photos.images, task.mean)
    yield from (*remarks, *more, *fitting)

    with _rehearsed(task, inner), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = zero_shot_unlearn(
                model.to(device),
                images.to(device),
                photos.labels.to(device),
                num_classes=num_classes,
                already_forgotten=task.already_forgotten,
                limit=len(images),  # the folder was cut to the limit when it was read
                config=config,
                seed=task.seed,
            )
        except Refusal as refusal:
            raise ValueError(in_options(refusal, task, model, images, photos)) from refusal
        if photos.left_out:
            result = replace(result, report=replace(result.report, left_out=photos.left_out))
        pixels = hashlib.sha256(images.contiguous().numpy().tobytes() + photos.labels.numpy().tobytes())
        record = MADE_BY | provenance.record(
            config=to_dict(config),
            seed=task.seed,
            data_sha256=pixels.hexdigest(),
            device=device.type,
            threads=torch.get_num_threads(),
            started=started,
        )
        shown = [] if task.page is None else _examples(model, result, images, classes)
        _write(task, result, record, shown)
    report = result.report
    yield str(report)
    beside = dict.fromkeys(str(warning.message) for warning in warned)
    yield from (f"warning: {text}" for text in beside if text not in report.warnings)
    page = "" if task.page is None else f", {task.page}"
    yield f"wrote {task.out}, {task.report}{page} and {task.figure}"
    if not report.reached:
        unseen = report.unseen_accuracy
        held = "" if unseen is None else f" and {100 * unseen:.0f} % of what was held out"
        closed = ", with the rows of the forgotten classes closed" if report.silenced and not task.keep_open else ""
        raise GoalNotReached(
            f"the goal is not reached: the updates leave {100 * report.forget_accuracy:.0f} % of the forget set{held}"
            f" recognized; {task.out} is written all the same{closed}"
        )


def _loaded(task: Task, state: State, num_classes: int | None, photos: ForgetFolder) -> tuple[nn.Module, list[str]]:
    # If building fails, the shapes of the weights tell the number of classes and channels that nobody has given.
    seen = {"in_channels": photos.images.shape[1], "image_size": photos.images.shape[-1]}

    def built(known: Mapping[str, int]) -> tuple[nn.Module, list[str]]:
        model, handed = model_of(task.model, known, guessed=seen)
        guessed = [f"{name}={value}" for name, value in handed.items() if name not in known]
        remarks = [f"{task.model} is called with {', '.join(guessed)}, as the photos are"] if guessed else []
        return model, remarks + load_into(model, state, weights=task.weights, place=task.model)

    known = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return built(known)
    except ValueError as error:
        try:
            trial, _ = model_of(task.model, {"num_classes": PROBED} | known, guessed=seen)
            found = facts_from(state, trial.state_dict(), probed=PROBED)
            model, remarks = built(found | known)
        except ValueError:
            width = _wrong_width(task, state, built, seen)
            raise (ValueError(width) if width else error) from None
    facts = ", ".join(f"{name}={value}" for name, value in found.items() if name not in known)
    return model, [f"the shapes of the weights tell {facts}", *remarks]


def _wrong_width(
    task: Task, state: State, built: Callable[[Mapping[str, int]], object], seen: Mapping[str, int]
) -> str:
    # If the weights fit the model but for the number of classes that was given: a sentence that says so; else "".
    if task.num_classes is None and task.classes_file is None:
        return ""
    try:
        trial, _ = model_of(task.model, {"num_classes": PROBED}, guessed=seen)
        found = facts_from(state, trial.state_dict(), probed=PROBED)
        built(found)
    except ValueError:
        return ""
    return width_refused(task, found["num_classes"], f"{task.weights} holds") if "num_classes" in found else ""


def _with_channels_for(model: nn.Module, images: Tensor, mean: Sequence[float] | None) -> tuple[Tensor, list[str]]:
    # Return the photos (n, C, H, W), uint8, with as many channels as the means or the model have, and a remark if that
    # changed them.
    have = images.shape[1]
    if mean is not None:
        fits = len(mean) == have or {len(mean), have} != {1, 3}
    else:
        runs, first = runs_on(model, images[:1])
        # A layer that normalizes lets a grey image pass where colours are meant, for it broadcasts: the first
        # convolution tells.
        fits = runs and not (have == 1 and first == 3)
        other = images[:1].expand(-1, 3, -1, -1) if have == 1 else grey(images[:1])
        fits = fits or not runs_on(model, other)[0]
    if fits:
        return images, []
    if have == 1:
        return images.expand(-1, 3, -1, -1), ["the photos are grey and the model takes colours: three equal channels"]
    return grey(images), ["the photos are in colour and the model takes grey ones: they are made grey"]


@contextmanager
def _rehearsed(task: Task, model: nn.Module) -> Generator[None, None, None]:
    # Write the model as it is beside where the new one will go, and remove it: what hinders that is known now. Folders
    # that were made for it, or for the page, go again if nothing comes of it.
    places = {"--out": task.out} | ({} if task.page is None else {"--report": task.page})
    above = dict.fromkeys(folder for path in places.values() for folder in (path.parent, *path.parent.parents))
    made = sorted((folder for folder in above if not folder.exists()), key=lambda folder: -len(folder.parts))
    try:
        for option, path in places.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix) as trial:
                    if path == task.out:
                        write_state(Path(trial.name), model.state_dict(), suffix=path.suffix, metadata={})
            except OSError as error:
                reason, remedy = str(error.strerror or error), "make room, or choose another place"
                if isinstance(error, FileExistsError | NotADirectoryError):
                    reason, remedy = "a file stands where a folder is needed", "choose another place"
                elif isinstance(error, FileNotFoundError):
                    remedy = "choose another place"
                elif isinstance(error, PermissionError):
                    remedy = "change the permissions of its folder, or choose another place"
                raise ValueError(f"{option} {path} cannot be written ({reason}): {remedy}") from error
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # something else lies in it by now
                folder.rmdir()
        raise


def _examples(model: nn.Module, result: Unlearned, images: Tensor, classes: Sequence[str] | None) -> list[Example]:
    # Forget photos, evenly over the set, with the answers of the original and of what the updates alone made.
    from torchvision.transforms.functional import to_pil_image  # late: it takes a second

    chosen = images[torch.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).round().long()]
    weight = next(model.parameters())
    pixels = chosen.to(weight.device, weight.dtype) / 255
    answers = [logits_of(one, pixels).argmax(1).tolist() for one in (model, result.open_model)]
    names = [[str(one) if classes is None else classes[one] for one in numbers] for numbers in answers]
    pictures = []
    for photo in chosen:
        drawn = io.BytesIO()
        to_pil_image(photo).save(drawn, format="PNG")
        pictures.append(drawn.getvalue())
    return [Example(*one) for one in zip(pictures, *names, strict=True)]


def _page(task: Task, result: Unlearned, record: dict[str, Any], shown: Sequence[Example], figure: bytes) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    facts = {"model": task.model, "weights": str(task.weights), "photos": str(task.forget), "goal": task.goal}
    facts |= {"seed": str(task.seed), "pixels and labels, SHA-256": record["data_sha256"], "versions": versions}
    facts |= {"zspag commit": record["commit"] or "not from a checkout", "device": record["device"]}
    facts |= {"threads": str(record["threads"]), "started": record["started"]}
    report = result.report
    return unlearn_page.page(
        report.to_dict(),
        text=str(report),
        verdict=report.verdict,
        legends=report.legends,
        figure=figure,
        examples=shown,
        facts=facts,
    )


def _write(task: Task, result: Unlearned, record: dict[str, Any], shown: Sequence[Example]) -> None:
    model = result.open_model if task.keep_open else result.model
    inner = model if task.mean is None else model.get_submodule("model")  # names as in the file that was read
    out = task.out
    # All are written beside their places first: none is new if one fails.
    with ExitStack() as stack:
        weights, page, png = (stack.enter_context(files.replacing(one)) for one in (out, task.report, task.figure))
        write_state(weights, inner.state_dict(), suffix=out.suffix, metadata={provenance.KEY: json.dumps(record)})
        result.report.plot().savefig(png, metadata=provenance.png_metadata(record))
        written = {"file": out.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
        files.write_json(page, {"report": result.report.to_dict(), "weights": written, "provenance": record})
        if task.page is not None:
            readable = stack.enter_context(files.replacing(task.page))
            readable.write_text(_page(task, result, record, shown, png.read_bytes()), encoding="utf-8")
