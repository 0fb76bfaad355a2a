"""One command: run the numbered notebooks, judge each, and say whether the recorded numbers came out again.

Invariant: nothing is read from committed results while figures are made, and no file under its final name is ever half
written. Exit codes: 0 all well; 1 a notebook failed; 2 the command cannot work as given; 3 every figure is there, but a
recorded number did not come out again; 130 interrupted.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zspag.report import files
from zspag.report.page import resolve_profile
from zspag.report.reproduce.changes import surroundings, unchanged
from zspag.report.reproduce.drivers import execute_all, termination_interrupts
from zspag.report.reproduce.execution import KERNEL, KernelMissing, NotebookFailed, own_kernel
from zspag.report.reproduce.notebooks import check_parameters, find_notebooks, parse_parameters
from zspag.report.reproduce.notebooks import write_back as write_pages_back
from zspag.report.reproduce.progress import Clock, duration
from zspag.report.reproduce.report import TIMES, Report, compare, read_fresh, read_recorded
from zspag.report.reproduce.report import record as record_results

__all__ = ["KernelMissing", "NotebookFailed", "Report", "add_arguments", "redraw", "reproduce", "run"]

CELL_TIMEOUT = 4 * 3600  # seconds; a cell of the largest profiles trains networks, a hanging one must end some day
OK, FAILED, MISUSED, DISAGREES, INTERRUPTED = 0, 1, 2, 3, 130


def reproduce(
    *,
    profile: str,
    notebooks: Path,
    only: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    record: bool = False,
    write_back: bool = False,
    again: bool = False,
    cell_timeout: int = CELL_TIMEOUT,
    kernel_name: str = KERNEL,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run notebooks in the order of their numbers, starting none after one that failed, and compare what they made.

    As many run at once as the profile has workers and the machine cores; one where their times are recorded.

    Args:
        profile: Name of the profile.
        notebooks: Folder of the notebooks.
        only: Numbers of the notebooks to run, such as ``["00"]``; None runs all.
        parameters: Papermill parameters beside the profile; every notebook that runs must declare them.
        record: Replace the committed results of these notebooks afterwards.
        write_back: Put the executed notebooks, cleaned, in place of their sources afterwards.
        again: Run those too of which nothing has changed since they ran, as recording and writing back always do.
        cell_timeout: Seconds one cell may take; 0 allows any time.
        kernel_name: Jupyter kernel; "python3" is always the running interpreter.
        say: Receives a line whenever there is news.

    Returns:
        The reproduction report; it also lies in ``runs/<profile>/report.json``.

    Raises:
        ValueError: If the command cannot work as given; no kernel has been started.
        KernelMissing: If there is no such kernel.
        NotebookFailed: If a notebook failed; those before it stand.
    """
    resolved, given, root = resolve_profile(profile), dict(parameters or {}), files.repository_root().resolve()
    profile = resolved.name
    if given and (record or write_back):
        raise ValueError(f"results with {', '.join(given)} changed are not the profile's: they cannot be recorded")
    chosen = find_notebooks(notebooks, only)
    check_parameters(chosen, {"profile": profile, **given})
    runs, results = root / "runs" / profile, root / "results" / profile
    cold = not any(path.is_file() for cache in ("checkpoints", "grid") for path in (runs / cache).rglob("*"))
    told: dict[str, Any] = {
        "profile": profile,
        "parameters": given,
        "kernel_name": kernel_name,
        "around": surroundings(),
    }
    seals = {} if again or record or write_back else unchanged(chosen, runs, **told)
    for name, seal in seals.items():
        say(f"{name}: nothing has changed since it ran, {seal['provenance']['started']}")
    waiting = [path for path in chosen if path.stem not in seals]
    at_once = 1 if record else min(resolved.workers, os.cpu_count() or 1)
    expected = _expected_seconds([path.stem for path in waiting], runs, results)
    with own_kernel(kernel_name), Clock(expected, at_once=at_once, say=say) as clock:
        ended = execute_all(waiting, at_once=at_once, clock=clock, cell_timeout=cell_timeout, **told)
        with contextlib.closing(ended):  # ends the drivers before their kernel goes
            for name, seal in ended:
                figures = sum(made.endswith(".png") for made in seal["outputs"])
                memory = seal["peak_memory_mib"]["self"]
                say(f"      {name}: {figures} figures, {duration(seal['seconds'])}, {memory:.0f} MiB")
                seals[name] = seal
    recorded = {name: one for name, one in read_recorded(results).items() if only is None or name[:2] in only}
    report = compare(recorded, read_fresh(seals.values(), root), profile=profile)
    files.write_json(runs / "report.json", {"schema": 1, **asdict(report)})
    if record:
        written = record_results(seals, profile=profile, root=root, cold=cold)
        say(f"recorded {len(written)} files in {files.shown(results)}")
    if write_back:
        write_pages_back((runs / "executed" / path.name for path in chosen), notebooks)
        say(f"wrote {len(chosen)} executed notebooks back")
    return report


def _expected_seconds(names: Sequence[str], runs: Path, results: Path) -> dict[str, float | None]:
    """Return what each notebook took in its last run here, else in the recorded run, else None."""
    table = results / TIMES
    known = files.read_json(table)["notebooks"] if table.is_file() else {}
    seals = {name: runs / "seals" / f"{name}.json" for name in names}
    known |= {name: files.read_json(seal) for name, seal in seals.items() if seal.is_file()}
    return {name: known.get(name, {}).get("seconds") for name in names}


def redraw(*, profile: str | None = None) -> list[Path]:
    """Draw every figure of a profile, or of all, from the recorded results; return the files. torch is not loaded.

    Raises:
        ValueError: If no figure is recorded.
    """
    from zspag.report import plots  # late: only this needs matplotlib in the driver

    root, folder = files.repository_root().resolve(), "*" if profile is None else resolve_profile(profile).name
    recorded = [(path, files.read_json(path)) for path in sorted((root / "results").glob(f"{folder}/*.json"))]
    drawn = {root / "figures" / path.parent.name / f"{path.stem}.png": one for path, one in recorded if one.get("draw")}
    if not drawn:
        place = files.shown(root / "results" / ("" if profile is None else folder))
        raise ValueError(f"no figure is recorded in {place}; run without --recorded to compute them")
    for target, content in drawn.items():
        plots.save(content, target)
    return list(drawn)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zspag reproduce`` to ``parser``."""
    parser.add_argument("--profile", help="size of the experiments (default: ZSPAG_PROFILE, then digits)")
    parser.add_argument("--only", metavar="NN,NN", help="run only the notebooks with these numbers")
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="set a parameter of the notebooks"
    )
    for flag, effect in {
        "--record": "replace the committed results by the fresh ones",
        "--recorded": "redraw the figures from committed results, no computing",
        "--write-back": "put the executed notebooks in place of their sources",
        "--again": "run those too of which nothing has changed since they ran here",
    }.items():
        parser.add_argument(flag, action="store_true", help=effect)
    parser.add_argument(
        "--cell-timeout", type=int, default=CELL_TIMEOUT, metavar="S", help="seconds a cell may take, 0: any"
    )
    parser.add_argument("--notebooks", type=Path, help="folder of the notebooks (default: notebooks/)")
    parser.add_argument("--kernel", default=KERNEL, help="Jupyter kernel (default: this interpreter)")


def _say(line: str) -> None:
    tqdm.write(line)  # beside the bar, not through it
    sys.stdout.flush()  # a log is read while the run goes on


def run(arguments: argparse.Namespace, *, say: Callable[[str], None] = _say) -> int:
    """Carry out ``zspag reproduce`` with what ``add_arguments`` parsed, and return its exit code."""
    try:
        with termination_interrupts():
            return _redraw_all(arguments, say) if arguments.recorded else _run_all(arguments, say)
    except NotebookFailed as failure:
        say(str(failure))
        return FAILED
    except (KernelMissing, TypeError, ValueError) as error:
        say(f"zspag reproduce: {error}")
        return MISUSED
    except KeyboardInterrupt:
        say("Interrupted: nothing half-written was left behind, and the same command goes on where this one stopped.")
        return INTERRUPTED


def _run_all(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    root, profile = files.repository_root(), resolve_profile(arguments.profile).name
    report = reproduce(
        profile=profile,
        notebooks=arguments.notebooks or root / "notebooks",
        only=[number.strip() for number in arguments.only.split(",")] if arguments.only else None,
        parameters=parse_parameters(arguments.parameter),
        record=arguments.record,
        write_back=arguments.write_back,
        again=arguments.again,
        cell_timeout=arguments.cell_timeout,
        kernel_name=arguments.kernel,
        say=say,
    )
    say(str(report))
    figures, executed = root / "figures" / profile, root / "runs" / profile / "executed"
    say(f"Figures: {files.shown(figures)}. Executed notebooks: {files.shown(executed)}.")
    return DISAGREES if report.disagreements and not arguments.record else OK


def _redraw_all(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    if arguments.record or arguments.write_back or arguments.parameter or arguments.only:
        raise ValueError("--recorded only redraws figures: it goes with no option but --profile")
    drawn = redraw(profile=arguments.profile)
    places = ", ".join(sorted({path.parent.name for path in drawn}))
    say(f"Redrew {len(drawn)} figures in {places} from recorded results.")
    return OK
