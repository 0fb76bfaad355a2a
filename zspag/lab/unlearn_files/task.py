"""What is asked of ``zspag unlearn``, and what can be known to fail before a file is read.

Invariant: no file of the reader's is replaced: what stands where an answer goes must be an answer of ours.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zspag.config import GOALS
from zspag.report import files, provenance, unlearn_page

SUFFIXES = (".safetensors", ".pt", ".pth")
MADE_BY = {"command": "unlearn"}  # in the record: the mark by which a file of ours is known


@dataclass(frozen=True)
class Task:
    """What somebody asks for."""

    model: str  # ``path/to/file.py:factory``, ``package.module:factory`` or ``timm:name``
    weights: Path  # its state dict
    forget: Path  # folder of photos, with a folder for each class, or all of the class ``label``
    out: Path  # where the new state dict goes; its suffix says in which format
    num_classes: int | None = None  # width of the logits; None finds it
    classes_file: Path | None = None  # names of all classes in the order of the logits; None: folders are numbers
    label: str | None = None  # class of photos that lie directly in ``forget``
    image_size: int | None = None  # resize the photos' shorter side to this many pixels and crop the middle square
    limit: int | None = None  # most photos that are used; None uses as many as ``inputs.FORGET_BYTES`` holds
    mean: tuple[float, ...] | None = None  # of each channel on [0, 1], for a model that takes normalized images
    std: tuple[float, ...] | None = None  # standard deviation of each channel
    already_forgotten: tuple[int, ...] = ()  # classes that earlier requests made the weights forget
    goal: str = "suppress"  # or "remove": the class is taken out of the features too
    seed: int = 0  # seed of the method
    page: Path | None = None  # a readable page of the result, one .html file
    keep_open: bool = False  # write what the updates alone made, without closing the rows of the forgotten classes

    def __post_init__(self) -> None:
        _check_normalization(self.mean, self.std)
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"--image-size must be at least 1 pixel, got {self.image_size}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"--num-classes must be at least 2, got {self.num_classes}")
        if self.page is not None and self.page.suffix != ".html":
            raise ValueError(
                f"--report must end in .html, got {self.page}: give {_instead(self.page, 'page.html')} for example"
            )
        if self.goal not in GOALS:
            raise ValueError(f"--goal must be one of {', '.join(GOALS)}, got {self.goal!r}")

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.out.with_suffix(".json")

    @property
    def figure(self) -> Path:
        """Where the figure goes."""
        return self.out.with_suffix(".png")


def _check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    given = [
        f"{option} {','.join(f'{one:g}' for one in values)}"
        for option, values in (("--mean", mean), ("--std", std))
        if values is not None
    ]
    if (mean is None) != (std is None):
        raise ValueError(f"--mean and --std come together, got {given[0]} alone: give one number per channel to each")
    if mean is None or std is None:
        return
    both = " and ".join(given)
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise ValueError(f"--mean and --std need one number per channel, 1 or 3 of each, got {both}")
    if min(std) <= 0:
        raise ValueError(f"--std must be positive, got {both}: a constant channel cannot be normalized")
    if not 0 <= min(mean) <= max(mean) <= 1:
        raise ValueError(
            f"--mean must lie in [0, 1], got {both}: pixels are on [0, 1], so divide numbers that are for bytes by 255"
        )


def check_out(task: Task) -> None:
    """Refuse a place for the answer where it cannot go.

    Raises:
        ValueError: If its suffix is none of ours, it is a folder, or it would replace a file that we have not made.
    """
    out = task.out
    if out.suffix not in SUFFIXES:
        instead = _instead(out, "forgot.safetensors")
        raise ValueError(f"--out must end in {', '.join(SUFFIXES)}, got {out}: give {instead} for example")
    if out.is_dir():
        raise ValueError(f"--out is a folder: give a file in it, such as {out / 'forgot.safetensors'}")
    if out.exists() and task.weights.exists() and out.samefile(task.weights):
        raise ValueError(f"--out is the file of the weights, {out}: the original is not replaced, choose another name")
    if out.parent.resolve().is_relative_to(task.forget.resolve()):
        raise ValueError(f"--out lies in the folder of photos, {task.forget}, where the figure would be one of them")
    if task.page is not None and task.page.is_dir():
        raise ValueError(f"--report is a folder: give a file in it, such as {task.page / 'page.html'}")
    for path in (out, task.report, task.figure, *([] if task.page is None else [task.page])):
        if path.exists() and not _is_ours(path, task):
            option = "--report" if path == task.page else "--out"
            raise ValueError(f"{path} exists and was not made by zspag unlearn: move it or choose another {option}")


def _instead(path: Path, name: str) -> Path:
    # A place near this one that has the suffix of ``name``: in it, if it is a folder.
    return path / name if path.is_dir() else path.with_suffix(Path(name).suffix)


def _is_ours(path: Path, task: Task) -> bool:
    # A file that carries our record, or is the one whose hash stands in a report of ours.
    try:
        if path.suffix == ".html":
            return unlearn_page.MARK in path.read_text(encoding="utf-8")
        if path.suffix in (".pt", ".pth"):
            written = files.read_json(task.report)
            hashed = hashlib.sha256(path.read_bytes()).hexdigest()
            return _is_ours(task.report, task) and bool(written["weights"]["sha256"] == hashed)
        return provenance.read_record(path).items() >= MADE_BY.items()
    except (ValueError, OSError, KeyError, TypeError):
        return False
