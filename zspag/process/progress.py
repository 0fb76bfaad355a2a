"""How far a run is: a bar on a terminal or in a notebook, or a call of the user's own function.

Invariant: nothing here changes a result; without a listener nothing is shown and nothing is called.
"""

import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[str, int, int], None]  # receives the stage, steps done, steps in all (an estimate)

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def watched(progress: bool | Listener | None) -> Generator[None, None, None]:
    """Report every step to a bar or a function until the end.

    Args:
        progress: None shows a bar on a terminal or in a notebook, True always does, False never; a function is called
            with stage, done and total.

    Raises:
        ValueError: If it is something else.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise ValueError(f"progress must be None, True, False or a function (stage, done, total), got {progress!r}")
    bar = _Bar()
    listener: Listener | None = None
    if callable(progress):
        listener = progress
    elif progress or (progress is None and somebody_watches()):
        listener = bar
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
        bar.close()


def step(stage: str, done: int, total: int) -> None:
    """Tell the listener, if there is one, that ``done`` of about ``total`` steps of a stage are done."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(stage, done, max(done, total))


def somebody_watches() -> bool:
    """Tell whether a bar would be seen: on a terminal or in a notebook, and where ZSPAG_PROGRESS=1 asks for it."""
    chosen = os.environ.get("ZSPAG_PROGRESS")
    if chosen is not None:
        return chosen == "1"
    python = sys.modules.get("IPython")
    kernel = None if python is None else getattr(python.get_ipython(), "kernel", None)
    return kernel is not None or (sys.stderr is not None and sys.stderr.isatty())


class _Bar:
    """A bar of tqdm for the stage at hand."""

    def __init__(self) -> None:
        self.stage = ""
        self.bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage or self.bar is None:
            self.close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tqdm asks for ipywidgets, without which it draws a plain bar
                from tqdm.auto import tqdm
            self.stage, self.bar = stage, tqdm(total=total, desc=stage, leave=False, dynamic_ncols=True)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
