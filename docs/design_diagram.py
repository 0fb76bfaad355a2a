"""Draw docs/storeys.svg, the package in one picture: ``python docs/design_diagram.py``.

Names and arrows are read from the files of the package, so that a test can tell when the picture is out of date. As in
docs/method_diagram.py, letters stay text and stand in boxes of their own colour: it can be read on white and on black.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

PACKAGE = Path(__file__).parents[1] / "zspag"
STOREYS = {  # from the top: colour of the storey, title, what it may see
    "lab": ("#fde2c4", "The laboratory", "may see retained data"),
    "report": ("#d7e8f7", "The report", "reads files only"),
    "method": ("#cdebd8", "The method", "sees the forget set only"),
}
COLUMNS, CELL, ROW, MARGIN, GAP = 5, 18, 4.4, 2, 5.5
WIDTH = COLUMNS * CELL + MARGIN


def storey_of(path: Path) -> str:
    """Return the storey of a file of the package; the doors, ``__init__`` and ``__main__``, belong to none."""
    inside = path.relative_to(PACKAGE).parts
    if inside[0] in ("lab", "report"):
        return inside[0]
    return "" if inside[0].startswith("__") else "method"


def rooms() -> dict[str, list[str]]:
    """Return the modules of each storey, and then its folders, which end in a slash."""
    found: dict[str, list[str]] = {}
    for storey in STOREYS:
        folder = PACKAGE if storey == "method" else PACKAGE / storey
        modules = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")]
        inner = [path.parent.name + "/" for path in folder.glob("*/__init__.py") if storey_of(path) == storey]
        found[storey] = sorted(modules) + sorted(inner)
    return found


def imported() -> Iterator[tuple[str, str, str]]:
    """Yield every import between storeys.

    Yields:
        The storey that imports, the storey that is imported, and the module or folder of it.
    """
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("zspag"):
                continue
            for alias in node.names:
                inside = f"{node.module}.{alias.name}".split(".")[1:]
                target = inside[0] if inside[0] in ("lab", "report") else "method"
                room = inside[0] if target == "method" else inside[1]
                if (start := storey_of(path)) and start != target:
                    yield start, target, room


def arrows() -> dict[tuple[str, str], list[str]]:
    """Return what each storey imports of another."""
    found: dict[tuple[str, str], set[str]] = {}
    for start, target, room in imported():
        found.setdefault((start, target), set()).add(room)
    return {pair: sorted(names) for pair, names in found.items()}


def named(names: list[str]) -> str:
    """Return names as a list in words, or how many there are."""
    return f"only {', '.join(names[:-1])} and {names[-1]}" if 1 < len(names) < 6 else ""


def box(axis: Axes, left: float, bottom: float, width: float, height: float, colour: str) -> None:
    """Draw an empty box."""
    look = {"facecolor": colour, "edgecolor": "#808080", "linewidth": 1, "boxstyle": "round,pad=0,rounding_size=0.8"}
    axis.add_patch(FancyBboxPatch((left, bottom), width, height, **look))


def storey(axis: Axes, name: str, bottom: float, inside: list[str]) -> float:
    """Draw a storey with everything in it, and return its height."""
    colour, title, sees = STOREYS[name]
    rows = -(-len(inside) // COLUMNS)
    height = rows * ROW + 6.2
    box(axis, 0, bottom, WIDTH, height, colour)
    top = bottom + height
    look = {"va": "center", "color": "#1a1a1a"}
    axis.text(MARGIN, top - 2.6, title, fontsize=11, weight="bold", ha="left", **look)
    axis.text(WIDTH - MARGIN, top - 2.6, sees, fontsize=9.5, ha="right", **look)
    for place, room in enumerate(inside):
        left = MARGIN + CELL * (place % COLUMNS)
        low = top - 4.8 - ROW * (place // COLUMNS + 1) + 0.8
        box(axis, left, low, CELL - MARGIN, ROW - 0.9, "#ffffff")
        weight = "bold" if room.endswith("/") else "normal"
        axis.text(
            left + (CELL - MARGIN) / 2,
            low + (ROW - 0.9) / 2 - 0.1,
            room,
            ha="center",
            fontsize=8,
            weight=weight,
            **look,
        )
    return height


def arrow(axis: Axes, tail: tuple[float, float], head: tuple[float, float]) -> None:
    """Draw an arrow from one point to another."""
    look = {"arrowstyle": "-|>", "color": "#808080", "linewidth": 1.6, "mutation_scale": 14, "shrinkA": 1, "shrinkB": 1}
    axis.annotate("", head, tail, arrowprops=look)


def main() -> None:
    """Write the picture beside this file."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "storeys", "font.family": "sans-serif"}
    with mpl.rc_context(settings | {"font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"]}):
        figure, axis = plt.subplots(figsize=(8.2, 6))
        figure.subplots_adjust(0, 0, 1, 1)
        bounds, bottom = {}, 0.0
        for name, inside in reversed(rooms().items()):
            height = storey(axis, name, bottom, inside)
            bounds[name] = (bottom, bottom + height)
            bottom += height + GAP
        axis.set(xlim=(-1, WIDTH + 8), ylim=(-1, bottom - GAP + 1))
        axis.axis("off")
        for (start, target), names in arrows().items():
            (low, _), (_, high) = bounds[start], bounds[target]
            if low - high <= GAP + 1e-9:
                place = WIDTH * (0.25 if start == "lab" else 0.5)
                arrow(axis, (place, low), (place, high))
                if words := named(names):
                    box(axis, place + 3, high + 1.1, 37, GAP - 2.2, STOREYS[target][0])
                    axis.text(
                        place + 21.5, high + GAP / 2, words, fontsize=8, ha="center", va="center", color="#1a1a1a"
                    )
            else:  # past the storey between them, on the right
                outer = WIDTH + 4
                axis.plot([WIDTH, outer, outer], [low + 6, low + 6, high - 6], color="#808080", linewidth=1.6)
                arrow(axis, (outer, high - 6), (WIDTH, high - 6))
        figure.savefig(Path(__file__).with_name("storeys.svg"), transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
