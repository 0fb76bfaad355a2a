"""One class after another into files, and somebody's own model from files into a file."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from laboratory import FORGET, TINY, rooted, small
from PIL import Image
from safetensors.torch import load_file, save_file

from zspag import checkpoints, experiment, files, models, provenance, runs
from zspag.config import ProxyConfig, UnlearnConfig, UpdateConfig
from zspag.data.sources import read_digits
from zspag.unlearning import zero_shot_unlearn

pytestmark = pytest.mark.usefixtures("own_data")
PROFILE = replace(TINY, classes=(FORGET,), unlearn=replace(TINY.unlearn, update=replace(TINY.unlearn.update, lr=0.3)))
FACTORY = """
from zspag.models import build

def make():
    return build("digits", num_classes=10, in_channels=1, image_size=8, width=8, mean=[0.5], std=[0.5])

def no_module():
    return "a string"
"""


# Class numbers


def test_classes_are_given_by_name_or_number():
    assert runs.class_numbers(PROFILE, ["3", "0", "9"]) == (3, 0, 9)


def test_name_wins_over_number(monkeypatch):
    named = replace(experiment.data_of(PROFILE), classes=("9", "8", "7", "6", "5", "4", "3", "2", "one", "0"))
    monkeypatch.setattr(experiment, "data_of", lambda _profile: named)
    assert runs.class_numbers(PROFILE, ["9", "one", "1"]) == (0, 8, 1)


@pytest.mark.parametrize("name", ["cat", "10", "-1", "", "²", "3 "])
def test_unknown_class_is_named_beside_the_known_ones(name):
    with pytest.raises(ValueError, match=r"digits has no class '.*'; its classes are 0, 1, 2, 3") as caught:
        runs.class_numbers(PROFILE, ["3", name])
    assert repr(name) in str(caught.value)


# zspag run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    """A run of one class with its record, as ``zspag run --record`` makes it."""
    with rooted(tmp_path_factory.mktemp("root"), data_folder) as root:
        before = torch.get_num_threads()
        lines = list(runs.run(PROFILE, record=True))
        assert torch.get_num_threads() == before
    return root, lines


@pytest.fixture
def root(finished, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(finished[0]))
    return finished[0]


def result_of(root, folder="results"):
    return files.read_json(root / folder / "tiny" / "run_digits_digits_3.json")


def test_run_writes_a_result_by_the_schema(root):
    result = result_of(root)
    assert set(result) == {"schema", "name", "profile", "draw", "caption", "numbers", "data", "provenance"}
    assert (result["schema"], result["name"], result["profile"]) == (1, "run_digits_digits_3", "tiny")
    assert result == files.read_json(root / "runs" / "tiny" / "results" / "run_digits_digits_3.json")
    assert result["provenance"] == provenance.read_record(root / "results" / "tiny" / "run_digits_digits_3.json")
    assert result["provenance"]["config"]["classes"] == [FORGET]
    assert result["provenance"]["seconds"] > 0


def test_run_read_no_retain_sample_and_says_so(root, finished):
    (row,) = result_of(root)["data"]["rows"]
    assert row["retain_samples_read"] == 0
    assert row["forget_samples"] == int((read_digits().train.labels == FORGET).sum())
    assert "0 retain samples read" in finished[1][0]


def test_run_forgets_and_its_headline_numbers_are_its_rows(root):
    result = result_of(root)
    (row,) = result["data"]["rows"]
    scores = row["scores"]
    assert scores["original"]["acc_forget"] > 0.9
    assert scores["unlearned"]["acc_forget"] < 0.2
    assert scores["masked"]["acc_forget"] == scores["retrained"]["acc_forget"] == 0
    assert result["numbers"]["3 seed 0 acc_forget"] == [scores["unlearned"]["acc_forget"], 0.01]
    assert result["numbers"]["3 seed 0 seconds"] == [row["seconds"]["total"], None]
    assert row["seconds"]["total"] >= sum(row["seconds"][stage] for stage in ("proxies", "subspaces", "update"))


def test_run_says_where_the_pixels_came_from(root):
    assert result_of(root)["data"]["data_source"] == "scikit-learn's own copy"


def test_run_draws_a_figure_that_carries_the_same_record(root):
    figure = root / "figures" / "tiny" / "run_digits_digits_3.png"
    assert provenance.read_record(figure) == result_of(root)["provenance"]
    (panel,) = result_of(root)["data"]["panels"]
    assert list(panel["series"]) == ["original", "masked original", "retrained", "ZS-PAG"]
    assert panel["series"]["masked original"][FORGET] == 0
    assert all(len(heights) == len(panel["groups"]) == 10 for heights in panel["series"].values())


def test_recorded_checkpoints_are_those_of_the_run(root, finished):
    folder = root / "results" / "tiny" / "checkpoints"
    names = ["original-digits-digits-seed0.safetensors", "retrained-digits-digits-seed0-without3.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    tensors, record = checkpoints.load(folder / names[0])
    model = experiment.trained(PROFILE, 0)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert record["config"]["seed"] == 0
    assert finished[1][-2:] == [f"wrote results/tiny/checkpoints/{name}" for name in names]


def test_run_from_recorded_models_trains_nothing_and_finds_the_same(root, tmp_path, monkeypatch):
    target = tmp_path / "results" / "tiny" / "checkpoints"
    target.mkdir(parents=True)
    for path in (root / "results" / "tiny" / "checkpoints").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setattr(experiment.cases, "train", None)
    with pytest.raises(TypeError, match="NoneType"):
        list(runs.run(PROFILE, record=False))
    lines = list(runs.run(replace(PROFILE, recorded_models=True), record=True))
    (before,), (after,) = result_of(root)["data"]["rows"], result_of(tmp_path)["data"]["rows"]
    assert {name for name in before if before[name] != after[name]} == {"seconds"}
    assert lines[-1].startswith(
        "left results/tiny/checkpoints/retrained-digits-digits-seed0-without3.safetensors as it"
    )


def test_checkpoint_that_is_too_large_is_left_out_and_said_so(root, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(root / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setattr(runs, "RECORDED_BYTES", 100)
    lines = list(runs.run(PROFILE, record=True))
    assert lines[-1].startswith(
        "left out results/tiny/checkpoints/retrained-digits-digits-seed0-without3.safetensors: 0.0 MB"
    )
    assert not (tmp_path / "results" / "tiny" / "checkpoints").exists()


def test_run_without_record_leaves_results_alone(root, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(root / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    lines = list(runs.run(PROFILE, record=False))
    assert not (tmp_path / "results").exists()
    assert lines[1:] == [
        "wrote runs/tiny/results/run_digits_digits_3.json",
        "wrote figures/tiny/run_digits_digits_3.png",
    ]


def test_second_run_forgets_nothing_anew_and_says_the_same(root, finished, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(root / "runs")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    monkeypatch.setattr(runs, "zero_shot_unlearn", None)
    assert list(runs.run(PROFILE, record=False))[0] == finished[1][0]
    more = replace(PROFILE, unlearn=replace(PROFILE.unlearn, update=replace(PROFILE.unlearn.update, lr=0.1)))
    with pytest.raises(TypeError, match="NoneType"):  # the control: another configuration is another run
        list(runs.run(more, record=False))


def test_class_that_the_data_lacks_is_said_before_anything_is_trained(root, monkeypatch):
    monkeypatch.setattr(experiment.cases, "train", None)
    with pytest.raises(ValueError, match=r"forget must name classes in 0..9, got \(11,\)"):
        next(runs.run(replace(PROFILE, classes=(FORGET, 11)), record=False))


# zspag unlearn


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty threes as PNG files under forget/3/."""
    folder = tmp_path_factory.mktemp("pictures") / "forget"
    (folder / str(FORGET)).mkdir(parents=True)
    data = read_digits().train
    for index, image in enumerate(data.images[data.labels == FORGET][:40]):
        Image.fromarray(image[0].numpy()).save(folder / str(FORGET) / f"{index:03}.png")
    return folder


def arguments(pictures, folder):
    """The arguments of a call that works."""
    (folder / "net.py").write_text(FACTORY)
    save_file(small().model.state_dict(), folder / "weights.safetensors")
    return {
        "factory": f"{folder / 'net.py'}:make",
        "weights": folder / "weights.safetensors",
        "forget": pictures,
        "num_classes": 10,
        "already_forgotten": (),
        "out": folder / "new" / "unlearned.safetensors",
        "seed": 4,
    }


@pytest.fixture
def given(pictures, tmp_path):
    return arguments(pictures, tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Few proxies and one rate: what is tested here is what lies around the method."""
    config = UnlearnConfig(ProxyConfig(per_class=12, steps=10), update=UpdateConfig(lr=1.0))
    monkeypatch.setattr(runs, "zero_shot_unlearn", partial(zero_shot_unlearn, config=config))


@pytest.fixture(scope="module")
def unlearned(pictures, tmp_path_factory):
    """A call with the method's own defaults: its arguments, its lines, what went into the method and what came out."""
    given, calls = arguments(pictures, tmp_path_factory.mktemp("unlearned")), []

    def spy(*args, **options):
        calls.append((args, options, zero_shot_unlearn(*args, **options)))
        return calls[-1][2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "zero_shot_unlearn", spy)
        before = given["weights"].read_bytes()
        lines = list(runs.unlearn_files(**given))
        assert given["weights"].read_bytes() == before
    return given, lines, calls


def loaded(path):
    model = copy.deepcopy(small().model)
    model.load_state_dict(load_file(path))
    return model


@torch.no_grad()
def forget_accuracy(model):
    return (model(small().images).argmax(1) == small().labels).double().mean().item()


def test_unlearn_writes_weights_that_forget(unlearned):
    given, lines, _ = unlearned
    assert forget_accuracy(small().model) > 0.9
    assert forget_accuracy(loaded(given["out"])) < 0.2
    assert lines[0].startswith("forgot 3 with 40 images (eps 0.")
    assert lines[-1] == f"wrote {given['out']} and {given['out'].with_suffix('.json')}"


def test_unlearn_hands_the_pictures_to_the_method_and_keeps_its_defaults(unlearned):
    given, _, (((model, images, labels), options, result),) = unlearned
    data = read_digits().train
    assert torch.equal(images, data.images[data.labels == FORGET][:40].float() / 255)
    assert labels.tolist() == [FORGET] * 40
    assert options == {"num_classes": 10, "already_forgotten": (), "seed": 4}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in load_file(given["weights"]).items())
    written, kept = load_file(given["out"]), result.model.state_dict()
    assert written.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in written.items())


def test_unlearned_weights_and_their_report_carry_the_record(unlearned):
    given, _, _ = unlearned
    record = provenance.read_record(given["out"])
    assert record == provenance.read_record(given["out"].with_suffix(".json"))
    assert record["seed"] == 4
    report = files.read_json(given["out"].with_suffix(".json"))["report"]
    assert report["forget_classes"] == [FORGET]
    assert report["reached"]
    assert f"{report['lr']:g}" in report["tried"]


TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make()
        self.last = self.net[-1]

    def forward(self, images):
        return self.net(images)
"""


def test_tied_weights_come_back_tied(given, quick, tmp_path):
    (tmp_path / "net.py").write_text(FACTORY + TIED)
    state = {f"net.{name}": tensor for name, tensor in small().model.state_dict().items()}
    head = [name for name in state if name.endswith("weight")][-1].removesuffix("weight")
    state |= {f"last.{part}": state[f"{head}{part}"].clone() for part in ("weight", "bias")}
    save_file(state, given["weights"])
    place = f"{tmp_path / 'net.py'}:Tied"
    list(runs.unlearn_files(**given | {"factory": place}))
    model = models.from_file(place).eval()
    model.load_state_dict(load_file(given["out"]))
    assert model.last.weight is model.net[-1].weight
    assert forget_accuracy(model) < 0.2


def class_folders(folder, labels, *, count):
    data = read_digits().train
    for label in labels:
        (folder / str(label)).mkdir(parents=True)
        for index, image in enumerate(data.images[data.labels == label][:count]):
            Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{index}.png")
    return folder


def test_second_class_folder_is_forgotten_too(given, quick, tmp_path):
    folder = class_folders(tmp_path / "two", (FORGET, 5), count=20)
    lines = list(runs.unlearn_files(**given | {"forget": folder, "already_forgotten": (7,)}))
    assert lines[0].startswith("forgot 3, 5 with 40 images")
    assert not any(line.startswith("warning") for line in lines)
    report = files.read_json(given["out"].with_suffix(".json"))["report"]
    assert (report["forget_classes"], report["already_forgotten"]) == ([3, 5], [7])


def test_a_warning_of_the_method_is_a_line(given, quick, tmp_path):
    folder = class_folders(tmp_path / "six", range(6), count=4)
    lines = list(runs.unlearn_files(**given | {"forget": folder}))
    assert lines[1].startswith("warning: the forget set names 6 of 10 classes, and each is forgotten whole")


def test_unfinished_forgetting_is_said(given, monkeypatch):
    config = UnlearnConfig(ProxyConfig(per_class=12, steps=10), update=UpdateConfig(lr=1e-6, epochs=1))
    monkeypatch.setattr(runs, "zero_shot_unlearn", partial(zero_shot_unlearn, config=config))
    assert "warning: part of the forget set is still recognized" in "\n".join(runs.unlearn_files(**given))


def no_file(given, _tmp_path):
    return {"weights": given["weights"].with_name("absent.safetensors")}


def other_net(given, _tmp_path):
    save_file({"weight": torch.zeros(2, 3)}, given["weights"])
    return {}


def broken_file(given, _tmp_path):
    given["weights"].write_bytes(b"not a safetensors file")
    return {}


def pickled_out(given, _tmp_path):
    return {"out": given["out"].with_suffix(".pt")}


def named_folder(_given, tmp_path):
    folder = tmp_path / "named"
    (folder / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "cat" / "0.png")
    return {"forget": folder}


def empty_folder(_given, tmp_path):
    (tmp_path / "empty" / "3").mkdir(parents=True)
    return {"forget": tmp_path / "empty"}


def broken_image(_given, tmp_path):
    (tmp_path / "broken" / "3").mkdir(parents=True)
    (tmp_path / "broken" / "3" / "0.png").write_bytes(b"no image")
    return {"forget": tmp_path / "broken"}


def unequal_images(_given, tmp_path):
    (tmp_path / "unequal" / "3").mkdir(parents=True)
    for side in (8, 9):
        Image.new("L", (side, side)).save(tmp_path / "unequal" / "3" / f"{side}.png")
    return {"forget": tmp_path / "unequal"}


def no_factory(given, _tmp_path):
    return {"factory": given["factory"].replace(":make", ":absent")}


def no_module(given, _tmp_path):
    return {"factory": given["factory"].replace(":make", ":no_module")}


def no_place(_given, _tmp_path):
    return {"factory": "resnet18"}


def wrong_width(_given, _tmp_path):
    return {"num_classes": 7}


def class_out_of_range(_given, tmp_path):
    (tmp_path / "far" / "12").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "far" / "12" / "0.png")
    return {"forget": tmp_path / "far"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_file, r"there is no file .*absent.safetensors: give the model's state dict"),
        (other_net, r"weights.safetensors does not fit the model of .*net.py:make: .*Missing key"),
        (broken_file, r"weights.safetensors is no readable safetensors file .*: save the weights again"),
        (pickled_out, r"--out must end in .safetensors, got .*unlearned.pt"),
        (named_folder, r"cat must be named by the label's number, such as .*3"),
        (empty_folder, r"empty holds no image: put the images to forget under .*<label>/"),
        (broken_image, r"3/0.png in .* is not a readable image"),
        (unequal_images, r"9x9 pixels, but .* is 8x8"),
        (no_factory, r"net.py has no function 'absent'"),
        (no_module, r"no_module returned str; a factory must return a torch.nn.Module"),
        (no_place, r"a model is given as path/to/file.py:factory, got 'resnet18'"),
        (wrong_width, r"logits of shape \(1, 7\), got \(1, 10\): check num_classes"),
        (class_out_of_range, r"forget_labels holds class 12, outside 0..9"),
    ],
)
def test_bad_input_gets_its_message_in_one_line_and_nothing_is_written(given, tmp_path, spoil, message):
    options = given | spoil(given, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        list(runs.unlearn_files(**options))
    assert "\n" not in str(caught.value)
    assert not given["out"].parent.exists()
