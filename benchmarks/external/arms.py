"""The arms of the table: what is done to an original before it is judged.

Invariant: an arm is handed the net and the forget set alone; test images are read by the judge afterwards.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.external.controls import control
from benchmarks.external.old import Child, finite, report_of, synchronize
from benchmarks.external.originals import Original, on
from zspag import zero_shot_unlearn
from zspag.heads.closed_row import original_row_closed
from zspag.lab.data.splits import Split

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


def plain_descent(known: Original, images: Tensor, labels: Tensor, *, method: str) -> Outcome:
    """Run DELETE, on all parameters or on the head alone; proxies, which its rate is chosen with, cost time, too."""
    started = time.perf_counter()
    made = control(method, known.twin, images, labels, num_classes=known.num_classes, seed=SEED, goal=GOAL)
    synchronize(str(images.device))
    report = {"lr": made.run.lr, "at_edge": made.at_edge, "tried": [vars(trial) for trial in made.trials]}
    reached = made.run.reached(GOAL)
    return Outcome(made.run.model, None, reached, time.perf_counter() - started, finite(report))


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
