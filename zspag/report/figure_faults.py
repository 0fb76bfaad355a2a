"""What is wrong with a figure before anyone reads it: no information, clipped words, colours that say too much."""

import itertools
import re
from collections.abc import Hashable, Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryConverter
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

MOST_SERIES = 5
_CODE_NAME = re.compile(r"\b[a-z]+_[a-z_]+\b|^\d+\.(weight|bias)$")
_OVERLAP = 0.15  # share of the smaller text that another one may cover: bounding boxes are larger than letters
_JUST_OUTSIDE = 1.5  # pixels
_NEXT_GREY = 0.14  # two greys that differ by less, on a scale from black (0) to white (1), are one grey in print
_NO_LINE = ("None", "", " ")
_LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look


def faults(figure: Figure) -> list[str]:
    """Return what a reader would trip over, one short sentence each; an empty list is a figure that may be shown.

    Args:
        figure: A figure that has been drawn once, so that its texts have places.
    """
    found: list[str] = []
    for number, axis in enumerate(figure.axes, 1):
        if axis.get_visible():
            found += [f"panel {number} {fault}" for fault in _panel_faults(axis)]
    return found + list(_text_faults(figure))


def _panel_faults(axis: Axes) -> Iterator[str]:
    x, y = _points(axis)
    names = {"x": (x, axis.xaxis), "y": (y, axis.yaxis)}
    for name, (values, side) in names.items():
        finite = values[np.isfinite(values)]
        if len(finite) > 1 and np.ptp(finite) <= 1e-9 * max(1e-12, np.abs(finite).max()) and not _named(side):
            yield f"shows the one {name} value {finite[0]:g}"
    if not (axis.lines or axis.collections or axis.patches or axis.images or axis.texts):
        yield "is empty"
    if axis.axison and not axis.images and not (axis.get_xlabel() or axis.get_ylabel()) and axis.get_xticks().size:
        yield "has no label on either axis"
    yield from _series_faults(axis)
    yield from _print_faults(axis)
    for name, (_, side) in names.items():
        if _named(side) and any(_joins(line, name) for line in axis.lines if line.get_transform() == axis.transData):
            yield "joins categories with a line"


def _series_faults(axis: Axes) -> Iterator[str]:
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    if len(handles) > MOST_SERIES:
        yield f"has {len(handles)} series, {MOST_SERIES} is the most"
    colours = {name: colour for name, handle in handles.items() if (colour := _colour(handle)) is not None}
    for one, other in itertools.combinations(colours, 2):
        if colours[one] == colours[other]:
            yield f"gives {one!r} and {other!r} the same colour"
    bars = [container for container in axis.containers if isinstance(container, BarContainer)]
    upright = any(bar.orientation == "vertical" for bar in bars)
    flat = any(bar.orientation == "horizontal" for bar in bars)
    if (upright and axis.get_yscale() == "log") or (flat and axis.get_xscale() == "log"):
        yield "has bars on a logarithmic axis, whose length means nothing: use dots"


def _print_faults(axis: Axes) -> Iterator[str]:
    # Series that differ by hue alone: same mark or dash, nearly the same grey, no name beside both of them.
    looks: dict[str, dict[str, set[Hashable]]] = {}  # colour, then what carries a look, then looks
    for colour, carrier, look in _looks(axis):
        looks.setdefault(colour, {}).setdefault(carrier, set()).add(look)
    named = {to_hex(text.get_color()) for text in axis.texts if text.get_text().strip()}
    for one, other in itertools.combinations(looks, 2):
        both = looks[one].keys() & looks[other].keys()
        if {one, other} <= named or not both or not _same_grey(one, other):
            continue
        if all(looks[one][carrier] & looks[other][carrier] for carrier in both):
            yield f"tells {one} and {other} apart by hue alone: use marks, dashes or direct labels"
    for image in axis.images:
        if isinstance(image.cmap, ListedColormap) and image.cmap.N <= MOST_SERIES:
            for one, other in itertools.combinations(map(to_hex, image.cmap(range(image.cmap.N))), 2):
                if _same_grey(one, other, closest=_NEXT_GREY / 2):  # areas lie side by side
                    yield f"shades areas in {one} and {other}, which are one grey in print"


def _same_grey(one: str, other: str, *, closest: float = _NEXT_GREY) -> bool:
    return abs(float(np.dot(_LUMA, to_rgb(one)) - np.dot(_LUMA, to_rgb(other)))) < closest


def _looks(axis: Axes) -> Iterator[tuple[str, str, Hashable]]:
    # The colour of each series, and what tells it from others: dash, mark, hatch, or its place among categories.
    for line in axis.lines:
        if line.get_transform() != axis.transData or not np.size(line.get_xdata()):
            continue
        colour = to_hex(line.get_color())
        if line.get_linestyle() not in _NO_LINE:
            yield colour, "dash", repr(line._unscaled_dash_pattern)  # type: ignore[attr-defined]
        if line.get_marker() not in (*_NO_LINE, None):
            yield colour, "mark", str(line.get_marker())
    for marks in axis.collections:
        if isinstance(marks, PathCollection) and len(marks.get_facecolor()):
            yield from _dot_looks(axis, marks)
    for bars in axis.containers:
        if isinstance(bars, BarContainer) and bars.patches:
            yield to_hex(bars.patches[0].get_facecolor()), "hatch", bars.patches[0].get_hatch()


def _dot_looks(axis: Axes, marks: PathCollection) -> Iterator[tuple[str, str, Hashable]]:
    offsets: np.ndarray = np.ma.filled(np.ma.asarray(marks.get_offsets(), float), np.nan).reshape(-1, 2)
    colours, paths = [to_hex(colour) for colour in np.atleast_2d(marks.get_facecolor())], marks.get_paths()
    for dot, place in enumerate(offsets):
        colour, shape = colours[dot % len(colours)], np.asarray(paths[dot % len(paths)].vertices)
        yield colour, "shape", shape.round(3).tobytes()
        for number, side in enumerate((axis.xaxis, axis.yaxis)):
            if _named(side):
                yield colour, f"category {number}", round(place[number])


def _points(axis: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Return where the data are: points of lines and marks, ends of bars. Lines across a whole panel are no data."""
    xs, ys = [], []
    for line in axis.lines:
        if line.get_transform() == axis.transData:
            xs.append(np.asarray(axis.convert_xunits(line.get_xdata()), float))
            ys.append(np.asarray(axis.convert_yunits(line.get_ydata()), float))
    for marks in axis.collections:
        if isinstance(marks, PathCollection):
            offsets: np.ndarray = np.ma.filled(np.ma.asarray(marks.get_offsets(), float), np.nan).reshape(-1, 2)
            xs.append(offsets[:, 0])
            ys.append(offsets[:, 1])
    for bars in axis.containers:
        if isinstance(bars, BarContainer):
            ends = [(bar.get_width(), bar.get_height()) for bar in bars.patches]
            (ys if bars.orientation == "vertical" else xs).append(
                np.array([end[bars.orientation == "vertical"] for end in ends], float)
            )
    return (np.concatenate(part) if part else np.zeros(0) for part in (xs, ys))  # type: ignore[return-value]


def _named(side: object) -> bool:
    # seaborn and matplotlib put names on an axis in two ways: a converter, or fixed labels.
    converter = side.get_converter() if hasattr(side, "get_converter") else None
    return isinstance(converter, StrCategoryConverter)


def _joins(line: Line2D, name: str) -> bool:
    if line.get_linestyle() in _NO_LINE:
        return False
    values = np.asarray(line.get_xdata(orig=False) if name == "x" else line.get_ydata(orig=False), float)
    return len(np.unique(values[np.isfinite(values)])) > 1


def _colour(handle: object) -> str | None:
    """Return the colour of a legend's handle, None where it has none or several."""
    if isinstance(handle, Line2D):
        return str(to_hex(handle.get_color()))
    if isinstance(handle, BarContainer):
        handle = handle.patches[0] if handle.patches else None
    colours = handle.get_facecolor() if hasattr(handle, "get_facecolor") else None
    if colours is None or not len(colours):
        return None
    return str(to_hex(np.atleast_2d(colours)[0]))


def _text_faults(figure: Figure) -> Iterator[str]:
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    ticks = {id(tick) for axis in figure.axes for tick in _hidden_ticks(axis)}
    places = {}
    for text in texts:
        box = text.get_window_extent()
        if id(text) in ticks or box.width * box.height == 0:
            continue
        if match := _CODE_NAME.search(text.get_text()):
            yield f"uses the code name {match[0]!r} as a label"
        inside = figure.bbox.padded(_JUST_OUTSIDE)
        if box.x0 < inside.x0 or box.y0 < inside.y0 or box.x1 > inside.x1 or box.y1 > inside.y1:
            yield f"clips the text {text.get_text()!r}"
        if text.get_rotation() % 90 == 0:  # the box of a tilted text is mostly empty
            places[text] = box
    for one, other in itertools.combinations(places, 2):
        first, second = places[one], places[other]
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        least = min(first.width * first.height, second.width * second.height)
        if wide > 0 and high > 0 and wide * high > _OVERLAP * least:
            yield f"prints {one.get_text()!r} over {other.get_text()!r}"


def _hidden_ticks(axis: Axes) -> Iterator[Text]:
    # Labels of ticks that are not shown: those outside the limits, or of an axis that is off.
    for side in (axis.xaxis, axis.yaxis):
        low, high = sorted(side.get_view_interval())
        for tick in (*side.get_major_ticks(), *side.get_minor_ticks()):
            outside = not low <= tick.get_loc() <= high
            if outside or not axis.axison or not axis.get_visible() or not side.get_visible():
                yield tick.label1
                yield tick.label2
        if not axis.axison or not axis.get_visible():
            yield side.label
            yield side.offsetText
