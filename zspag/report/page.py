"""What every notebook uses: the profile, and a page that saves figures and numbers and seals what it made.

Invariant: a figure is drawn from the file that holds its numbers, never from memory, and a seal names only files that
exist, each with its SHA-256. A notebook without a seal has not finished.
"""

import base64
import hashlib
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zspag import config
from zspag.process.allocator import RSS_UNIT, keep_freed_memory, peak_bytes
from zspag.profiles import PROFILES, Profile
from zspag.report import files, provenance
from zspag.report.files import plain, repository_root
from zspag.report.results import Result, factor_of

if TYPE_CHECKING:
    from zspag.report.frames import Draw, Frames

SCHEMA = 1
_NAME = re.compile(r"\d\d_[a-z0-9_]+")
_SCREEN_DPI = 96  # CSS pixels per inch: a figure is shown at its own size, whatever resolution its file has
_MIB = 2**20
_SHORTEST_ALT = 8  # words


def resolve_profile(profile: str | None) -> Profile:
    """Return the profile to work with: the papermill parameter, then ``ZSPAG_PROFILE``, then "digits".

    Raises:
        ValueError: If no profile has this name; the message lists those that exist.
    """
    name = profile or os.environ.get("ZSPAG_PROFILE") or "digits"
    if name not in PROFILES:
        raise ValueError(f"there is no profile {name!r}; choose one of {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Picture:
    """A saved figure as a notebook shows it: the bytes of the file itself, so that page and folder never differ."""

    path: Path
    title: str  # stands for the picture where none can be shown
    width: int  # on screen, in CSS pixels

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, str], dict[str, dict[str, int | str]]]:
        content = base64.b64encode(self.path.read_bytes()).decode("ascii")
        return {"image/png": content, "text/plain": repr(self)}, {"image/png": {"width": self.width, "alt": self.title}}

    def __repr__(self) -> str:
        return f"<{self.title}>"


class Page:
    """One notebook's outputs, from its first number to its seal.

    Args:
        name: Name of the notebook without ending, such as ``02_proxy_generation``.
        profile: The profile the notebook runs, or its name.
        data_sha256: Hash of the data set the numbers come from, for their provenance; may be set later.

    Raises:
        ValueError: If the name does not start with two digits, or the profile is unknown.
    """

    def __init__(self, name: str, profile: Profile | str, *, data_sha256: str | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a notebook is called like 02_proxy_generation, got {name!r}")
        keep_freed_memory()
        self.name = name
        self.profile = resolve_profile(profile) if isinstance(profile, str) else profile
        self.data_sha256 = data_sha256
        self._root = repository_root()
        self._started = time.time()
        self._outputs: dict[str, tuple[Path, ...]] = {}  # by result name: a cell that runs twice declares once

    def plot(
        self,
        name: str,
        draw: "Draw",
        frames: "Frames",
        *,
        alt: str,
        of: str | None = None,
        measurements: Mapping[str, Any] | None = None,
        numbers: Mapping[str, tuple[Any, float | str | None]] | None = None,
        seed: int | None = None,
    ) -> Picture:
        """Write tidy frames, draw them with a function of this notebook, and return the figure for display.

        Args:
            name: Name of the figure; starts with the notebook's number.
            draw: A function of this notebook that returns a matplotlib figure. It gets the frames as keyword arguments
                (a single one as ``frame``), and uses nothing else but mpl, np, pd, plt, sns, METHOD_COLOURS and
                label_lines, so that the recorded numbers can be drawn again without running the notebook.
            frames: What is drawn, one observation per row; or several frames by name.
            alt: What is seen and what it says, in one or two sentences, for those who cannot see it.
            of: What data are shown, where they are not those of the profile but of a record; the footer says it.
            measurements: What claims and tables read, by key.
            numbers: Headline numbers as ``{name: (value, tolerance)}``; see ``Result``.
                A tolerance of None marks a number that differs from run to run, such as a time.
            seed: Seed behind the numbers, if there is one.

        Raises:
            ValueError: If the name belongs to another notebook, there is no alt text, the function needs something of
                the notebook, or a number is infinite.

        Warns:
            UserWarning: What is wrong with the figure, such as clipped text; a test refuses such a recorded figure.
        """
        from zspag.report import figure_faults, plots  # late: matplotlib takes a second
        from zspag.report import frames as tidy

        if len(alt.split()) < _SHORTEST_ALT:
            raise ValueError(f"figure {name} needs an alt text of {_SHORTEST_ALT} words or more, got {alt!r}")
        if foreign := tidy.foreign_names(draw):
            raise ValueError(f"{draw.__name__} uses {', '.join(foreign)} of the notebook: put it into the frame")
        data = {"frames": tidy.to_json(frames)} | ({} if of is None else {"of": of})
        shown = {"draw": draw.__name__, "data": data, "caption": alt}
        saved = self._save(name, shown, measurements or {}, numbers=numbers, seed=seed)
        target = self._root / "figures" / self.profile.name / f"{name}.png"
        content = files.read_json(saved)
        figure = plots.drawn_by(draw, content)
        for fault in figure_faults.faults(figure):
            warnings.warn(f"figure {name}: {fault}", stacklevel=2)
        plots.write(figure, content, target)
        self._outputs[name] = (saved, target)
        return Picture(target, f"figure {name}: {alt}", round(_SCREEN_DPI * plots.inches_wide(target)))

    def result(
        self,
        name: str,
        measurements: Mapping[str, Any],
        *,
        numbers: Mapping[str, tuple[Any, float | str | None]] | None = None,
        seed: int | None = None,
    ) -> None:
        """Write numbers that no figure shows; arguments as in ``plot``."""
        self._outputs[name] = (self._save(name, {}, measurements, numbers=numbers, seed=seed),)

    def expect(self, finding: object) -> None:
        """Assert a finding: something that a trained network shows, and that one trained on a trial's share need not.

        Raises:
            AssertionError: If the finding does not hold and the profile has all of its data.
        """
        if self.profile.share == 1 and not finding:
            raise AssertionError(f"a finding of {self.name} does not hold in the {self.profile.name} profile")

    def seal(self) -> str:
        """Write down what this notebook made and what it cost; return one line about it.

        Raises:
            FileNotFoundError: If a declared output is no longer there.
        """
        paths = [path for group in self._outputs.values() for path in group]
        if missing := [str(path.relative_to(self._root)) for path in paths if not path.is_file()]:
            gone = ", ".join(missing)
            raise FileNotFoundError(f"{self.name} declared {gone}, which is not there; run its cell again")
        record, torch = self._record(seed=None), sys.modules.get("torch")
        gpu_bytes = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else None
        seal = {
            "schema": SCHEMA,
            "notebook": self.name,
            "profile": self.profile.name,
            "outputs": {path.relative_to(self._root).as_posix(): sha256(path) for path in paths},
            "seconds": plain(time.time() - self._started, "seconds"),
            "peak_memory_mib": {
                "self": round(peak_bytes() / _MIB, 1),
                # Of the largest finished child process; on Linux an upper bound.
                "largest_child": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RSS_UNIT / _MIB, 1),
            },
            "peak_device_memory_mib": None if gpu_bytes is None else round(gpu_bytes / _MIB, 1),
            "device": record["device"],
            "threads": record["threads"],
            "provenance": record,
        }
        files.write_json(self._runs("seals") / f"{self.name}.json", seal)
        figures = sum(len(group) > 1 for group in self._outputs.values())
        counts = ((figures, "figure"), (len(self._outputs) - figures, "result"))
        made = ", ".join(f"{count} {thing}{'' if count == 1 else 's'}" for count, thing in counts)
        return f"{self.name}: {made}, {seal['seconds']:.0f} s"

    def _runs(self, folder: str) -> Path:
        return self._root / "runs" / self.profile.name / folder

    def _record(self, *, seed: int | None) -> dict[str, Any]:
        device, threads = _device_and_threads(self.profile)
        return provenance.record(
            config=config.to_dict(self.profile),
            seed=seed,
            data_sha256=self.data_sha256,
            device=device,
            threads=threads,
            started=self._started,
        )

    def _save(
        self,
        name: str,
        shown: Mapping[str, Any],
        measurements: Mapping[str, Any],
        *,
        numbers: Mapping[str, tuple[Any, float | str | None]] | None,
        seed: int | None,
    ) -> Path:
        if not _NAME.fullmatch(name) or name[:2] != self.name[:2]:
            raise ValueError(f"results of {self.name} are called {self.name[:2]}_..., got {name!r}")
        path = self._runs("results") / f"{name}.json"
        result = Result(
            name=name,
            profile=self.profile.name,
            provenance=self._record(seed=seed),
            measurements=plain(measurements, "measurements"),
            numbers=_checked_numbers(numbers or {}),
            **shown,
        )
        files.write_json(path, result.to_dict())
        return path


def _checked_numbers(numbers: Mapping[str, tuple[Any, float | str | None]]) -> dict[str, list[Any]]:
    checked: dict[str, list[Any]] = plain(numbers, "numbers")
    for name, answer in checked.items():
        if not isinstance(answer, list) or len(answer) != 2:
            raise ValueError(f"numbers.{name} must be a pair (value, tolerance), got {answer!r}")
        value, tolerance = answer
        if not isinstance(value, (int, float)):
            raise ValueError(f"the value of numbers.{name} must be a number, got {value!r}")
        if factor_of(tolerance) is not None or tolerance is None:
            continue
        if not isinstance(tolerance, (int, float)) or tolerance < 0:
            raise ValueError(f"the tolerance of numbers.{name} must be a number from 0 or None, got {tolerance!r}")
    return checked


def _device_and_threads(profile: Profile) -> tuple[str, int]:
    torch = sys.modules.get("torch")
    if torch is None:  # the page computed nothing, or on the CPU
        return "cpu", profile.threads
    return ("cuda" if torch.cuda.is_available() else "cpu"), torch.get_num_threads()
