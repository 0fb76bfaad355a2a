"""Figures that a notebook draws: one function of tidy frames, kept in the notebook, and the numbers in a file.

Invariant: the function sees the frames as the file holds them and a fixed set of libraries, nothing else of the
notebook. So the committed file and the committed notebook give the same figure again, and no cell has to run.
"""

import ast
import builtins
import dis
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, TypeAlias

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from zspag.report.colours import METHOD_COLOURS
from zspag.report.files import plain, read_json

Frames: TypeAlias = pd.DataFrame | Mapping[str, pd.DataFrame]
Draw: TypeAlias = Callable[..., Figure]

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "figure.constrained_layout.use": True,
}


def label_lines(axis: Axes) -> None:
    """Write every labelled line's name at its right end, in its colour, in place of a legend.

    Names that would touch are moved apart. Call it last: scales and limits must be final.
    """
    handles, labels = axis.get_legend_handles_labels()  # seaborn names lines without data, one per colour
    names = {
        to_hex(one.get_color()): name for one, name in zip(handles, labels, strict=True) if hasattr(one, "get_color")
    }
    ends: dict[str, tuple[float, float, float, Any]] = {}
    for line in axis.get_lines():
        x, y = (np.asarray(values, float) for values in line.get_data())
        finite, name = np.isfinite(x) & np.isfinite(y), names.get(to_hex(line.get_color()))
        if name is not None and finite.any():
            last = np.flatnonzero(finite)[np.argmax(x[finite])]
            ends.setdefault(name, (axis.transData.transform((x[last], y[last]))[1], x[last], y[last], line.get_color()))
    gap = 1.15 * mpl.font_manager.FontProperties(size=8).get_size_in_points() * axis.figure.dpi / 72
    place = -np.inf
    for name, (pixel, x_end, y_end, colour) in sorted(ends.items(), key=lambda end: end[1][0]):
        place = max(pixel, place + gap)
        lift = (place - pixel) * 72 / axis.figure.dpi
        look: dict[str, Any] = {"color": colour, "fontsize": 8, "va": "center", "annotation_clip": False}
        axis.annotate(name, (x_end, y_end), xytext=(5, lift), textcoords="offset points", **look)
    if (legend := axis.get_legend()) is not None:
        legend.remove()


def prelude() -> dict[str, Any]:
    """Return what a drawing function may use: the plotting libraries and this package's names of colours."""
    own = {"METHOD_COLOURS": METHOD_COLOURS, "label_lines": label_lines}
    return {"mpl": mpl, "np": np, "pd": pd, "plt": plt, "sns": sns, **own}


def to_json(frames: Frames) -> dict[str, dict[str, list[Any]]]:
    """Return frames as JSON holds them: name of the frame, name of the column, values. A single frame is "frame"."""
    several = {"frame": frames} if isinstance(frames, pd.DataFrame) else frames
    return {
        name: {
            str(column): plain([None if _missing(value) else value for value in frame[column]], f"{name}.{column}")
            for column in frame.columns
        }
        for name, frame in several.items()
    }


def _missing(value: object) -> bool:
    return isinstance(value, float) and value != value  # NaN alone differs from itself


def from_json(content: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, pd.DataFrame]:
    """Return the frames that ``to_json`` wrote, each with a fresh index."""
    return {name: pd.DataFrame(dict(columns)) for name, columns in content.items()}


def render(draw: Draw, content: Mapping[str, Mapping[str, list[Any]]]) -> Figure:
    """Return the figure that ``draw`` makes of frames as JSON holds them, in the style of this project.

    What a plot draws at random, such as the jitter of dots, is the same each time; the caller's stream goes on.
    """
    state = np.random.get_state()
    np.random.seed(0)
    try:
        with sns.axes_style("ticks"), mpl.rc_context(_STYLE), sns.color_palette("colorblind"):
            figure = draw(**from_json(content))
    finally:
        np.random.set_state(state)
    plt.close(figure)  # or a notebook shows it a second time, at another resolution
    return figure


def foreign_names(draw: Draw) -> list[str]:
    """Return the names that a drawing function takes from the notebook: it could not be redrawn without it."""
    known = {*prelude(), *vars(builtins)}
    return sorted({name for name in _globals_of(draw.__code__) if name not in known})


def _globals_of(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_of(inner)


def from_notebook(notebook: Path, name: str) -> Draw:
    """Return the drawing function ``name`` as the notebook's cells define it, without running them.

    Raises:
        ValueError: If the notebook defines no such function.
    """
    for cell in read_json(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or f"def {name}(" not in source:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                scope = prelude()
                # The code is this repository's own: the notebook that the record names.
                exec(compile(ast.Module([node], []), str(notebook), "exec"), scope)  # noqa: S102
                found: Draw = scope[name]
                return found
    raise ValueError(f"{notebook.name} defines no function {name}, which draws one of its recorded figures")
