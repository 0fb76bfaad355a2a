"""Benchmarks: every stage against the obvious way, a peer's way and the machine itself, all in one run.

A stage is a module with ``measure(sizes, machine, device)``, which yields findings; numbers are medians of ratios in
interleaved rounds. Operations and bytes are counted by hand in the stages' docstrings.

Invariant: nothing asserts on an absolute time, a stage that fails does not take the others along, and a run that was
interrupted goes on behind the stages that it finished.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.stages import (
    growth,
    influence,
    machine,
    precision,
    proxies,
    report,
    startup,
    step,
    subspaces,
    throttles,
    trace,
    whole,
)
from benchmarks.stages.findings import Finding
from benchmarks.stages.machine import Machine
from benchmarks.stages.settings import TINY, Sizes
from zspag.lab import cache
from zspag.report import files, plots, provenance
from zspag.runtime import pick_device, progress

__all__ = ["STAGES", "Finding", "Machine", "Sizes", "compare", "measure", "run", "write_table"]

STAGES: dict[str, Callable[[Sizes, Machine, torch.device], Iterator[Finding]]] = {
    "subspaces": subspaces.measure,
    "proxies": proxies.measure,
    "influence": influence.measure,
    "step": step.measure,
    "whole": whole.measure,
    "precision": precision.measure,
    "start-up": startup.measure,
    "growth": growth.measure,
    "throttles": throttles.measure,
    "trace": trace.measure,
}
OF_THE_CPU = ("start-up", "growth", "throttles")


def stages_of(device: torch.device) -> tuple[str, ...]:
    """Return the stages that say something of a device; processes of the CPU are measured where it does the work."""
    return tuple(name for name in STAGES if device.type == "cpu" or name not in OF_THE_CPU)


def run(*, tiny: bool, only: Sequence[str] | None, record: bool) -> Iterator[str]:
    """Measure, tell every finding when its stage is done, and write ``runs/bench/<device>.json``.

    Args:
        tiny: Take sizes at which numbers mean nothing, to see that every line runs.
        only: Names of stages; None measures all that say something of the device.
        record: Write ``results/bench/<device>.json``, its figures and the table too.

    Yields:
        Lines for the reader.

    Raises:
        ValueError: If a stage does not exist, or what is to be recorded is not whole.
    """
    device, sizes, started = pick_device(), TINY if tiny else Sizes(), time.time()
    chosen = tuple(only or stages_of(device))
    if unknown := [name for name in chosen if name not in STAGES]:
        raise ValueError(f"there is no stage {', '.join(unknown)}; stages are {', '.join(STAGES)}")
    if record and (tiny or not set(chosen) >= set(stages_of(device))):
        raise ValueError("only a whole run of the usual sizes is recorded: leave out --tiny and --only, or --record")
    found: list[dict[str, Any]] = []
    here = machine.measure(device, side=sizes.side, copied=sizes.copied, repeats=sizes.repeats)
    yield _described(here)
    for name in progress(chosen, total=len(chosen), title="benchmarks", unit="stage"):
        for finding in measure(name, sizes, here, device):
            found.append(finding)
            yield report.told(finding)
    yield from _write(found, here, device, sizes, started=started, record=record)
    for name in chosen:  # the next run measures them anew; what an interrupted one of other stages finished stays
        _unfinished(name, sizes, here, device).unlink(missing_ok=True)


def measure(name: str, sizes: Sizes, here: Machine, device: torch.device) -> list[dict[str, Any]]:
    """Return the findings of one stage, as ``Finding.to_dict`` gives them, of a run that was interrupted behind it.

    An error is a finding without a number, which says what happened. It is not kept.
    """
    path = _unfinished(name, sizes, here, device)
    made = partial(
        provenance.record,
        config=asdict(sizes),
        seed=0,
        data_sha256=None,
        device=device.type,
        threads=here.threads,
    )
    try:
        return cache.kept_rows(path, lambda: [one.to_dict() for one in STAGES[name](sizes, here, device)], made=made)
    except (RuntimeError, OSError, ValueError) as error:
        return [Finding(name, "", "the stage", None, at_least=0, note=f"{type(error).__name__}: {error}").to_dict()]


def _unfinished(name: str, sizes: Sizes, here: Machine, device: torch.device) -> Path:
    """Where a run keeps a stage that it has finished, until it ends."""
    key = {
        "sizes": asdict(sizes),
        "machine": [here.name, here.threads, device.type],
        "torch": torch.__version__,
        "code": cache.code_hash((__name__, "zspag.unlearning"), frozenset()),
    }
    return files.repository_root() / "runs" / "bench" / "unfinished" / f"{name}-{provenance.digest(key)[:16]}.json"


def _described(here: Machine) -> str:
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GF/s" for name, rate in here.products.items())
    return f"{here.name}, {here.threads} threads: products {rates}, copy {here.copy / 1e9:.0f} GB/s"


def _write(
    found: Sequence[Mapping[str, Any]],
    here: Machine,
    device: torch.device,
    sizes: Sizes,
    *,
    started: float,
    record: bool,
) -> Iterator[str]:
    made = provenance.record(
        config={"sizes": asdict(sizes), "trial": sizes.tiny},
        seed=0,
        data_sha256=None,
        device=device.type,
        threads=here.threads,
        started=started,
    )
    root = files.repository_root()
    for result in results_of(found, here, device.type, made):
        name = result["name"]
        for folder in (root / "runs" / "bench", *([root / "results" / "bench"] if record else [])):
            files.write_json(folder / f"{name}.json", result)
            yield f"wrote {files.shown(folder / name)}.json"
        if record:
            figure = root / "figures" / "bench" / f"{name}.png"
            plots.save(result, figure)
            yield f"wrote {files.shown(figure)}"
    if record:
        yield from write_table()


def write_table() -> Iterator[str]:
    """Write ``results/bench/README.md`` from the recorded files.

    Yields:
        A line for the reader.

    Raises:
        ValueError: If nothing is recorded.
    """
    folder = files.repository_root() / "results" / "bench"
    contents = [
        content for path in sorted(folder.glob("*.json")) if "found" in (content := files.read_json(path))["data"]
    ]
    if not contents:
        raise ValueError(f"{files.shown(folder)} holds no benchmark: run `make bench RECORD=1` first")
    with files.replacing(folder / "README.md") as path:
        path.write_text(report.page(contents), encoding="utf-8")
    yield f"wrote {files.shown(folder / 'README.md')}"


def results_of(
    found: Sequence[Mapping[str, Any]], here: Machine, device: str, made: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the contents of the result files: findings with their margins, and curves of growth if there are any.

    Args:
        found: Findings as ``Finding.to_dict`` gives them.
        here: The machine.
        device: Kind of device, after which the files are named.
        made: Provenance of the run.
    """
    margins = {"machine": asdict(here), "found": found, "panels": report.panels(found), "columns": 1, "size": (12.5, 7)}
    grown = {"panels": report.curves(found), "columns": 4, "size": (3.6, 3.0)}
    drawn = {
        device: ("ranked", margins, f"How far each number is beyond what was wanted. {_described(here)}."),
        f"{device}_growth": ("curves", grown, "Time and peak memory, each point a process of its own."),
    }
    for name, (draw, data, caption) in drawn.items():
        if data["panels"]:
            yield {
                "schema": 1,
                "name": name,
                "profile": "bench",
                "draw": draw,
                "caption": caption,
                "numbers": {},
                "data": files.plain(data, name),
                "provenance": made,
            }


def compare(old: Path) -> Iterator[str]:
    """Yield, finding by finding, the numbers of the last run here over those of an older file.

    Raises:
        ValueError: If either file is missing or no benchmark.
    """
    new = files.repository_root() / "runs" / "bench" / f"{pick_device().type}.json"
    contents = []
    for path in (old, new):
        if not path.is_file():
            raise ValueError(f"there is no {path}: name a file that `python -m benchmarks` wrote, and run that first")
        content = files.read_json(path)
        if "found" not in content.get("data", {}):
            raise ValueError(f"{path} holds no benchmark: name a file that `python -m benchmarks` wrote")
        contents.append(content)
    return report.compare(*contents)
