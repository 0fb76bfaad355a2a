"""Forget data and requests as people hand them over: read in the one way they can be meant, or refused in words."""

import math
import os
import subprocess
import sys
from collections import UserDict

import external_nets
import numpy as np
import pytest
import torch
from external_nets import FORGET, digits, trained
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from zspag.preflight import inputs
from zspag.preflight.checks import class_tuple, look
from zspag.preflight.inputs import balanced, forget_set

COUNT, SHAPE = 9, (3, 8, 10)
CPU = torch.device("cpu")


def sample_bytes():
    return torch.randint(0, 256, (COUNT, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


BYTES = sample_bytes()
FLOATS = BYTES.float() / 255
LABELS = torch.tensor([2, 5, 2, 2, 5, 5, 2, 5, 2])


def read(images, labels=None, dtype=torch.float32):
    return forget_set(images, labels, device=CPU, dtype=dtype)


class Pairs(Dataset):
    """A map-style data set that makes its items from an index."""

    def __init__(self, make, count=COUNT):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


class Endless(Dataset):
    def __getitem__(self, index):
        return FLOATS[index % COUNT], 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter((FLOATS[i], int(LABELS[i])) for i in range(COUNT))


def loader(make, **options):
    return DataLoader(Pairs(make), batch_size=4, **options)


def batches(keys=("pixel_values", "labels"), kind=dict):
    return [kind(zip(keys, pair, strict=True)) for pair in zip(FLOATS.split(4), LABELS.split(4), strict=True)]


FORMS = {
    "tensor": (FLOATS, LABELS),
    "bytes": (BYTES, LABELS),
    "array": (FLOATS.numpy(), LABELS.numpy()),
    "double array": (FLOATS.double().numpy(), LABELS.int()),
    "array that may not be written to": (
        np.frombuffer(BYTES.numpy().tobytes(), np.uint8).reshape(COUNT, *SHAPE),
        LABELS,
    ),
    "big-endian array": (FLOATS.numpy().astype(">f4"), LABELS.numpy().astype(">i8")),
    "array turned round": (FLOATS.numpy()[::-1], LABELS.numpy()[::-1].copy()),
    "channels last in memory": (FLOATS.to(memory_format=torch.channels_last), LABELS),
    "with a gradient": (FLOATS.clone().requires_grad_(), LABELS),
    "labels of uint8": (FLOATS, LABELS.to(torch.uint8)),
    "labels in a tuple": (FLOATS, tuple(LABELS.tolist())),
    "labels in a list of tensors": (FLOATS, list(LABELS)),
    "list of images": (list(FLOATS), LABELS),
    "list of pairs": ([(FLOATS[i], int(LABELS[i])) for i in range(COUNT)], None),
    "pair of a batch": ((FLOATS, LABELS), None),
    "TensorDataset": (TensorDataset(FLOATS, LABELS), None),
    "Dataset of bytes": (Pairs(lambda i: (BYTES[i].numpy(), int(LABELS[i]))), None),
    "Dataset of images, labels apart": (Pairs(lambda i: FLOATS[i]), LABELS),
    "Dataset of one-tuples, labels apart": (TensorDataset(FLOATS), LABELS.tolist()),
    "Dataset of dicts": (Pairs(lambda i: {"image": BYTES[i], "label": LABELS[i]}), None),
    "labels of shape (1,)": (Pairs(lambda i: (FLOATS[i], LABELS[i : i + 1].numpy())), None),
    "IterableDataset": (Stream(), None),
    "DataLoader": (loader(lambda i: (FLOATS[i], LABELS[i])), None),
    "DataLoader of an IterableDataset": (DataLoader(Stream(), batch_size=2), None),
    "DataLoader of dicts": (loader(lambda i: {"pixel_values": FLOATS[i], "labels": int(LABELS[i])}), None),
    "DataLoader without batches": (DataLoader(TensorDataset(FLOATS, LABELS), batch_size=None), None),
    "generator of batches": (zip(FLOATS.split(4), LABELS.split(4), strict=True), None),
    "batches as mappings": (batches(("images", "labels"), UserDict), None),
    "one batch as a dict": ({"pixel_values": FLOATS, "labels": LABELS, "attention": None}, None),
    "pixel_values before the picture": (
        Pairs(lambda i: {"image": Image.new("L", (8, 8)), "pixel_values": FLOATS[i], "label": int(LABELS[i])}),
        None,
    ),
    "images made in inference mode": (torch.inference_mode()(FLOATS.clone)(), LABELS),
    "a little beyond 1 by rounding": (FLOATS.double() * (1 + 1e-7), LABELS),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_usual_form_is_read_as_the_same_images_and_labels(name):
    images, labels = FORMS[name]
    found = read(images, labels)
    expected = (FLOATS.flip(0), LABELS.flip(0)) if name == "array turned round" else (FLOATS, LABELS)
    torch.testing.assert_close(found.images, expected[0], rtol=0, atol=1e-6)
    assert torch.equal(found.labels, expected[1])
    assert (found.images.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    assert type(found.images) is torch.Tensor
    assert not found.images.requires_grad
    assert not found.images.is_inference()
    assert found.classes == (2, 5)


@pytest.mark.parametrize("label", [5, np.int64(5), torch.tensor(5), np.array(5)])
@pytest.mark.parametrize("images", [BYTES, Pairs(lambda i: FLOATS[i])])
def test_one_int_stands_for_all_images(images, label):
    assert read(images, label).labels.tolist() == [5] * COUNT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_come_in_the_dtype_that_the_method_works_in(dtype):
    for images in (BYTES, FLOATS, FLOATS.half(), FLOATS.bfloat16(), FLOATS.double()):
        found = read(images, LABELS, dtype)
        assert found.images.dtype == dtype
        torch.testing.assert_close(found.images.float(), FLOATS, rtol=0, atol=4e-3)


@pytest.mark.parametrize("images", [FLOATS.clone(), FLOATS.numpy().copy(), FLOATS.double().numpy(), BYTES.clone()])
def test_the_callers_images_and_labels_are_neither_changed_nor_shared(images):
    labels = LABELS.clone()
    before = np.asarray(images).copy()
    found = read(images, labels)
    found.images.zero_()
    found.labels.zero_()
    assert np.array_equal(np.asarray(images), before)
    assert torch.equal(labels, LABELS)


def test_a_shuffled_loader_is_read_in_the_same_order_and_leaves_the_callers_generator_alone():
    shuffled = loader(lambda i: (FLOATS[i] * torch.rand(()), LABELS[i]), shuffle=True)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = read(shuffled)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(first.images, read(shuffled).images)
    assert not torch.equal(first.images, torch.cat([images for images, _ in shuffled]))  # left alone it would differ


def spoiled(value, index=4):
    images = FLOATS.clone()
    images[index, 0, 0, 0] = value
    return images


ONE_HOT = torch.nn.functional.one_hot(LABELS, 10)
PICTURES = Pairs(lambda _: (Image.new("RGB", (8, 8)), 3))
DROPPED = DataLoader(TensorDataset(FLOATS, LABELS), batch_size=64, drop_last=True)
LAST = FLOATS.permute(0, 2, 3, 1)
BAD = {
    "empty": (FLOATS[:0], LABELS[:0], "forget set is empty: pass"),
    "empty list": ([], None, "forget set is empty: pass"),
    "empty loader": (DROPPED, None, "empty .*drop_last=True"),
    "0 to 255": (BYTES.float(), LABELS, r"got \[0, 255\]: divide them by"),
    "16 bit": (FLOATS * 65535, LABELS, r"got \[0, 6.554e\+04\]: divide them by"),
    "-1 to 1": (FLOATS * 2 - 1, LABELS, r"got \[-1, 1\]: .*Normalize\(mean, std\) in front"),
    "high": (spoiled(3.5), LABELS, r"got \[0, 3.5\]: pass unnormalized"),
    "0 to 16": (
        (16 * FLOATS).round(),
        LABELS,
        r"got \[0, 16\]: divide them by the largest value that a pixel can have",
    ),
    "nan": (spoiled(math.nan), LABELS, r"forget_images\[4\] holds NaN"),
    "infinity in a loader": (loader(lambda i: (spoiled(math.inf, 7)[i], 3)), None, r"forget_images\[7\] holds NaN"),
    "channels last": (LAST, LABELS, r"\(9, 8, 10, 3\) have their channels last: .*permute\(0, 3, 1, 2\)"),
    "channels last in a Dataset": (Pairs(lambda i: (LAST[i], 3)), None, "have their channels last"),
    "grey channels last": (LAST[..., :1].numpy(), LABELS, "have their channels last"),
    "one image": (FLOATS[0], 3, r"got \(3, 8, 10\): pass images\[None\]"),
    "grey without channels": (FLOATS[:, 0], LABELS, r"got \(9, 8, 10\): .*images\[:, None\] for grey"),
    "grey without channels in a Dataset": (Pairs(lambda i: (FLOATS[i, 0], 3)), None, r"got \(8, 10\): pass"),
    "flat": (FLOATS.flatten(1), LABELS, r"must have shape \(n, C, H, W\), got \(9, 240\)"),
    "no pixels": (FLOATS[:, :, :0], LABELS, "hold no pixels"),
    "int images": (BYTES.long(), LABELS, r"float in \[0, 1\] or uint8, got torch.int64: divide"),
    "bool images": (BYTES > 100, LABELS, "got torch.bool"),
    "uint16 images": (BYTES.numpy().astype(np.uint16), LABELS, "got torch.uint16"),
    "text array": (np.array([["a", "b"]]), LABELS, "has dtype <U1"),
    "objects": (np.array([FLOATS[0].numpy(), None], dtype=object), LABELS, "has dtype object"),
    "complex": (FLOATS.numpy() * 1j, LABELS, "has dtype complex64"),
    "sparse": (FLOATS.to_sparse(), LABELS, "must be a dense tensor .* got torch.sparse_coo"),
    "meta": (FLOATS.to("meta"), LABELS, "must be a dense tensor .* on meta"),
    "masked": (np.ma.masked_array(FLOATS.numpy()), LABELS, r"masked array: .*filled\(0\)"),
    "no length": (Endless(), None, "of type Endless have no __len__"),
    "different sizes": ([FLOATS[0], FLOATS[1, :, :6]], 3, r"item 1 .* shape \(3, 6, 10\), the first one \(3, 8, 10\)"),
    "a path": ("photos/3", 3, r"a Dataset or a DataLoader, got str \('photos/3'\): load"),
    "nothing": (None, 3, "got NoneType"),
    "pictures": (PICTURES, None, "item 0 of forget_images is of type Image: .*ToTensor"),
    "nested lists": (Pairs(lambda i: (FLOATS[i].tolist(), 3)), None, "item 0 of forget_images is of type list: pass"),
    "no labels": (FLOATS, None, "forget_labels are missing: pass"),
    "no labels in a Dataset": (TensorDataset(FLOATS), None, "item 0 of forget_images has no label: pass"),
    "no label key": ([{"image": FLOATS[0]}], None, "no label: .* dicts with 'pixel_values' or .*'labels' or 'label'"),
    "other keys": ([{"x": FLOATS[0], "y": 3}], None, "has the keys 'x', 'y': name the image"),
    "labels twice": (TensorDataset(FLOATS, LABELS), LABELS, "leave forget_labels out"),
    "three parts": (TensorDataset(FLOATS, LABELS, LABELS), None, "has 3 parts: pass pairs"),
    "counts": (FLOATS, LABELS[:4], "9 forget images but 4 labels"),
    "counts in a batch": ([(FLOATS, LABELS[:4])], None, "9 forget images but 4 labels"),
    "one-hot": (FLOATS, ONE_HOT, r"got torch.int64 of shape \(9, 10\): .*labels.argmax\(1\)"),
    "one-hot list": (FLOATS, ONE_HOT.tolist(), r"forget_labels\[0\] is \[0, 0, 1, .*one-hot"),
    "one-hot in a Dataset": (TensorDataset(FLOATS, ONE_HOT), None, "1 forget images but 10 labels"),
    "column": (FLOATS, LABELS[:, None], r"of shape \(9, 1\): pass one class number per image"),
    "float labels": (FLOATS, LABELS.float(), r"got torch.float32 of shape \(9,\): .*labels.long\(\)"),
    "float list": (FLOATS, [2.0] * COUNT, r"forget_labels\[0\] is 2.0 \(float\)"),
    "one float": (FLOATS, 2.0, "got 2.0: pass one int per image, or one int for all"),
    "one truth": (FLOATS, True, "forget_labels must be class numbers, got True"),
    "truths": (FLOATS, LABELS == 2, r"got torch.bool of shape \(9,\): pass one class"),
    "list of truths": (FLOATS, (LABELS == 2).tolist(), r"forget_labels\[0\] is True \(bool\)"),
    "names": (FLOATS, ["cat"] * COUNT, r"forget_labels\[0\] is 'cat' \(str\)"),
    "a name": (FLOATS, "cat", "forget_labels must be class numbers, got 'cat'"),
    "a name in a Dataset": (Pairs(lambda i: (FLOATS[i], "cat")), None, r"is 'cat' \(str\)"),
    "none in a list": (FLOATS, [None] * COUNT, r"forget_labels\[0\] is None"),
    "a set": (FLOATS, {2, 5}, "forget_labels must be class numbers, got {2, 5}"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_be_meant_in_two_ways_is_refused_with_value_and_remedy(name):
    images, labels, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        read(images, labels)


def test_an_error_inside_the_callers_data_set_comes_through_as_it_is():
    with pytest.raises(KeyError, match="missing file"):
        read(Pairs(lambda _: {}["missing file"]))


# ---- The request


def flight(images, labels, *, net=None, **options):
    return look(net or trained(external_nets.mlp), images, labels, **options)[2]


def of_classes(*labels, count=12):
    images, numbers = digits()
    chosen = torch.cat([(numbers == label).nonzero()[:count, 0] for label in labels])
    return images[chosen], numbers[chosen]


def test_a_good_request_says_what_it_found():
    found = flight(*of_classes(3, 8), num_classes=np.int64(10), already_forgotten=[5])
    assert (found.num_classes, found.already_forgotten) == (10, (5,))
    (warned,) = found.warnings
    assert warned.startswith("already_forgotten names class 5, which the model still answers")
    assert found.original_accuracy > 0.9
    assert flight(*of_classes(3)).num_classes == 10  # read from the logits


@pytest.mark.parametrize(
    "given", [5, [5], range(5, 6), {5}, np.int32(5), torch.tensor(5), torch.tensor([5]), np.array([5])]
)
def test_classes_already_forgotten_come_in_any_form(given):
    (found,) = class_tuple(given, "already_forgotten")
    assert (found, type(found)) == (5, int)
    assert class_tuple(None, "x") == class_tuple((), "x") == ()
    assert class_tuple([3, 1], "x") == (3, 1)  # in the order given


OTHERS = [label for label in range(10) if label != FORGET]
REQUESTS = {
    "10.0": ({"num_classes": 10.0}, "num_classes must be .* at least 2, got 10.0: leave it out"),
    "'10'": ({"num_classes": "10"}, "num_classes must be .* got '10'"),
    "True": ({"num_classes": True}, "num_classes must be .* got True"),
    "-10": ({"num_classes": -10}, "num_classes must be .* got -10"),
    "9": ({"num_classes": 9}, "num_classes is 9, but the model has 10 outputs: leave num_classes out"),
    "5.0": ({"already_forgotten": 5.0}, r"already_forgotten must hold class numbers, for example \(3, 5\), got 5.0"),
    "('a',)": ({"already_forgotten": ("a",)}, r"got \('a',\)"),
    "mask": ({"already_forgotten": [True, False]}, r"got \[True, False\]"),
    "float tensor": ({"already_forgotten": torch.tensor([5.0])}, r"got tensor\(\[5.\]\)"),
    "matrix": ({"already_forgotten": torch.tensor([[5]])}, r"got tensor\(\[\[5\]\]\)"),
    "dict": ({"already_forgotten": {5: 1}}, "got {5: 1}"),
    "twice": ({"already_forgotten": (5, 7, 5)}, "already_forgotten names class 5 2 times"),
    "too large": ({"already_forgotten": 10}, r"already_forgotten holds class 10, outside 0..9"),
    "below zero": ({"already_forgotten": (2, -1)}, r"already_forgotten holds class -1, outside 0..9"),
    "no class left": ({"already_forgotten": OTHERS}, "all 10 classes, .* at least one must be retained"),
    "a class beyond": ({"label": 10}, r"forget_labels holds class 10, outside 0..9 \(num_classes=10\)"),
    "a class below": ({"label": -1}, "forget_labels holds class -1, outside 0..9"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_cannot_be_is_refused_with_value_and_remedy(name):
    options, message = REQUESTS[name]
    images, labels = of_classes(FORGET)
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        flight(images, options.pop("label", labels), **options)


def test_all_classes_are_refused_and_more_than_half_are_warned_of():
    with pytest.raises(ValueError, match="are all 10 classes, .* retrain without them"):
        flight(*of_classes(*range(10)))
    (warning,) = flight(*of_classes(*range(6))).warnings
    assert warning.startswith("the forget set names 6 of 10 classes")
    assert not flight(*of_classes(*range(5))).warnings


# ---- Inputs that are valid alone and wrong together


def test_images_of_one_class_labelled_as_another_are_refused_though_others_are_right():
    images, labels = of_classes(1, 3, 5)
    labels[labels == 3] = 4
    message = r"recognizes only 0 of the 12 images labelled 4 as class 4 \(it answers 3 for 1\d"
    with pytest.raises(ValueError, match=message):
        flight(images, labels)


def test_images_that_mostly_do_not_fit_are_warned_of():
    images, labels = of_classes(4, 3, count=12)
    keep = torch.cat([torch.arange(5), torch.arange(12, 20)])
    found = flight(images[keep], torch.full((13,), 4))
    (warning,) = found.warnings
    assert "recognizes only 5 of the 13 images labelled 4 as class 4 (it answers 3 for 8 of them)" in warning
    assert found.original_accuracy == pytest.approx(5 / 13)
    assert not flight(*of_classes(4)).warnings


@pytest.mark.parametrize("images", [FLOATS / 255, torch.ones(2, *SHAPE, dtype=torch.uint8), torch.zeros(1, *SHAPE)])
def test_images_that_are_all_but_black_are_refused(images):
    with pytest.raises(ValueError, match=r"are black, their largest value is 0(.0039.)?: divide them by 255 once only"):
        read(images, 3)
    brighter = images * 3 + 0.01 if images.is_floating_point() else images * 2
    assert read(brighter, 3).images.min() > 0


def test_a_class_forgotten_before_has_no_images_that_are_recognized():
    net = external_nets.silenced(FORGET)
    images, labels = of_classes(FORGET, 3)
    with pytest.raises(ValueError, match="no image of class 4, which already_forgotten names: leave its images out"):
        flight(images, labels, net=net, already_forgotten=FORGET)
    assert flight(*of_classes(3), net=net, already_forgotten=FORGET).already_forgotten == (FORGET,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.expand(-1, 3, -1, -1), r"layer '0', Conv2d\(1, 8.*bring the images to the channels"),
        (lambda x: torch.nn.functional.pad(x, (0, 2)), r"layer '5', Linear\(in_features=192"),
    ],
)
def test_images_of_another_shape_than_the_models_are_refused_with_what_it_expects(change, message):
    images, labels = of_classes(FORGET)
    with pytest.raises(ValueError, match=message):
        flight(change(images), labels, net=trained(external_nets.plain_net))


def test_a_single_image_is_enough():
    images, labels = of_classes(FORGET, count=1)
    found = flight(images, labels, net=trained(external_nets.LeNet))
    assert (found.original_accuracy, found.layout) == (1.0, "plain")


# ---- More images than the limit


MANY = Pairs(lambda i: (torch.full((1, 2, 3), i / 1000), 5 if i % 10 == 0 else i % 3), count=400)
MANY_IMAGES, MANY_LABELS = torch.stack([MANY[i][0] for i in range(400)]), torch.tensor([MANY[i][1] for i in range(400)])


@pytest.mark.parametrize("limit", [4, 60, 61, 398, 399])
def test_a_limit_takes_the_same_images_however_the_set_is_cut_equally_many_of_each_class(limit):
    whole = forget_set(MANY_IMAGES, MANY_LABELS, device=CPU, dtype=torch.float32, limit=limit)
    counts = torch.bincount(MANY_LABELS)
    kept = torch.bincount(whole.labels)[counts > 0]
    fair = min(limit, len(MANY)) / len(kept)
    assert (len(whole.labels), whole.left_out) == (limit, 400 - limit)
    assert kept.sum() == limit
    # Water-filling: whoever got fewer than the largest share, but for one image, was taken whole.
    assert all(few >= kept.max() - 1 or few == all_of for few, all_of in zip(kept, counts[counts > 0], strict=True))
    assert kept.max() >= math.floor(fair)
    places = (1000 * whole.images[:, 0, 0, 0]).round().long()
    assert bool((places.diff() > 0).all())  # in the order in which they came
    assert torch.equal(MANY_LABELS[places], whole.labels)
    for images, labels in (
        (DataLoader(MANY, batch_size=7), None),
        (DataLoader(MANY, batch_size=390), None),
        (MANY, None),
        ((x for x in MANY_IMAGES.split(50)), MANY_LABELS),
        (MANY_IMAGES.numpy(), MANY_LABELS.tolist()),
    ):
        found = forget_set(images, labels, device=CPU, dtype=torch.float32, limit=limit)
        assert torch.equal(found.images, whole.images)
        assert torch.equal(found.labels, whole.labels)
        assert found.left_out == whole.left_out


def test_every_image_of_a_class_is_as_likely_to_be_taken():
    draws = torch.rand(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(40) % 2
    often = torch.zeros(40)
    for draw in draws:
        often[balanced(labels, 10, draws=draw)] += 1
    assert often.sum() == 3000
    assert 45 < often.min() <= often.max() < 110  # 75 each, +- 4 standard deviations of 7.5


@pytest.mark.parametrize("limit", [None, 400, 10**9])
def test_a_set_within_the_limit_is_taken_whole_and_in_its_order(limit):
    found = forget_set(DataLoader(MANY, batch_size=7), device=CPU, dtype=torch.float32, limit=limit)
    assert torch.equal(found.images, MANY_IMAGES)
    assert found.left_out == 0


@pytest.mark.parametrize("limit", [0, -3, 2.0, "5", True])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1, got"):
        forget_set(FLOATS, LABELS, device=CPU, dtype=torch.float32, limit=limit)


@pytest.mark.parametrize("images", [MANY_IMAGES, DataLoader(MANY, batch_size=7)])
def test_a_limit_that_loses_a_class_is_refused(images):
    labels = MANY_LABELS if torch.is_tensor(images) else None
    with pytest.raises(ValueError, match="limit=3 is less than the 4 classes to forget"):
        forget_set(images, labels, device=CPU, dtype=torch.float32, limit=3)


def test_labels_of_a_limited_stream_are_counted_to_its_end():
    with pytest.raises(ValueError, match="400 forget images but 9 labels"):
        forget_set((x for x in MANY_IMAGES.split(50)), [1] * 9, device=CPU, dtype=torch.float32, limit=5)


def test_a_broken_image_is_named_by_its_place_in_the_whole_set():
    broken = MANY_IMAGES.clone()
    broken[:, 0, 0, 0] = math.nan
    first = balanced(MANY_LABELS, 20)[0].item()
    assert first > 0
    with pytest.raises(ValueError, match=rf"forget_images\[{first}\] holds NaN"):
        forget_set(broken, MANY_LABELS, device=CPU, dtype=torch.float32, limit=20)


def test_a_set_beyond_the_budget_is_cut_and_warned_of_unless_a_limit_was_asked_for(monkeypatch):
    images, labels = of_classes(3, 8)
    monkeypatch.setattr(inputs, "FORGET_BYTES", 10 * 64 * 4)
    _, forget, found = look(trained(external_nets.mlp), images, labels)
    assert (torch.bincount(forget.labels).tolist()[3::5], forget.left_out) == ([5, 5], 14)
    (warning,) = found.warnings
    assert "10 of the 24 forget images are used" in warning
    assert "pass limit=24 to use all" in warning
    assert not look(trained(external_nets.mlp), images, labels, limit=24)[2].warnings
    assert not look(trained(external_nets.mlp), images, labels, limit=10)[2].warnings


PEAK = """
import sys, warnings, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from zspag import zero_shot_unlearn
from zspag.config import UnlearnConfig, UpdateConfig
from zspag.process.allocator import peak_bytes

class Corners(Dataset):  # the class is the brightest corner
    def __len__(self):
        return int(sys.argv[1])
    def __getitem__(self, index):
        image, label = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(index)) * 0.7, index % 2
        image[:, :48, 48 * label :][:, :, :48] += 0.3
        return image, label

layer = nn.Linear(12, 4)
layer.bias.data.zero_()
layer.weight.data = (20 / 3 * torch.eye(4)[:, None] - 20 / 9 * (1 - torch.eye(4)[:, None])).repeat(1, 3, 1).view(4, 12)
model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), layer)
config = UnlearnConfig(update=UpdateConfig(lr=0.1, layers="all", epochs=1))
warnings.simplefilter("ignore")
before = peak_bytes(anew=True)
result = zero_shot_unlearn(model, DataLoader(Corners(), 50), limit=eval(sys.argv[2]), config=config, progress=False)
assert str(result.report).startswith(f"Unlearning classes 0 and 1 with {sys.argv[3]}"), str(result.report)[:60]
print(peak_bytes() - before)
"""


def peak(*arguments):
    # Large blocks go back to the system at once: what is measured is what lives, not what the allocator keeps.
    around = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**19), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


@pytest.mark.slow
def test_memory_is_bounded_by_the_limit_and_not_by_the_size_of_the_set():
    bounded = peak(200, 200, "200 images")
    assert peak(2000, 200, "200 of 2000 images") < 1.1 * bounded
    assert peak(1000, None, "1000 images") > 2 * bounded
