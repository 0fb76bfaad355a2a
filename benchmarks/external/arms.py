"""The arms of the table: what is done to an original before it is judged.

Invariant: an arm is handed the net and the forget set alone; test images are read by the judge afterwards.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.external.old import Child, report_of, synchronize
from benchmarks.external.originals import Original, on
from zspag import UnlearnConfig, zero_shot_unlearn
from zspag.closed_row import original_row_closed
from zspag.data.splits import Split
from zspag.head import find_head
from zspag.runtime import generator_for

ARMS = {
    "zs_pag": "ZS-PAG, defaults",
    "masked": "masked original",
    "original_closed": "original, row closed",
    "head_only": "head only",
    "delete": "DELETE",
    "fa40f86": "ZS-PAG, defaults of fa40f86",
}
SEED = 0
GOAL = 0.01  # accuracy on the forget set that counts as forgotten, for every arm
FACTOR, FIRST, LOWEST, HIGHEST = 3.0, 1e-4, 1e-9, 1e3  # the ends only keep a broken net from running for ever


@dataclass(frozen=True)
class Outcome:
    """What an arm made.

    Attributes:
        model: The model to be judged, rows open; None where logits of the original are enough.
        closed: The same with its rows closed, where the arm has one.
        reached: Whether the arm itself says that the class is forgotten; None where it says nothing.
        seconds: Wall-clock time of the arm, None where it does nothing.
        report: What the arm says about itself, plain JSON values.
    """

    model: nn.Module | None
    closed: nn.Module | None = None
    reached: bool | None = None
    seconds: float | None = None
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """A run at one rate: the model, and the accuracy it left on the forget set (None where it diverged)."""

    lr: float
    model: nn.Module
    forget_accuracy: float | None

    @property
    def forgot(self) -> bool:
        """Whether the forget set is forgotten."""
        return self.forget_accuracy is not None and self.forget_accuracy <= GOAL


def smallest_rate(run: Callable[[float], Attempt]) -> tuple[Attempt, list[Attempt]]:
    """Return the run at the smallest rate that forgets the forget set, and all runs; the search has no edges.

    Rates are a factor ``FACTOR`` apart. From ``FIRST`` it goes down while rates forget, or up until one does. A rate
    that diverges ends the way up, and then the run that forgot most is taken.
    """
    runs = [run(FIRST)]
    if runs[0].forgot:
        while runs[-1].forgot and runs[-1].lr > LOWEST:
            runs.append(run(runs[-1].lr / FACTOR))
    else:
        while not runs[-1].forgot and runs[-1].forget_accuracy is not None and runs[-1].lr < HIGHEST:
            runs.append(run(runs[-1].lr * FACTOR))
    forgot = [one for one in runs if one.forgot]
    if forgot:
        return min(forgot, key=lambda one: one.lr), runs
    return min(runs, key=lambda one: math.inf if one.forget_accuracy is None else one.forget_accuracy), runs


def plain_descent(known: Original, images: Tensor, labels: Tensor, *, method: str) -> Outcome:
    """Run DELETE, on all parameters or on the head alone, at the rate of ``smallest_rate``."""
    from zspag.baselines import METHODS

    base = UnlearnConfig()
    material: Any = SimpleNamespace(names=(find_head(known.twin, images).name,))  # all that the two read of it

    def run(lr: float) -> Attempt:
        config = replace(base, update=replace(base.update, lr=lr))
        chosen = METHODS[method].run
        assert chosen is not None
        kept = chosen(
            known.twin,
            images,
            labels,
            num_classes=known.num_classes,
            config=config,
            generator=generator_for(SEED, method),
            material=material,
        ).kept
        return Attempt(lr, kept.model, None if kept.diverged else kept.history[-1].forget_accuracy)

    started = time.perf_counter()
    taken, runs = smallest_rate(run)
    synchronize(str(images.device))
    report = {
        "lr": taken.lr,
        "forget_accuracy": taken.forget_accuracy,
        "tried": [[one.lr, one.forget_accuracy] for one in runs],
    }
    return Outcome(taken.model, None, taken.forgot, time.perf_counter() - started, report)


def zs_pag(known: Original, images: Tensor, labels: Tensor) -> Outcome:
    """Run the package's one call with its defaults."""
    started = time.perf_counter()
    result = zero_shot_unlearn(known.model, images, labels, num_classes=known.num_classes, seed=SEED)
    synchronize(str(images.device))
    seconds = time.perf_counter() - started
    opened = getattr(result, "open_model", None)
    closed = None if opened is None else result.model
    return Outcome(opened or result.model, closed, result.report.reached, seconds, report_of(result))


def old_defaults(known: Original, forget: Split, *, name: str, child: Child, device: str) -> Outcome:
    """Run the defaults of fa40f86 in their own process, on the twin where the net has one."""
    with tempfile.TemporaryDirectory() as folder:
        files = {part: str(Path(folder) / f"{part}.safetensors") for part in ("weights", "forget", "output")}
        save_file(
            {key: part.detach().cpu().contiguous() for key, part in known.twin.state_dict().items()}, files["weights"]
        )
        save_file({"images": forget.images.contiguous(), "labels": forget.labels.contiguous()}, files["forget"])
        answer = child(
            {
                "side": "fa40f86",
                "net": name,
                "device": device,
                "seed": SEED,
                "num_classes": known.num_classes,
                "twin": True,
                **files,
            }
        )
        changed = known.net.twin() if known.net.twin is not None else known.net.build()
        changed.load_state_dict(load_file(files["output"]))
    report = answer["report"]
    return Outcome(changed.to(device).eval(), None, report["reached"], answer["seconds"], report)


def run_arm(arm: str, known: Original, forget: Split, *, name: str, device: str, child: Callable[[], Child]) -> Outcome:
    """Do to the original what ``arm`` says.

    Args:
        arm: A name of ``ARMS``.
        known: The trained net.
        forget: Forget images, uint8, and their label.
        name: Name of the net.
        device: Where to work.
        child: Gives the process that holds the package of fa40f86.

    Returns:
        The model to be judged; None for the masked original, which is no model but a way to read one.
    """
    images, labels = on(device, forget.images), forget.labels.to(device)
    classes: Sequence[int] = sorted(set(forget.labels.tolist()))
    if arm == "masked":
        return Outcome(None)
    if arm == "original_closed":
        return Outcome(original_row_closed(known.twin, classes, images=images))
    if arm == "fa40f86":
        return old_defaults(known, forget, name=name, child=child(), device=device)
    if arm == "zs_pag":
        return zs_pag(known, images, labels)
    return plain_descent(known, images, labels, method=arm)
