"""Models take images in [0, 1], give logits of the asked width, and are a function of their seed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from zspag.lab import checkpoints
from zspag.lab.models import ARCHITECTURES, Normalize, build

SIZES = {"alexnet": 16, "allcnn": 8, "conv7": 4, "digits": 4, "resnet18": 8, "vgg11": 16, "vgg16": 16, "vit": 8}
ROOT = Path(__file__).parent.parent
MEAN, STD = (0.3, 0.4, 0.6), (0.2, 0.25, 0.5)


def make(arch="digits", **changes):
    options = {"num_classes": 7, "in_channels": 3, "image_size": SIZES.get(arch, 8), "width": 4} | changes
    return build(arch, **options)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64), (2, None)])
def test_every_architecture_gives_logits_of_the_asked_width_at_every_size(arch, channels, size):
    size = size or SIZES[arch]
    model = make(arch, in_channels=channels, image_size=size, mean=MEAN[:channels], std=STD[:channels])
    logits = model(torch.rand(3, channels, size, size))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()


FULL = {  # width and number of parameters at full width, ten classes, three channels, 32 pixels
    "alexnet": (64, 23_473_098),
    "allcnn": (96, 1_370_986),
    "conv7": (20, 113_510),
    "resnet18": (64, 11_173_962),
    "vgg11": (64, 9_491_018),
    "vgg16": (64, 14_986_698),
    "vit": (192, 2_693_578),
}


@pytest.mark.parametrize("arch", FULL)
def test_the_size_of_every_architecture_at_full_width_is_known(arch):
    width, expected = FULL[arch]
    with torch.device("meta"):
        model = make(arch, image_size=32, num_classes=10, width=width)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def weights_of(kind, model):
    return [layer for layer in model.modules() if isinstance(layer, kind)]


def test_convolutions_have_the_published_channels_in_units_of_the_width():
    widths = {
        "alexnet": [4, 12, 24, 16, 16],
        "allcnn": [4, 4, 4, 8, 8, 8, 8, 8, 7],
        "conv7": [4, 4, 8, 8, 16, 16],
        "vgg11": [4, 8, 16, 16, 32, 32, 32, 32],
        "vgg16": [4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32],
        "resnet18": [4] * 5 + [8] * 4 + [16] * 4 + [32] * 4,
    }
    for arch, expected in widths.items():
        convolutions = weights_of(nn.Conv2d, make(arch, image_size=32))
        shortcuts = [layer.out_channels for layer in convolutions if arch == "resnet18" and layer.kernel_size == (1, 1)]
        found = [layer.out_channels for layer in convolutions if not shortcuts or layer.kernel_size == (3, 3)]
        assert (found, shortcuts) == (expected, [8, 16, 32] if arch == "resnet18" else [])


@pytest.mark.parametrize(
    ("width", "size", "layers", "heads", "patch"),
    [(8, 28, 2, 2, 4), (64, 32, 2, 2, 4), (192, 64, 6, 3, 8), (384, 32, 12, 6, 4), (768, 96, 12, 12, 8)],
)
def test_the_transformer_follows_its_rule_of_width_and_image_size(width, size, layers, heads, patch):
    with torch.device("meta"):
        model = make("vit", width=width, image_size=size)
    attention = weights_of(nn.MultiheadAttention, model)
    assert len(attention) == layers
    assert {(part.num_heads, part.embed_dim) for part in attention} == {(heads, width)}
    assert model.conv_proj.kernel_size == model.conv_proj.stride == (patch, patch)


# ---- Committed checkpoints


def reference_layers(arch, width):
    """The weighted layers of the two small nets, made in their order by hand."""
    plans = {"digits": (1, 2, 2), "conv7": (1, 1, 2, 2, 4, 4)}
    channels = [3, *(factor * width for factor in plans[arch])]
    pairs = zip(channels, channels[1:], strict=False)
    return [nn.Conv2d(ins, outs, 3, padding=1, bias=False) for ins, outs in pairs] + [nn.Linear(channels[-1], 7)]


@pytest.mark.parametrize("arch", ["digits", "conv7"])
def test_the_small_nets_keep_their_initial_weights_for_a_seed(arch):
    model = make(arch, seed=3, width=5)
    torch.manual_seed(3)
    expected = reference_layers(arch, 5)
    found = weights_of((nn.Conv2d, nn.Linear), model)
    assert len(found) == len(expected)
    assert all(torch.equal(ours.weight, theirs.weight) for ours, theirs in zip(found, expected, strict=True))
    assert torch.equal(found[-1].bias, expected[-1].bias)


def test_a_committed_checkpoint_loads_name_by_name():
    tensors, record = checkpoints.load(ROOT / "results/cpu/checkpoints/original-cifar10-conv7-seed0.safetensors")
    assert (record["config"]["arch"], record["config"]["width"]) == ("conv7", 20)
    model = make("conv7", num_classes=10, image_size=32, width=20, mean=MEAN, std=STD)
    assert set(model.state_dict()) == set(tensors)
    model.load_state_dict(tensors)
    assert torch.equal(model[1].weight, tensors["1.weight"])


def test_the_first_layer_normalizes_so_that_a_model_takes_unit_images():
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, normalizing = make(seed=1).eval(), make(seed=1, mean=MEAN, std=STD).eval()

    assert {"0.mean", "0.std"} <= normalizing.state_dict().keys()  # saved with the weights
    by_hand = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(normalizing(images), plain(by_hand))
    assert not torch.allclose(normalizing(images), plain(images))


def test_weights_are_a_function_of_the_seed_and_the_global_stream_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = make(seed=2), make(seed=2), make(seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    drawn = make()
    assert not torch.equal(drawn[0].weight, make()[0].weight)  # without a seed the stream goes on


FACTORY = """
from torch import nn

def small(*, num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
"""


def test_a_factory_of_the_reader_is_called_and_normalized(tmp_path):
    factory_file = tmp_path / "mine.py"
    factory_file.write_text(FACTORY)
    model = make(f"{factory_file}:small", image_size=5, mean=MEAN, std=STD, seed=0)
    assert model(torch.rand(4, 3, 5, 5)).shape == (4, 7)
    assert isinstance(model[0], Normalize)
    assert torch.equal(model[2].weight, make(f"{factory_file}:small", image_size=5, seed=0)[1].weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "alexnet2"}, "unknown architecture 'alexnet2'; known are alexnet, allcnn, conv7, .*, vit, or path"),
        ({"width": 0}, "width must be at least 1, got 0"),
        *(
            (
                {"arch": arch, "image_size": size - 1},
                f"image_size must be at least {size} pixels for '{arch}', got {size - 1}",
            )
            for arch, size in SIZES.items()
        ),
        ({"arch": "vit", "image_size": 30}, "a multiple of the patch size 4 for 'vit', got 30"),
        ({"arch": "vit", "width": 9}, "a multiple of 64, or an even number below 128, for 'vit', got 9"),
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
