"""The figure of a report: rates tried, the final run, the layers, and what is left in the features.

It is drawn from ``Report.to_dict()``, so a report that was saved as JSON can be drawn again without a model.

Invariant: no window opens and no state of pyplot changes. What colour tells, marks and hatches tell, too.
"""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#555555"
LOOK = {"all": ("o", BLUE), "body": ("s", ORANGE), "head": ("^", GREEN)}
OTHER = ("D", GREY)


class Shown(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png")
        return drawn.getvalue()


def draw(report: dict[str, Any], *, title: str) -> Figure:
    """Return the figure of ``Report.to_dict()``, or of its JSON file read again, 1000 pixels wide."""
    figure = Shown(figsize=(10, 7.6), dpi=100, layout="constrained")
    ((rates, epochs), (layers, left)) = figure.subplots(2, 2)
    rates_tried(rates, report)
    final_run(epochs, report)
    layer_shares(layers, report)
    remainder(left, report)
    for axis in (rates, epochs, layers, left):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    return figure


def rates_tried(axis: Axes, report: dict[str, Any]) -> None:
    """Draw drift over rate per choice of layers; open marks did not forget, crosses have no drift."""
    title, dial = "rates tried", "learning rate"
    if report["chosen"] == "removal":
        title, dial = "shares tried", "share of the way to the fitted weights"
    axis.set(title=title, xlabel=dial, ylabel="drift on held-out proxies (nats)")
    trials = sorted(report["tried"], key=lambda trial: trial["lr"])
    if not trials:
        _say(axis, "no rate was tried")
        return
    drifts = [trial["drift"] for trial in trials if trial["drift"] is not None]
    least = min((drift for drift in drifts if drift > 0), default=1.0)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=least)  # a drift of 0 has a place, too
    for layers in sorted({trial["layers"] for trial in trials}):
        marker, colour = LOOK.get(layers, OTHER)
        own = [trial for trial in trials if trial["layers"] == layers]
        drawn = [(trial["lr"], trial["drift"], trial["forgot"]) for trial in own if trial["drift"] is not None]
        _line(axis, drawn, marker=marker, colour=colour, name=layers)
        lost = [trial["lr"] for trial in own if trial["drift"] is None]
        axis.plot(lost, [3 * max(drifts, default=least)] * len(lost), "x", color=colour)
    if not all(trial["forgot"] for trial in trials):
        axis.plot([], [], "o", color="black", markerfacecolor="white", label="did not forget")
    if len(drifts) < len(trials):
        axis.plot([], [], "x", color="black", label="diverged or not measured")
    chosen = [one for one in trials if (one["layers"], one["lr"]) == (report["chosen"], report["lr"])][:1]
    if chosen and chosen[0]["drift"] is not None:
        axis.plot(chosen[0]["lr"], chosen[0]["drift"], "o", color="black", markersize=15, markerfacecolor="none")
        axis.plot([], [], "o", color="black", markersize=9, markerfacecolor="none", label="chosen")
    rates = sorted({trial["lr"] for trial in trials})
    shown = rates[:: 1 + len(rates) // 8]
    axis.set_xticks(shown, [f"{rate:g}" for rate in shown])
    axis.set_xticks([], minor=True)
    if positive := [drift for drift in drifts if drift > 0]:
        low, high = min(positive), max(positive)  # within a decade a logarithmic axis labels none itself
        drifts = [low] if high < 1.1 * low else [low, (low * high) ** 0.5, high]
        axis.set_yticks(drifts, [f"{drift:.2g}" for drift in drifts])
        axis.set_yticks([], minor=True)
    _legend(axis)


def final_run(axis: Axes, report: dict[str, Any]) -> None:
    """Draw the accuracy on the forget set after each epoch of the final run, the original's at epoch 0."""
    axis.set(title="final run", xlabel="epoch", ylabel="accuracy on the forget set (%)", ylim=(-4, 104))
    heights = [100 * report["original_accuracy"], *(100 * epoch["forget_accuracy"] for epoch in report["history"])]
    axis.plot(range(len(heights)), heights, "o-", color="black", markersize=4, label="open model, fitted images")
    unseen = report["unseen_accuracy"]
    if unseen is not None:
        axis.axhline(100 * unseen, color=ORANGE, linestyle="--", label=f"held-out images: {100 * unseen:.1f} %")
    axis.set_xlim(-0.5, max(len(heights), 2) - 0.5)
    axis.locator_params(axis="x", integer=True)
    _legend(axis)


def layer_shares(axis: Axes, report: dict[str, Any]) -> None:
    """Draw what each layer leaks and leaves free, in the order of the model; open marks stayed frozen."""
    axis.set(title="layers", xlabel="weight, numbered in the order of the model", ylabel="energy left free (%)")
    layers = report["layers"]
    if not layers:
        _say(axis, "no layer was looked at")
        return
    axis.set_yscale("symlog", linthresh=0.01)
    for field, marker, colour, name in (
        ("free_share", "^", BLUE, "held-out forget samples (free share)"),
        ("leak", "v", ORANGE, "held-out proxies (leak)"),
    ):
        drawn = [(place, layer[field], layer["moved"]) for place, layer in enumerate(layers, 1)]
        points = [(place, 100 * share, moved) for place, share, moved in drawn if share is not None]
        _line(axis, points, marker=marker, colour=colour, name=name)
    if not all(layer["moved"] for layer in layers):
        axis.plot([], [], "o", color="black", markerfacecolor="white", label="stayed frozen")
    names = [layer["name"].removesuffix(".weight") for layer in layers]
    if len(names) <= 8 and max(map(len, names)) <= 12:
        axis.set_xticks(range(1, len(names) + 1), names, rotation=30, ha="right", fontsize=8)
        axis.set_xlabel("weight")
    else:
        axis.locator_params(axis="x", integer=True)
    axis.set_ylim(-0.002, 150)
    axis.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")  # 0.01 instead of a power of ten
    _legend(axis, columns=2)


def remainder(axis: Axes, report: dict[str, Any]) -> None:
    """Draw the probe before and after, and what the original's head still recognizes."""
    axis.set(title="what is left in the features", ylabel="accuracy (%)")
    left = report["remainder"]
    if left is None:
        _say(axis, "not looked at")
        return
    measurable = left["measurable"]
    bars = (
        ("probe\nbefore", left["probe_before"] if measurable else None, ""),
        ("probe\nafter", left["probe_after"] if measurable else None, "///"),
        ("original head,\nput back", left["original_head"], "..."),
    )
    for place, (_, share, hatch) in enumerate(bars):
        if share is None:
            axis.text(place, 1, "not\nmeasurable", ha="center", fontsize=8)
        else:
            axis.bar(place, 100 * share, 0.6, color="#cccccc", edgecolor="black", hatch=hatch)
            axis.text(place, 100 * share + 1, f"{100 * share:.1f} %", ha="center")
    axis.set_xticks(range(len(bars)), [name for name, _, _ in bars])
    axis.set(xlim=(-0.5, len(bars) - 0.5), ylim=(0, 115))
    if measurable and left["probe_chance"] is not None:
        axis.axhline(100 * left["probe_chance"], color="black", linestyle="--", label="probe under permuted labels")
        _legend(axis)


def _line(axis: Axes, points: Sequence[tuple[float, float, bool]], *, marker: str, colour: str, name: str) -> None:
    # Points (x, y, full mark) with a thin line through them.
    size = 6 if len(points) < 30 else 4
    axis.plot([x for x, _, _ in points], [y for _, y, _ in points], color=colour, linewidth=1, zorder=1)
    axis.plot([], [], marker, color=colour, label=name)
    for x, y, full in points:
        axis.plot(x, y, marker, color=colour, markerfacecolor=colour if full else "white", markersize=size)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center")
    axis.set(xticks=[], yticks=[])


def _legend(axis: Axes, columns: int = 3) -> None:
    # Below the panel, where nothing is drawn.
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns)
