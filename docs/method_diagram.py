"""Draw docs/method.svg, the method in one picture: ``python docs/method_diagram.py``.

Letters stay text, every text stands in a box of its own colour, and nothing else is drawn on the page but grey arrows:
so the picture can be read on white and on black.
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

GIVEN, MADE, USED = "#fde2c4", "#d7e8f7", "#cdebd8"  # what we have, what is made from it, what changes the network
WIDTH, HEIGHT = 25, 17
BOXES = {  # with the numbers of the three steps in README; name: (left, bottom, colour, title, lines)
    "forget": (1, 41, GIVEN, "Forget images x", ("images of class c:", "all data that is left")),
    "network": (1, 12, GIVEN, "Trained network f", ("weights W,", "one matrix per layer")),
    "proxies": (35, 41, MADE, "1  Proxies", ("x + δ: pushed until", "f answers class t")),
    "basis": (69, 41, MADE, "2  Directions in use", ("U spans what proxies use", "in a layer, P = I − U Uᵀ")),
    "labels": (35, 12, MADE, "3  Second-best labels", ("y: what f answers if", "class c is not allowed")),
    "step": (69, 12, USED, "Projected update", ("W ← W − η G P,", "G: gradient towards y")),
}
ARROWS = (
    ("forget", "proxies", ""),
    ("proxies", "basis", ""),
    ("network", "labels", ""),
    ("labels", "step", ""),
    ("basis", "step", "down"),
    ("forget", "labels", "across"),
    ("network", "proxies", "across"),
)


def box(axis: Axes, left: float, bottom: float, colour: str, title: str, lines: tuple[str, ...]) -> None:
    """Draw a box with a title and two lines of text."""
    look = {"facecolor": colour, "edgecolor": "#808080", "linewidth": 1, "boxstyle": "round,pad=0,rounding_size=1.5"}
    axis.add_patch(FancyBboxPatch((left, bottom), WIDTH, HEIGHT, **look))
    middle = left + WIDTH / 2
    axis.text(middle, bottom + 12.5, title, ha="center", va="center", fontsize=11, weight="bold", color="#1a1a1a")
    for place, line in enumerate(lines):
        axis.text(middle, bottom + 7.8 - 4.2 * place, line, ha="center", va="center", fontsize=10, color="#1a1a1a")


def arrow(axis: Axes, start: str, end: str, way: str) -> None:
    """Draw an arrow from one box to another: to the right, down, or across from corner to corner."""
    (x0, y0), (x1, y1) = BOXES[start][:2], BOXES[end][:2]
    tail, head = (x0 + WIDTH, y0 + HEIGHT / 2), (x1, y1 + HEIGHT / 2)
    if way == "down":
        tail, head = (x0 + WIDTH / 2, y0), (x1 + WIDTH / 2, y1 + HEIGHT)
    if way == "across":
        up = y1 > y0
        tail, head = (x0 + WIDTH, y0 + (HEIGHT - 3 if up else 3)), (x1, y1 + (3 if up else HEIGHT - 3))
    look = {"arrowstyle": "-|>", "color": "#808080", "linewidth": 1.4, "mutation_scale": 13, "shrinkA": 2, "shrinkB": 2}
    axis.annotate("", head, tail, arrowprops=look)


def main() -> None:
    """Write the picture beside this file."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "method", "font.family": "sans-serif"}
    with mpl.rc_context(settings | {"font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"]}):
        figure, axis = plt.subplots(figsize=(8.2, 4.1))
        figure.subplots_adjust(0, 0, 1, 1)
        axis.set(xlim=(0, 95), ylim=(7, 62))
        axis.axis("off")
        for name in BOXES:
            box(axis, *BOXES[name])
        for way in ARROWS:
            arrow(axis, *way)
        target = Path(__file__).with_name("method.svg")
        figure.savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
