"""``zspag unlearn``: somebody's own model, weights and photos go in; weights, a report and a figure come out."""

import copy
import errno
import hashlib
import io
import math
import re
import resource
import signal
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from laboratory import FORGET, small
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from zspag import zero_shot_unlearn
from zspag.__main__ import main
from zspag.calibration import verdict
from zspag.config import GOALS, RemovalConfig, UnlearnConfig, from_dict
from zspag.lab import unlearn_files
from zspag.lab.data.sources import read_digits
from zspag.lab.models import Normalize, build, from_file
from zspag.lab.unlearn_files import GoalNotReached, Task
from zspag.preflight.refusal import Refusal
from zspag.report import files, provenance, unlearn_page
from zspag.report.unlearn_page import Example
from zspag.runtime import logits_of

pytestmark = pytest.mark.usefixtures("own_data")
FACTORY = """
from zspag.lab.models import build

def make():
    return build("digits", num_classes=10, in_channels=1, image_size=8, width=8, mean=[0.5], std=[0.5])

def of_zspag(*, num_classes, in_channels, image_size):
    facts = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return build("digits", width=8, mean=[0.5], std=[0.5], **facts)

def no_module():
    return "a string"
"""


# ---- A stand-in for the method: what is tested here is what lies around it


class Page(SimpleNamespace):
    """As much of a report as the files need."""

    def __init__(self, **changes):
        facts = {
            "verdict": "",
            "legends": {"tried": "", "layers": ""},
            "reached": True,
            "silenced": True,
            "forget_accuracy": 0.0,
            "unseen_accuracy": None,
            "warnings": (),
        }
        super().__init__(**facts | changes)

    def to_dict(self):
        page = {"warnings": list(self.warnings), "tried": [], "layers": []}
        return page | {"reached": self.reached, "forget_accuracy": self.forget_accuracy}

    def plot(self):
        return Figure(figsize=(2, 1))


def moved(model, by):
    """Return a copy whose last bias is moved, so that the two models that come back can be told apart."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        list(changed.parameters())[-1].add_(by)
    return changed


@pytest.fixture
def method(monkeypatch):
    """Put a stand-in in the place of the method; what it was called with and what its report says can be changed."""
    seen = SimpleNamespace(calls=[], report=Page(), warns=())

    def stand_in(model, images, labels, **options):
        seen.calls.append(SimpleNamespace(model=copy.deepcopy(model), images=images, labels=labels, options=options))
        for text in seen.warns:
            warnings.warn(text, stacklevel=2)
        return SimpleNamespace(model=moved(model, 1.0), open_model=moved(model, 2.0), report=seen.report)

    monkeypatch.setattr(unlearn_files, "zero_shot_unlearn", stand_in)
    return seen


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty threes as PNG files under forget/3/."""
    return class_folders(tmp_path_factory.mktemp("pictures") / "forget", (FORGET,), count=40)


def class_folders(folder, labels, *, count):
    data = read_digits().train
    for label in labels:
        (folder / str(label)).mkdir(parents=True)
        for index, image in enumerate(data.images[data.labels == label][:count]):
            Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{index:03}.png")
    return folder


@cache
def untrained():
    return build("digits", num_classes=10, in_channels=1, image_size=8, width=8, mean=[0.5], std=[0.5]).state_dict()


@pytest.fixture
def given(pictures, tmp_path):
    """A request that works."""
    (tmp_path / "net.py").write_text(FACTORY)
    save_file(untrained(), tmp_path / "weights.safetensors")
    weights, out = tmp_path / "weights.safetensors", tmp_path / "new" / "unlearned.safetensors"
    return Task(model=f"{tmp_path / 'net.py'}:make", weights=weights, forget=pictures, out=out, seed=4)


def lines_of(request):
    return list(unlearn_files.unlearn_files(request))


def last_bias(path):
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return state[list(untrained())[-1]]


def original_bias():
    return list(untrained().values())[-1]


# ---- What goes in


def test_photos_and_weights_reach_the_method_as_they_are(given, method):
    lines = lines_of(replace(given, already_forgotten=(7,)))
    data = read_digits().train
    (call,) = method.calls
    assert torch.equal(call.images, data.images[data.labels == FORGET][:40])
    assert call.labels.tolist() == [FORGET] * 40
    handed = {"num_classes": None, "already_forgotten": (7,), "limit": 40, "config": UnlearnConfig(), "seed": 4}
    assert call.options == handed
    assert all(torch.equal(value, call.model.state_dict()[name]) for name, value in load_file(given.weights).items())
    made = [given.out, given.report, given.figure]
    assert lines == ["folder 3 is class 3: 40 images", str(method.report), f"wrote {made[0]}, {made[1]} and {made[2]}"]


def test_names_of_classes_become_numbers_and_their_count_the_width(given, method, tmp_path):
    names = [f"person {number}" for number in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    folder = class_folders(tmp_path / "faces", (FORGET,), count=5)
    (folder / str(FORGET)).rename(folder / "person 3")
    request = replace(given, forget=folder, classes_file=tmp_path / "names.txt")
    assert lines_of(request)[0] == "folder person 3 is class 3: 5 images"
    assert method.calls[0].options["num_classes"] == 10
    with pytest.raises(ValueError, match="names.txt names 10 classes, but --num-classes is 9"):
        lines_of(replace(request, num_classes=9))


def test_a_file_made_for_zspag_run_gets_what_the_weights_and_the_photos_tell(given, method):
    request = replace(given, model=given.model.replace(":make", ":of_zspag"))
    lines = lines_of(request)
    assert lines[1] == "the shapes of the weights tell num_classes=10"
    assert lines[2].endswith("net.py:of_zspag is called with in_channels=1, image_size=8, as the photos are")
    assert not any(line.startswith("the shapes of the weights") for line in lines_of(replace(request, num_classes=10)))
    with pytest.raises(
        ValueError, match=r"--num-classes is 9, but .*weights.safetensors holds 10 classes: drop --num-cl"
    ):
        lines_of(replace(request, num_classes=9))


# ---- Channels


COLOURED = """
from torch import nn

class First(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function

def net(channels, *first):
    layers = nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    return nn.Sequential(*map(First, first), *layers)

def colours(): return net(3)
def normalizing(): return net(3, lambda x: x - x.new_full((3, 1, 1), 0.5))
def repeating(): return net(3, lambda x: x.repeat(1, 3, 1, 1))
def averaging(): return net(1, lambda x: x.mean(1, keepdim=True))
def grey(): return net(1)
def four(): return net(4)
"""


@pytest.mark.parametrize(
    ("net", "photos", "channels", "remark"),
    [
        ("colours", "L", 3, "three equal channels"),
        ("normalizing", "L", 3, "three equal channels"),  # it would run on one channel, by broadcasting
        ("repeating", "L", 1, None),  # it does so itself
        ("colours", "RGB", 3, None),
        ("grey", "RGB", 1, "they are made grey"),
        ("averaging", "RGB", 3, None),
        ("four", "RGB", 3, None),  # neither: the method's own checks say why it does not run
    ],
)
def test_photos_get_the_channels_that_the_model_takes(given, method, tmp_path, net, photos, channels, remark):
    path = tmp_path / "coloured_nets.py"
    path.write_text(COLOURED)
    save_file(from_file(f"{path}:{net}").state_dict(), given.weights)
    (tmp_path / "photos" / "3").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(photos)
    picture.save(tmp_path / "photos" / "3" / "a.png")
    lines = lines_of(replace(given, model=f"{path}:{net}", forget=tmp_path / "photos"))
    (call,) = method.calls
    assert call.images.shape == (1, channels, 6, 6)
    grey = torch.tensor(np.asarray(picture.convert("L")))
    if remark or photos == "L":
        assert all(torch.equal(channel, grey) for channel in call.images[0])
    said = [line for line in lines if line.startswith("the photos are")]
    assert [line.endswith(remark) for line in said] == ([True] if remark else [])


def test_normalization_stands_in_front_and_is_in_no_file(given, method, tmp_path):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    (tmp_path / "plain_net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))\n"
    )
    save_file(plain.state_dict(), given.weights)
    request = replace(given, model=f"{tmp_path / 'plain_net.py'}:make", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    lines = lines_of(request)
    (call,) = method.calls
    assert call.images.shape == (40, 3, 8, 8)  # as many channels as means
    assert "the photos are grey and the model takes colours: three equal channels" in lines
    assert isinstance(call.model[0], Normalize)
    by_hand = (call.images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(call.model(call.images), plain(by_hand))
    written = load_file(request.out)
    assert written.keys() == plain.state_dict().keys()
    assert torch.equal(written["1.bias"], plain[1].bias.detach() + 1)


# ---- What comes out


@pytest.mark.parametrize(("suffix", "keep_open"), [(".pt", True), (".pth", False)])
def test_closed_or_open_weights_are_written_in_the_format_of_the_suffix(given, method, suffix, keep_open):
    request = replace(given, out=given.out.with_suffix(suffix), keep_open=keep_open)
    before = given.weights.read_bytes()
    lines_of(request)
    assert torch.equal(last_bias(request.out), original_bias() + (2.0 if keep_open else 1.0))
    assert given.weights.read_bytes() == before
    assert sorted(path.name for path in request.out.parent.iterdir()) == sorted(
        ["unlearned.json", "unlearned.png", f"unlearned{suffix}"]
    )


def test_weights_report_and_figure_carry_one_record(given, method, tmp_path):
    lines_of(given)
    record = provenance.read_record(given.out)
    assert record == provenance.read_record(given.report) == provenance.read_record(given.figure)
    assert (record["seed"], record["command"]) == (4, "unlearn")
    lines_of(replace(given, forget=class_folders(tmp_path / "fewer", (FORGET,), count=39)))
    assert provenance.read_record(given.out)["data_sha256"] != record["data_sha256"]  # it tells sets of photos apart
    page = files.read_json(given.report)
    assert page["report"] == method.report.to_dict()
    assert page["weights"] == {"file": given.out.name, "sha256": hashlib.sha256(given.out.read_bytes()).hexdigest()}


@pytest.mark.parametrize("goal", GOALS)
def test_the_goal_reaches_the_method_and_stands_in_the_record(given, method, goal):
    lines_of(replace(given, goal=goal))
    assert method.calls[0].options["config"] == UnlearnConfig(goal=goal)
    recorded = provenance.read_record(given.out)["config"]
    assert recorded["goal"] == goal
    assert from_dict(UnlearnConfig, recorded) == UnlearnConfig(goal=goal)


def test_warnings_are_lines_but_not_twice(given, method):
    method.report, method.warns = Page(warnings=("in the report",)), ("in the report", "beside it", "beside it")
    assert [line for line in lines_of(given) if line.startswith("warning")] == ["warning: beside it"]


@pytest.mark.parametrize(
    ("silenced", "keep_open", "unseen"), [(True, False, None), (True, True, 0.5), (False, False, 0.5)]
)
def test_a_goal_that_is_not_reached_is_said_and_all_is_written(given, method, silenced, keep_open, unseen):
    method.report = Page(reached=False, silenced=silenced, forget_accuracy=0.42, unseen_accuracy=unseen)
    with pytest.raises(GoalNotReached, match=r"the updates leave 42 % .*; .*unlearned.safetensors is wr") as caught:
        lines_of(replace(given, keep_open=keep_open))
    assert ("50 % of what was held out" in str(caught.value)) == (unseen is not None)
    assert ("with the rows of the forgotten classes closed" in str(caught.value)) == (silenced and not keep_open)
    assert given.out.exists()
    assert files.read_json(given.report)["report"]["reached"] is False


# ---- Nothing of the reader's is lost


def test_a_second_call_replaces_what_the_first_one_wrote(given, method):
    for suffix in (".safetensors", ".pt"):
        request = replace(given, out=given.out.with_name(f"twice{suffix}"))
        lines_of(request)
        lines_of(replace(request, keep_open=True))
        assert torch.equal(last_bias(request.out), original_bias() + 2.0)
        request.report.unlink()
        request.figure.unlink()


def contents(folder):
    """All files, without the bytecode that Python may keep of an imported one."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def no_work(method, request, message):
    """The request is refused with this message before the method is called, and nothing was changed."""
    folder = request.weights.parent
    before = contents(folder)
    with pytest.raises(ValueError, match=message) as caught:
        lines_of(request)
    assert "\n" not in str(caught.value)
    assert method.calls == []
    assert contents(folder) == before
    assert not (folder / "new").exists()


def test_the_weights_are_never_replaced_by_whatever_name_they_go(given, method, tmp_path):
    (tmp_path / "hard.safetensors").hardlink_to(given.weights)
    for name in ("weights.safetensors", "hard.safetensors"):
        no_work(method, replace(given, out=tmp_path / name), "--out is the file of the weights")


@pytest.mark.parametrize("name", ["other.safetensors", "other.json", "other.png", "other.pt"])
def test_a_neighbour_that_is_not_ours_is_not_replaced(given, method, tmp_path, name):
    (tmp_path / name).write_text("{}")
    out = tmp_path / ("other.pt" if name.endswith(".pt") else "other.safetensors")
    no_work(method, replace(given, out=out), rf"{name} exists and was not made by zspag unlearn: .*choose another")


def test_what_changed_since_or_another_command_made_is_not_replaced(given, method, tmp_path):
    request = replace(given, out=tmp_path / "other.pt")
    lines_of(request)
    method.calls.clear()
    torch.save({"precious": torch.ones(3)}, request.out)
    no_work(method, request, r"other.pt exists and was not made by zspag unlearn")
    record = provenance.record(config={}, seed=0, data_sha256=None, device="cpu", threads=1, started=0.0)
    files.write_json(tmp_path / "other.json", {"report": {}, "provenance": record})
    no_work(method, replace(given, out=tmp_path / "other.safetensors"), "other.json exists and was not made by")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("new/unlearned.h5", r"--out must end in .safetensors, .pt, .pth, got .*unlearned.h5"),
        ("folder.pt", r"--out is a folder: give a file in it, such as .*folder.pt/forgot.safetensors"),
        ("photos/3/out.pt", "--out lies in the folder of photos"),
        (
            "net.py/new/out.pt",
            r"--out .*net.py/new/out.pt cannot be written \(a file stands where .*\): choose another",
        ),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(given, method, tmp_path, out, message):
    (tmp_path / "folder.pt").mkdir()
    forget = tmp_path / "photos" if out.startswith("photos") else given.forget
    no_work(method, replace(given, out=tmp_path / out, forget=forget), message)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_is_known_before_the_work(given, method, suffix):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    message = r"--out .* cannot be written \(.*[Ff]ile too large.* choose another place"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(ValueError, match=message):
            lines_of(replace(given, out=given.out.with_suffix(suffix)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert method.calls == []
    assert not given.out.parent.exists()


@pytest.mark.parametrize("error", [ValueError("a check of the method"), KeyboardInterrupt()])
def test_what_ends_the_method_leaves_no_file_and_no_folder(given, monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(unlearn_files, "zero_shot_unlearn", fail)
    deep = replace(given, out=given.out.parent / "deeper" / "out.pt")
    with pytest.raises(type(error)):
        lines_of(deep)
    assert not given.out.parent.exists()


def test_a_failure_while_writing_leaves_the_old_files_whole(given, method, monkeypatch):
    lines_of(given)
    before = {path: path.read_bytes() for path in given.out.parent.iterdir()}

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unlearn_files.files, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        lines_of(replace(given, keep_open=True))
    assert {path: path.read_bytes() for path in given.out.parent.iterdir()} == before


# ---- Bad input


def other_net(given):
    save_file({"weight": torch.zeros(2, 3)}, given.weights)
    return {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_net, r"weights.safetensors does not fit the model of .*net.py:make: it lacks .*; it has"),
        (lambda given: {"weights": given.weights.with_name("absent.pt")}, "there is no file .*absent.pt"),
        (lambda given: {"forget": given.weights}, r"there is no folder .*weights.safetensors"),
        (lambda given: {"model": given.model.replace(":make", ":no_module")}, r"no_module returned str"),
        (lambda _: {"num_classes": 1}, r"--num-classes must be at least 2, got 1"),
        (lambda _: {"goal": "erase"}, r"--goal must be one of suppress, remove, got 'erase'"),
        (lambda _: {"limit": 0}, r"--limit must be at least 1, got 0"),
        (lambda _: {"image_size": 0}, r"--image-size must be at least 1 pixel, got 0"),
        (lambda _: {"std": (0.5,)}, "--mean and --std come together, got --std 0.5 alone: give"),
        (lambda _: {"mean": (0.5,), "std": (0.1, 0.2, 0.3)}, "one number .* got --mean 0.5 and --std 0.1,0.2,0.3"),
        (lambda _: {"mean": (0.5,), "std": (0.0,)}, "--std must be positive, got .* --std 0: a constant channel"),
        (lambda _: {"mean": (127.0,), "std": (50.0,)}, "--mean must lie in .* got --mean 127 .* divide"),
        (lambda given: {"out": given.weights.with_suffix(".h5")}, "must end in .* got .*h5: give .*safetensors for"),
        (lambda given: {"classes_file": given.weights.with_name("absent.txt")}, "there is no file .*absent.txt: give"),
    ],
)
def test_bad_input_gets_its_message_in_one_line_before_the_work(given, method, spoil, message):
    with pytest.raises(ValueError, match=message) as caught:
        lines_of(replace(given, **spoil(given)))
    assert "\n" not in str(caught.value)
    assert method.calls == []
    assert not given.out.parent.exists()


MISTAKEN = """
from torch import nn

def net(channels=3, size=8, classes=5):
    return nn.Sequential(nn.Conv2d(channels, 2, 1), nn.Flatten(), nn.Linear(2 * size * size, classes))

def larger(): return net(size=32)
def grey(): return net(1)
def four(): return net(4)
def flexible(num_classes=5): return net(classes=num_classes)
"""


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        ("larger", {}, r"fails on photos of 8x8 pixels, and runs on 32x32: give --image-size 32$"),
        ("larger", {"image_size": 20}, r"fails on photos of 20x20 pixels, .*: give --image-size 32$"),
        ("net", {"label": "9"}, r"^--label 9 names class 9, but the model has the classes 0 to 4: "),
        ("net", {"folder": "9"}, r"^folder .*photos/9 names class 9, but the model has the classes 0 to 4: "),
        ("net", {"num_classes": 7}, r"^--num-classes is 7, but the model has 5 classes: drop --num-classes$"),
        ("flexible", {"num_classes": 7}, r"^--num-classes is 7, but .* holds 5 classes: drop --num-classes$"),
        ("net", {"names": 7, "folder": "c3"}, r"^--classes-file .*names.txt names 7 classes, .* has 5: name 5"),
        ("flexible", {"names": 7, "folder": "c3"}, r"^--classes-file .*names.txt names 7 classes, .* holds 5: name 5"),
        ("net", {"mean": (0.5,), "std": (0.5,)}, r"^--mean and --std have length 1, .* takes 3 channels: give 3 "),
        ("grey", {"mean": (0.5,) * 3, "std": (0.5,) * 3}, r"^--mean and --std have length 3, .* takes 1 channels"),
        ("four", {}, r"photos have 1 or 3 channels, the model takes 4; call zspag.zero_shot_unlearn in Python"),
        ("net", {"already_forgotten": (12,)}, r"^--already-forgotten names class 12, .* classes 0 to 4: "),
        (
            "net",
            {"unrecognized": True},
            r"recognizes only 0 of the 6 .* check that folder .*photos/3 .*--mean and --std",
        ),
    ],
)
def test_a_typical_mistake_is_said_with_its_value_and_the_option_that_mends_it(given, tmp_path, net, options, message):
    path, options = tmp_path / "mistaken_nets.py", dict(options)
    path.write_text(MISTAKEN)
    model = from_file(f"{path}:{net}")
    answer = 0 if options.pop("unrecognized", False) else 3
    with torch.no_grad():
        model[-1].weight.mul_(0.01)  # it answers one class, whatever it sees
        model[-1].bias.copy_(10.0 * (torch.arange(len(model[-1].bias)) == answer))
    save_file(model.state_dict(), given.weights)
    folder = tmp_path / "photos" / options.pop("folder", "3")
    folder = folder.parent if "label" in options else folder
    folder.mkdir(parents=True)
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    if count := options.pop("names", 0):
        (tmp_path / "names.txt").write_text("\n".join(f"c{number}" for number in range(count)))
        options["classes_file"] = tmp_path / "names.txt"
    with pytest.raises(ValueError, match=message) as caught:
        lines_of(replace(given, model=f"{path}:{net}", forget=tmp_path / "photos", **options))
    assert "\n" not in str(caught.value)
    assert not given.out.parent.exists()


def test_an_output_that_is_never_answered_is_said_with_its_option(given, monkeypatch):
    def refuse(*_args, **_options):
        raise Refusal("no image makes it answer class 7", "pass already_forgotten", about="unreachable", numbers=(2, 7))

    monkeypatch.setattr(unlearn_files, "zero_shot_unlearn", refuse)
    with pytest.raises(ValueError, match="answer class 7: .* give --already-forgotten 2,7$"):
        lines_of(given)


# ---- The method itself


def command(given, *more):
    """Run the command on the small trained net; return its exit code."""
    save_file(small().model.state_dict(), given.weights)
    places = {name: str(getattr(given, name)) for name in ("model", "weights", "forget", "out")}
    return main(["unlearn", *(text for name, place in places.items() for text in (f"--{name}", place)), *more])


def recognized_by(path):
    """Return the share of the class that the small net recognizes with the weights of a file."""
    model = copy.deepcopy(small().model)
    model.load_state_dict(load_file(path))
    return (logits_of(model, small().images).argmax(1) == FORGET).double().mean().item()


def called(config=None):
    """Return what the call makes of the same photos."""
    data = read_digits().train
    images = data.images[data.labels == FORGET][:40]
    return zero_shot_unlearn(small().model, images, FORGET, config=config, seed=0, progress=False)


def assert_written(path, model):
    written = load_file(path)
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in model.state_dict().items())


def test_a_folder_of_photos_becomes_weights_that_forget_them_from_the_command_line(given, capsys):
    assert command(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "folder 3 is class 3: 40 images"
    assert recognized_by(given.weights) > 0.9
    assert recognized_by(given.out) < 0.2
    assert lines[-1].startswith(f"wrote {given.out}")
    assert files.read_json(given.report)["report"]["reached"]
    assert files.read_json(given.report)["provenance"]["config"]["goal"] == "suppress"
    assert Image.open(io.BytesIO(given.figure.read_bytes())).width > 100


def test_the_page_of_a_result_holds_all_that_a_ticket_needs_and_links_to_nothing(given, capsys):
    page = given.out.with_name("page.html")
    assert command(given, "--report", str(page)) == 0
    assert f", {page} and " in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    report = files.read_json(given.report)
    verdict = re.search(r'<p class="yes">(.*)</p>', text)[1]
    left = report["report"]["remainder"]["original_head"]
    assert verdict.startswith("Goal reached: class 3 is suppressed, not removed: ")
    assert f"put back, recognizes {100 * left:.1f} %" in verdict
    assert verdict not in text.split("</h2>")[1]  # it stands above once, and not again in what came out
    rates = [trial["forget_accuracy"] for trial in report["report"]["tried"]]
    assert all(f"<td>{100 * rate:.1f} %</td>" in text for rate in rates if rate is not None)
    assert text.count("<td>chosen</td>") == 1
    assert "forgot: at most 1 %" in text.split("<table>")[0]  # the rule of the column stands above the table
    assert text.count('<img alt="3 → ') == unlearn_files.EXAMPLES  # what the original answers
    assert text.count('<img alt="3 → 3"') <= 0.2 * unlearn_files.EXAMPLES
    assert all(f"<td>{layer['name']}</td>" in text for layer in report["report"]["layers"])
    assert text.count("<tr>") > len(report["report"]["tried"]) + len(report["report"]["layers"])
    assert report["provenance"]["data_sha256"] in text
    assert re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", text) == []


def test_a_page_that_cannot_be_or_is_not_ours_is_refused(given, method, tmp_path):
    with pytest.raises(ValueError, match="--report must end in .html, got page.pdf: give page.html"):
        replace(given, page=Path("page.pdf"))
    (tmp_path / "page.html").write_text("<p>precious</p>")
    no_work(method, replace(given, page=tmp_path / "page.html"), "page.html exists and was not made by zspag unlearn")
    no_work(method, replace(given, page=given.weights / "page.html"), r"--report .*page.html cannot be .*: choose")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="--report must end in .html, got .*folder: give .*folder/page.html"):
        replace(given, page=tmp_path / "folder")


def test_folders_for_the_weights_and_for_the_page_are_made_or_neither(given, method, tmp_path, monkeypatch):
    page = tmp_path / "pages" / "deeper" / "page.html"
    lines_of(replace(given, page=page))
    assert given.out.exists()
    assert page.exists()
    monkeypatch.setattr(unlearn_files, "zero_shot_unlearn", lambda *_args, **_options: 1 / 0)
    other = replace(given, out=tmp_path / "a" / "b" / "out.pt", page=tmp_path / "a" / "c" / "page.html")
    with pytest.raises(ZeroDivisionError):
        lines_of(other)
    assert not (tmp_path / "a").exists()


def test_words_from_outside_are_escaped_on_the_page():
    report = {"reached": False, "warnings": ["<b>loud</b>"], "tried": [], "layers": []}
    example = Example(b"png", "<i>cat</i>", "dog & cat")
    text = unlearn_page.page(
        report,
        text="Unlearning <x>\n===\nforget set no",
        verdict="Goal NOT reached <b>",
        legends={"tried": "<i>rule</i>", "layers": ""},
        figure=b"png",
        examples=[example],
        facts={"model": "<script>"},
    )
    assert "Goal NOT reached" in text
    assert not re.search(r"<b>|<i>|<x>|<script>", text)
    assert "&lt;i&gt;cat&lt;/i&gt; → dog &amp; cat" in text


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--goal", "suppress"]])
def test_without_a_goal_the_command_is_the_plain_call_bit_for_bit(given, more):
    assert command(given, *more) == 0
    assert_written(given.out, called().model)


@pytest.mark.filterwarnings("ignore:not reached", "ignore:removal may cost")
def test_the_goal_to_remove_is_one_word_more_on_the_command_line(given, monkeypatch, capsys):
    """The command has no option that would make a run short; how short it is is changed underneath."""
    quick = RemovalConfig(steps=8, per_class=6, lr=1e-2, shares=(0.5, 1.0))
    monkeypatch.setattr(verdict, "RUINOUS", math.inf)  # so few steps at such a rate ruin the net
    monkeypatch.setattr(unlearn_files, "UnlearnConfig", lambda **options: UnlearnConfig(**options, removal=quick))
    code = command(given, "--goal", "remove", "--keep-open")
    out, err = capsys.readouterr()
    page, (original, changed) = files.read_json(given.report), (load_file(path) for path in (given.weights, given.out))
    assert code == (0 if page["report"]["reached"] else 3)
    assert ("the goal is not reached" in err) == (code == 3)
    assert page["provenance"]["config"]["goal"] == "remove"
    assert page["report"]["chosen"] == "removal"
    assert "removal" in out
    assert changed.keys() == original.keys()
    moved = {name for name in original if not torch.equal(original[name], changed[name])}
    *_, head, _ = original
    assert moved
    assert not moved & {head, head.replace("weight", "bias")}
    assert all(original[name].dim() > 1 for name in moved)  # no bias and no norm
    assert_written(given.out, called(UnlearnConfig(goal="remove", removal=quick)).open_model)
