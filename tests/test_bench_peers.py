"""The comparison with other packages: each of them is a row, whatever it does, and the page says what the rows say."""

import copy
import inspect
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from laboratory import FORGET, TINY, rooted

from benchmarks import peer_page, peer_uses, peers
from benchmarks.peer_uses import INPUTS, Use
from zspag.report import files

RECORDED = Path(__file__).parents[1] / "results" / "peers"
PROFILE = replace(TINY, classes=(FORGET,), seeds=(0,))
RATES = 3
MADE_UP = '''
import os

import torch


def good(model, forget, retain, rate=0.1):
    """Close the row of the class."""
    images, labels = forget[:]

    if len(labels) == 0 or not images.isfinite().all():
        raise ValueError("the forget set has no finite image: clean it")
    with torch.no_grad():
        list(model.parameters())[-1][labels[0]] -= 1000 * rate
    return model


def crashing(model, forget, retain, rate=0.1):
    os._exit(3)


def careless(model, forget, retain, rate=0.1):
    for index in (0, 1, 0):
        retain[index]
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0 * forget[:][0].mean()
    return model
'''
USES = {
    "good": Use("made_up", "made_up:good", "good"),
    "crashing": Use("made_up", "made_up:crashing", "crashing", ("default",)),
    "careless": Use("made_up", "made_up:careless", "careless", ("default",)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_folder):
    """What three made-up uses give on one class of a tiny net, and the folder that it lies in.

    Yields:
        The root and the content of the file.
    """
    source = tmp_path_factory.mktemp("source")
    (source / "made_up").mkdir()
    (source / "made_up" / "__init__.py").write_text(MADE_UP, encoding="utf-8")
    found = SimpleNamespace(report=SimpleNamespace(tried=range(RATES)))
    with pytest.MonkeyPatch.context() as patch, rooted(tmp_path_factory.mktemp("root"), data_folder) as root:
        patch.syspath_prepend(source)
        patch.setenv("PYTHONPATH", str(source))
        patch.setattr(peers, "zero_shot_unlearn", lambda *_: found)
        yield root, peers.run(PROFILE, USES)


def _row(content, use, setting="default"):
    (row,) = [row for row in content["rows"] if (row["use"], row.get("setting")) == (use, setting)]
    return row


def _kinds(content, use):
    return [row["kind"] for name in INPUTS for row in content["bad"] if (row["use"], row["input"]) == (use, name)]


def test_a_good_package_is_measured_at_its_default_and_at_the_gentlest_rate_that_forgets(made):
    _, content = made
    default, ladder = _row(content, "good"), _row(content, "good", "ladder")
    assert (default["error"], default["acc_forget"], default["retain_read"], default["rate"]) == (None, 0, 0, 0.1)
    assert default["seconds"] > 0
    assert default["peak_mib"] > 50
    assert ladder["rate"] == pytest.approx(0.1 / 9)  # of three trials the last: all forget
    assert content["trials"] == RATES
    assert content["uses"]["good"]["lines"] == 6
    assert _kinds(content, "good") == ["message", "error", "message"]
    said = [row["said"] for row in content["bad"] if row["use"] == "good"]
    assert said[0] == "ValueError: the forget set has no finite image: clean it"
    assert said[1].startswith("IndexError: ")


def test_a_package_that_takes_the_process_with_it_is_a_row_that_says_so(made):
    _, content = made
    assert _row(content, "crashing") == {
        "use": "crashing",
        "setting": "default",
        "class": FORGET,
        "error": "the process ended with 3",
    }
    assert _kinds(content, "crashing") == ["did not run"] * 3


def test_a_package_that_takes_everything_is_silent_and_its_retained_images_are_counted_once(made):
    _, content = made
    row = _row(content, "careless")
    original = next(row for row in content["rows"] if row["use"] == "original")
    assert row["retain_read"] == 2
    assert {key: row[key] for key in original if key != "use"} == {
        key: original[key] for key in original if key != "use"
    }
    assert _kinds(content, "careless") == ["silent, ruined", "silent", "silent, ruined"]


def test_the_page_has_a_line_per_use_and_setting_and_is_written_from_the_file_alone(made, capsys):
    root, content = made
    files.write_json(root / "results" / "peers" / "peers.json", content)
    assert peers.main(["table"]) == 0
    assert "README.md" in capsys.readouterr().out
    page = (root / "results" / "peers" / "README.md").read_text(encoding="utf-8")
    assert page == peer_page.render(content)
    tables = [line for line in page.splitlines() if line.startswith("| ")]
    first = [line for line in tables if line.count("|") == tables[0].count("|")]
    assert len(first) == 2 + 3 + 4  # the head, references, one more setting than uses
    assert len(tables) - len(first) == 2 + 3
    assert "made_up, crashing (default) did not run: `the process ended with 3`" in page
    assert str(root) not in page


def test_sentences_follow_the_rows(made):
    _, content = made
    said = list(peer_page.sentences(content))
    assert said[0].startswith("Of 3 rows 2 recognize at most 1 %")
    assert said[1] == ("Without reading a retained image these do: made_up's good (default), made_up's good (ladder).")
    assert said[2].startswith("Least drift of the 2 rows that forget to 1 %: made_up's good (")
    other = copy.deepcopy(content)
    for row in other["rows"]:
        row["acc_forget"] = 0.5
    found = list(peer_page.sentences(other))
    assert found[1] == "Without reading a retained image these do: none."
    assert [one.partition(" ")[0] for one in found[2:]] == ["Shortest", "Lowest", "Fewest"]


def test_what_does_not_install_is_not_run_and_the_row_says_why(made, monkeypatch):
    called = []
    monkeypatch.setattr(peers, "pip", lambda folder, *words: called.append(words[0]) or "No matching distribution")
    monkeypatch.setattr(peers, "run_use", None)
    content = peers.run(PROFILE, {"uam": replace(peer_uses.USES["torchunlearn-uam"], settings=("default",))})
    assert called == ["torchunlearn==0.1.0"] * 2  # with its dependencies and without
    assert _row(content, "uam")["error"] == "No matching distribution"
    assert "torchunlearn, UAM (default) did not run: `No matching distribution`" in peer_page.render(content)


@pytest.mark.parametrize(
    ("forgets", "seen", "taken"),
    [
        (lambda rate: 0.0 if rate > 5 else 0.9, [1, 3, 9], 9),  # stronger until it forgets
        (lambda rate: 0.0 if rate > 0.2 else 0.9, [1, 0.333, 0.111], 0.333),  # gentler as long as it does
        (lambda rate: 1 / (1 + rate), [1, 3, 9, 27], 27),  # nothing forgets: the one that forgets most
        (lambda rate: math.inf if rate > 0.2 else 0.0, [1, 0.333, 0.111], 0.111),  # ruined: gentler
    ],
)
def test_a_ladder_is_walked_to_the_gentlest_rate_that_forgets(forgets, seen, taken):
    rates = []

    def at(rate):
        rates.append(round(rate, 3))
        return peer_uses.Trial(None, rate, forgets(rate), 0)

    found = peer_uses.walked(at, 1.0, factor=3.0, trials=4)
    assert (rates, round(found.rate, 3)) == (seen, taken)


def test_a_use_without_a_rate_is_tried_once():
    found = peer_uses.walked(lambda rate: peer_uses.Trial(None, rate, 0.9, 0), None, factor=3.0, trials=4)
    assert (found.rate, found.forgot) == (None, False)


def test_every_use_has_one_signature_and_a_known_package():
    for use in peer_uses.USES.values():
        assert list(inspect.signature(peer_uses.function_of(use.call)).parameters) == [
            "model",
            "forget",
            "retain",
            "rate",
        ]
        assert use.package in {"zspag", *peer_page.PEERS}


def test_a_page_without_a_file_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    assert peers.main(["table"]) == 2
    assert "peers.json is not there: run `python -m benchmarks.peers run --record` first" in capsys.readouterr().err


@pytest.mark.skipif(not RECORDED.is_dir(), reason="nothing is recorded yet")
def test_the_committed_page_says_what_its_file_says():
    written = (RECORDED / "README.md").read_text(encoding="utf-8")
    content = files.read_json(RECORDED / "peers.json")
    assert written == peer_page.render(content), "the page is stale: run `python -m benchmarks.peers table`"
