"""The command line: thin, quick to help, and one sentence on stderr when something cannot work."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zspag
from zspag.__main__ import main
from zspag.lab import audit, experiment, runs, sweep, unlearn_files
from zspag.lab.methods import METHODS
from zspag.profiles import PROFILES, FolderConfig, Ladders
from zspag.report import provenance
from zspag.report.files import repository_root, write_json

COMMANDS = ("reproduce", "run", "sweep", "audit", "unlearn", "methods", "claims", "data", "env", "provenance")
DIGITS = PROFILES["digits"]
STARTS = {  # what a command starts
    "run": (runs, "run"),
    "sweep": (sweep, "sweep"),
    "audit": (audit, "publish"),
    "unlearn": (unlearn_files, "unlearn_files"),
}


@pytest.mark.parametrize("given", [None, "7"])
def test_threads_that_wait_give_way_unless_the_user_says_otherwise(given):
    code = """
import os, sys
from zspag import __main__
assert "torch" not in sys.modules  # it reads the number as it is loaded
try:
    __main__.main(["--version"])
finally:
    print(os.environ["GOMP_SPINCOUNT"] == (sys.argv[1] or __main__.WAITING))
"""
    surroundings = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    surroundings |= {} if given is None else {"GOMP_SPINCOUNT": given}
    command = [sys.executable, "-c", code, given or ""]
    ended = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == "True"


@pytest.fixture
def started(monkeypatch):
    """Catch what the commands would start."""
    calls = []

    def catch(*args, **options):
        calls.append((*args, options))
        yield "a line"

    for place, name in STARTS.values():
        monkeypatch.setattr(place, name, catch)
    return calls


@pytest.fixture
def failing(monkeypatch):
    """Let a command print a line and fail."""

    def arrange(command, error):
        def fail(*_arguments, **_options):
            yield "a line"
            raise error

        place, name = STARTS[command]
        monkeypatch.setattr(place, name, fail)

    return arrange


def printed(capsys):
    """Return what was printed, after checking that an error is one line."""
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    return out, err


def python(*arguments, **environment):
    options = {"capture_output": True, "text": True, "timeout": 120, "check": False, "env": os.environ | environment}
    return subprocess.run([sys.executable, *arguments], **options)


# Help


@pytest.mark.parametrize("arguments", [["--version"], *([command, "--help"] for command in COMMANDS)])
def test_every_command_explains_itself_and_its_options(arguments, capsys):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    out, _ = printed(capsys)
    assert f"zspag {zspag.__version__ if len(arguments) == 1 else arguments[0]}" in out
    assert "%(" not in out


def test_help_lists_every_command_and_needs_no_torch():
    loaded = "bool({'torch', 'nbformat', 'pandas'} & {*sys.modules})"
    code = f"import sys; from zspag.__main__ import main\ntry: main(['--help'])\nfinally: print({loaded})"
    answer = python("-c", code)
    assert answer.stdout.endswith("False\n")
    assert set(COMMANDS) <= {line.split()[0] for line in answer.stdout.splitlines() if line.startswith("    ")}


@pytest.mark.parametrize(
    "arguments", [[], ["forget"], ["run", "--profile", "huge"], ["provenance"], ["unlearn"], ["data"], ["data", "get"]]
)
def test_command_line_that_makes_no_sense_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert "usage: zspag" in capsys.readouterr().err


# run, sweep and audit


def test_run_takes_the_profile_as_it_is_cpu_unless_told_otherwise(started, capsys):
    assert main(["run", "--profile", "smoke"]) == 0
    assert printed(capsys) == ("a line\n", "")
    assert main(["run"]) == 0
    assert started == [(PROFILES["smoke"], {"record": False}), (PROFILES["cpu"], {"record": False})]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("--classes 7,2 --seeds 4,0", {"classes": (7, 2), "seeds": (4, 0)}),
        ("--epochs 9 --arch conv7", {"train": replace(DIGITS.train, epochs=9), "arch": "conv7"}),
        ("--recorded-models", {"recorded_models": True}),
        ("--forget-samples 20 --retain-samples 3", {"forget_samples": 20, "retain_samples": 3}),
        ("--test-half second", {"test_half": "second"}),
    ],
)
def test_run_sweep_and_audit_change_what_is_asked_and_nothing_else(options, changes, started):
    for command in ("run", "sweep", "audit"):
        assert main([command, "--profile", "digits", "--record", *options.split()]) == 0
    assert [call[0] for call in started] == [replace(DIGITS, **changes)] * 3
    assert all(call[-1]["record"] for call in started)


def test_a_folder_is_read_by_the_options_given_and_its_classes_are_printed(started, tmp_path, capsys):
    draw = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    given = ["--image-size", "8", "--test-share", "0.5", "--split-seed", "3", "--min-per-class", "4"]
    for command in ("run", "sweep", "audit"):
        assert main([command, "--profile", "smoke", "--dataset", str(tmp_path), "--classes", "bee", *given]) == 0
        assert printed(capsys)[0].startswith("folders by class number: 0 ant, 1 bee, 2 cat\n")
    for profile, *_ in started:
        assert profile.folder == FolderConfig(image_size=8, test_share=0.5, split_seed=3, min_per_class=4)
        assert profile.classes == (1,)
        data = experiment.data_of(profile)
        assert (data.image_size, len(data.train.labels), len(data.test.labels)) == (8, 9, 9)


def test_sweep_takes_all_methods_or_those_asked_for_rates_of_its_own_and_no_retrained_models(started):
    assert main(["sweep", "--profile", "smoke"]) == 0
    assert started[-1] == (PROFILES["smoke"], tuple(METHODS), {"record": False, "scheduler": None})
    command = "sweep --profile digits --methods zs_pag,delete --rates 1,3.5 --no-retrained --scheduler tcp://host:8786"
    assert main(command.split()) == 0
    ladders = Ladders(low=(1.0, 3.5), middle=(1.0, 3.5), high=(1.0, 3.5))
    expected = replace(DIGITS, ladders=ladders, retrained=False)
    assert started[-1] == (expected, ("zs_pag", "delete"), {"record": False, "scheduler": "tcp://host:8786"})
    recorded = repository_root() / "results" / "digits" / "sweep.json"
    assert main(["sweep", "--profile", "digits", "--rates", str(recorded)]) == 0
    assert started[-1][0] == replace(DIGITS, rates_of="results/digits/sweep.json")  # the record names no machine's path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run --classes cat", "digits has no class 'cat'; its classes are 0, 1, 2"),
        ("run --classes=", "digits has no class ''"),
        ("run --classes 3,5,3", "class '3' is named twice (class 3)"),
        ("run --seeds one", "--seeds takes whole numbers, comma-separated, got 'one'"),
        ("run --seeds 0,0", "--seeds names 0 twice: give each value once"),
        ("run --record", "smoke is a trial, its numbers mean nothing: leave out --record"),
        ("audit --record", "smoke is a trial"),
        ("run --epochs 0", "epochs must be at least 1, got 0"),
        ("run --test-half third", "test_half must be 'first', 'second' or None, got 'third'"),
        ("run --forget-samples 0", "forget_samples must be at least 1 image or None, got 0"),
        ("run --retain-samples 0", "retain_samples must be at least 1 image or None, got 0"),
        ("run --dataset nowhere --classes 1", "no data set 'nowhere'"),
        ("run --image-size 16 --classes 3", "image_size=16 is for image folders; digits has its own size"),
        ("sweep --rates 3,x", "--rates takes numbers, comma-separated, got '3,x'"),
        ("sweep --rates 3,1", "low must hold positive rates in increasing order"),
        ("sweep --rates 1,1.0", "--rates names 1.0 twice"),
        ("sweep --methods zs_pag,delete,zs_pag", "--methods names zs_pag twice"),
        ("unlearn --already-forgotten cat", "--already-forgotten takes whole numbers, comma-separated, got 'cat'"),
        ("unlearn --already-forgotten 3,5,3", "--already-forgotten names 3 twice: give each value once"),
        ("unlearn --mean a,b --std 1,1", "--mean takes numbers, comma-separated, got 'a,b'"),
        ("unlearn --mean 0.5", "--mean and --std come together"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence_before_anything_starts(line, message, started, capsys, tmp_path):
    command, *options = line.split()
    assert main([*(unlearning(tmp_path) if command == "unlearn" else [command, "--profile", "smoke"]), *options]) == 2
    out, err = printed(capsys)
    assert err.startswith(f"zspag {command}: {message}")
    assert (out, started) == ("", [])


@pytest.mark.parametrize("command", ["sweep", "audit"])
def test_failed_runs_are_named_and_exit_with_1(command, failing, capsys):
    failing(command, experiment.RunsFailed("seed 0, class 3: KeyError: x"))
    assert main([command, "--profile", "smoke"]) == 1
    assert printed(capsys) == ("a line\n", f"zspag {command}: seed 0, class 3: KeyError: x\n")


# unlearn


def unlearning(folder, *more):
    paths = {"weights": "w.pt", "forget": "photos", "out": "out.pt"}
    places = [text for name, path in paths.items() for text in (f"--{name}", str(folder / path))]
    return ["unlearn", "--model", "net.py:make", *places, *more]


def test_unlearn_hands_everything_on(started, tmp_path):
    plain = unlearn_files.Task("net.py:make", tmp_path / "w.pt", tmp_path / "photos", tmp_path / "out.pt")
    assert main(unlearning(tmp_path)) == 0
    assert started[-1] == (plain, {})
    more = "--num-classes 7 --seed 3 --already-forgotten 4,0 --label bee --image-size 48 --mean .5,.4,.3 --std 1,2,3"
    more += " --goal remove"
    assert main(unlearning(tmp_path, *more.split(), "--keep-open", "--classes-file", "names.txt")) == 0
    facts = {"num_classes": 7, "seed": 3, "already_forgotten": (4, 0), "label": "bee", "image_size": 48}
    photos = {"mean": (0.5, 0.4, 0.3), "std": (1.0, 2.0, 3.0), "classes_file": Path("names.txt")}
    assert started[-1] == (replace(plain, **facts, **photos, keep_open=True, goal="remove"), {})


def test_a_goal_that_there_is_not_is_refused_with_those_that_there_are(started, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(unlearning(tmp_path, "--goal", "erase"))
    assert done.value.code == 2
    assert re.search("choose from '?suppress'?, '?remove'?", capsys.readouterr().err)
    assert started == []


def test_a_goal_that_is_not_reached_has_an_exit_code_of_its_own(capsys, tmp_path, failing):
    failing("unlearn", unlearn_files.GoalNotReached("42 % is still recognized"))
    assert main(unlearning(tmp_path)) == 3
    assert printed(capsys) == ("a line\n", "zspag unlearn: 42 % is still recognized\n")


@pytest.mark.parametrize(
    ("command", "kept"),
    [("unlearn", "nothing was written"), ("run", "what was finished is kept, the same command goes on")],
)
def test_an_interrupted_command_says_what_is_kept(command, kept, capsys, tmp_path, failing):
    failing(command, KeyboardInterrupt())
    assert main(unlearning(tmp_path) if command == "unlearn" else [command, "--profile", "smoke"]) == 130
    assert capsys.readouterr().err == f"\nzspag {command}: interrupted; {kept}\n"


# methods, env and provenance


def test_methods_lists_every_method_with_the_rates_of_the_profile(capsys):
    assert main(["methods"]) == 0
    out, err = printed(capsys)
    assert [line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")] == list(METHODS)
    assert out.startswith("zs_pag: ZS-PAG\n")
    assert "\n  reads: forget set, proxies made from it\n" in out
    assert out.count("\n  reads: ") == len(METHODS)
    assert out.count("(oracle)") == sum(method.oracle for method in METHODS.values())
    assert "  ladder: middle, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1\n" in out
    assert err == ""
    assert main(["methods", "--profile", "smoke"]) == 0
    assert "  ladder: middle, 0.03, 0.3\n" in printed(capsys)[0]


def test_env_prints_versions_device_and_threads(capsys):
    assert main(["env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in printed(capsys)[0].splitlines() if " " in line)
    assert "torch 2." in lines["versions"]
    assert lines["device"] in ("cpu", "cuda")
    assert int(lines["threads"]) >= 1


@pytest.fixture
def recorded(tmp_path):
    """A file that carries provenance."""
    record = provenance.record(config={"width": 16}, seed=7, data_sha256="d" * 64, device="cpu", threads=1, started=0.0)
    write_json(tmp_path / "result.json", {"provenance": record})
    return tmp_path / "result.json"


def test_provenance_prints_what_a_file_carries(capsys, recorded):
    assert main(["provenance", str(recorded)]) == 0
    described, _, verdict = printed(capsys)[0].rstrip("\n").rpartition("\n")
    assert described == provenance.describe(provenance.read_record(recorded))
    assert json.loads(described[described.index("{") :]) == {"width": 16}
    assert verdict.startswith("this tree reproduces it: cannot tell: the record names no profile")


@pytest.mark.parametrize(("name", "message"), [("absent.json", "absent.json"), ("d.csv", "carries no provenance")])
def test_file_without_provenance_is_said_in_one_sentence(name, message, capsys, tmp_path):
    (tmp_path / "d.csv").write_text("1,2")
    assert main(["provenance", str(tmp_path / name)]) == 2
    out, err = printed(capsys)
    assert err.startswith("zspag provenance: ")
    assert message in err
    assert out == ""


# Errors, and the machine


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "Permission denied: /a/b; change its permissions"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on the disk"),
        (OSError("no number"), "no number"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),  # a pipe that is not ours
    ],
)
def test_an_error_of_the_system_is_one_sentence(error, sentence, failing, capsys):
    failing("run", error)
    assert main(["run", "--profile", "smoke"]) == 2
    assert printed(capsys)[1].startswith(f"zspag run: {sentence}")


def test_an_error_of_our_own_comes_through_as_it_is(failing):
    failing("run", TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        main(["run", "--profile", "smoke"])


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_reader_that_has_seen_enough_ends_it_without_a_word(recorded, unbuffered):
    command = [sys.executable, "-m", "zspag", "provenance", str(recorded)]
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does, only that nothing depends on who is quicker
    options = {"stderr": subprocess.PIPE, "text": True, "timeout": 120, "check": False}
    answer = subprocess.run(command, stdout=writing, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, **options)
    os.close(writing)
    assert (answer.returncode, answer.stderr) == (141, "")


def test_without_any_output_it_runs_all_the_same(recorded):
    command = [sys.executable, "-m", "zspag", "provenance", str(recorded)]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    closed = shlex.join(command) + " >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], timeout=120, check=False).returncode == 0


def test_a_letter_that_the_terminal_lacks_ends_nothing(tmp_path):
    missing = tmp_path / "Jörg \u2192"
    answer = python("-m", "zspag", "provenance", f"{missing}.json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert answer.returncode == 2
    assert answer.stderr.startswith("zspag provenance: ")
    assert "J\\xf6rg \\u2192.json" in answer.stderr
