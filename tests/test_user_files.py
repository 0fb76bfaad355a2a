"""Models and weights of other people: files are imported as Python does it, and state dicts find their names."""

import pickle
import sys
import types

import pytest
import torch
from torch import nn

from zspag.lab.models import build, from_file
from zspag.lab.models.user_files import model_of
from zspag.lab.models.weights import facts_from, load_into, read_state, renamed, write_state

# ---- Files of Python


@pytest.fixture(autouse=True)
def _modules_as_before():
    """What a test imports is forgotten, so that the next one may have a file of the same name."""
    yield
    for name in [name for name in sys.modules if name.startswith(("zoo_", "_user_"))]:
        del sys.modules[name]


def file_of(folder, text, name="zoo_net.py"):
    path = folder / name
    path.write_text("import torch\nfrom torch import nn\n" + text)
    return path


NET = "def make():\n    return nn.Linear(5, 3)\n"


@pytest.mark.parametrize("text", ["{0}def make():\n    {1}", "def make():\n    {0}    {1}"])
def test_a_neighbour_is_imported_early_or_late_and_the_search_path_comes_back(tmp_path, text):
    (tmp_path / "zoo_neighbour.py").write_text("WIDTH = 7\n")
    path = file_of(tmp_path, text.format("from zoo_neighbour import WIDTH\n", "return nn.Linear(WIDTH, 3)\n"))
    before = list(sys.path)
    assert from_file(f"{path}:make").in_features == 7
    assert sys.path == before


DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Options:
    width: int = 5

class Net(nn.Linear):
    def __init__(self):
        super().__init__(Options().width, 3)
        self.options = Options()
"""


def test_a_dataclass_with_future_annotations_is_made_and_a_model_can_be_pickled(tmp_path):
    (tmp_path / "zoo_data.py").write_text(DATACLASS)
    model = from_file(f"{tmp_path / 'zoo_data.py'}:Net")
    assert type(model).__module__ == "zoo_data"
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.weight, model.weight)
    assert again.options == model.options


@pytest.mark.parametrize("name", ["json", "colorsys"])  # one that is loaded, one that is not yet
def test_a_file_called_like_a_module_does_not_take_its_place(tmp_path, name):
    loaded = sys.modules.get(name)
    assert from_file(f"{file_of(tmp_path, NET, f'{name}.py')}:make").out_features == 3
    assert sys.modules.get(name) is loaded


def test_two_files_of_one_name_are_two_models(tmp_path):
    for width in (4, 9):
        (tmp_path / str(width)).mkdir()
        path = file_of(tmp_path / str(width), f"def make():\n    return nn.Linear({width}, 3)\n", "zoo_twin.py")
        assert from_file(f"{path}:make").in_features == width


PARSING = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=5)
options = parser.parse_args()

def make():
    assert parser.parse_args() == options
    return nn.Linear(options.width, 3)
"""


def test_a_file_that_reads_the_command_line_reads_its_own(tmp_path, monkeypatch):
    given = ["zspag", "unlearn", "--model", "x"]
    monkeypatch.setattr(sys, "argv", given)
    path = file_of(tmp_path, PARSING, "zoo_parsing.py")
    assert from_file(f"{path}:make").in_features == 5
    assert sys.argv is given


TAKES = """
def needs(num_classes):
    return nn.Linear(5, num_classes)

def offers(num_classes=4, in_channels=3):
    return nn.Linear(in_channels, num_classes)

def depth_too(depth, num_classes=4):
    return nn.Linear(depth, num_classes)

def any_options(**options):
    return nn.Linear(5, options.get("num_classes", 2))

def of_zspag(*, num_classes, in_channels, image_size):
    return nn.Linear(in_channels * image_size, num_classes)
"""


def test_a_factory_gets_the_facts_that_it_takes(tmp_path):
    path = file_of(tmp_path, TAKES, "zoo_takes.py")
    guessed = {"in_channels": 1, "image_size": 8, "num_classes": 9}

    def widths(name, known, guessed=guessed):
        model, handed = model_of(f"{path}:{name}", known, guessed=guessed)
        return model.in_features, model.out_features, set(handed)

    assert widths("needs", {"num_classes": 6}) == (5, 6, {"num_classes"})
    assert widths("needs", {}) == (5, 9, {"num_classes"})
    assert widths("offers", {"num_classes": 6}) == (3, 6, {"num_classes"})
    assert widths("offers", {}) == (3, 4, set())  # a default is better than a guess
    assert widths("any_options", {"num_classes": 6}) == (5, 6, {"num_classes"})
    assert widths("of_zspag", {"num_classes": 6}) == (8, 6, {"num_classes", "in_channels", "image_size"})
    assert build(f"{path}:of_zspag", num_classes=6, in_channels=2, image_size=5, width=1).in_features == 10


BROKEN = """
import sys

def text():
    return "not a model"

def stops():
    sys.exit("enough")

def fails():
    raise RuntimeError("two\\nlines")
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"zoo_bad.py has no function 'absent': give .*zoo_bad.py:factory, .* it has .*text, stops, fails"),
        ("fail", r"zoo_bad.py has no function 'fail': did you mean .*zoo_bad.py:fails\?"),
        ("text", r"returned str; a factory must return a torch.nn.Module"),
        ("stops", r"zoo_bad.py:stops could not be built \(SystemExit: enough\)"),
        ("fails", r"zoo_bad.py:fails could not be built \(RuntimeError: two lines\)"),
        ("depth_too", r"zoo_bad.py:depth_too needs arguments \(depth\): wrap it in a function without arguments"),
        ("of_zspag", r"needs arguments \(num_classes, in_channels, image_size\): .*\(--num-classes\)"),
    ],
)
def test_a_factory_that_cannot_work_says_why_in_one_line(tmp_path, name, message):
    path = file_of(tmp_path, BROKEN + TAKES, "zoo_bad.py")
    with pytest.raises(ValueError, match=message) as caught:
        from_file(f"{path}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(2)\n", r"cannot be imported \(SystemExit: 2\): put .*__main__"),
        ("def make(:\n", r"cannot be imported \(SyntaxError"),
        ("import a_module_that_does_not_exist\n", r"cannot be imported \(ModuleNotFoundError: .*'a_module_that"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why_and_leaves_nothing_behind(tmp_path, text, message):
    before, line = list(sys.path), sys.argv
    with pytest.raises(ValueError, match=message):
        from_file(f"{file_of(tmp_path, text, 'zoo_broken.py')}:make")
    assert "zoo_broken" not in sys.modules
    assert (sys.path, sys.argv) == (before, line)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("resnet18", r"given as path/to/file.py:factory, torchvision.models:resnet18 or timm:name, got 'resnet18'"),
        ("no_such_package.nets:net", r"needs the package no_such_package .*: install it, or give path/to/file.py"),
        ("json:resnet19", r"json has no function 'resnet19': give json:factory"),
        ("json:dumbs", r"json has no function 'dumbs': did you mean .*json:dumps"),
        ("torchvision:resnet19", r"no function 'resnet19': did you mean .*torchvision.models:resnet18"),
        ("torchvision:no_such_net", r"no function 'no_such_net': give .* such as torchvision.models:resnet18"),
        ("torchvision.models:resnt18", r"no function 'resnt18': did you mean torchvision.models:resnet18"),
        ("/nowhere/net.py:make", r"there is no file /nowhere/net.py"),
    ],
)
def test_a_place_that_is_none_says_what_is(place, message):
    with pytest.raises(ValueError, match=message):
        from_file(place)


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    file_of(tmp_path, NET, "zoo_module.py")
    monkeypatch.chdir(tmp_path)
    assert from_file("zoo_module:make").in_features == 5


def test_a_package_in_the_current_folder_may_import_relatively_and_a_file_alone_cannot(tmp_path, monkeypatch):
    folder = tmp_path / "zoo_package"
    folder.mkdir()
    file_of(folder, "", "__init__.py")
    file_of(folder, NET, "parts.py")
    file_of(folder, "from .parts import make", "nets.py")
    monkeypatch.chdir(tmp_path)
    assert from_file("zoo_package.nets:make").in_features == 5
    with pytest.raises(ValueError, match=r"nets.py cannot be imported \(.*relative import"):
        from_file(f"{folder / 'nets.py'}:make")


def test_timm_is_asked_by_name(monkeypatch):
    asked = []

    def create_model(name, **options):
        asked.append((name, options))
        return nn.Linear(2, options["num_classes"])

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    model, handed = model_of("timm:resnet10t", {"num_classes": 4, "in_channels": 1}, guessed={"image_size": 8})
    assert asked == [("resnet10t", {"pretrained": False, "num_classes": 4, "in_chans": 1})]
    assert (model.out_features, handed) == (4, {"num_classes": 4, "in_channels": 1})
    refusing = types.SimpleNamespace(
        create_model=lambda name, **_: 1 / 0,
        is_model=lambda name: name == "resnet10t",
        list_models=lambda: ["resnet10t"],
    )
    monkeypatch.setitem(sys.modules, "timm", refusing)
    for name, hint in {"resnt10t": r"did you mean timm:resnet10t\?", "none": r"timm.list_models\("}.items():
        with pytest.raises(ValueError, match=f"timm knows no model '{name}': {hint}"):
            from_file(f"timm:{name}")
    with pytest.raises(ValueError, match=r"timm:resnet10t could not be built \(ZeroDivisionError"):
        from_file("timm:resnet10t")  # the name is right, and something else is wrong
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet10t needs the package timm .*: install it, or give path"):
        from_file("timm:resnet10t")


# ---- Weights


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def prefixed(state, *prefixes):
    return {"".join(prefixes) + name: value for name, value in state.items()}


NESTED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "twice": lambda state: {"model": {"state_dict": state}},
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled in DataParallel": lambda state: prefixed(state, "module.", "_orig_mod."),
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 0.1}},
    "averaged": lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(4)},
    "compiled inside": lambda state: {name.replace("0.", "0._orig_mod."): value for name, value in state.items()},
}


@pytest.mark.parametrize("case", NESTED)
def test_a_state_dict_is_found_wherever_trainers_put_it(tmp_path, case):
    original, path = net(), tmp_path / f"weights{('.pt', '.pth', '.bin', '.ckpt')[len(case) % 4]}"
    torch.save(NESTED[case](dict(original.state_dict())), path)
    other = net()
    nn.init.zeros_(other[0].weight)
    state, found = read_state(path)
    remarks = found + load_into(other, state, weights=path, place="x")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in original.state_dict().items())
    assert bool(remarks) == (case != "bare")
    if case == "twice":
        assert remarks == [f"the weights are those under {nest!r} in {path.name}" for nest in ("model", "state_dict")]
    if case == "DataParallel":
        assert remarks == ["the prefix 'module.' was taken off the names of the weights"]


def test_a_prefix_that_is_the_models_own_stays():
    wrapped = nn.Sequential()
    wrapped.add_module("module", net())
    state = dict(wrapped.state_dict())
    assert renamed(state, wrapped.state_dict()) == (state, [])
    mixed = state | {"other.weight": torch.zeros(1)}
    assert renamed(mixed, net().state_dict()) == (mixed, [])  # not before all names: no wrapper wrote it


def test_other_precision_is_said(tmp_path):
    state = {name: value.half() if value.is_floating_point() else value for name, value in net().state_dict().items()}
    remarks = load_into(net(), state, weights=tmp_path, place="x")
    assert remarks == ["the weights are float16 and the model computes in float32, so that is what is written"]


class Loud:
    """An object whose unpickling would be noticed."""

    def __reduce__(self):
        return (sys.exit, ("executed",))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (net(), r"w.pt holds more than tensors \(torch.nn.modules.\w+.\w+\), such as a whole module, and reading it"),
        ({"state_dict": {"a": torch.zeros(2)}, "x": Loud()}, r"holds more than tensors \(sys.exit\)"),
        ({"epoch": 3, "loss": 0.5}, r"holds no state dict but the entries 'epoch', 'loss': save model.state_dict\(\)"),
        (torch.zeros(3), r"holds no state dict but Tensor"),
        (b"no zip file", r"is no readable file of torch.save: save the state dict alone"),
        (b"PK\x03\x04 and then nothing", r"is no readable file of torch.save"),
    ],
)
def test_weights_that_cannot_be_read_say_why_in_one_line(tmp_path, contents, message):
    path = tmp_path / "w.pt"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        torch.save(contents, path)
    with pytest.raises(ValueError, match=message) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w.h5", r"weights are read from .safetensors, .pt, .pth, .bin, .ckpt, got .*w.h5"),
        ("absent.pt", r"there is no file .*absent.pt: give the model's state dict"),
        ("folder.pt", r"there is no file .*folder.pt"),
        ("w.safetensors", r"w.safetensors is no readable safetensors file .*: save the weights again"),
    ],
)
def test_a_file_of_weights_that_is_none_is_named(tmp_path, name, message):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / name)


def test_shapes_tell_classes_and_channels_whatever_the_order_and_the_prefix():
    def trial(classes, channels=3):
        layers = nn.Linear(4, 6), nn.Conv2d(channels, 8, 3), nn.Linear(8, classes), nn.Linear(8, classes)
        return nn.Sequential(*layers).state_dict()

    backwards = dict(reversed(prefixed(trial(5, 1), "module.").items()))
    assert facts_from(backwards, trial(997), probed=997) == {"num_classes": 5, "in_channels": 1}
    assert facts_from(trial(5), trial(997), probed=997) == {"num_classes": 5}
    two_heads = trial(5) | {"3.weight": torch.zeros(6, 8), "3.bias": torch.zeros(6)}
    assert facts_from(two_heads, trial(997), probed=997) == {}
    assert facts_from({"x": torch.zeros(5, 8)}, trial(997), probed=997) == {}


def test_names_and_shapes_that_do_not_fit_are_counted_and_the_first_named(tmp_path):
    state = dict(net().state_dict())
    del state["3.weight"]
    state |= {f"more.{number}": torch.zeros(1) for number in range(5)}
    state["0.bias"] = torch.zeros(3)
    message = (
        r"w.pt does not fit the model of net.py:make: it lacks 3.weight; it has, and the model has not, more.0, more.1,"
        r" more.2 and 2 more; shapes differ: 0.bias is \(3,\) in the file and \(4,\) in the model"
    )
    with pytest.raises(ValueError, match=message):
        load_into(net(), state, weights=tmp_path / "w.pt", place="net.py:make")


class Remembering(nn.Linear):
    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        self.steps = state["steps"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_written_is_read_again_without_remarks_tied_weights_and_all(tmp_path, suffix):
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    path = tmp_path / f"w{suffix}"
    write_state(path, tied.state_dict(), suffix=suffix, metadata={"zspag": "{}"})
    state, remarks = read_state(path)
    assert remarks == []
    assert all(torch.equal(state[name], value) for name, value in tied.state_dict().items())


def test_what_is_no_tensor_needs_another_format(tmp_path):
    model, again = Remembering(2, 2), Remembering(2, 2)
    write_state(tmp_path / "w.pt", model.state_dict(), suffix=".pt", metadata={})
    load_into(again, read_state(tmp_path / "w.pt")[0], weights=tmp_path, place="x")
    assert again.steps == 3
    with pytest.raises(ValueError, match=r"_extra_state is no tensor, .*: let the output end in .pt"):
        write_state(tmp_path / "w.safetensors", model.state_dict(), suffix=".safetensors", metadata={})


def test_a_disk_that_refuses_is_an_error_of_the_system_in_both_formats(tmp_path):
    for suffix in (".safetensors", ".pt"):
        with pytest.raises(OSError, match="No such file"):
            write_state(tmp_path / "absent" / f"w{suffix}", net().state_dict(), suffix=suffix, metadata={})
