"""The README says what the recorded files say, its figures exist, and its code runs."""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests import recorded
from tests.frames import whole_frame
from zspag.config import to_dict
from zspag.outcome import upper_bound
from zspag.profiles import PROFILES
from zspag.report import claims, files, readme, recorded_tables, tables
from zspag.report.files import write_json

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_block_says_what_the_recorded_results_say(path):
    text = path.read_text(encoding="utf-8")
    assert readme.render(text, ROOT) == text, f"{path.name} is stale: run `make readme`"


def test_a_line_typed_into_a_block_is_noticed():
    typed = TEXT.replace("<!-- end verdicts -->", "| typed by hand |\n<!-- end verdicts -->")
    assert typed != TEXT
    assert readme.render(typed, ROOT) == TEXT


def test_a_block_without_its_files_says_so(tmp_path):
    assert readme.NOT_YET in readme.render(TEXT, tmp_path)


def test_a_block_that_nothing_writes_is_refused():
    with pytest.raises(ValueError, match="README block 'wishes' is written by nothing"):
        readme.render("<!-- begin wishes -->\n<!-- end wishes -->", ROOT)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "own_model.md"], ids=lambda path: path.name)
def test_what_few_images_still_allow_is_what_the_bound_says(path):
    (said,) = re.findall(r"(\d+) of (\d+) forgotten\s+still allow (\d+) %", path.read_text(encoding="utf-8"))
    forgotten, count, percent = map(int, said)
    assert percent == round(100 * upper_bound(count - forgotten, count))


CIFAR = {"dataset": "cifar100", "arch": "conv7"}


def test_records_of_older_defaults_are_named_and_newer_ones_are_not(tmp_path):
    recorded.write(tmp_path / "digits", "sweep_digits", config={"unlearn": to_dict(PROFILES["cpu"])["unlearn"]})
    assert recorded_tables.older(tmp_path).startswith(
        "Every run, sweep and audit on record was made by the defaults of today"
    )
    recorded.write(tmp_path / "cpu", "run_mnist", config=recorded.OLD)
    recorded.write(tmp_path / "paper", "00_examples")  # of a notebook: made anew with it
    said = recorded_tables.older(tmp_path)
    assert "1 of 1 files in `results/cpu` (`run_mnist`) were made before" in said
    assert "digits" not in said
    recorded.write(tmp_path / "cpu", "features_new", config={"unlearn": to_dict(PROFILES["cpu"])["unlearn"]})
    assert "1 of 2 files in `results/cpu` (`run_mnist`) were" in recorded_tables.older(tmp_path)


def test_the_readme_says_which_verdicts_stand_on_older_defaults(tmp_path):
    recorded.sweep(tmp_path / "cpu", config=recorded.OLD)
    assert "C2, C3, C5, C6 of `cpu` stand on records of older defaults" in readme.verdicts(tmp_path)
    recorded.sweep(tmp_path / "cpu")
    assert "older" not in readme.verdicts(tmp_path)


def run(folder, *, config=(), **measured):
    score = {"acc_forget": 0.5, "acc_retain": 0.5, "drift": 0.5}
    row = {
        "lr": 1,
        "reached": True,
        "seconds": {"total": 1},
        "threads": 2,
        "retain_samples_read": 0,
        "class_name": "apple",
        "seed": 0,
    }
    row["scores"] = dict.fromkeys(("original", "unlearned", "masked", "retrained"), score)
    recorded.write(folder, "run_one", {"rows": [row]} | measured, config=CIFAR | dict(config))


def sweep(folder, name, *, methods=("salun",), started="2026-01-01", config=(), **measured):
    """Record a sweep whose original is called after it."""
    frame = whole_frame()
    own = [frame[frame["method"] == "zs_pag"].assign(method=method) for method in methods]
    rows = tables.columns(pd.concat([frame[frame["method"].isin(tables.REFERENCES)], *own]))
    titles = {"original": f"of {name}"}
    measured = {"rows": rows, "titles": titles, "class_names": ["maple_tree", "sea"]} | measured
    recorded.write(folder, f"sweep_{name}", measured, config=CIFAR | dict(config), started=started)


def test_results_say_where_their_pixels_came_from(tmp_path):
    source = "image folder of .jpg files, JPEG-coded (lossy)"
    run(tmp_path / "paper", data_source=source)
    sweep(tmp_path / "paper", "one", data_source=source)
    assert f"| cifar100 ({source}), conv7 | apple |" in recorded_tables.runs(tmp_path)
    assert recorded_tables.sweeps(tmp_path).startswith(
        f"cifar100 ({source}), conv7, maple_tree, sea, 1 seed ([sweep](paper/sweep_one.json)):\n\n| method | forget %"
    )


@pytest.mark.parametrize(("share", "shown"), [(0.0, "conv7 |"), (0.1, "conv7 (10 % held out) |")])
def test_a_run_that_held_forget_images_out_says_so(tmp_path, share, shown):
    run(tmp_path / "cpu", config={"unlearn": {"update": {"held_out": share}}})
    assert shown in recorded_tables.runs(tmp_path)


@pytest.mark.parametrize(
    "better",
    [{"methods": ("salun", "delete"), "started": "2025-01-01"}, {"started": "2026-02-01"}],
    ids=["methods", "start"],
)
def test_of_several_sweeps_the_one_of_most_methods_then_the_youngest_counts(tmp_path, better):
    sweep(tmp_path / "cpu", "b")
    sweep(tmp_path / "cpu", "a", **better)
    sweep(tmp_path / "cpu", "c")
    found = recorded_tables.recorded_sweeps(tmp_path)
    assert {key: path.stem for key, path in found.items()} == {("cpu", "cifar100", "conv7", ""): "sweep_a"}
    assert "| of a |" in recorded_tables.sweeps(tmp_path)
    assert "| of b |" not in recorded_tables.sweeps(tmp_path)


def test_sweeps_of_other_profiles_are_others(tmp_path):
    sweep(tmp_path / "cpu", "one")
    sweep(tmp_path / "digits", "one")
    assert [key[0] for key in recorded_tables.recorded_sweeps(tmp_path)] == ["cpu", "digits"]
    for profile in ("cpu", "digits"):
        link = f"1 seed ([sweep]({profile}/sweep_one.json)):\n\n| method | forget %"
        assert recorded_tables.sweeps(tmp_path).count(link) == 1
    assert recorded_tables.recorded_sweeps(tmp_path / "nowhere") == {}


def test_a_sweep_of_zs_pag_says_who_dominates_it_by_its_rows_and_not_by_what_it_said_when_it_was_made(tmp_path):
    sweep(tmp_path / "cpu", "one")
    assert "dominated" not in recorded_tables.sweeps(tmp_path)
    rows = whole_frame()
    shown = {"rows": tables.columns(rows), "titles": {"zs_pag": "ZS-PAG", "masked": "masked original"}}
    sweep(tmp_path / "cpu", "one", **shown, verdicts=["On relearning ZS-PAG wins."], markdown="| of then |")
    page = recorded_tables.sweeps(tmp_path)
    summary = claims.comparison(tables.by_rule(rows), rows)
    assert claims.verdict(summary, shown["titles"], "zs_pag") in page
    assert tables.markdown(claims.comparison_table(summary, shown["titles"])) in page
    assert "On relearning" not in page
    assert "| of then |" not in page


def test_a_sweep_without_retrained_models_is_none_and_one_that_was_cut_down_stands_beside_the_whole(tmp_path):
    sweep(tmp_path / "cpu", "bare", config={"retrained": False})
    assert recorded_tables.sweeps(tmp_path) == readme.NOT_YET
    sweep(tmp_path / "cpu", "whole")
    cut = {"name": "cpu", "forget_samples": 7, "retain_samples": 3, "test_half": "second"}
    sweep(tmp_path / "cpu", "few", methods=("a", "b", "c"), config=cut)
    shown = recorded_tables.sweeps(tmp_path)
    few, whole = shown.split("cifar100, conv7")[1:]
    assert "1 seed ([sweep](cpu/sweep_whole.json)):" in whole
    assert "| of whole |" in whole
    assert (
        "1 seed (7 forget images, 3 images per class for oracles, judged on the second half of the test images)" in few
    )
    assert "| of few |" in few


def test_every_profile_as_it_is_is_not_cut_down():
    assert {claims.cut_down(to_dict(profile)) for profile in PROFILES.values()} == {""}


def test_nets_of_others_are_summed_up_open_failures_and_few_images_apart(tmp_path):
    assert recorded_tables.external(tmp_path) == readme.NOT_YET

    def row(net, samples, lost, unseen, arm="zs_pag"):
        measures = None if lost is None else {"lost_points": lost, "forget_unseen": unseen}
        titles = {"a": "timm a", "b": "LeNet", "c": "MLP"}
        made = {"provenance": {"commit": "0123456789"}, "title": titles[net]}
        return {"net": net, "samples": samples, "arm": arm, "measures": measures} | made

    missed = {"name": "drift", "wanted": "every net", "value": "1 of 2", "verdict": "not met"}
    bars = {"confirmation": [missed, missed | {"name": "lost", "verdict": "met"}]}
    found = [row("a", 20, 0.5, 0.1), row("a", 200, 0.1, 0.01), row("b", 400, -0.1, 0.0), row("b", 20, None, None)]
    rows = [*found, row("c", 20, 90.0, 1.0, arm="delete")]
    write_json(tmp_path / "external" / "zoo.json", {"rows": rows, "bars": bars})
    said = " ".join(recorded_tables.external(tmp_path).split())
    assert "2 nets: 1 of timm, torchvision and Hugging Face, 1 written for this test, 0 of the package" in said
    assert "4 runs with nothing but the defaults, commit 0123456; 1 failed" in said
    assert "looked at while the method was made: drift (every net wanted, 1 of 2 found)." in said
    assert "0.10 points in the median, 0.50 at worst" in said
    assert "1.0% with 200 forget images or more (2 runs), 10.0% with fewer (1 runs)" in said


def test_every_figure_and_link_of_readme_and_docs_exists():
    local = [
        (path, target)
        for path in DOCS
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]
    assert len(local) > 20
    assert [(path.name, target) for path, target in local if not (path.parent / target).exists()] == []


def test_the_readme_is_read_in_five_minutes():
    assert len(TEXT.encode()) <= 10_240


def test_the_example_runs():
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    names = {}
    exec(compile(example[1], "README.md", "exec"), names)  # noqa: S102  the README's own code
    assert names["result"].report.reached
    assert names["forgetful"] is not names["model"]
    assert names["result"].report.silenced
    assert set(names["result"].report.forget_classes) == {3}


def test_every_notebook_is_a_chapter_of_the_readme():
    assert list(readme.CHAPTERS) == [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def test_the_verdicts_of_all_profiles_stand_side_by_side_with_what_is_behind_them(tmp_path):
    assert readme.verdicts(tmp_path) == readme.NOT_YET
    recorded.everything(tmp_path / "digits")
    recorded.sweep(tmp_path / "cpu", classes=recorded.CLASSES[:4])
    table = [line for line in readme.verdicts(tmp_path).splitlines() if line.startswith("| C")]
    shown = {line.split("|")[1].split(":")[0].strip(): line for line in table}
    assert "| not measured | **supported**, 5 classes x 2 originals |" in shown["C7"]
    assert "| **undecided**, 4 classes x 1 original | **supported**" in shown["C2"]


def test_an_audit_is_told_of_removal_too_where_it_looked_at_it(tmp_path):
    kept = files.read_json(next((ROOT / "results" / "digits").glob("audit_*.json")))
    for columns in kept["measurements"]["rows"].values():
        others = [index for index, method in enumerate(columns["method"]) if method != "remove"]
        columns |= {name: [column[index] for index in others] for name, column in columns.items()}
    write_json(tmp_path / "digits" / "audit_one.json", kept)
    assert "removal (ours)" not in recorded_tables.audits(tmp_path)
    rows = kept["measurements"]["rows"]
    for columns in rows.values():
        own = [index for index, method in enumerate(columns["method"]) if method == "delete"]
        for name, column in columns.items():
            column.extend(["remove"] * len(own) if name == "method" else [column[index] for index in own])
    write_json(tmp_path / "digits" / "audit_one.json", kept)
    shown = recorded_tables.audits(tmp_path)
    assert shown.count("With the original's last layer put back") == 2
    assert "removal (ours)" in shown


def test_times_of_the_commands_are_those_that_were_measured(tmp_path):
    assert readme.commands(tmp_path) == readme.NOT_YET
    seconds = {"set-up": 60.0, "make figures": 432.0, "make figures, again": 54.0, "make test": 510.0}
    made = {"threads": 2, "commit": "0123456789"}
    write_json(tmp_path / "commands.json", {"seconds": seconds, "provenance": made})
    said = " ".join(readme.commands(tmp_path).split())
    assert "on 2 cores" in said
    assert "`make figures` took 7.2 minutes, typed again 54 seconds (what has not changed does not run again)" in said
    assert "and `make test` 8.5 minutes." in said
    assert "six lines" not in said
    more = {"six lines": 7.4, "zspag demo": 20.0, "a notebook in the browser": 130.0}
    write_json(tmp_path / "commands.json", {"seconds": seconds | more, "provenance": made})
    said = " ".join(readme.commands(tmp_path).split())
    assert "took 7 seconds, `zspag demo` 20 seconds, and notebook 00, opened in JupyterLab" in said
    assert said.endswith("run to its end, 2.2 minutes.")


def test_claim_c3_is_told_from_both_halves_and_judged_on_the_second(tmp_path):
    assert recorded_tables.c3(tmp_path) == readme.NOT_YET
    recorded.half(tmp_path / "cpu", "first", added=-0.1)
    assert recorded_tables.c3(tmp_path) == readme.NOT_YET
    recorded.half(tmp_path / "cpu", "second", added=0.1)
    said = recorded_tables.c3(tmp_path)
    assert f"<{claims.FROZEN}>" in said
    assert "worse than <zs_pag>" in said
    recorded.half(tmp_path / "cpu", "second", added=-0.1)
    assert "better than <zs_pag>" in recorded_tables.c3(tmp_path)
