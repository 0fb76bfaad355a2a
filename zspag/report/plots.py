"""Figures from files: panels of a few kinds for runs, sweeps and audits; for notebooks, functions of their own.

A file of the laboratory names one kind of panel in ``draw`` and holds ``{"panels": [...], "columns": n}`` in ``data``;
each function below draws one kind on an axis and says in its docstring what a panel holds. A file of a notebook names
the notebook's function and holds tidy frames (see ``frames``).

Invariant: nothing here computes a result or imports torch, so anyone redraws every figure from the files. Series are
told apart by colour *and* by marker or hatch, which survives a black-and-white print.
"""

import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zspag.report import colours, files, frames, provenance
from zspag.report.files import repository_root

Panel = dict[str, Any]
Look = dict[str, Any]  # keyword arguments of matplotlib

DPI = 100
METHOD_COLOURS = colours.METHOD_COLOURS  # notebooks take it from here
MOST_GROUPS = 20  # of bars that can be told apart
_MARKERS = "osD^vP*X<>"
_HATCHES = ("", "//", "..", "xx", "\\\\", "--", "++", "oo", "**", "||")
_EDGE: Look = {"edgecolor": "white", "linewidth": 0.5}
_ERRORS: Look = {"elinewidth": 0.8}


def save(result: dict[str, Any], target: Path) -> None:
    """Draw the figure of a result file as a PNG, atomically, its provenance in the file's text chunk.

    It has 128 colours: a third of the bytes, and lines, bars and letters look the same.
    """
    write(draw(result), result, target)


def write(figure: Figure, result: dict[str, Any], target: Path) -> None:
    """Write a figure that has been drawn from a result file; see ``save``."""
    drawn, chunks = io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", dpi=DPI)
    for name, text in provenance.png_metadata(result["provenance"]).items():
        chunks.add_text(name, text)
    with Image.open(drawn) as full, files.replacing(target) as temporary:
        pixels = full.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        pixels.save(temporary, format="PNG", optimize=True, dpi=(DPI, DPI), pnginfo=chunks)


def inches_wide(path: Path) -> float:
    """Return how wide the figure of a PNG is."""
    with Image.open(path) as picture:
        return picture.width / DPI


def draw(result: dict[str, Any]) -> Figure:
    """Return the figure of a result file, all panels on one grid, the profile named in the footer.

    A panel that names another ``kind`` is drawn as that. Where the file holds frames, their notebook draws them.

    Raises:
        ValueError: If ``draw`` or a panel names no kind of panel, or the notebook has no such function.
    """
    data = result["data"]
    if "frames" in data:
        (notebook,) = (repository_root() / "notebooks").glob(f"{result['name'][:2]}_*.ipynb")
        return drawn_by(frames.from_notebook(notebook, result["draw"]), result)
    kinds = [panel.get("kind", result["draw"]) for panel in data.get("panels", ())]
    for wanted in (result["draw"], *kinds):
        if wanted not in KINDS:
            raise ValueError(f"{result['name']}: there is no kind of panel {wanted!r}; kinds are {', '.join(KINDS)}")
    panels = data["panels"]
    across = min(data.get("columns", 2), len(panels))
    down = -(-len(panels) // across)
    width, height = data.get("size", (4.6, 3.4))
    with sns.axes_style("ticks", {"axes.grid": True, "grid.color": "#e6e6e6"}), mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(width * across, height * down + 0.35), layout="constrained")
        axes = list(figure.subplots(down, across, squeeze=False).flat)
        styles = _styles(panels)
        for axis, panel, kind in zip(axes, panels, kinds, strict=False):
            KINDS[kind](axis, panel | {"styles": styles})
            axis.set_title(panel.get("title", ""), fontsize=10)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        handles: dict[str, list[Any]] = {}  # one legend for all panels, above them, with every name once
        for axis in figure.axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, []).append(handle)
        if handles:
            columns = min(len(handles), max(2, int(figure.get_figwidth() // 2)))
            look: Look = {"loc": "outside upper center", "ncols": columns, "frameon": False, "fontsize": 8}
            figure.legend([_key(several) for several in handles.values()], handles.keys(), **look)
        figure.supxlabel(_footer(result), fontsize=7, color="#666666", x=0.99, ha="right")
    return figure


def drawn_by(draws: frames.Draw, result: dict[str, Any]) -> Figure:
    """Return the figure that a notebook's function draws of the frames of a result file, with the same footer."""
    figure = frames.render(draws, result["data"]["frames"])
    figure.supxlabel(_footer(result), fontsize=7, color="#666666", x=0.99, ha="right")
    figure.draw_without_rendering()  # texts find their places
    return figure


def _key(handles: Sequence[Any]) -> Any:
    """Return what stands for a name in the legend: a line without marks gets the mark that another panel draws."""
    first = handles[0]
    marks = [one.get_marker() for one in handles if isinstance(one, Line2D) and one.get_marker() != "None"]
    if not isinstance(first, Line2D) or not marks:
        return first
    look: Look = {"color": first.get_color(), "linestyle": first.get_linestyle(), "linewidth": first.get_linewidth()}
    return Line2D([], [], marker=marks[0], markersize=4.5, **look)


def _footer(result: dict[str, Any]) -> str:
    config = result["provenance"].get("config") or {}
    kind = f"{result['profile']}: a demonstration" if config.get("demonstration") else f"profile {result['profile']}"
    if config.get("trial"):
        kind = f"{result['profile']}: a trial run, its numbers mean nothing"
    commit = result["provenance"].get("commit")
    made_of = (result["data"]["of"],) if "of" in result["data"] else (kind, config.get("dataset"))
    parts = (*made_of, f"zspag {commit[:7]}" if commit else "zspag")
    return " · ".join(part for part in parts if part)


def _styles(panels: Sequence[Panel]) -> dict[str, tuple[int, int]]:
    # Each name's colour and mark (marker, hatch or dash), the same in all panels of a figure. Colours run out before
    # names do, so two names may share one, but never colour and mark.
    names = dict.fromkeys(
        name for panel in panels for part in ("series", "points", "names") for name in panel.get(part) or ()
    )
    known = {colours.KNOWN[name] for name in names if name in colours.KNOWN}
    every = range(len(colours.COLOURS))
    fresh = itertools.cycle([colour for colour in every if colour not in known] or every)
    styles = {
        name: colours.METHODS[colours.OLDER.get(name, name)]
        for name in names
        if colours.OLDER.get(name, name) in colours.METHODS
    }
    for name in [name for name in names if name not in styles]:
        colour = colours.KNOWN[name] if name in colours.KNOWN else next(fresh)
        own = [(colour, (colour + shift) % len(_MARKERS)) for shift in every]
        pairs = itertools.chain(own, itertools.product(every, range(len(_MARKERS))))
        styles[name] = next((pair for pair in pairs if pair not in styles.values()), own[0])
    return styles


def _finish(axis: Axes, panel: Panel) -> None:
    # Labels, scales, limits and reference lines, which all kinds share; ``lines`` maps a label to a height.
    for label, height in (panel.get("lines") or {}).items():
        axis.axhline(height, color="#333333", linewidth=1, linestyle="--", zorder=1)
        axis.text(0.99, height, label, transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=7)
    axis.set_xlabel(panel.get("xlabel", ""))
    axis.set_ylabel(panel.get("ylabel", ""))
    if panel.get("xlog"):
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())  # or labels run into each other
    if panel.get("ylog"):
        axis.set_yscale("log")
    if panel.get("xticks"):
        axis.set_xticks(panel["xticks"], [f"{tick:g}" for tick in panel["xticks"]])
    if panel.get("xlim"):
        axis.set_xlim(*panel["xlim"])
    if panel.get("ylim"):
        axis.set_ylim(*panel["ylim"])
    sns.despine(ax=axis)


def bars(axis: Axes, panel: Panel) -> None:
    """Grouped bars: ``groups`` (names), ``series`` {name: heights}, optional ``errors`` {name: half-widths}.

    Of many groups those are drawn in which the series differ most, in their own order.
    """
    panel = _told_apart(panel)
    groups, series = panel["groups"], panel["series"]
    width = 0.8 / len(series)
    for index, (name, heights) in enumerate(series.items()):
        colour, mark = panel["styles"][name]
        places = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
        told: Look = {"label": name, "hatch": _HATCHES[mark]} if len(series) > 1 else {}
        errors: Look = {"yerr": (panel.get("errors") or {}).get(name), "error_kw": _ERRORS | {"ecolor": "#333333"}}
        axis.bar(places, heights, width, color=colours.COLOURS[colour], **told, **_EDGE, **errors)
    long = max(len(str(group)) for group in groups) * len(groups) > 60
    tilt: Look = {"rotation": 35, "ha": "right"} if long else {}
    axis.set_xticks(range(len(groups)), [str(group) for group in groups], **tilt)
    axis.grid(visible=False, axis="x")
    _finish(axis, panel)


def _told_apart(panel: Panel) -> Panel:
    """Return a panel of bars with at most ``MOST_GROUPS`` groups, which says how many were left out."""
    groups = panel["groups"]
    if len(groups) <= MOST_GROUPS:
        return panel
    apart = np.ptp(np.array(list(panel["series"].values()), dtype=float), axis=0)
    kept = sorted(np.argsort(-apart, kind="stable")[:MOST_GROUPS])

    def cut(several: dict[str, Any] | None) -> dict[str, Any]:
        return {name: [values[index] for index in kept] for name, values in (several or {}).items()}

    shown = {"groups": [groups[index] for index in kept], "series": cut(panel["series"])}
    label = f"the {len(kept)} of {len(groups)} in which they differ most"
    return panel | shown | {"errors": cut(panel.get("errors")), "xlabel": label}


def ranked(axis: Axes, panel: Panel) -> None:
    """Horizontal bars: ``names``, ``values``, optional ``errors``; the order is the caller's, first on top.

    Where there is a ``base``, bars begin there, and what falls short of it is told apart by colour and hatch.
    """
    names, values, base = panel["names"], np.asarray(panel["values"]), panel.get("base")
    places = np.arange(len(names))[::-1]
    if base is None:
        own = [colours.COLOURS[panel["styles"][name][0]] for name in names]
        axis.barh(places, values, 0.7, color=own, xerr=panel.get("errors"), error_kw=_ERRORS)
    else:
        short = values < base
        own = list(np.where(short, colours.COLOURS[3], colours.COLOURS[0]))
        hatches = [_HATCHES[1] * bool(one) for one in short]
        axis.barh(places, values - base, 0.7, left=base, color=own, hatch=hatches, **_EDGE)
        axis.axvline(base, color="#333333", linewidth=1)
    axis.set_yticks(places, names)
    axis.grid(visible=False, axis="y")
    _finish(axis, panel)


def curves(axis: Axes, panel: Panel) -> None:
    """Lines with markers: ``series`` {name: {x, y, optional low and high}}; ``plain`` draws without markers."""
    for name, points in panel["series"].items():
        colour, mark = panel["styles"][name]
        look: Look = {"marker": _MARKERS[mark], "markersize": 4.5}
        if panel.get("plain"):
            look = {"linestyle": ("-", "--", "-.", ":")[mark % 4]}
        axis.plot(points["x"], points["y"], color=colours.COLOURS[colour], linewidth=1.5, label=name, **look)
        if points.get("low") is not None:
            band: Look = {"color": colours.COLOURS[colour], "alpha": 0.18, "linewidth": 0}
            axis.fill_between(points["x"], points["low"], points["high"], **band)
    _finish(axis, panel)


def scatter(axis: Axes, panel: Panel) -> None:
    """Points: ``series`` {name: {x, y}}; ``diagonal`` draws y = x behind them.

    Where a few points lie ten times as far right as most, x is logarithmic beyond where most lie: see ``_far``.
    """
    for name, points in panel["series"].items():
        colour, mark = panel["styles"][name]
        look: Look = {"s": panel.get("dot", 14), "color": colours.COLOURS[colour], "marker": _MARKERS[mark]}
        label = name if len(panel["series"]) > 1 else None
        axis.scatter(points["x"], points["y"], alpha=0.7, linewidths=0, label=label, **look)
    _finish(axis, panel)
    places = [x for points in panel["series"].values() for x in points["x"]]
    if not places:
        axis.text(0.5, 0.5, "nothing to show", transform=axis.transAxes, ha="center", color="#666666")
    far = _far(places)
    if far is not None and not panel.get("diagonal"):
        axis.set_xscale("symlog", linthresh=far, linscale=2)
        axis.set_xlim(min(0.0, *places) - far / 4, 2 * max(places))
        decades = [10.0**power for power in range(-3, 4) if 2 * far < 10.0**power < 2 * max(places)]
        ticks = [0.0, far / 2, far, *decades]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.set_xlabel(f"{panel.get('xlabel', '')}\n(logarithmic beyond {far:g})")
    if panel.get("diagonal"):
        low, high = min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])
        axis.plot([low, high], [low, high], color="#333333", linewidth=1, linestyle="--", label="y = x", zorder=1)


def _far(values: Sequence[float]) -> float | None:
    """Return where three quarters of the values end, rounded up to one digit, if others lie ten times as far."""
    sizes = np.abs(np.asarray(values, dtype=float))
    most = float(np.quantile(sizes, 0.75)) if len(sizes) else 0.0
    if most <= 0 or sizes.max() < 10 * most:
        return None
    digit = 10.0 ** np.floor(np.log10(most))
    return float(np.ceil(most / digit) * digit)


_ALL = (bars, ranked, curves, scatter)
KINDS: dict[str, Callable[[Axes, Panel], None]] = {kind.__name__: kind for kind in _ALL}
