"""The command line: thin, quick to help, and one sentence on stderr when something cannot work."""

import errno
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zspag.__main__ import main
from zspag.config import FolderConfig, Ladders
from zspag.lab import experiment
from zspag.lab.methods import METHODS
from zspag.profiles import PROFILES
from zspag.report import provenance
from zspag.report.files import write_json

COMMANDS = ("reproduce", "run", "sweep", "audit", "unlearn", "methods", "claims", "data", "env", "provenance")


@pytest.fixture
def started(monkeypatch):
    """Catch what `zspag run`, `zspag sweep`, `zspag audit` and `zspag unlearn` would start."""
    from zspag.lab import audit, runs, sweep, unlearn_files

    calls = []

    def catch(*args, **options):
        calls.append((*args, options))
        yield "a line"

    monkeypatch.setattr(runs, "run", catch)
    monkeypatch.setattr(sweep, "sweep", catch)
    monkeypatch.setattr(audit, "publish", catch)
    monkeypatch.setattr(unlearn_files, "unlearn_files", catch)
    return calls


def said(capsys):
    """Return what was printed, after checking that an error is one line."""
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    return out, err


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | environment,
    )  # fmt: skip


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    out, _ = said(capsys)
    assert f"zspag {command}" in out


def test_help_lists_every_command_and_needs_no_torch():
    loaded = "bool({'torch', 'nbformat', 'pandas'} & {*sys.modules})"
    code = f"import sys; from zspag.__main__ import main\ntry: main(['--help'])\nfinally: print({loaded})"
    answer = python("-c", code)
    assert answer.stdout.endswith("False\n")
    assert set(COMMANDS) <= {line.split()[0] for line in answer.stdout.splitlines() if line.startswith("    ")}


def test_every_option_is_explained(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
    assert "%(" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["forget"], ["run", "--profile", "huge"], ["provenance"], ["unlearn"], ["data"], ["data", "get"]]
)
def test_command_line_that_makes_no_sense_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert "usage: zspag" in capsys.readouterr().err


def test_version(capsys):
    import zspag

    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"zspag {zspag.__version__}\n"


# run


def test_run_takes_the_profile_as_it_is(started, capsys):
    assert main(["run", "--profile", "smoke"]) == 0
    assert started == [(PROFILES["smoke"], {"record": False})]
    assert said(capsys) == ("a line\n", "")


def test_run_changes_what_is_asked_and_nothing_else(started, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    command = "run --profile digits --classes 7,2 --seeds 4,0 --epochs 9 --arch conv7 --record --recorded-models"
    assert main(command.split()) == 0
    digits = PROFILES["digits"]
    expected = replace(digits, classes=(7, 2), seeds=(4, 0), arch="conv7", train=replace(digits.train, epochs=9))
    assert started == [(replace(expected, recorded_models=True), {"record": True})]


def test_run_and_sweep_read_a_folder_by_the_options_given(started, tmp_path):
    draw = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    given = ["--image-size", "8", "--test-share", "0.5", "--split-seed", "3", "--min-per-class", "4"]
    for command in ("run", "sweep"):
        assert main([command, "--profile", "smoke", "--dataset", str(tmp_path), "--classes", "bee", *given]) == 0
    for profile, *_ in started:
        assert profile.folder == FolderConfig(image_size=8, test_share=0.5, split_seed=3, min_per_class=4)
        assert profile.classes == (1,)
        data = experiment.data_of(profile)
        assert (data.image_size, len(data.train.labels), len(data.test.labels)) == (8, 9, 9)


def test_run_refuses_a_folder_option_for_a_data_set_with_a_size_of_its_own(started, capsys):
    assert main(["run", "--profile", "smoke", "--image-size", "16", "--classes", "3"]) == 2
    assert said(capsys)[1].startswith("zspag run: image_size=16 is for image folders; digits has its own size")
    assert started == []


def test_sweep_takes_all_methods_or_those_asked_for(started, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    assert main(["sweep", "--profile", "smoke"]) == 0
    command = "sweep --profile digits --methods zs_pag,delete --classes 2 --record --scheduler tcp://host:8786"
    assert main(command.split()) == 0
    smoke, digits = PROFILES["smoke"], PROFILES["digits"]
    assert started[0] == (smoke, tuple(METHODS), {"record": False, "scheduler": None})
    assert started[1] == (
        replace(digits, classes=(2,)),
        ("zs_pag", "delete"),
        {"record": True, "scheduler": "tcp://host:8786"},
    )


def test_sweep_takes_fewer_images_for_methods_and_oracles(started, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    assert main(["sweep", "--profile", "digits", "--forget-samples", "20", "--retain-samples", "3"]) == 0
    assert started[-1][0] == replace(PROFILES["digits"], forget_samples=20, retain_samples=3)


def test_sweep_takes_a_half_of_the_test_set_rates_of_its_own_and_no_retrained_models(started, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    command = "sweep --profile digits --methods zs_pag --test-half second --rates 1,3.5 --no-retrained"
    assert main(command.split()) == 0
    ladders = Ladders(low=(1.0, 3.5), middle=(1.0, 3.5), high=(1.0, 3.5))
    expected = replace(PROFILES["digits"], test_half="second", ladders=ladders, retrained=False)
    assert started[-1][0] == expected
    assert main(["sweep", "--profile", "digits"]) == 0
    assert started[-1][0] == PROFILES["digits"]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("3,x", "--rates takes numbers, comma-separated, got '3,x'"),
        ("3,1", "low must hold positive rates in increasing order"),
    ],
)
def test_sweep_refuses_rates_that_are_none(rates, message, started, capsys):
    assert main(["sweep", "--profile", "digits", "--rates", rates]) == 2
    assert said(capsys)[1].startswith(f"zspag sweep: {message}")
    assert started == []


def test_sweep_of_an_unknown_method_names_the_known_ones(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    assert main(["sweep", "--profile", "smoke", "--methods", "magic"]) == 2
    assert said(capsys)[1].startswith("zspag sweep: unknown method magic; known are zs_pag, ")


def test_sweep_with_failed_runs_names_them_and_exits_with_1(monkeypatch, capsys):
    from zspag.lab import experiment, sweep

    def fail(*_arguments, **_options):
        yield "a line"
        raise experiment.RunsFailed(
            "1 of 2 classes and seeds failed; the others are kept:\n  seed 0, class 3: KeyError: x"
        )

    monkeypatch.setattr(sweep, "sweep", fail)
    assert main(["sweep", "--profile", "smoke"]) == 1
    assert "seed 0, class 3: KeyError" in capsys.readouterr().err


def test_audit_takes_the_profile_with_what_is_asked(started, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    assert main(["audit", "--profile", "digits", "--classes", "2", "--seeds", "0,1", "--record"]) == 0
    ((profile, options),) = started
    assert profile == replace(PROFILES["digits"], classes=(2,), seeds=(0, 1))
    assert options == {"record": True}


def test_a_trial_is_not_audited_for_the_record(started, capsys):
    assert main(["audit", "--profile", "smoke", "--record"]) == 2
    assert said(capsys)[1].startswith("zspag audit: smoke is a trial, its numbers mean nothing: leave out --record")
    assert started == []


def test_audit_with_a_failed_class_names_it_and_exits_with_1(monkeypatch, capsys):
    from zspag.lab import audit, experiment

    def fail(*_arguments, **_options):
        yield "a line"
        raise experiment.RunsFailed("the audit of class 3, seed 0 failed: x")

    monkeypatch.setattr(audit, "publish", fail)
    assert main(["audit", "--profile", "smoke"]) == 1
    assert said(capsys)[1] == "zspag audit: the audit of class 3, seed 0 failed: x\n"


def test_run_prints_which_folder_became_which_class(started, capsys, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("L", (8, 8), 9 * index).save(tmp_path / name / f"{index}.png")
    options = ["--dataset", str(tmp_path), "--classes", "bee", "--min-per-class", "2"]
    for command in ("run", "sweep", "audit"):
        assert main([command, "--profile", "digits", *options]) == 0
        assert said(capsys)[0].startswith("folders by class number: 0 ant, 1 bee\n")
    assert len(started) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("run --seeds 0,0", "zspag run: --seeds names 0 twice: give each value once"),
        ("run --classes 3,5,3", "zspag run: class '3' is named twice (class 3)"),
        ("sweep --methods zs_pag,delete,zs_pag", "zspag sweep: --methods names zs_pag twice"),
        ("sweep --rates 1,1.0", "zspag sweep: --rates names 1.0 twice"),
    ],
)
def test_what_is_given_twice_is_refused(options, message, started, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    assert main([*options.split(), "--profile", "digits"]) == 2
    assert said(capsys)[1].startswith(message)
    assert started == []


def test_run_is_the_cpu_profile_unless_told_otherwise(started):
    main(["run"])
    assert started[0][0] == PROFILES["cpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--classes cat", "zspag run: digits has no class 'cat'; its classes are 0, 1, 2"),
        ("--classes=", "zspag run: digits has no class ''"),
        ("--seeds one", "zspag run: --seeds takes whole numbers, comma-separated, got 'one'"),
        (
            "--record",
            "zspag run: smoke is a trial, its numbers mean nothing: leave out --record",
        ),
        ("--epochs 0", "zspag run: epochs must be at least 1, got 0"),
        ("--test-half third", "zspag run: test_half must be 'first', 'second' or None, got 'third'"),
        ("--forget-samples 0", "zspag run: forget_samples must be at least 1 image or None, got 0"),
        ("--retain-samples 0", "zspag run: retain_samples must be at least 1 image or None, got 0"),
        ("--dataset nowhere --classes 1", "zspag run: no data set 'nowhere'"),
    ],
)
def test_run_says_what_cannot_work_in_one_sentence(options, message, started, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    assert main(["run", "--profile", "smoke", *options.split()]) == 2
    out, err = said(capsys)
    assert err.startswith(message)
    assert (out, started) == ("", [])


def test_missing_data_set_is_said_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    assert main(["run", "--profile", "cpu", "--dataset", "nowhere"]) == 2
    _, err = said(capsys)
    assert "put images under" in err
    assert not list(tmp_path.iterdir())


# unlearn


def unlearning(folder, *more):
    paths = {"weights": "w.pt", "forget": "photos", "out": "out.pt"}
    places = [text for name, path in paths.items() for text in (f"--{name}", str(folder / path))]
    return ["unlearn", "--model", "net.py:make", *places, *more]


def test_unlearn_hands_everything_on(started, tmp_path):
    from zspag.lab.unlearn_files import Task

    plain = Task("net.py:make", tmp_path / "w.pt", tmp_path / "photos", tmp_path / "out.pt")
    assert main(unlearning(tmp_path)) == 0
    assert started[-1] == (plain, {})
    more = "--num-classes 7 --seed 3 --already-forgotten 4,0 --label bee --image-size 48 --mean .5,.4,.3 --std 1,2,3"
    assert main(unlearning(tmp_path, *more.split(), "--keep-open", "--classes-file", "names.txt")) == 0
    expected = replace(
        plain, num_classes=7, seed=3, already_forgotten=(4, 0), label="bee", image_size=48, mean=(0.5, 0.4, 0.3),
        std=(1.0, 2.0, 3.0), keep_open=True, classes_file=Path("names.txt"),
    )  # fmt: skip
    assert started[-1] == (expected, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--already-forgotten cat", "--already-forgotten takes whole numbers, comma-separated, got 'cat'"),
        ("--already-forgotten 3,5,3", "--already-forgotten names 3 twice: give each value once"),
        ("--mean a,b --std 1,1", "--mean takes numbers, comma-separated, got 'a,b'"),
        ("--mean 0.5", "--mean and --std come together"),
        ("--num-classes 1", "--num-classes must be at least 2, got 1"),
    ],
)
def test_options_of_unlearn_that_make_no_sense_are_said(options, message, started, capsys, tmp_path):
    assert main(unlearning(tmp_path, *options.split())) == 2
    assert said(capsys)[1].startswith(f"zspag unlearn: {message}")
    assert not started


def test_unlearn_says_what_cannot_work_in_one_sentence(capsys, tmp_path):
    assert main(unlearning(tmp_path, "--out", str(tmp_path / "o.h5"))) == 2
    out, err = said(capsys)
    assert err == f"zspag unlearn: --out must end in .safetensors, .pt, .pth, got {tmp_path}/o.h5\n"
    assert out == ""


def test_a_goal_that_is_not_reached_has_an_exit_code_of_its_own(capsys, tmp_path, monkeypatch):
    from zspag.lab import unlearn_files

    def short(_request):
        yield "a page"
        raise unlearn_files.GoalNotReached("part of the forget set is still recognized (42 % of it)")

    monkeypatch.setattr(unlearn_files, "unlearn_files", short)
    assert main(unlearning(tmp_path)) == 3
    assert said(capsys) == ("a page\n", "zspag unlearn: part of the forget set is still recognized (42 % of it)\n")


def test_an_interrupted_unlearn_says_that_nothing_was_written(capsys, tmp_path, monkeypatch):
    from zspag.lab import unlearn_files

    def interrupted(_request):
        raise KeyboardInterrupt

    monkeypatch.setattr(unlearn_files, "unlearn_files", interrupted)
    assert main(unlearning(tmp_path)) == 130
    assert "zspag unlearn: interrupted; nothing was written" in capsys.readouterr().err


def test_unlearn_from_the_command_line_to_the_file(capsys, tmp_path):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "net.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))\n"
    )
    weight = torch.full((3, 16), 0.1)
    weight[0, :8], weight[1, 8:], weight[2, ::2] = 1.0, 1.0, 1.0
    save_file({"1.weight": weight, "1.bias": torch.zeros(3)}, tmp_path / "weights.safetensors")
    (tmp_path / "forget" / "0").mkdir(parents=True)
    for index in range(5):
        picture = Image.new("L", (4, 4))
        picture.paste(200 + 10 * index, (0, 0, 4, 2))
        picture.save(tmp_path / "forget" / "0" / f"{index}.png")
    options = {"model": "net.py:make", "weights": "weights.safetensors", "forget": "forget", "out": "out.safetensors"}
    places = [text for name, path in options.items() for text in (f"--{name}", str(tmp_path / path))]
    assert main(["unlearn", *places]) in (0, 3)
    out, _ = said(capsys)
    assert out.startswith("folder 0 is class 0: 5 images\nUnlearning class 0 with 5 images")
    assert main(["provenance", str(tmp_path / "out.safetensors")]) == 0


# methods


def test_methods_lists_every_method_with_the_rates_of_the_profile(capsys):
    from zspag.lab.methods import METHODS

    assert main(["methods"]) == 0
    out, err = said(capsys)
    assert [line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")] == list(METHODS)
    assert out.startswith("zs_pag: ZS-PAG\n")
    assert "\n  reads: forget set, proxies made from it\n" in out
    assert out.count("\n  reads: ") == len(METHODS)
    assert out.count("(oracle)") == sum(method.oracle for method in METHODS.values())
    assert "  ladder: middle, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1\n" in out
    assert err == ""
    assert main(["methods", "--profile", "smoke"]) == 0
    assert "  ladder: middle, 0.03, 0.3\n" in said(capsys)[0]


# env and provenance


def test_env_prints_versions_device_and_threads():
    answer = python("-m", "zspag", "env", CUDA_VISIBLE_DEVICES="")
    assert answer.returncode == 0
    assert answer.stderr == ""
    lines = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if " " in line)
    assert "torch 2." in lines["versions"]
    assert lines["device"] == "cpu"
    assert int(lines["threads"]) >= 1


def test_provenance_prints_what_a_file_carries(capsys, tmp_path):
    record = provenance.record(config={"width": 16}, seed=7, data_sha256="d" * 64, device="cpu", threads=1, started=0.0)
    write_json(tmp_path / "result.json", {"provenance": record})
    assert main(["provenance", str(tmp_path / "result.json")]) == 0
    out, _ = said(capsys)
    described, _, verdict = out.rstrip("\n").rpartition("\n")
    assert described == provenance.describe(record)
    assert json.loads(described[described.index("{") :]) == {"width": 16}
    assert verdict.startswith("this tree reproduces it: cannot tell: the record names no profile")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, "absent.json"),
        ("data.csv", "1,2", "none of the files that carry provenance"),
        ("plain.json", "{}", "carries no provenance"),
        ("broken.json", "{", "is not readable as JSON"),
        ("not.png", "text", "is not a PNG file"),
    ],
)
def test_file_without_provenance_is_said_in_one_sentence(name, content, message, capsys, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["provenance", str(tmp_path / name)]) == 2
    out, err = said(capsys)
    assert err.startswith("zspag provenance: ")
    assert message in err
    assert out == ""


def test_interruption_says_that_nothing_is_lost(started, capsys, monkeypatch):
    from zspag.lab import runs

    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run", interrupted)
    assert main(["run", "--profile", "smoke"]) == 130
    assert "interrupted; what was finished is kept" in capsys.readouterr().err


def test_error_of_our_own_is_not_dressed_up(started, monkeypatch):
    from zspag.lab import runs

    def broken(*_args, **_options):
        raise TypeError("a bug")

    monkeypatch.setattr(runs, "run", broken)
    with pytest.raises(TypeError, match="a bug"):
        main(["run", "--profile", "smoke"])


# The machine


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "Permission denied: /a/b; change its permissions"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on the disk"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), "Is a directory: /a; give a file"),
        (OSError("no number"), "no number"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
    ],
)
def test_an_error_of_the_system_is_one_sentence(error, sentence, started, capsys, monkeypatch):
    from zspag.lab import runs

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(runs, "run", fail)
    assert main(["run", "--profile", "smoke"]) == 2
    assert said(capsys)[1].startswith(f"zspag run: {sentence}")


@pytest.fixture
def provenance_command(tmp_path):
    """A command that prints a page without importing torch."""
    record = provenance.record(config={}, seed=7, data_sha256=None, device="cpu", threads=1, started=0.0)
    write_json(tmp_path / "result.json", {"provenance": record})
    return [sys.executable, "-m", "zspag", "provenance", str(tmp_path / "result.json")]


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_reader_that_has_seen_enough_ends_it_without_a_word(provenance_command, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does, only that nothing depends on who is quicker
    answer = subprocess.run(
        provenance_command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writing)
    assert (answer.returncode, answer.stderr) == (141, "")
    assert subprocess.run(provenance_command, capture_output=True, timeout=120, check=False).returncode == 0


def test_a_broken_pipe_that_is_not_ours_is_an_error_like_others(started, capsys, monkeypatch):
    from zspag.lab import runs

    def fail(*_args, **_options):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(runs, "run", fail)
    assert main(["run", "--profile", "smoke"]) == 2
    assert said(capsys)[1] == "zspag run: Broken pipe\n"


def test_a_letter_that_the_terminal_lacks_ends_nothing(tmp_path):
    missing = tmp_path / "Jörg \u2192"
    answer = python("-m", "zspag", "provenance", f"{missing}.json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert answer.returncode == 2
    assert answer.stderr.startswith("zspag provenance: ")
    assert "J\\xf6rg \\u2192.json" in answer.stderr


def test_without_any_output_it_runs_all_the_same(provenance_command):
    closed = shlex.join(provenance_command) + " >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], timeout=120, check=False).returncode == 0
