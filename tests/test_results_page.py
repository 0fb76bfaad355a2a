"""The page of results leads from every recorded file to the command that made it."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests import recorded
from zspag import __main__ as command_line
from zspag.config import from_dict, to_dict
from zspag.lab.experiment.cases import name_of
from zspag.profiles import PROFILES, Ladders, Profile, for_pair
from zspag.report import claims, files, results, results_page
from zspag.report.results_page import KINDS, command_of, records

ROOT = Path(__file__).parents[1]
RECORDED = [
    path
    for path in sorted((ROOT / "results").glob("*/*.json"))
    if path.stem.partition("_")[0] in KINDS and path.parent.name in PROFILES
]
NAMED = ("dataset", "arch", "seeds", "forget_samples", "retain_samples", "test_half", "recorded_models")


def test_the_committed_page_says_what_the_files_say():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert text == results_page.render(ROOT), "the page of results is stale: run `make readme`"


def test_every_recorded_file_is_on_it_and_every_link_leads_somewhere():
    shown = {one.file for one in records(ROOT / "results")}
    there = {path.relative_to(ROOT / "results").as_posix() for path in (ROOT / "results").glob("*/*.json")}
    assert there <= shown
    assert all((ROOT / "results" / name).is_file() for name in shown)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem[:60])
def test_the_command_asks_for_what_the_file_holds(path, monkeypatch):
    """What is typed is parsed as the command line parses it; class names need the data, and are compared as names."""
    found = results.read(path)
    words = shlex.split(command_of(path.stem.partition("_")[0], found))
    chosen = command_line._parser().parse_args(words[1:])
    names = found.measurements.get("class_names") or [row["class_name"] for row in found.measurements["rows"]]
    monkeypatch.setattr("zspag.lab.runs.class_numbers", lambda _profile, asked: tuple(asked))
    asked = command_line._profile(chosen)
    usual = PROFILES[found.config["name"]].classes
    assert asked.classes in (tuple(dict.fromkeys(names)), usual)
    assert (asked.classes == usual) == (tuple(found.config["classes"]) == usual)
    wanted, made = {"recorded_models": False} | found.config, to_dict(asked) | {"seeds": list(asked.seeds)}
    assert [made[name] for name in NAMED if name in wanted] == [wanted[name] for name in NAMED if name in wanted]
    assert asked.train.epochs == found.config["train"]["epochs"]
    assert chosen.record
    assert getattr(chosen, "no_retrained", False) == (wanted.get("retrained") is False)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem[:60])
def test_the_command_writes_the_file_that_it_stands_beside(path):
    """Another command that wrote the same file would overwrite this record with something else."""
    found = results.read(path)
    profile = from_dict(Profile, {name: value for name, value in found.config.items() if name != "unlearn"})
    names = found.measurements.get("class_names") or [row["class_name"] for row in found.measurements["rows"]]
    kind = path.stem.partition("_")[0]
    assert path.stem == found.name == f"{kind}_{name_of(profile, list(dict.fromkeys(names)))}"


def test_what_measures_something_else_has_another_name():
    profile = PROFILES["cpu"]
    rates = Ladders(low=(3.0,), middle=(3.0,), high=(3.0,))
    others = [{"seeds": (1,)}, {"ladders": rates}, {"rates_of": "a.json"}, {"retrained": False}, {"test_half": "first"}]
    others += [{"forget_samples": 7}, {"train": replace(profile.train, epochs=1)}]
    names = {name_of(replace(profile, **change), ["cat"]) for change in [{}, *others]}
    assert len(names) == 1 + len(others)
    assert name_of(replace(profile, seeds=(0, 1, 2)), ["cat"]) == name_of(profile, ["cat"])  # more of the same


def test_an_option_that_differs_is_named_and_one_that_does_not_is_left_out(tmp_path):
    config = to_dict(replace(PROFILES["digits"], classes=(3, 5), seeds=(0, 1, 2), forget_samples=7))
    recorded.write(tmp_path, "audit_x", {"rows": [], "class_names": ["3", "it's 5"]}, config=config)
    command = command_of("audit", results.read(tmp_path / "audit_x.json"))
    assert command == "zspag audit --profile digits --classes '3,it'\"'\"'s 5' --forget-samples 7 --record"


def test_a_page_without_results_is_a_page(tmp_path):
    assert "| file | command |" in results_page.render(tmp_path)
    folder = tmp_path / "results"
    recorded.everything(folder / "digits")
    files.write_json(folder / "commands.json", {"schema": 1, "seconds": {}, "provenance": {"commit": "a" * 40}})
    for path in folder.glob("digits/[as]*.json"):  # made by hand, without a whole profile
        path.unlink()
    page = results_page.render(tmp_path)
    assert "| [commands.json](commands.json) | `make fresh-clone` | aaaaaaa |" in page
    assert "`zspag reproduce --profile digits --record --write-back`" in page
    assert claims.table(claims.judge(folder / "digits", profile="digits"), folder="digits") in page


def test_pairs_show_the_mean_of_what_was_measured_and_how_to_measure_the_rest(tmp_path):
    for folder, arch, scores in (("paper", "vit", [(0.0, 0.001), (0.01, 0.002)]), ("cpu", "alexnet", [(0.5, 0.5)])):
        rows = [{"scores": {"unlearned": {"acc_forget": f, "over_unlearning": o}}} for f, o in scores]
        config = to_dict(replace(for_pair(PROFILES[folder], arch=arch), classes=(3,)))
        recorded.write(tmp_path / folder, "run_one", {"rows": rows, "class_names": ["cat"]}, config=config)
    hours = [{"machine": "a processor", "data": "cifar10", "net": "vit", "hours": 1234.5}]
    found = {one.name: one for one in results_page.pairs(tmp_path, ["a processor"], hours)}
    assert len(found) == 16
    assert (found["cifar10 x vit"].found, found["cifar10 x vit"].hours) == ("0.5, +0.15 (n = 2)", ("1,234",))
    assert (
        found["cifar10 x vit"].command == "zspag run --profile paper --arch vit --classes cat --record"
    )  # what made it
    # Another profile than "paper" says nothing about the paper's pairs.
    assert sum(one.found == "not measured" for one in found.values()) == 15
    assert found["svhn x vgg16"].command == "zspag run --profile paper --dataset svhn --arch vgg16 --record"
    assert found["svhn x vgg16"].hours == ("",)
