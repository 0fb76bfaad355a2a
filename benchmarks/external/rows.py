"""The grid: one JSON file per (net, class, forget set, arm) under ``runs/external/rows``, written whole or not at all.

Invariant: a row that is there, made by the same code, weights, data, torch, device and threads, is not made again; a
failure is a row too.
"""

import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.external import old
from benchmarks.external.arms import SEED, run_arm
from benchmarks.external.measures import Judge
from benchmarks.external.nets import NETS
from benchmarks.external.originals import Original, forget_set, original, runs
from zspag.report.files import plain, read_json, repository_root, write_json
from zspag.report.provenance import closure_hash, code_hash, digest, git, installed
from zspag.runtime import pool_map

SCHEMA = 1
JUDGE = "benchmarks.external.measures"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "safetensors", "numpy")
METHODS = {
    "zs_pag": "zspag.unlearning",
    "masked": "zspag.lab.evaluation",
    "original_closed": "zspag.heads.closed_row",
    "head_only": "benchmarks.external.controls",
    "delete": "benchmarks.external.controls",
}


@dataclass(frozen=True)
class Job:
    """One row to be made: ``label`` is the forget class, ``count`` the forget images asked for (None: all)."""

    net: str
    label: int
    count: int | None
    arm: str
    device: str
    threads: int

    @property
    def path(self) -> Path:
        """Where the row lies."""
        count = "all" if self.count is None else str(self.count)
        return rows_folder() / f"{self.net}-class{self.label}-{count}-{self.arm}.json"


def rows_folder() -> Path:
    """Return the folder of the rows."""
    return runs() / "rows"


def jobs(
    nets: Sequence[str], arms: Sequence[str], *, counts: Sequence[int | None] | None, device: str, threads: int
) -> list[Job]:
    """Return the rows of the grid, net by net, so that a process loads each net once.

    Args:
        nets: Names of ``NETS``.
        arms: Names of ``ARMS``.
        counts: Sizes of forget sets; None takes all that a net has in the grid.
        device: Where to work.
        threads: Intra-op threads of each process.
    """
    return [
        Job(name, label, count, arm, device, threads)
        for name in nets
        for count in NETS[name].counts
        if counts is None or count in counts
        for label in NETS[name].classes
        for arm in arms
    ]


@lru_cache
def code_of(arm: str) -> str:
    """Return what the code of an arm is known by: a hash over its modules, or the commit it is frozen at."""
    if arm == old.COMMIT:
        return digest([old.COMMIT, code_hash(["benchmarks.external.old", JUDGE])])[:16]
    return digest([closure_hash([METHODS[arm]]), code_hash([JUDGE])])[:16]


def key_of(job: Job, known: Original) -> dict[str, Any]:
    """Return all that the numbers of a row depend on."""
    kind = torch.device(job.device).type
    device = torch.cuda.get_device_name() if kind == "cuda" else f"cpu {platform.machine()}"
    return {
        "schema": SCHEMA,
        "seed": SEED,
        "net": job.net,
        "label": job.label,
        "count": job.count,
        "arm": job.arm,
        "weights": known.sha256,
        "test_half": known.net.test_half,
        "code": code_of(job.arm),
        "torch": torch.__version__,
        "device": device,
        "threads": job.threads,
    }


@lru_cache(maxsize=1)
def _known(name: str, device: str) -> tuple[Original, Judge]:
    known = original(name, device=device)
    return known, Judge(known, device)


_children: list[old.Child] = []


def _child(threads: int) -> old.Child:
    """Return this process's child, started at its first use and anew where it ended."""
    if _children and _children[0].process.poll() is not None:
        _children.clear()
    if not _children:
        _children.append(old.Child(old.old_package(runs(), repository_root()), repository_root(), threads=threads))
    return _children[0]


def make_row(job: Job) -> bool:
    """Make one row unless it is there; return whether it had to be made."""
    known, judge = _known(job.net, job.device)
    key = key_of(job, known)
    if job.path.exists() and read_json(job.path)["key"] == key:
        return False
    forget, started = forget_set(known, job.label, job.count), time.time()
    row: dict[str, Any] = {
        "key": key,
        "net": job.net,
        "title": known.net.title,
        "norm": known.net.norm,
        "data": known.net.data,
        "role": known.net.role,
        "label": job.label,
        "count": job.count,
        "samples": len(forget),
        "arm": job.arm,
        "original_accuracy": known.test_accuracy,
        "seconds": None,
        "reached": None,
        "error": None,
        "measures": None,
        "closed": None,
        "report": {},
        "mended": known.net.mended if job.arm == "fa40f86" else "",
    }
    try:
        outcome = run_arm(job.arm, known, forget, name=job.net, device=job.device, child=lambda: _child(job.threads))
        measured = judge.masked(job.label) if outcome.model is None else judge(outcome.model, job.label)
        row |= {"seconds": outcome.seconds, "reached": outcome.reached, "measures": measured.to_dict()}
        row["report"] = outcome.report
        if outcome.closed is not None:
            row["closed"] = judge(outcome.closed, job.label).to_dict()
    except Exception as error:  # noqa: BLE001  a failure is a row
        row["error"] = f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        row["where"] = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
    row["provenance"] = {
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--", "zspag")),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "trained": {part: known.record.get(part) for part in ("device", "threads", "seconds", "commit")},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(started)),
    }
    write_json(job.path, plain(row, "row"))
    return True


def make_rows(todo: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, bool | Exception]]:
    """Make rows on ``workers`` processes.

    Yields:
        Each job as it is done, and whether its row had to be made; or what kept the row from being written.
    """
    threads = todo[0].threads if todo else 1
    try:
        yield from pool_map(make_row, todo, workers=workers, threads_each=threads, title="rows")
    finally:
        while _children:
            _children.pop().close()


def load_rows(folder: Path | None = None) -> list[dict[str, Any]]:
    """Return all rows of a folder, sorted by file name."""
    return [read_json(path) for path in sorted((folder or rows_folder()).glob("[!.]*.json"))]
