"""Every figure is drawn from a file alone, carries what made it, and means the same thing by the same colour."""

from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from PIL import Image, ImageChops

from zspag.lab.methods import METHODS
from zspag.report import audit, colours, figure_faults, files, plots, provenance

LINE = {"x": [0.1, 0.3, 1.0], "y": [3.0, 2.0, 2.5]}
DATA = {
    "bars": {"groups": ["cat", "dog", "owl"], "series": {"original": [90, 80, 70], "ZS-PAG": [91, 0, 72]}},
    "ranked": {"names": ["ZS-PAG", "DELETE", "new"], "values": [0.9, 0.5, 0.1], "errors": [0.1, 0.1, 0.1]},
    "curves": {"series": {"ZS-PAG": LINE | {"low": [2, 1, 2], "high": [4, 3, 3]}, "DELETE": LINE}, "xlog": True},
    "scatter": {"series": {"forget": LINE, "retain data": LINE}, "diagonal": True, "lines": {"chance": 2.2}},
}


def result_of(kind, *panels, profile="digits", demonstration=True, **options):
    config = {"demonstration": demonstration, "dataset": "digits"}
    record = provenance.record(config=config, seed=0, data_sha256="d" * 64, device="cpu", threads=1, started=0.0)
    data = {"panels": list(panels or (DATA[kind],)), **options}
    return {"schema": 1, "name": "02_test", "profile": profile, "draw": kind, "data": data, "provenance": record}


def footer(figure):
    return figure.get_supxlabel()


def line_styles(figure):
    """Label to (colour, marker) of every line that the legend lists, panel by panel."""
    return [
        {line.get_label(): (to_hex(line.get_color()), line.get_marker()) for line in axis.get_lines()}
        for axis in figure.axes
    ]


def curves_of(*names):
    return {"series": dict.fromkeys(names, LINE)}


def test_every_kind_has_a_case_here():
    assert DATA.keys() == plots.KINDS.keys()


@pytest.mark.parametrize("kind", plots.KINDS)
def test_every_kind_renders_and_its_png_carries_the_provenance(kind, tmp_path):
    result = result_of(kind)
    plots.save(result, tmp_path / "figure.png")
    assert provenance.read_record(tmp_path / "figure.png") == result["provenance"]


def test_the_same_content_gives_the_same_bytes_and_other_content_does_not(tmp_path):
    found = []
    for change in ({}, {}, {"title": "another"}, {"xlabel": "x"}):
        result = result_of("curves", curves_of("ZS-PAG", "DELETE") | change) | {"provenance": {"config": {}}}
        plots.save(result, tmp_path / "a.png")
        found.append((tmp_path / "a.png").read_bytes())
    assert found[0] == found[1]
    assert len(set(found)) == 3


def recorded_figures():
    """All recorded results that have a figure, with the file of their figure."""
    root = files.repository_root()
    found = [(files.read_json(path), path) for path in sorted((root / "results").glob("*/*.json"))]
    return [(one, root / "figures" / path.parent.name / f"{path.stem}.png") for one, path in found if one.get("draw")]


def test_every_committed_figure_belongs_to_the_recorded_result_of_its_name():
    expected = recorded_figures()
    folders = {path.parent for _, path in expected}  # a profile that is run here and not recorded has its own
    assert {path for folder in folders for path in folder.iterdir()} == {path for _, path in expected}
    for content, path in expected:
        assert provenance.read_record(path) == content["provenance"], f"make figures RECORDED=1 draws {path.name} anew"


def assert_redrawn(content, path, tmp_path):
    plots.save(content, tmp_path / "redrawn.png")
    with Image.open(path) as committed, Image.open(tmp_path / "redrawn.png") as redrawn:
        same = ImageChops.difference(committed.convert("RGB"), redrawn.convert("RGB")).getbbox() is None
    assert same, f"make figures RECORDED=1 draws {path.name} anew"


def pinned_versions_are_installed():
    pinned = dict(line.split("==") for line in (files.repository_root() / "constraints.txt").read_text().split())
    return all(provenance.installed(name) == pinned[name] for name in ("matplotlib", "seaborn", "pillow"))


pinned_only = pytest.mark.skipif(not pinned_versions_are_installed(), reason="other versions draw other pixels")


@pinned_only
def test_a_committed_figure_is_what_the_code_draws(tmp_path):
    smallest = min(recorded_figures(), key=lambda pair: pair[1].stat().st_size)
    assert_redrawn(*smallest, tmp_path)


@pinned_only
@pytest.mark.slow
def test_every_committed_figure_is_what_the_code_draws(tmp_path):
    for content, path in recorded_figures():
        assert_redrawn(content, path, tmp_path)


@pinned_only
def test_no_figure_of_a_notebook_trips_its_reader():
    drawn = [content for content, _ in recorded_figures() if "frames" in content["data"]]
    assert drawn
    found = {content["name"]: figure_faults.faults(plots.draw(content)) for content in drawn}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_unknown_kind_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="02_test: there is no kind of panel 'pie'; kinds are bars, ranked"):
        plots.save(result_of("bars") | {"draw": "pie"}, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_a_panel_may_be_of_another_kind_and_an_unknown_one_is_named():
    dots = {"kind": "scatter", "series": {"ZS-PAG": {"x": [1.0], "y": [2.0]}, "DELETE": {"x": [2.0], "y": [1.0]}}}
    lines, points = plots.draw(result_of("curves", curves_of("ZS-PAG", "DELETE"), dots)).axes
    assert (len(lines.get_lines()), len(lines.collections)) == (2, 0)
    assert (len(points.get_lines()), len(points.collections)) == (0, 2)
    with pytest.raises(ValueError, match="02_test: there is no kind of panel 'pie'"):
        plots.draw(result_of("curves", curves_of("ZS-PAG"), dots | {"kind": "pie"}))


def test_a_legend_shows_the_dash_of_lines_without_marks_and_the_mark_that_other_panels_draw():
    plain = curves_of("ZS-PAG", "DELETE", "removal (ours)") | {"plain": True}
    handles = plots.draw(result_of("curves", plain, curves_of("DELETE", "removal (ours)"))).legends[0].legend_handles
    shown = [(handle.get_linestyle(), handle.get_marker()) for handle in handles]
    assert shown == [("-", "None"), ("--", "s"), ("-.", "D")]


def test_footer_names_profile_data_and_commit_and_says_what_is_a_demonstration():
    shown, measured = result_of("bars"), result_of("bars", profile="cpu", demonstration=False)
    shown["provenance"]["commit"], measured["provenance"]["commit"] = "0123456789abcdef", None
    assert footer(plots.draw(shown)) == "digits: a demonstration · digits · zspag 0123456"
    assert footer(plots.draw(measured)) == "profile cpu · digits · zspag"
    shown["data"]["of"] = "recorded: cifar10"  # a notebook on digits shows a record of photographs
    assert footer(plots.draw(shown)) == "recorded: cifar10 · zspag 0123456"


def test_known_name_has_its_colour_whatever_stands_beside_it():
    (alone,) = line_styles(plots.draw(result_of("curves", curves_of("ZS-PAG"))))
    (among,) = line_styles(plots.draw(result_of("curves", curves_of("new", "DELETE", "another", "ZS-PAG"))))
    assert alone["ZS-PAG"] == among["ZS-PAG"]
    assert among["ZS-PAG"][0] not in {among[name][0] for name in ("new", "DELETE", "another")}


def test_no_two_names_of_a_figure_look_the_same():
    names = ("new", *colours.KNOWN, "another")
    (styles,) = line_styles(plots.draw(result_of("curves", curves_of(*names))))
    assert len(set(styles.values())) == len(names)
    assert len({colour for colour, _ in styles.values()}) < len(names)  # colour alone would not do
    many = [f"new {number}" for number in range(100)]
    assert len(set(plots._styles([curves_of(*many)]).values())) == 100


def test_every_method_has_a_look_of_its_own_in_every_figure():
    titles = [method.title for method in METHODS.values()] + ["original", "masked original", "retrained"]
    titles.append("original, one row edited")
    assert len({colours.METHODS[title] for title in titles}) == len(titles)
    among = plots._styles([curves_of(*colours.KNOWN, *titles)])
    assert {title: among[title] for title in titles} == {title: colours.METHODS[title] for title in titles}


def test_no_two_networks_of_an_audit_look_the_same_as_lines_or_as_marks():
    looks = [colours.METHODS[title] for title in audit.TITLES.values()]
    assert len({(colour, mark % 4) for colour, mark in looks}) == len(looks)  # four kinds of dashes
    assert len(set(looks)) == len(looks)


def test_one_legend_lists_a_name_once_and_in_order_and_a_single_series_of_bars_needs_none():
    figure = plots.draw(result_of("curves", curves_of("ZS-PAG", "new"), curves_of("new", "DELETE")))
    here, there = line_styles(figure)
    assert here["new"] == there["new"] not in (here["ZS-PAG"], there["DELETE"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ZS-PAG", "new", "DELETE"]
    assert not any(axis.get_legend() for axis in figure.axes)
    assert not plots.draw(result_of("bars", {"groups": ["a", "b"], "series": {"ZS-PAG": [1, 2]}})).legends


def test_bars_are_as_high_as_the_numbers_and_do_not_overlap():
    figure = plots.draw(result_of("bars"))
    original, ours = figure.axes[0].containers
    assert [bar.get_height() for bar in original] == [90, 80, 70]
    assert [bar.get_height() for bar in ours] == [91, 0, 72]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in (*original, *ours))
    assert all(left[1] <= right[0] + 1e-9 for left, right in pairwise(edges))


def test_ranked_bars_begin_at_their_base_and_those_that_fall_short_look_different():
    panel = {"names": ["a", "b"], "values": [2.0, 0.5], "base": 1, "xlog": True, "xticks": [0.5, 1, 2, 4]}
    (axis,) = plots.draw(result_of("ranked", panel)).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "1", "2", "4"]
    heights = {label.get_text(): y for y, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)}
    assert heights["a"] > heights["b"]  # the first name stands on top
    beyond, short = axis.patches
    assert (beyond.get_x(), beyond.get_width()) == (1, 1)
    assert (short.get_x(), short.get_width()) == (1, -0.5)
    assert beyond.get_facecolor() != short.get_facecolor()
    assert beyond.get_hatch() != short.get_hatch()


def test_limits_scales_and_labels_are_applied():
    panel = curves_of("ZS-PAG") | {"xlog": True, "ylog": True, "ylim": [1, 8], "xlabel": "rate", "ylabel": "nats"}
    (axis,) = plots.draw(result_of("curves", panel | {"title": "drift"})).axes
    assert (axis.get_xscale(), axis.get_yscale(), axis.get_ylim()) == ("log", "log", (1, 8))
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("rate", "nats", "drift")
    (plain,) = plots.draw(result_of("curves", curves_of("ZS-PAG"))).axes
    assert (plain.get_xscale(), plain.get_yscale()) == ("linear", "linear")


def test_panels_fill_a_grid_and_the_rest_of_it_is_empty():
    figure = plots.draw(result_of("bars", *[DATA["bars"]] * 3, columns=2))
    assert [axis.axison for axis in figure.axes] == [True, True, True, False]
    one = plots.draw(result_of("bars", DATA["bars"], columns=3, size=[5, 2]))
    assert len(one.axes) == 1
    assert one.get_figwidth() == 5


def test_one_point_far_to_the_right_does_not_squeeze_the_others():
    near = {f"method {index}": {"x": [0.1 * index], "y": [index]} for index in range(1, 5)}

    def place(x):
        """Where the method with 0.4 points stands along the axis, from 0 to 1, and the kind of scale."""
        series = near | {"far": {"x": [x], "y": [9.0]}}
        (axis,) = plots.draw(result_of("scatter", {"series": series})).axes
        axis.autoscale_view()
        left, right = axis.transAxes.inverted().transform(axis.transData.transform([(0.4, 0), (x, 0)]))[:, 0]
        assert 0 < left < right < 1
        return left, axis.get_xscale()

    assert place(1.0)[1] == "linear"
    beside, scale = place(40.0)
    assert scale == "symlog"
    assert beside > 0.5
    (empty,) = plots.draw(result_of("scatter", {"series": {}})).axes
    assert [text.get_text() for text in empty.texts] == ["nothing to show"]


def test_of_a_hundred_groups_of_bars_those_that_differ_most_are_drawn():
    low = [float(index % 7) for index in range(100)]
    high = [value + (5.0 if index % 10 == 3 else 0.001 * index) for index, value in enumerate(low)]
    panel = {"groups": [f"g{index}" for index in range(100)], "series": {"low": low, "high": high}}
    (axis,) = plots.draw(result_of("bars", panel)).axes
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert len(shown) == plots.MOST_GROUPS == len(axis.containers[0])
    assert {f"g{index}" for index in range(3, 100, 10)} <= set(shown)
    assert shown == sorted(shown, key=lambda name: int(name[1:]))
    assert axis.get_xlabel() == "the 20 of 100 in which they differ most"
    assert [bar.get_height() for bar in axis.containers[1]] == [high[int(name[1:])] for name in shown]
    few = panel | {"groups": panel["groups"][:5], "series": {"low": low[:5], "high": high[:5]}}
    assert len(plots.draw(result_of("bars", few)).axes[0].containers[0]) == 5
