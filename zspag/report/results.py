"""A result: what was measured, what a figure shows of it, and what made it.

Invariant: claims, tables and README read ``measurements`` and ``numbers`` by key; ``data`` is for the figure alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from zspag.report import files

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Result:
    """The content of a result file. All values are plain JSON.

    Attributes:
        name: Name of the file without its ending.
        profile: Name of the profile.
        draw: Name of a kind of panel in ``plots``; None without a figure.
        caption: One or two sentences that say what is seen.
        numbers: Headline numbers as ``{name: (value, tolerance)}``. The reproduction report compares them. A tolerance
            is a number, or a factor such as "x3" for what spans orders of magnitude, such as a drift; None marks what
            differs from run to run, such as a time.
        measurements: What was measured, by key.
        data: What the figure shows, such as its panels.
        provenance: What made it, from ``provenance.record``.
        made: The same per method, where rows of another time joined those of today.
    """

    name: str
    profile: str
    draw: str | None = None
    caption: str = ""
    numbers: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any]
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The profile that made it, as a dictionary; options that are younger than the file may be missing."""
        found: dict[str, Any] = self.provenance["config"]
        return found

    def number(self, name: str) -> float:
        """Return the value of a headline number."""
        return float(self.numbers[name][0])

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return a result from the content of a file.

        Raises:
            ValueError: If the file has another schema, and so another form.
        """
        values = dict(content)
        if (schema := values.pop("schema", None)) != SCHEMA:
            raise ValueError(f"{values.get('name')} has schema {schema}, not {SCHEMA}; make it again")
        return cls(**values)


def factor_of(tolerance: Any) -> float | None:
    """Return the factor of a tolerance such as "x3", None of any other.

    Raises:
        ValueError: If it is a text, and no factor above 1.

    Example:
        >>> factor_of("x3"), factor_of(0.1), factor_of(None)
        (3.0, None, None)
    """
    if not isinstance(tolerance, str):
        return None
    try:
        factor = float(tolerance.removeprefix("x")) if tolerance.startswith("x") else 0.0
    except ValueError:
        factor = 0.0
    if not 1 < factor < float("inf"):
        raise ValueError(f'a tolerance in words is a factor above 1, such as "x3", got {tolerance!r}')
    return factor


def read(path: str | Path) -> Result:
    """Read a result file.

    Raises:
        ValueError: If it is not JSON or has another schema; the message names it.
    """
    return Result.from_dict(files.read_json(path))
