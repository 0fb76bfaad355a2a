"""``make gpu``: a step that fails or hangs does not take the others along, and a finished one is not run again."""

import os
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, hours
from benchmarks.stages import whole
from zspag.lab.data import Dataset, Split, load
from zspag.report import files

ROOT = Path(__file__).parents[1]

FOUND = {
    "attack": {
        "images": 60,
        "ways": {"float32": {"seconds": [2.0, 1.0, 3.0]}, "bfloat16": {"seconds": [1.0, 1.0, 1.0]}},
    },
    "nets": {"seconds": {"trained": 60.0, "retrained": 55.0, "unlearned": 4.0}},
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.delenv("OUT", raising=False)


@pytest.fixture
def boxed(monkeypatch):
    """Steps that end at once: those that are named in ``troubles`` badly, the others with what they would find."""
    done, troubles = [], {"tests": "two of them failed"}

    def end(name, seconds, *, tiny, log):
        done.append((name, seconds))
        if name in troubles:
            return troubles[name]
        content = gpu.described(tiny=tiny) | {"failed": None, "seconds": 1.0, "found": FOUND.get(name, {})}
        files.write_json(log.parent / f"{name}.json", content)
        return None

    monkeypatch.setattr(gpu, "_boxed", end)
    return done, troubles


def told(folder, name):
    return files.read_json(folder / "runs" / "gpu" / "tiny" / f"{name}.json")


def test_without_a_card_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr() == ("", f"{gpu.NO_CARD}\n")


def test_a_step_that_does_not_exist_is_named(capsys):
    assert gpu.main(["--tiny", "--only", "tests,nothing"]) == 2
    assert "there is no step nothing; steps are tests, nets" in capsys.readouterr().err


def test_a_failed_step_is_recorded_and_done_again_and_a_finished_one_is_not(boxed, tmp_path, capsys):
    done, troubles = boxed
    assert gpu.main(["--tiny"]) == 1
    assert [name for name, _ in done] == list(gpu.STEPS)
    assert told(tmp_path, "tests")["failed"] == "two of them failed"
    assert told(tmp_path, "nets")["failed"] is None
    assert "tests: two of them failed" in capsys.readouterr().out
    done.clear()
    troubles.clear()
    assert gpu.main(["--tiny"]) == 0
    assert [name for name, _ in done] == ["tests"]


@pytest.mark.parametrize("change", [{"device": "another card"}, {"torch": "1.0"}, {"data": gpu.HALF}])
def test_what_another_card_torch_or_data_gave_is_not_kept(boxed, tmp_path, change):
    done, _ = boxed
    gpu.main(["--tiny", "--only", "nets"])
    path = tmp_path / "runs" / "gpu" / "tiny" / "nets.json"
    files.write_json(path, files.read_json(path) | change)
    gpu.main(["--tiny", "--only", "nets"])
    assert [name for name, _ in done] == ["nets", "nets"]


def test_no_step_gets_more_than_the_time_that_is_left(boxed):
    done, _ = boxed
    gpu.main(["--tiny", "--minutes", "0.5"])
    assert all(seconds <= 30 for _, seconds in done)


def test_small_files_and_figures_go_where_out_names(boxed, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    gpu.main(["--tiny"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*(f"{name}.json" for name in gpu.STEPS), "gpu.png"}
    assert len(names) < 8  # the paper's figure is the eighth


def _program(folder, monkeypatch, text):
    """Have steps run a shell script instead of Python."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(path))


@pytest.mark.slow
def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    _program(tmp_path, monkeypatch, f"sleep 600 &\necho $! > {tmp_path}/child\necho at work\nwait")
    assert gpu.main(["--tiny", "--only", "trace", "--minutes", "0.05"]) == 1
    failed = told(tmp_path, "trace")["failed"]
    assert failed.startswith("it was not done after 3 s")
    assert "at work" in failed
    ends, child = time.monotonic() + 5, Path("/proc", (tmp_path / "child").read_text(encoding="utf-8").strip())
    while child.exists() and "zombie" not in (child / "status").read_text(encoding="utf-8"):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_step_that_ends_badly_is_recorded_with_its_last_words(tmp_path, monkeypatch):
    _program(tmp_path, monkeypatch, "echo RuntimeError: out of memory >&2\nexit 1")
    assert gpu.main(["--tiny", "--only", "nets"]) == 1
    assert told(tmp_path, "nets")["failed"] == "RuntimeError: out of memory"


def test_the_archive_holds_half_of_every_class_as_jpeg(tmp_path, monkeypatch):
    names = tuple("abcdefghij")
    images = torch.randint(256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    splits = (Split(images, torch.arange(60) % 10), Split(images[:20], torch.arange(20) % 10))
    whole = Dataset("cifar10", names, *splits, augment_hint="shift_flip", data_source="official files")
    monkeypatch.setattr(gpu, "load", lambda _name: whole)
    monkeypatch.setattr(gpu, "CHECKOUT", tmp_path)
    assert gpu.main(["pack"]) == 0
    half = load("cifar10", root=gpu.packed().parent)
    assert half.classes == names
    assert half.train.labels.bincount().tolist() == [3] * 10
    assert half.test.labels.bincount().tolist() == [1] * 10
    assert "JPEG" in half.data_source
    first = (half.train.images[0].double() - images[0].double()).abs().mean()
    other = (half.train.images[0].double() - images[1].double()).abs().mean()
    assert first < 0.5 * other  # the same picture, coded with a loss
    assert "JPEG" in gpu.data_words("cifar10")
    assert "JPEG" not in gpu.data_words("digits")


@pytest.mark.slow
def test_every_step_runs_in_tiny_sizes(tmp_path):
    steps = ["nets", "trace", "paper", "smoke"]  # the attack and its tests run in test_gpu.py
    assert gpu.main(["--tiny", "--only", ",".join(steps)]) == 0
    found = {name: told(tmp_path, name)["found"] for name in steps}
    assert found["nets"]["retain samples read"] == 0
    assert found["paper"]["numbers"]["recognized"] <= 6
    assert list(found["smoke"]["seconds, all at once"]) == ["00_quickstart"]
    assert all((tmp_path / "runs" / "gpu" / "tiny" / name).is_file() for name in ("gpu.png", "root/paper.png"))
    assert not os.environ["ZSPAG_ROOT"].startswith(str(gpu.CHECKOUT))


# The hours of the paper's pairs


def test_operations_are_those_that_are_known():
    net = hours.forward_operations("resnet18", width=64, classes=10, side=32)
    assert net == pytest.approx(1.11e9, rel=0.01)  # the number that everybody counts, at 32 x 32 pixels
    assert hours.forward_operations("resnet18", width=64, classes=10, side=64) == pytest.approx(4 * net, rel=0.01)


@pytest.mark.slow
def test_the_readme_has_the_hours_that_the_program_prints():
    text = " ".join((ROOT / "docs" / "experiments.md").read_text(encoding="utf-8").split())
    for sentence in hours.sentences(ROOT / "results"):
        assert sentence in text, f"put this into docs/experiments.md, from python -m benchmarks.hours: {sentence}"


def test_a_card_that_was_measured_has_a_sentence_of_its_own(tmp_path):
    raced = {"stage": whole.STAGE, "value": 50.0, "seconds": {"retraining": [600.0, 600.0, 600.0]}}
    missed = {"stage": whole.STAGE, "value": None, "seconds": {}}
    measured = {"machine": {"name": "a processor", "threads": 2}, "found": [raced, missed]}
    files.write_json(tmp_path / "bench" / "cpu.json", {"data": measured})
    net = {"dataset": "cifar10", "arch": "resnet18", "width": 64}
    found = {"net": net, "images": 25_000, "epochs": 30, "seconds": {"trained": 50.0}}
    content = {"device": "a card", "found": found | {"unlearning as a share of training": 0.1}}
    files.write_json(tmp_path / "gpu" / "nets.json", content)
    cpu, card = hours.rates(tmp_path)
    assert card.machine == "a card"
    assert card.operations == pytest.approx(3 * 1.11e9 * 25_000 * 30 / 50, rel=0.01)
    assert card.operations > cpu.operations
    assert (cpu.machine, cpu.share) == ("a processor, 2 threads", 1 / 50)


@pytest.mark.slow
def test_the_recorded_hours_of_every_pair_are_those_of_the_recorded_rates():
    recorded = files.read_json(ROOT / "results" / "hours.json")["pairs"]
    again = files.plain(hours.by_pair(ROOT / "results"), "pairs")
    assert recorded == again, "python -m benchmarks.hours --record writes them anew"
    (machine,) = {one["machine"] for one in recorded}
    whole = sum(one["hours"] for one in recorded)
    assert f"{machine}: {whole:,.0f} hours for all pairs" in next(hours.sentences(ROOT / "results"))


def test_hours_without_a_recorded_race_name_the_file_and_the_remedy(tmp_path):
    files.write_json(tmp_path / "bench" / "cpu.json", {"data": {"found": []}})
    with pytest.raises(ValueError, match=r"cpu\.json has no race .*make bench RECORD=1"):
        next(hours.rates(tmp_path))
