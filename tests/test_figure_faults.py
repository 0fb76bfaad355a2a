"""A good figure has no faults; the same figure, spoilt in one place at a time, has exactly that one."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns

from zspag.report.figure_faults import faults
from zspag.report.frames import label_lines, render, to_json

FRAME = pd.DataFrame(
    {"rate": [1, 3, 10] * 2, "lost": [0.1, 0.2, 0.9, 0.0, 0.1, 0.2], "arm": ["plain"] * 3 + ["kept"] * 3}
)


def lines(frame):
    figure, axis = plt.subplots(figsize=(4, 3))
    sns.lineplot(frame, x="rate", y="lost", hue="arm", marker="o", ax=axis)
    axis.set(xlabel="learning rate", ylabel="points lost")
    label_lines(axis)
    return figure


def found(draw, frame=FRAME):
    figure = render(draw, to_json(frame))
    figure.draw_without_rendering()
    return faults(figure)


def on_axis(change):
    """A plot of its own that ``change`` spoils."""

    def draw(frame):
        figure, axis = plt.subplots(figsize=(4, 3))
        axis.set(xlabel="learning rate", ylabel="points lost")
        change(axis)
        return figure

    return draw


def test_a_good_figure_has_no_faults():
    assert found(lines) == []


def test_numbers_over_names_are_a_good_figure_too():
    def dots(axis):
        axis.plot([0.2, 0.2, 0.3], ["DELETE", "ZS-PAG", "head only"], "o")

    def one_name(axis):
        axis.plot([0.2, 0.4], ["ZS-PAG", "ZS-PAG"], "o")  # two seeds of one method: no constant panel

    assert found(on_axis(dots)) == found(on_axis(one_name)) == []


def test_a_line_across_the_panel_is_no_data():
    def constant_beside_a_reference(axis):
        axis.axhline(0.5)
        axis.plot([1, 2], [0.3, 0.3])

    assert found(on_axis(constant_beside_a_reference)) == ["panel 1 shows the one y value 0.3"]


SPOILT = {
    "shows the one y value 0.2": lambda axis: axis.plot([1, 2, 3], [0.2, 0.2, 0.2]),
    "shows the one x value 1": lambda axis: axis.scatter([1, 1], [0.2, 0.3]),
    "shows the one y value 3": lambda axis: axis.bar([0, 1], [3, 3]),
    "is empty": lambda axis: None,
    "has no label on either axis": lambda axis: (axis.plot([1, 2], [3, 4]), axis.set(xlabel="", ylabel="")),
    "has 6 series, 5 is the most": lambda axis: [
        axis.plot([1, 2], [k, k + 1], color=plt.cm.viridis(k / 6), marker="osD^vP"[k], label=f"arm {k}")
        for k in range(6)
    ],
    "gives 'one' and 'other' the same colour": lambda axis: [
        axis.plot([1, 2], [k, k + 1], color="tab:blue", label=name) for k, name in enumerate(("one", "other"))
    ],
    "has bars on a logarithmic axis": lambda axis: (axis.bar([0, 1], [1, 10]), axis.set_yscale("log")),
    "joins categories with a line": lambda axis: axis.plot(["plain", "kept"], [1, 2]),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_every_fault_of_a_panel_is_named(fault):
    (only,) = found(on_axis(SPOILT[fault]))
    assert only.startswith(f"panel 1 {fault}")


BLUE, RED, GREEN = "#0173b2", "#d55e00", "#029e73"  # of nearly one grey
ORANGE = "#de8f05"  # brighter


def two_lines(one, other, **looks):
    """Two lines in two colours; each of ``looks`` is a pair."""

    def draw(axis):
        for number, colour in enumerate((one, other)):
            axis.plot(
                [1, 2, 3], [number, number + 1, 2], color=colour, **{k: pair[number] for k, pair in looks.items()}
            )

    return draw


def named(draw, *colours):
    def with_names(axis):
        draw(axis)
        for number, colour in enumerate(colours):
            axis.text(1.5, 2.2 + number / 4, f"arm {number}", color=colour)

    return with_names


def two_groups(one, other, *marks):
    def draw(axis):
        for number, (colour, mark) in enumerate(zip((one, other), marks, strict=True)):
            axis.scatter([1, 2], [number, number + 1], color=colour, marker=mark)

    return draw


def areas(*colours):
    return lambda axis: axis.imshow([[0, 1], [1, 0]], plt.matplotlib.colors.ListedColormap(colours))


def rows_of_dots(axis):
    for number, colour in enumerate((BLUE, GREEN)):
        axis.scatter([0.1, 0.2], [f"arm {number}"] * 2, color=colour)


HUE_ALONE = {
    "lines": two_lines(BLUE, GREEN),
    "lines with one mark": two_lines(BLUE, RED, marker="oo"),
    "lines of which one is named": named(two_lines(BLUE, GREEN), BLUE),
    "dots": two_groups(BLUE, RED, "o", "o"),
    "bars": lambda axis: [axis.bar([k, k + 2], [1, 2], color=colour) for k, colour in enumerate((BLUE, GREEN))],
    "areas": areas("#c3dcf1", "#bfe6d5"),
}
BY_MORE = {
    "another grey": two_lines(BLUE, ORANGE),
    "dashes": two_lines(BLUE, GREEN, linestyle=("-", "--")),
    "dashes of one's own": two_lines(BLUE, GREEN, dashes=((4, 1), (1, 1))),
    "marks on lines": two_lines(BLUE, GREEN, marker="os"),
    "both are named": named(two_lines(BLUE, GREEN), BLUE, GREEN),
    "marks": two_groups(BLUE, RED, "o", "s"),
    "a row for each": rows_of_dots,
    "areas of two greys": areas("#8fbce0", "#bfe3d3"),
    "line and dots": lambda axis: (axis.plot([1, 2], [0, 1], color=BLUE), axis.scatter([1, 2], [1, 3], color=GREEN)),
}


@pytest.mark.parametrize("case", HUE_ALONE)
def test_what_hue_alone_tells_apart_is_refused(case):
    (only,) = found(on_axis(HUE_ALONE[case]))
    assert "hue alone" in only or "one grey in print" in only


@pytest.mark.parametrize("case", BY_MORE)
def test_what_a_print_without_colour_tells_apart_passes(case):
    assert found(on_axis(BY_MORE[case])) == []


def said(change):
    def draw(axis):
        axis.plot([1, 2], [3, 4])
        change(axis)

    return found(on_axis(draw))


def test_faults_of_texts_are_named():
    assert said(lambda axis: axis.set_title("second_best")) == ["uses the code name 'second_best' as a label"]
    assert said(lambda axis: axis.set_title("4.weight")) == ["uses the code name '4.weight' as a label"]
    outside = {"transform": "axes fraction"}
    (clipped,) = said(
        lambda axis: axis.annotate("far away", (1.5, 0.5), xycoords=outside["transform"]).set_in_layout(False)
    )
    assert clipped == "clips the text 'far away'"
    twice = said(lambda axis: [axis.text(1.5, 3.5, word) for word in ("first", "second")])
    assert twice == ["prints 'first' over 'second'"]
    assert said(lambda axis: axis.set_title(r"$W_{t}$, weight of layer 4")) == []


def test_ticks_outside_the_limits_are_no_clipped_text():
    assert said(lambda axis: (axis.set_xticks([0, 1, 2, 50]), axis.set_xlim(1, 2))) == []


def test_names_at_line_ends_are_kept_apart_and_replace_the_legend():
    close = FRAME.assign(lost=[0.1, 0.2, 0.3, 0.0, 0.1, 0.3])
    figure = render(lines, to_json(close))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert axis.get_legend() is None
    assert {text.get_text() for text in axis.texts} == {"plain", "kept"}
    first, second = (text.get_window_extent() for text in axis.texts)
    assert first.y1 <= second.y0 or second.y1 <= first.y0
    assert faults(figure) == []


def test_a_panel_of_pictures_needs_no_label():
    def picture(frame):
        figure, axis = plt.subplots()
        axis.imshow(np.array(frame["pixels"].tolist()))
        axis.set_axis_off()
        return figure

    assert found(picture, pd.DataFrame({"pixels": [[0.0, 1.0], [1.0, 0.0]]})) == []
