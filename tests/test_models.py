"""Models take images in [0, 1], give logits of the asked width, and are a function of their seed."""

import pytest
import torch
from torch import nn

from zspag.models import ARCHITECTURES, Normalize, build

SIZES = {"digits": 8, "conv7": 28}
MEAN, STD = (0.3, 0.4, 0.6), (0.2, 0.25, 0.5)


def make(arch="digits", **changes):
    options = {"num_classes": 7, "in_channels": 3, "image_size": SIZES.get(arch, 8), "width": 4} | changes
    return build(arch, **options)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_gives_logits_of_the_asked_width(arch):
    images = torch.rand(5, 3, SIZES[arch], SIZES[arch])
    assert make(arch, mean=MEAN, std=STD)(images).shape == (5, 7)
    assert make(arch, in_channels=1, num_classes=2)(images[:, :1]).shape == (5, 2)


def test_conv7_takes_both_its_sizes_and_fits_half_a_megabyte_at_width_20():
    model = make("conv7", image_size=32, num_classes=10, width=20)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert 100_000 < sum(parameter.numel() for parameter in model.parameters()) < 150_000
    widths = [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]
    assert widths == [20, 20, 40, 40, 80, 80]


def test_the_first_layer_normalizes_so_that_a_model_takes_unit_images():
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, normalizing = make(seed=1).eval(), make(seed=1, mean=MEAN, std=STD).eval()

    assert isinstance(normalizing[0], Normalize)
    by_hand = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(normalizing(images), plain(by_hand))
    assert not torch.allclose(normalizing(images), plain(images))


def test_normalization_is_saved_with_the_weights():
    state = make(mean=MEAN, std=STD).state_dict()
    assert state["0.mean"].flatten().tolist() == pytest.approx(MEAN)
    assert state["0.std"].flatten().tolist() == pytest.approx(STD)


def test_weights_are_a_function_of_the_seed_and_the_global_stream_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = make(seed=2), make(seed=2), make(seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_without_a_seed_the_weights_come_from_the_global_stream():
    torch.manual_seed(5)
    first = make()
    assert not torch.equal(first[0].weight, make()[0].weight)
    torch.manual_seed(5)
    assert torch.equal(first[0].weight, make()[0].weight)


FACTORY = """
from torch import nn

def small(*, num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

def text(**options):
    return "not a model"

number = 3
"""


@pytest.fixture
def factory_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


def test_a_factory_of_the_reader_is_called_and_normalized(factory_file):
    model = make(f"{factory_file}:small", image_size=5, mean=MEAN, std=STD, seed=0)
    assert model(torch.rand(4, 3, 5, 5)).shape == (4, 7)
    assert isinstance(model[0], Normalize)
    assert torch.equal(model[2].weight, make(f"{factory_file}:small", image_size=5, seed=0)[1].weight)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("mine.py:absent", "has no function 'absent'"),
        ("mine.py:number", "has no function 'number'"),
        ("mine.py:text", "returned str; a factory must return a torch.nn.Module"),
        ("yours.py:small", "no file .*yours.py"),
    ],
)
def test_a_factory_that_cannot_work_says_why(factory_file, end, message):
    with pytest.raises(ValueError, match=message):
        make(f"{factory_file.parent}/{end}")


def test_a_file_that_does_not_import_is_named_with_its_error(tmp_path):
    (tmp_path / "broken.py").write_text("import a_module_that_does_not_exist\n")
    with pytest.raises(ValueError, match=r"broken.py cannot be imported \(ModuleNotFoundError"):
        make(f"{tmp_path}/broken.py:small")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "alexnet2"}, "unknown architecture 'alexnet2'; known are conv7, digits"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"image_size": 3}, "image_size must be at least 4 pixels for 'digits', got 3"),
        ({"mean": MEAN}, "mean and std come together"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 channels, 1 values"),
        ({"mean": MEAN, "std": (0.5, 0.5)}, "got 3 and 2 values"),
        ({"mean": MEAN, "std": (0.5, 0.0, 0.5)}, "every std must be positive"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named_with_their_value(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
