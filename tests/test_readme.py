"""The README says what the recorded files say, its figures exist, and its code runs."""

import re
from pathlib import Path

import pytest

from zspag.config import to_dict
from zspag.profiles import PROFILES
from zspag.report import claims, files, readme
from zspag.report.files import write_json

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_block_says_what_the_recorded_results_say():
    assert readme.render(TEXT, ROOT) == TEXT, "the README is stale: run `make readme`"


def test_a_stale_block_is_noticed(tmp_path):
    empty = readme.render(TEXT, tmp_path)
    assert readme.NOT_YET in empty
    stale = TEXT.replace("<!-- end runs -->", "| typed by hand |\n<!-- end runs -->")
    assert readme.render(stale, ROOT) == TEXT


def test_the_quickstart_shows_the_same_verdicts():
    cells = files.read_json(ROOT / "notebooks" / "00_quickstart.ipynb")["cells"]
    (shown,) = [cell for cell in cells if "readme.verdicts" in "".join(cell["source"]) and cell["cell_type"] == "code"]
    kept = "".join(shown["outputs"][0]["data"]["text/markdown"])
    assert kept == readme.verdicts(ROOT / "results"), "notebook 00 is stale: run `make notebooks`"


def older_file(folder, name, **unlearn):
    record = {"config": {"unlearn": unlearn}, "commit": "0123456789"}
    write_json(folder / f"{name}.json", {"name": name, "provenance": record})


def test_records_of_older_defaults_are_named_and_newer_ones_are_not(tmp_path):
    today = to_dict(PROFILES["cpu"])["unlearn"]
    older_file(tmp_path / "digits", "sweep_digits", **today)
    assert readme.older(tmp_path).startswith("Every run, sweep and audit on record was made by the defaults of today")
    older_file(tmp_path / "cpu", "run_mnist", update={"lr": None})
    older_file(tmp_path / "paper", "00_examples", update={"lr": None})  # of a notebook: made anew with it
    said = readme.older(tmp_path)
    assert "`results/cpu` was made before" in said
    assert "digits" not in said


def test_a_block_that_nothing_writes_is_refused():
    with pytest.raises(ValueError, match="README block 'wishes' is written by nothing"):
        readme.render("<!-- begin wishes -->\n<!-- end wishes -->", ROOT)


def run_result(**data):
    scores = {name: {"acc_forget": 0.5, "acc_retain": 0.5, "drift": 0.5} for name in
              ("original", "unlearned", "masked", "retrained")}  # fmt: skip
    row = {"scores": scores, "lr": 1, "seconds": {"total": 1}, "threads": 2, "retain_samples_read": 0}
    row |= {"class_name": "apple", "seed": 0, "method": "zs_pag"}
    config = {"dataset": "cifar100", "arch": "conv7", "unlearn": {"update": {}}}
    return {"schema": 1, "name": "sweep_cifar100_conv7_maple_tree-sea",
            "provenance": {"config": config, "started": "2026-01-01"},
            "data": {"rows": [row], "markdown": "| a table |"} | data}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"data_source": "image folder of .jpg files, JPEG-coded (lossy)"}, "cifar100 (JPEG-coded), conv7"),
        ({"data_source": "image folder of .jpg files, JPEG-coded (lossy), resized to 64x64"}, "cifar100 (JPEG-coded),"),
        ({"data_source": "image folder of .webp files"}, "cifar100, conv7"),
        ({"data_source": "official files"}, "cifar100, conv7"),
        ({}, "cifar100, conv7"),  # a file of the time before
    ],
)
def test_results_on_pixels_coded_with_loss_say_so(tmp_path, data, shown):
    write_json(tmp_path / "paper" / "run_cifar100_conv7_apple.json", run_result(**data))
    write_json(tmp_path / "paper" / "sweep_cifar100_conv7_apple.json", run_result(**data))
    assert f"| {shown}" in readme.runs(tmp_path)
    assert readme.sweeps(tmp_path).startswith(shown)


@pytest.mark.parametrize(("share", "shown"), [(0.0, "conv7 |"), (0.1, "conv7 (10 % held out) |")])
def test_a_run_that_held_forget_images_out_says_so(tmp_path, share, shown):
    result = run_result()
    result["provenance"]["config"]["unlearn"]["update"]["held_out"] = share
    write_json(tmp_path / "cpu" / "run_one.json", result)
    assert shown in readme.runs(tmp_path)


def test_the_classes_of_a_sweep_come_from_the_file_and_not_from_its_name(tmp_path):
    path = tmp_path / "paper" / "sweep_cifar100_conv7_maple_tree-sea.json"
    write_json(path, run_result(class_names=["maple_tree", "sea"]))
    assert readme.sweeps(tmp_path).startswith("cifar100, conv7, maple_tree, sea, 1 seed:")


def recorded_sweep(
    folder, classes, *, schema=1, methods=("zs_pag", "salun"), started="2026-01-01", config=None, **data
):
    result = run_result(**data)
    result["provenance"]["config"] |= config or {}
    rows = [result["data"]["rows"][0] | {"method": name} for name in methods]
    result |= {"schema": schema, "data": result["data"] | {"rows": rows, "markdown": f"| of {classes} |"}}
    result["provenance"]["started"] = started
    write_json(folder / f"sweep_cifar100_conv7_{classes}.json", result)


NEWER = {
    "schema": {"schema": 2, "methods": ("zs_pag",), "started": "2025-01-01"},
    "methods": {"methods": ("zs_pag", "salun", "delete"), "started": "2025-01-01"},
    "start": {"started": "2026-02-01"},
}


@pytest.mark.parametrize("better", NEWER)
def test_of_several_sweeps_the_newest_schema_then_most_methods_then_the_youngest_counts(tmp_path, better):
    recorded_sweep(tmp_path / "cpu", "b-cat")
    recorded_sweep(tmp_path / "cpu", "a-sea", **NEWER[better])
    recorded_sweep(tmp_path / "cpu", "c-dog")
    found = readme.recorded_sweeps(tmp_path)
    assert {key: path.stem for key, path in found.items()} == {
        ("cpu", "cifar100", "conv7", ""): "sweep_cifar100_conv7_a-sea"
    }
    assert "| of a-sea |" in readme.sweeps(tmp_path)
    assert "| of b-cat |" not in readme.sweeps(tmp_path)


def test_nets_of_others_are_summed_up_open_failures_and_few_images_apart(tmp_path):
    assert readme.external(tmp_path) == readme.NOT_YET

    def row(net, samples, lost, unseen, arm="zs_pag"):
        measures = None if lost is None else {"lost_points": lost, "forget_unseen": unseen}
        return {"net": net, "samples": samples, "arm": arm, "measures": measures}

    found = [row("a", 20, 0.5, 0.1), row("a", 200, 0.1, 0.01), row("b", 400, -0.1, 0.0), row("b", 20, None, None)]
    write_json(tmp_path / "external" / "zoo.json", {"rows": [*found, row("c", 20, 90.0, 1.0, arm="delete")]})
    said = readme.external(tmp_path)
    assert "4 runs on 2 nets, defaults only, 1 of them failed" in said
    assert "0.10 points in the median, 0.50 at worst" in said
    assert "1.0% with 200 forget images or more (2 runs), 10.0% with fewer (1 runs)" in said


def test_sweeps_of_other_profiles_are_others(tmp_path):
    recorded_sweep(tmp_path / "cpu", "cat")
    recorded_sweep(tmp_path / "digits", "cat")
    assert [key[0] for key in readme.recorded_sweeps(tmp_path)] == ["cpu", "digits"]
    assert readme.sweeps(tmp_path).count("| of cat |") == 2
    assert readme.recorded_sweeps(tmp_path / "nowhere") == {}


def test_sweep_says_who_dominates_where_its_file_does(tmp_path):
    recorded_sweep(tmp_path / "cpu", "cat")
    assert "dominated" not in readme.sweeps(tmp_path)
    shown = {"tables": {"Who is dominated?": "| by nobody |"}, "verdicts": ["ZS-PAG is dominated by nobody."]}
    recorded_sweep(tmp_path / "cpu", "cat", **shown)
    assert "ZS-PAG is dominated by nobody.\n\n| by nobody |" in readme.sweeps(tmp_path)


def test_every_figure_and_link_of_the_readme_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) > 5
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_the_example_runs():
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    names = {}
    with pytest.warns(UserWarning, match="recognizes only"):  # the net of the example is not trained
        exec(compile(example[1], "README.md", "exec"), names)  # noqa: S102  the README's own code
    assert names["forgetful"] is not names["model"]
    assert names["result"].report.silenced
    assert set(names["result"].report.forget_classes) == {3}


def run_file(folder, dataset, arch, *scores):
    rows = [{"scores": {"unlearned": {"acc_forget": f, "over_unlearning": o}}} for f, o in scores]
    config = {"dataset": dataset, "arch": arch}
    files.write_json(folder / f"run_{dataset}_{arch}.json", {"data": {"rows": rows}, "provenance": {"config": config}})


def test_pairs_show_the_mean_of_what_was_measured_and_name_the_rest(tmp_path):
    run_file(tmp_path / "paper", "cifar10", "vit", (0.0, 0.001), (0.01, 0.002))
    run_file(tmp_path / "cpu", "cifar10", "alexnet", (0.5, 0.5))  # another profile says nothing about the paper's
    lines = readme.pairs(tmp_path).splitlines()
    assert lines[0] == "|  | alexnet | vgg16 | resnet18 | vit |"
    (row,) = [line for line in lines if line.startswith("| cifar10 ")]
    assert row == "| cifar10 | not yet measured | not yet measured | not yet measured | 0.5 / +0.15 (2) |"
    assert sum(line.count("not yet measured") for line in lines) == 15


def test_times_of_the_commands_are_those_that_were_measured(tmp_path):
    assert readme.commands(tmp_path) == readme.NOT_YET
    seconds = {"set-up": 60.0, "make figures": 432.0, "make figures, again": 54.0, "make test": 510.0}
    files.write_json(
        tmp_path / "commands.json", {"seconds": seconds, "provenance": {"threads": 2, "commit": "0123456789"}}
    )
    said = " ".join(readme.commands(tmp_path).split())
    assert "on 2 cores" in said
    assert "`make figures` took 7.2 minutes, typed again 0.9 minutes, and `make test` 8.5 minutes" in said


def half_file(folder, half, drift):
    """Rows of the labels of claim C3 on three classes; those that were chosen have the given drift, all others 0.5."""
    chosen = (claims.BEST_LABELS, claims.FROZEN)
    names = (*claims.RIVALS, *chosen)
    rows = [
        {"method": name, "forget": forget, "seed": 1, "lr": 3.0, "chosen": True, "acc_forget": 0.0,
         "over_unlearning": 0.001, "drift": drift + forget / 1000 if name in chosen else 0.5, "nll_retain": 0.3}
        for name in names for forget in (0, 3, 7)
    ]  # fmt: skip
    data = {"rows": rows, "test_half": half, "titles": {name: f"<{name}>" for name in names}, "markdown": "| a half |"}
    config = {"dataset": "cifar10", "arch": "conv7", "unlearn": {"update": {}}}
    name = claims.C3_FILES[half]
    files.write_json(folder / "cpu" / f"{name}.json", {"name": name, "data": data, "provenance": {"config": config}})


def test_claim_c3_is_told_from_both_halves_and_judged_on_the_second(tmp_path):
    assert readme.c3(tmp_path) == readme.NOT_YET
    half_file(tmp_path, "first", 0.4)
    assert readme.c3(tmp_path) == readme.NOT_YET
    half_file(tmp_path, "second", 0.6)
    said = readme.c3(tmp_path)
    assert f"<{claims.FROZEN}>" in said
    assert "worse than <zs_pag>" in said
    half_file(tmp_path, "second", 0.3)
    assert "better than <zs_pag>" in readme.c3(tmp_path)


def test_a_sweep_without_retrained_models_is_none_and_one_that_was_cut_down_stands_beside_the_whole(tmp_path):
    recorded_sweep(tmp_path / "cpu", "bare", config={"retrained": False})
    assert readme.sweeps(tmp_path) == readme.NOT_YET
    recorded_sweep(tmp_path / "cpu", "whole", class_names=["a"])
    cut = {"name": "cpu", "forget_samples": 7, "retain_samples": 3, "test_half": "second"}
    recorded_sweep(tmp_path / "cpu", "few", class_names=["a"], schema=9, config=cut)
    shown = readme.sweeps(tmp_path)
    assert "1 seed:\n\n| of whole |" in shown
    assert (
        "1 seed (7 forget images, 3 images per class for oracles, judged on the second half of the test images):"
        "\n\n| of few |"
    ) in shown


def test_every_profile_as_it_is_is_not_cut_down():
    assert {claims.cut_down(to_dict(profile)) for profile in PROFILES.values()} == {""}
