"""Digits, what a data set is, its shares and halves, a cache that notices, a guard that counts."""

import json
import logging
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from datafiles import assert_same_set, encoded, folder_files, picture, write_folder

import zspag.lab.data
from zspag.lab.data import Dataset, Guard, Split, channel_statistics, data_root, halved, load, thinned
from zspag.lab.data.sources import read_digits
from zspag.lab.data.splits import FEWEST


@pytest.fixture(scope="module")
def digits():
    return read_digits()


def noise(counts, seed):
    """Return a split with so many random images of every class, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return Split(torch.randint(0, 256, (len(labels), 1, 4, 4), generator=generator).byte(), labels)


# Digits and Gaussians


def test_digits_are_scikit_learns_own_split_within_every_class(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert digits.train.images.shape == (1438, 1, 8, 8)
    assert len(digits.train) + len(digits.test) == len(bunch.images) == 1797
    assert digits.classes == tuple("0123456789")
    every = torch.cat([digits.train.images, digits.test.images])[:, 0].numpy()
    expected = np.round(bunch.images * 255 / 16).astype(np.uint8)
    assert sorted(image.tobytes() for image in every) == sorted(image.tobytes() for image in expected)
    assert digits.test.labels.bincount().tolist() == [round(0.2 * n) for n in np.bincount(bunch.target)]
    assert digits.sha256.startswith("4b6525f93fd42931")  # recorded results name it


def test_channel_statistics_are_those_of_the_floats():
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    floats = images.double() / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(floats.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(floats.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


# What a data set is


def small(*, name="x", classes=("ant", "bee"), images=None, labels=(0, 1, 1), hint="none"):
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2) if images is None else images
    split = Split(images, torch.as_tensor(labels))
    return Dataset(name, classes, split, split, hint, data_source="test")


def test_the_hash_covers_class_names_labels_and_images_and_nothing_else():
    base = small()
    assert small(name="y", hint="shift").sha256 == base.sha256
    for changed in ({"classes": ("ant", "fly")}, {"labels": (0, 0, 1)}, {"images": base.train.images.flip(0)}):
        assert small(**changed).sha256 != base.sha256
    assert replace(base, classes=("ant", "fly")).sha256 == small(classes=("ant", "fly")).sha256


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 1, 2, 2), [0] * 3, "images must be uint8 .*got torch.float32"),
        (torch.zeros(3, 2, 2).byte(), [0] * 3, r"images must be uint8 of shape .*\(3, 2, 2\)"),
        (torch.zeros(3, 1, 2, 2).byte(), [0] * 2, r"labels must be int64 of shape \(3,\).*\(2,\)"),
        (torch.zeros(3, 1, 2, 2).byte(), [0.0] * 3, r"labels must be int64 .*torch.float32"),
        (torch.zeros(0, 1, 2, 2).byte(), torch.zeros(0).long(), "the training split of x is empty"),
        (torch.zeros(3, 1, 2, 2).byte(), [2] * 3, r"training labels of x must lie in 0..1"),
    ],
)
def test_a_split_that_cannot_be_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        small(images=images, labels=labels)


# Shares and halves


def test_a_share_keeps_every_class_in_both_splits_and_has_a_hash_of_its_own(digits):
    part = thinned(digits, 0.25)
    for split, of in ((part.train, digits.train), (part.test, digits.test)):
        counts = of.labels.bincount().tolist()
        assert split.labels.bincount().tolist() == [max(FEWEST, round(0.25 * count)) for count in counts]
    assert part.sha256 != digits.sha256
    assert part.sha256 == thinned(digits, 0.25).sha256
    assert thinned(digits, 1.0) is digits
    least = thinned(digits, 1e-6)
    assert least.train.labels.bincount().tolist() == least.test.labels.bincount().tolist() == [FEWEST] * 10


def test_of_many_classes_a_share_keeps_the_first_ten():
    many = Dataset("many", tuple("abcdefghijklm"), noise([3] * 13, 0), noise([2] * 13, 1), "none", data_source="test")
    part = thinned(many, 0.5)
    assert part.classes == tuple("abcdefghij")
    assert part.train.labels.unique().tolist() == list(range(10))


def test_halves_share_nothing_and_together_are_the_test_set_in_its_order():
    whole = Dataset("noise", ("a", "b", "c"), noise([5, 5, 5], 0), noise([7, 8, 9], 1), "none", data_source="test")
    first, second = (halved(whole, half) for half in ("first", "second"))
    place = {image.numpy().tobytes(): index for index, image in enumerate(whole.test.images)}
    assert len(place) == 24  # no image stands in for another
    chosen = [[place[image.numpy().tobytes()] for image in part.test.images] for part in (first, second)]
    assert sorted(sum(chosen, [])) == list(range(24))
    assert chosen == [sorted(each) for each in chosen]
    for label in range(3):
        own = whole.test.images[whole.test.labels == label]
        assert torch.equal(first.test.images[first.test.labels == label], own[::2])
        assert torch.equal(second.test.images[second.test.labels == label], own[1::2])
    assert first.train is second.train is whole.train
    assert len({whole.sha256, first.sha256, second.sha256}) == 3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: thinned(small(), 0.0), r"share must lie in \(0, 1\], got 0.0"),
        (lambda: thinned(small(), 1.5), r"share must lie in \(0, 1\], got 1.5"),
        (lambda: halved(small(), "third"), "a test half is 'first' or 'second', got 'third'"),
        (lambda: halved(small(), "first"), "test set of x cannot be halved: class 'ant' has 1 image"),
        (lambda: Guard(small(), ()), "forget is empty"),
        (lambda: Guard(small(), (2,)), r"classes in 0..1, got \(2,\)"),
        (lambda: Guard(small(), (-1,)), r"classes in 0..1, got \(-1,\)"),
        (lambda: Guard(small(), (0, 1)), "forget holds all 2 classes"),
        (lambda: Guard(small(), (1,)).forget_train(limit=0), "limit must be at least 1 sample per class, got 0"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


# The cache


@pytest.fixture
def insects(tmp_path, monkeypatch):
    """An image folder, loaded once, and the number of times it was read."""
    folder, reads = write_folder(tmp_path / "insects", folder_files()), []
    read = zspag.lab.data.loading.read_image_folder

    def counting(*arguments, **options):
        reads.append(1)
        return read(*arguments, **options)

    monkeypatch.setattr("zspag.lab.data.loading.read_image_folder", counting)
    return load(folder, root=tmp_path), folder, reads


def cache_file(folder, suffix):
    (path,) = (folder.parent / "cache").glob(f"insects-*{suffix}")
    return path


def test_a_set_is_read_once_and_then_comes_from_one_tensor_file(insects):
    first, folder, reads = insects
    again = load(folder, root=folder.parent)
    assert_same_set(first, again)
    assert (again.name, again.augment_hint, again.data_source) == (first.name, first.augment_hint, first.data_source)
    assert len(reads) == 1
    manifest = json.loads(cache_file(folder, ".json").read_text())
    assert manifest["counts"] == {"train": {"ant": 3, "bee": 1}, "test": {"ant": 2, "bee": 1}}
    assert manifest["sha256"] == first.sha256
    assert manifest["source"].items() >= {"files": 7, "split_seed": 0, "test_share": 0.2}.items()


def flip_last_byte(path):
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)


SPOILERS = {
    "one flipped bit": (".safetensors", flip_last_byte, "do not have the SHA-256"),
    "cut tensor file": (".safetensors", lambda path: path.write_bytes(path.read_bytes()[:50]), "built again"),
    "empty manifest": (".json", lambda path: path.write_text("{}"), "built again: 'source'"),
    "broken manifest": (".json", lambda path: path.write_text("{"), "not readable as JSON"),
}


@pytest.mark.parametrize("case", sorted(SPOILERS))
def test_a_corrupt_cache_is_built_again_with_a_note(insects, caplog, case):
    first, folder, reads = insects
    suffix, spoil, note = SPOILERS[case]
    spoil(cache_file(folder, suffix))
    with caplog.at_level(logging.INFO, "zspag.lab.data"):
        assert_same_set(first, load(folder, root=folder.parent))
    assert len(reads) == 2
    assert note in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}  # a note, no warning
    load(folder, root=folder.parent)
    assert len(reads) == 2  # and whole again


@pytest.mark.parametrize("change", ["contents", "time", "new file"])
def test_a_changed_source_voids_the_cache(insects, change):
    first, folder, reads = insects
    path = folder / "train" / "ant" / ("ant_9.png" if change == "new file" else "ant_0.png")
    os.utime(path, (1, 1)) if change == "time" else path.write_bytes(encoded(picture(77)))
    again = load(folder, root=folder.parent)
    assert len(reads) == 2
    assert (again.sha256 == first.sha256) == (change == "time")


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    folder = write_folder(tmp_path / "insects", folder_files())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, "zspag.lab.data"):
        assert len(load(folder, root=tmp_path).train) == 4
    assert "is not cached" in caplog.text


def test_the_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path / "there"))
    assert data_root() == tmp_path / "there"
    load("digits")
    assert (tmp_path / "there" / "cache" / "digits.safetensors").exists()
    monkeypatch.delenv("ZSPAG_DATA")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    assert data_root() == tmp_path / "data"


# The guard


@pytest.fixture
def toy():
    """Four classes with 5, 6, 7 and 8 training images and 1, 2, 3 and 4 test images; a pixel holds label and place."""

    def split(counts):
        labels = noise(counts, 0).labels
        images = torch.stack([labels, torch.arange(len(labels))], dim=1).to(torch.uint8)[:, :, None, None]
        return Split(images, labels)

    classes = ("ant", "bee", "cow", "dog")
    return Dataset("toy", classes, split([5, 6, 7, 8]), split([1, 2, 3, 4]), "none", data_source="test")


def test_the_guard_hands_out_the_right_samples_as_floats(toy):
    guard = Guard(toy, (2, 0))
    sizes = {"forget_train": 12, "retain_train": 14, "forget_test": 4, "retain_test": 6}
    for part, size in sizes.items():
        images, labels = getattr(guard, part)()
        assert images.dtype == torch.float32
        assert images.shape == (size, 2, 1, 1)
        assert set(labels.tolist()) == ({0, 2} if part.startswith("forget") else {1, 3})
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)
        assert torch.equal(images[:, 1, 0, 0], images[:, 1, 0, 0].sort().values)  # in the order of the data set
    assert guard.reads == sizes
    assert guard.retain_samples_read == 0


def test_a_limit_takes_samples_evenly_from_every_class(toy):
    whole = Guard(toy, (1, 3)).forget_train()
    images, labels = Guard(toy, (1, 3)).forget_train(limit=3)
    assert labels.bincount().tolist() == [0, 3, 0, 3]
    chosen = images[labels == 3][:, 1, 0, 0]
    assert torch.equal(chosen, whole[0][whole[1] == 3][[0, 2, 5], 1, 0, 0])
    assert len(Guard(toy, (1, 3)).forget_train(limit=100)[1]) == 14


def loads_from_a_thread(_guard):
    thread = threading.Thread(target=load, args=("digits",))
    thread.start()
    thread.join()


CHEATS = {
    "retain train": (lambda guard: guard.retain_train(limit=2), 6),
    "test set": (lambda guard: (guard.retain_test(), guard.forget_test()), 10),
    "loads the data itself": (lambda _guard: load("digits"), 1797),
    "loads from a thread": (loads_from_a_thread, 1797),
}


def test_an_honest_method_reads_no_retain_sample(toy):
    guard = Guard(toy, (2,))
    with guard.method():
        guard.forget_train()
    assert guard.retain_samples_read == 0
    assert not guard.reads


@pytest.mark.parametrize("name", CHEATS)
@pytest.mark.usefixtures("own_data")
def test_a_cheating_method_is_caught(toy, name):
    cheat, samples = CHEATS[name]
    guard = Guard(toy, (2,))
    with guard.method():
        guard.forget_train()
        cheat(guard)
    assert guard.retain_samples_read == samples
    cheat(guard)  # the laboratory may: outside the block nothing is held against the method
    assert guard.retain_samples_read == samples


def test_a_second_guard_with_other_forget_classes_is_no_way_around(toy):
    guard, other = Guard(toy, (2,)), Guard(toy, (3,))
    with guard.method():
        other.forget_train()
    assert guard.retain_samples_read == 8
    assert other.retain_samples_read == 0


def test_counting_ends_with_the_block_also_after_an_exception(toy):
    guard = Guard(toy, (2,))
    with pytest.raises(RuntimeError), guard.method():
        raise RuntimeError
    guard.retain_train()
    assert guard.retain_samples_read == 0
    assert guard.reads == {"retain_train": 19}
