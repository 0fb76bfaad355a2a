"""Notebooks side by side, each driven by a process of its own.

Invariant: whatever ends a run, a failure, an interrupt or a kill, no driver outlives it, and each takes its kernel
along.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from zspag.report.reproduce.execution import NotebookFailed, execute
from zspag.report.reproduce.progress import Clock

_SPAWN = multiprocessing.get_context("spawn")  # knows what the environment is now, and copies no thread's lock


def execute_all(
    paths: Sequence[Path], *, at_once: int, clock: Clock, **told: Any
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Yield the name and seal of each notebook as it ends.

    Args:
        paths: The notebooks, which start in this order.
        at_once: How many run side by side.
        clock: Hears when one starts and ends.
        told: What ``execute`` wants beside the path.

    Raises:
        NotebookFailed: If one failed. After it no other starts, and those under way end first: what they made stands.
    """
    waiting, running, failure = list(paths), dict[Connection, tuple[str, SpawnProcess]](), None
    try:
        while running or (waiting and failure is None):
            while waiting and failure is None and len(running) < at_once:
                path = waiting.pop(0)
                running |= [_started(path, told)]
                clock.starts(path.stem)
            ready = wait(list(running), timeout=1.0)
            for answer in [one for one in running if one in ready]:
                name, driver = running.pop(answer)
                seal = _heard(name, driver, answer)
                clock.ends(name)
                if isinstance(seal, NotebookFailed):
                    failure = failure or seal
                else:
                    yield name, seal
            clock.moves()
    finally:
        for _, driver in running.values():
            driver.terminate()
        for _, driver in running.values():
            driver.join()
    if failure is not None:
        raise failure


def _started(path: Path, told: dict[str, Any]) -> tuple[Connection, tuple[str, SpawnProcess]]:
    answer, theirs = _SPAWN.Pipe(duplex=False)
    driver = _SPAWN.Process(target=_drive, args=(theirs, path, told), name=path.stem)
    driver.start()
    theirs.close()  # so that a driver that dies is an end of file here
    return answer, (path.stem, driver)


def _heard(name: str, driver: SpawnProcess, answer: Connection) -> "dict[str, Any] | NotebookFailed":
    with answer:
        try:
            seal: dict[str, Any] | NotebookFailed = answer.recv()
        except EOFError:
            driver.join()
            seal = NotebookFailed(f"{name} failed: the process that drove it ended with exit code {driver.exitcode}")
    driver.join()
    return seal


def _drive(answer: Connection, path: Path, told: dict[str, Any]) -> None:
    """Execute a notebook and send its seal, or what failed. SIGTERM and the parent's death end it early."""

    def follow_the_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, lambda signum, frame: None)  # of the terminal: the parent hears it too, and terminates
    threading.Thread(target=follow_the_parent, daemon=True).start()
    with suppress(KeyboardInterrupt), termination_interrupts():
        try:
            answer.send(execute(path, **told))
        except NotebookFailed as failure:
            answer.send(failure)


@contextmanager
def termination_interrupts() -> Generator[None, None, None]:
    """Treat SIGTERM like Ctrl-C: a process that dies at once leaves what it has started behind."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to no other thread
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
