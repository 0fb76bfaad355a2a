"""What came of requests in words: refusals have no number, warnings are repeated, means are over seeds."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from laboratory import TINY, rooted

from benchmarks import scenarios
from zspag.report import files

NOTHING = {"acc_retain": math.nan, "refused": "", "warned": []}
PARTS = ("acc_forget_train", "acc_rest", "acc_forget")


def made():
    """Two seeds: two classes at once go well, the third in a row is refused, half a class takes the rest along."""
    rows = []
    for seed in (0, 1):
        for method, known, lost in (("original", 0.9, 0.02), ("retrained", 0.0, 0.0), ("zs_pag", 0.02 * seed, 0.01)):
            judged = {"seed": seed, "method": method, "acc_retain": 0.9 - lost, "refused": "", "warned": []}
            forgot = {"classes": [1, 4], "acc_forget": known, "over_unlearning": lost, "gap": known}
            rows.append({"kind": "at once", "request": "2 classes"} | forgot | judged)
            half = dict.fromkeys(PARTS, {"original": 0.9, "retrained": 0.8, "zs_pag": 0.05}[method])
            warned = {"warned": ["it is a part"]} if method == "zs_pag" else {}
            rows.append({"kind": "part of a class", "request": "50 % of a class"} | half | judged | warned)
            refused = NOTHING | {"refused": "no class is left", "seed": seed, "method": method}
            result = refused if method == "zs_pag" else dict.fromkeys(PARTS, 0.9) | judged
            rows.append({"kind": "across classes", "request": "1 % of all samples"} | result)
        for kind, growth in (("in a row", 0.001), ("in a row, untold", 0.1)):
            place = NOTHING | {"kind": kind, "seed": seed}
            for step in (1, 2):
                lost = {"by_class": [0.0] * (step - 1) + [growth * step], "acc_retain": 0.9}
                rows.append(place | {"step": step, "over_unlearning": growth * step, "drift": growth * step} | lost)
            rows.append(place | {"step": 3, "refused": "too few proxies"})
    return pd.DataFrame(rows)


def test_the_method_s_own_words_are_repeated_once():
    assert sorted(scenarios.said(made())) == [
        "across classes: refused. no class is left",
        "in a row, untold: refused. too few proxies",
        "in a row: refused. too few proxies",
        "part of a class: done, with a warning. it is a part",
    ]


def test_the_summary_follows_the_numbers():
    at_once, told, untold, half = scenarios.summary(made())
    assert at_once == "At once, up to 2 classes: 1.0 % still recognized, +1.00 points over-unlearned."
    assert "after 2 requests 0.2 % of the best known" in told
    assert "with a drift of 0.2000 nats" in untold
    assert (
        half
        == "Half of a class: of the other half's training images 5.0 % are still recognized, 80.0 % after retraining."
    )


def test_where_everything_was_refused_nothing_is_said():
    rows = made().assign(acc_retain=math.nan)
    assert scenarios.summary(rows) == []


def test_named_classes_stand_beside_the_retrained_network():
    rows = made().query("kind == 'at once'").assign(by_class=[[0.1, 0.5]] * 6, drift=0.002, seconds=7.0)
    original, retrained, own = scenarios.beside(rows).splitlines()[2:]
    assert original.split("|")[2:4] == [" 90.0 ", " 50.0 "]
    assert (retrained.split("|")[-2].strip(), own.split("|")[-2].strip()) == ("", "7")
    refused = rows.assign(acc_forget=rows["acc_forget"].where(rows["method"] != "zs_pag"))
    assert scenarios.beside(refused).splitlines()[-1].startswith("| ZS-PAG | refused |")


@pytest.mark.slow
def test_classes_are_named_on_the_command_line_and_the_record_repeats_it(tmp_path, data_folder, monkeypatch):
    quick = replace(TINY.unlearn, update=replace(TINY.unlearn.update, lr=1.0))
    tiny = replace(TINY, name="smoke", unlearn=quick, seeds=(0,))
    monkeypatch.setitem(scenarios.PROFILES, "smoke", tiny)
    with rooted(tmp_path, data_folder):
        assert scenarios.main(["run", "--profile", "smoke", "--classes", "2,7"]) == 0
    (found,) = (tmp_path / "results" / "scenarios").glob("*.json")
    content = files.read_json(found)
    assert content["command"].endswith("run --profile smoke --dataset digits --arch digits --classes 2,7")
    assert [row["method"] for row in content["rows"]] == ["original", "retrained", "zs_pag"]
    assert content["rows"][1]["by_class"] == [0.0, 0.0]
    assert "## 2, 7 at once" in (found.parent / "README.md").read_text(encoding="utf-8")


def test_the_committed_page_is_what_the_records_say(tmp_path, monkeypatch):
    kept = files.repository_root() / "results" / "scenarios"
    monkeypatch.setattr(scenarios, "folder", lambda: tmp_path)
    for path in kept.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert scenarios.table().read_text() == (kept / "README.md").read_text()
