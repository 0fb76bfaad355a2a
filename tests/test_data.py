"""Digits and image folders, archives that attack, a cache that notices, a guard that counts."""

import io
import json
import logging
import os
import shutil
import tarfile
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from datafiles import assert_same_set, encoded, folder_files, picture, write_folder, write_tar, write_zip
from PIL import Image

import zspag.lab.data
from zspag.lab.data import Dataset, Guard, Split, channel_statistics, data_root, gaussians2d, halved, load, thinned
from zspag.lab.data.listing import files_in, unpack
from zspag.lab.data.sources import read_digits
from zspag.lab.data.splits import FEWEST

# ---------------------------------------------------------------------------------------------- digits and Gaussians


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", root=tmp_path_factory.mktemp("data"))


def test_digits_are_scikit_learns_own_split_within_every_class(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert digits.train.images.shape == (1438, 1, 8, 8)
    assert len(digits.train) + len(digits.test) == len(bunch.images) == 1797
    assert digits.classes == tuple("0123456789")
    every = torch.cat([digits.train.images, digits.test.images])[:, 0].numpy()
    mine = sorted(image.tobytes() for image in every)
    assert mine == sorted(np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in bunch.images)
    for label in range(10):
        total = int((bunch.target == label).sum())
        assert int((digits.test.labels == label).sum()) == round(0.2 * total)


def test_digits_come_again_in_the_same_order_from_the_cache_and_without_it(digits, tmp_path):
    assert_same_set(digits, load("digits", root=tmp_path))
    assert_same_set(digits, load("digits", root=tmp_path))
    manifest = json.loads((tmp_path / "cache" / "digits.json").read_text())
    assert manifest["sha256"] == digits.sha256
    assert manifest["source"]["split_seed"] == 0
    assert manifest["counts"]["test"]["3"] == int((digits.test.labels == 3).sum())


def test_a_split_gives_floats_on_the_unit_interval(digits):
    floats = digits.test.float()
    assert floats.dtype == torch.float32
    assert floats.min() == 0
    assert floats.max() == 1
    assert torch.equal((floats * 255).round().to(torch.uint8), digits.test.images)
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 1, 8)


def test_gaussians_lie_around_the_circle_and_depend_on_the_generator_alone():
    def draw(seed, spread=0.1):
        generator = torch.Generator().manual_seed(seed)
        return gaussians2d(classes=3, per_class=400, spread=spread, generator=generator)

    points, labels = draw(0)
    assert points.shape == (1200, 2)
    assert labels.bincount().tolist() == [400, 400, 400]
    for label, centre in enumerate([(1, 0), (-0.5, 0.75**0.5), (-0.5, -(0.75**0.5))]):
        cloud = points[labels == label]
        torch.testing.assert_close(cloud.mean(0), torch.tensor(centre, dtype=torch.float32), atol=0.02, rtol=0)
        assert cloud.std(0).mean() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(draw(0)[0], points)
    assert not torch.equal(draw(1)[0], points)
    assert draw(0, spread=0)[0][0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="got 3, 400, -1"):
        draw(0, spread=-1)


def test_channel_statistics_are_those_of_the_floats():
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    floats = images.double() / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(floats.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(floats.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


# ------------------------------------------------------------------------------------------------------ image folders


def test_a_folder_and_its_archives_give_the_same_set_sorted_by_class_and_name(tmp_path):
    files = folder_files()
    folder = write_folder(tmp_path / "insects", files)
    from_folder = load(folder, root=tmp_path)
    assert from_folder.name == "insects"
    assert from_folder.classes == ("ant", "bee")
    assert from_folder.train.labels.tolist() == [0, 0, 0, 1]  # a class with one image is a class
    names = [f"train/ant/ant_{number}.png" for number in range(3)] + ["train/bee/bee_0.png"]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(files[name]))) for name in names])
    assert np.array_equal(from_folder.train.images.permute(0, 2, 3, 1).numpy(), expected)

    backwards = [(f"insects/{name}", contents) for name, contents in reversed(files.items())]
    assert_same_set(from_folder, load(write_tar(tmp_path / "one.tar.gz", backwards, "w:gz"), root=tmp_path))
    assert_same_set(from_folder, load(write_zip(tmp_path / "two.zip", files.items()), root=tmp_path))
    assert_same_set(from_folder, load("two", root=tmp_path))
    assert_same_set(from_folder, load("insects", root=tmp_path))


def test_grey_images_stay_grey_and_among_colours_become_colours(tmp_path):
    files = folder_files()
    grey = load(write_folder(tmp_path / "grey", folder_files(grey=files)), root=tmp_path)
    assert grey.train.images.shape == (4, 1, 4, 4)

    one = "train/ant/ant_1.png"
    mixed = load(write_folder(tmp_path / "mixed", folder_files(grey=(one,))), root=tmp_path)
    assert mixed.train.images.shape == (4, 3, 4, 4)
    pixels = np.asarray(Image.open(io.BytesIO(folder_files(grey=(one,))[one])))
    assert all(np.array_equal(mixed.train.images[1, channel].numpy(), pixels) for channel in range(3))
    assert not torch.equal(mixed.train.images[0, 0], mixed.train.images[0, 1])


def test_mixed_sizes_name_the_first_odd_file_unless_a_size_is_given(tmp_path):
    files = folder_files() | {"test/ant/ant_1.png": encoded(picture(9, size=(6, 5)))}
    folder = write_folder(tmp_path / "mixed", files)
    with pytest.raises(ValueError, match=r"test/ant/ant_1.png in .*mixed is 6x5 .*ant_0.png is 4x4.*give image_size"):
        load(folder, root=tmp_path)
    resized = load(folder, root=tmp_path, image_size=3)
    assert resized.train.images.shape == (4, 3, 3, 3)
    assert load(folder, root=tmp_path, image_size=5).train.images.shape == (4, 3, 5, 5)  # not the cache of size 3


def test_resizing_keeps_the_middle_square(tmp_path):
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, 2:6] = 200  # the middle square
    files = {name: encoded(wide) for name in folder_files()}
    folder = write_folder(tmp_path / "wide", files)
    assert (load(folder, root=tmp_path, image_size=4).train.images == 200).all()
    with pytest.raises(ValueError, match="are 8x4, not square; give image_size"):
        load(folder, root=tmp_path)


def sixteen_bits():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


BAD_FOLDERS = {
    "cut file": ({"train/bee/bee_0.png": encoded(picture(1))[:-40]}, (), "train/bee/bee_0.png in .* not a readable"),
    "text as image": ({"test/ant/a.jpg": b"hello"}, (), "test/ant/a.jpg in .* is not a readable image"),
    "16 bits": ({"test/ant/a.png": sixteen_bits()}, (), "test/ant/a.png in .* has mode I;16; only 8 bits"),
    "class without test": ({"train/cow/c.png": encoded(picture(1))}, (), "class 'cow' .* only one of train/ and test/"),
    "no test": ({}, ("test",), "holds no image under test/<class>/"),
    "one class": ({}, ("train/bee", "test/bee"), "holds only the class 'ant'; unlearning needs two or more"),
}


@pytest.mark.parametrize("case", sorted(BAD_FOLDERS))
def test_a_folder_that_cannot_work_names_what_is_wrong(tmp_path, case):
    extra, removed, message = BAD_FOLDERS[case]
    folder = write_folder(tmp_path / "odd", folder_files() | extra)
    for name in removed:
        shutil.rmtree(folder / name)
    with pytest.raises(ValueError, match=message):
        load(folder, root=tmp_path)


def test_other_files_in_a_folder_are_passed_over(tmp_path):
    clean = load(write_folder(tmp_path / "clean", folder_files()), root=tmp_path)
    extra = {"train/ant/.hidden.png": b"x", "train/ant/notes.txt": b"x", "readme.md": b"x"}
    assert_same_set(clean, load(write_folder(tmp_path / "littered", folder_files() | extra), root=tmp_path))


def test_an_archive_of_two_folders_is_refused(tmp_path):
    members = [(f"{top}/{name}", contents) for top in ("a", "b") for name, contents in folder_files().items()]
    with pytest.raises(ValueError, match=r"more than one image folder: \['a', 'b'\]"):
        load(write_tar(tmp_path / "both.tar.xz", members), root=tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cats", {}, FileNotFoundError, r"no data set 'cats': .*digits, mnist, .*facescrub .*cats/train/<class>/"),
        ("digits", {"image_size": 16}, ValueError, "image_size=16 is for image folders; digits has its own size"),
        ("svhn", {"split_seed": 0}, ValueError, "split_seed=0 is for image folders; svhn has its own size and split"),
        ("cats", {"image_size": 0}, ValueError, "image_size must be at least 1 pixel, got 0"),
        ("cats", {"test_share": 1.0}, ValueError, r"test_share must lie between 0 and 1, got 1\.0"),
        ("cats", {"min_per_class": 1}, ValueError, "min_per_class must be at least 2, .*got 1"),
    ],
)
def test_names_and_options_that_do_not_exist_are_named(tmp_path, name, options, error, message):
    with pytest.raises(error, match=message):
        load(name, root=tmp_path, **options)


def test_a_plain_file_is_no_data_set(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes.txt is neither a folder nor an archive"):
        load(tmp_path / "notes.txt", root=tmp_path)


def test_the_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path / "there"))
    assert data_root() == tmp_path / "there"
    load("digits")
    assert (tmp_path / "there" / "cache" / "digits.safetensors").exists()
    monkeypatch.delenv("ZSPAG_DATA")
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    assert data_root() == tmp_path / "data"


# ---------------------------------------------------------------------------------- folders without train/ and test/


def people(counts, *, kind="PNG", sizes=((4, 4),)):
    """Return path and bytes of a folder with one class per person; sizes take turns, every third image is grey."""
    files = {}
    for name, count in counts.items():
        for number in range(count):
            seed = 1000 * sum(map(ord, name)) + number
            pixels = picture(seed, size=sizes[number % len(sizes)], grey=number % 3 == 2)
            files[f"{name}/{name}_{number:02d}.{kind.lower()}"] = encoded(pixels, kind)
    return files


def rows(split, label):
    """Return the images of a class as a set of bytes."""
    return {image.numpy().tobytes() for image in split.images[split.labels == label]}


def test_a_folder_of_classes_is_split_within_each_and_says_so(tmp_path):
    found = load(write_folder(tmp_path / "pets", people({"cat": 20, "ant": 11, "bee": 10})), root=tmp_path)
    assert found.classes == ("ant", "bee", "cat")
    assert found.train.labels.bincount().tolist() == [9, 8, 16]
    assert found.test.labels.bincount().tolist() == [2, 2, 4]
    for label in range(3):
        assert not rows(found.train, label) & rows(found.test, label)
        assert len(rows(found.train, label) | rows(found.test, label)) == [11, 10, 20][label]
    assert found.data_source == "image folder of .png files, split by seed 0 with 20 % for the test"
    (manifest,) = (tmp_path / "cache").glob("pets-*.json")
    assert json.loads(manifest.read_text())["source"].items() >= {"split_seed": 0, "test_share": 0.2}.items()


def test_the_split_depends_on_its_seed_and_share_and_on_no_other_class(tmp_path):
    folder = write_folder(tmp_path / "pets", people({"ant": 10, "bee": 12}))
    first, again = load(folder, root=tmp_path), load(folder, root=tmp_path / "elsewhere")
    assert_same_set(first, again)
    other = load(folder, root=tmp_path, split_seed=1)
    assert rows(other.test, 0) != rows(first.test, 0)
    assert rows(other.test, 0) | rows(other.train, 0) == rows(first.test, 0) | rows(first.train, 0)
    assert load(folder, root=tmp_path, test_share=0.5).test.labels.bincount().tolist() == [5, 6]

    write_folder(folder, people({"aardvark": 10}))
    more = load(folder, root=tmp_path)
    assert [rows(more.test, 1), rows(more.test, 2)] == [rows(first.test, 0), rows(first.test, 1)]


def test_a_folder_of_classes_and_its_archives_are_split_alike(tmp_path):
    files = people({"ant": 10, "bee": 12})
    first = load(write_folder(tmp_path / "pets", files), root=tmp_path)
    backwards = [(f"pets/{name}", contents) for name, contents in reversed(files.items())]
    assert_same_set(first, load(write_tar(tmp_path / "one.tar.gz", backwards, "w:gz"), root=tmp_path))
    assert_same_set(first, load(write_zip(tmp_path / "two.zip", files.items()), root=tmp_path))


@pytest.mark.parametrize("count", [1, 9])
def test_a_class_with_too_few_images_is_named_with_its_count_and_the_option(tmp_path, count):
    folder = write_folder(tmp_path / "pets", people({"ant": 10, "bee": count}))
    with pytest.raises(ValueError, match=rf"'bee' in .* has {count} images?, fewer than 10: .*smaller min_per_class"):
        load(folder, root=tmp_path)


def test_classes_with_too_few_images_are_counted(tmp_path):
    folder = write_folder(tmp_path / "pets", people({"ant": 10, "bee": 3, "cow": 1, "dog": 2}))
    with pytest.raises(ValueError, match=r"'bee' in .* has 3 images, fewer than 10 \(and so have 2 other classes\)"):
        load(folder, root=tmp_path)


def test_a_smaller_minimum_lets_small_classes_in_with_an_image_for_each_split(tmp_path):
    folder = write_folder(tmp_path / "pets", people({"ant": 10, "bee": 2}))
    assert load(folder, root=tmp_path, min_per_class=2).test.labels.bincount().tolist() == [2, 1]
    with pytest.raises(ValueError, match="'bee' .* has 2 images, fewer than 3"):
        load(folder, root=tmp_path, min_per_class=3)


BAD_CLASSES = {
    "broken file": ({"bee/x.png": encoded(picture(1))[:-40]}, "bee/x.png in .*pets is not a readable image"),
    "another size": ({"bee/x.png": encoded(picture(1, size=(5, 6)))}, "bee/x.png in .*pets is 5x6 .*give image_size"),
}


@pytest.mark.parametrize("case", BAD_CLASSES)
def test_an_odd_file_in_a_folder_of_classes_is_named(tmp_path, case):
    extra, message = BAD_CLASSES[case]
    with pytest.raises(ValueError, match=message):
        load(write_folder(tmp_path / "pets", people({"ant": 10, "bee": 10}) | extra), root=tmp_path)


def test_images_directly_in_train_and_test_are_no_classes(tmp_path):
    with pytest.raises(ValueError, match=r"has no class folders in train/ and test/"):
        load(write_folder(tmp_path / "flat", people({"train": 20, "test": 20})), root=tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"pets holds no image under train/<class>/ and test/<class>/, nor"):
        load(write_folder(tmp_path / "pets", {"ant/notes.txt": b"x"}), root=tmp_path)


def test_facescrub_takes_crops_of_any_size_and_makes_them_64_pixels(tmp_path):
    files = people({"Ann_Lee": 12, "Bo Oh": 10}, kind="JPEG", sizes=((90, 70), (33, 64), (64, 64)))
    faces = load("facescrub", root=write_folder(tmp_path, {f"facescrub/{name}": data for name, data in files.items()}))
    assert faces.train.images.shape == (18, 3, 64, 64)  # grey ones among colours become colours
    assert (faces.name, faces.classes, len(faces.test)) == ("facescrub", ("Ann_Lee", "Bo Oh"), 4)
    words = "image folder of .jpeg files, JPEG-coded (lossy), resized to 64x64, split by seed 0 with 20 % for the test"
    assert faces.data_source == words
    assert load("facescrub", root=tmp_path).data_source == words  # from the cache
    assert load("facescrub", root=tmp_path, image_size=32).image_size == 32


def test_missing_facescrub_says_who_fetches_the_photographs_and_where_they_go(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"links only, so fetch .* yourself .*facescrub/<person>/") as caught:
        load("facescrub", root=tmp_path)
    assert str(tmp_path / "facescrub") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loss_is_recognized_by_contents_and_not_by_the_name_of_a_file(tmp_path):
    def source_of(place, contents, name="x.png"):
        files = folder_files() | {f"train/ant/{name}": contents}
        return load(write_folder(tmp_path / place, files), root=tmp_path).data_source

    assert source_of("plain", encoded(picture(5))) == "image folder of .png files"
    assert source_of("hidden", encoded(picture(5), "JPEG")) == "image folder of .png files, JPEG-coded (lossy)"
    assert source_of("lossless", encoded(picture(5), "WEBP"), "x.webp") == "image folder of .png and .webp files"
    buffer = io.BytesIO()
    Image.fromarray(picture(5)).save(buffer, "WEBP", quality=50)
    assert source_of("lossy", buffer.getvalue(), "x.webp") == "image folder of .png and .webp files, WebP-coded (lossy)"


# ----------------------------------------------------------------------------------------------------------- archives


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ATTACKS = {
    "parent": ("data/../../evil", "leaves the folder through '..'"),
    "plain parent": ("../evil", "leaves the folder through '..'"),
    "windows parent": ("data\\..\\..\\evil", "leaves the folder through '..'"),
    "absolute": ("/etc/evil", "has an absolute path"),
    "drive": ("C:\\evil", "has an absolute path"),
}
LINKS = {
    "symbolic link": (member("data/evil", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
    "hard link": (member("data/evil", tarfile.LNKTYPE, "data/first"), "is a link"),
    "device": (member("data/evil", tarfile.CHRTYPE), "is a device or a pipe"),
    "pipe": (member("data/evil", tarfile.FIFOTYPE), "is a device or a pipe"),
}


def assert_refused(archive, folder, message):
    folder.mkdir()
    for act in (lambda: list(files_in(archive)), lambda: unpack(archive, folder / "data")):
        with pytest.raises(ValueError, match=rf"{archive.name} is refused: its member .*evil' {message}"):
            act()
    assert list(folder.iterdir()) == []
    assert not list(folder.parent.rglob("evil"))


@pytest.mark.parametrize("case", sorted(ATTACKS | LINKS))
def test_a_tar_that_attacks_is_refused_and_leaves_nothing(tmp_path, case):
    evil, message = (ATTACKS | LINKS)[case]
    archive = write_tar(tmp_path / "attack.tar.xz", [("data/first", b"harmless"), (evil, b"")])
    assert_refused(archive, tmp_path / "inside", message)


@pytest.mark.parametrize("case", sorted(ATTACKS))
def test_a_zip_that_attacks_is_refused_and_leaves_nothing(tmp_path, case):
    evil, message = ATTACKS[case]
    archive = write_zip(tmp_path / "attack.zip", [("data/first", b"harmless"), (evil, b"evil")])
    assert_refused(archive, tmp_path / "inside", message)


@pytest.mark.parametrize(("mode", "message"), [(0o120777, "is a link"), (0o020666, "is a device or a pipe")])
def test_a_zip_with_a_link_or_a_device_is_refused(tmp_path, mode, message):
    info = zipfile.ZipInfo("data/evil")
    info.external_attr = mode << 16
    archive = write_zip(tmp_path / "attack.zip", [("data/first", b"harmless"), (info, b"/etc/passwd")])
    assert_refused(archive, tmp_path / "inside", message)


def test_an_attack_through_load_is_refused(tmp_path):
    members = [*folder_files().items(), ("../evil.png", encoded(picture(0)))]
    with pytest.raises(ValueError, match=r"'../evil.png' leaves the folder"):
        load(write_tar(tmp_path / "insects.tar.xz", members), root=tmp_path)


@pytest.mark.parametrize("suffix", ["tar.xz", "tar.gz", "zip"])
def test_an_honest_archive_is_unpacked_and_a_cut_one_leaves_nothing(tmp_path, suffix):
    contents = np.random.default_rng(0).bytes(50_000)
    members = [("data/a", contents), ("data/sub/b", b"second")]
    archive = tmp_path / f"honest.{suffix}"
    write_zip(archive, members) if suffix == "zip" else write_tar(archive, members, f"w:{suffix[4:]}")
    unpack(archive, tmp_path / "data")
    assert (tmp_path / "data" / "a").read_bytes() == contents
    assert (tmp_path / "data" / "sub" / "b").read_bytes() == b"second"

    archive.write_bytes(archive.read_bytes()[:20_000])
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=rf"honest.{suffix} is not a whole archive .*fetch it again"):
        unpack(archive, tmp_path / "other" / "data")
    assert list((tmp_path / "other").iterdir()) == []


def test_an_archive_of_something_else_is_named(tmp_path):
    archive = write_tar(tmp_path / "mnist.tar.xz", [("letters/a", b"a")])
    with pytest.raises(ValueError, match=r"holds no folder MNIST/ at its top"):
        unpack(archive, tmp_path / "MNIST")


# -------------------------------------------------------------------------------------------------------------- cache


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
    assert_same_set(first, load(folder, root=folder.parent))
    assert len(reads) == 1
    manifest = json.loads(cache_file(folder, ".json").read_text())
    assert manifest["counts"] == {"train": {"ant": 3, "bee": 1}, "test": {"ant": 2, "bee": 1}}
    assert manifest["sha256"] == first.sha256
    assert manifest["source"]["files"] == 7


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
    path = folder / "train" / "ant" / "ant_0.png"
    if change == "contents":
        path.write_bytes(encoded(picture(77)))
    elif change == "time":
        os.utime(path, (1, 1))
    else:
        (folder / "train" / "ant" / "ant_9.png").write_bytes(encoded(picture(78)))
    again = load(folder, root=folder.parent)
    assert len(reads) == 2
    assert (again.sha256 == first.sha256) == (change == "time")


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    folder = write_folder(tmp_path / "insects", folder_files())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, "zspag.lab.data"):
        assert len(load(folder, root=tmp_path).train) == 4
    assert "is not cached" in caplog.text


@pytest.mark.parametrize("part", ["classes", "labels", "images"])
def test_the_hash_covers_class_names_labels_and_images(part):
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    labels, classes = torch.tensor([0, 1, 1]), ("ant", "bee")
    base = Dataset("x", classes, Split(images, labels), Split(images, labels), augment_hint="none", data_source="test")
    renamed = Dataset(
        "y", classes, Split(images, labels), Split(images, labels), augment_hint="shift", data_source="test"
    )
    assert renamed.sha256 == base.sha256  # a name is not content
    if part == "classes":
        classes = ("ant", "fly")
    elif part == "labels":
        labels = torch.tensor([0, 0, 1])
    else:
        images = images.flip(0)
    assert (
        Dataset(
            "x", classes, Split(images, labels), Split(images, labels), augment_hint="none", data_source="test"
        ).sha256
        != base.sha256
    )


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 1, 2, 2), torch.zeros(3).long(), "images must be uint8 .*got torch.float32"),
        (torch.zeros(3, 2, 2).byte(), torch.zeros(3).long(), r"images must be uint8 of shape .*\(3, 2, 2\)"),
        (torch.zeros(3, 1, 2, 2).byte(), torch.zeros(2).long(), r"labels must be int64 of shape \(3,\).*\(2,\)"),
        (torch.zeros(0, 1, 2, 2).byte(), torch.zeros(0).long(), "the training split of x is empty"),
        (torch.zeros(3, 1, 2, 2).byte(), torch.full((3,), 2), r"training labels of x must lie in 0..1"),
    ],
)
def test_a_split_that_cannot_be_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        split = Split(images, labels)
        Dataset("x", ("ant", "bee"), split, split, augment_hint="none", data_source="test")


# -------------------------------------------------------------------------------------------------------------- guard


@pytest.fixture
def toy():
    """Four classes with 5, 6, 7 and 8 training images and 1, 2, 3 and 4 test images; a pixel holds label and place."""

    def split(counts):
        labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
        images = torch.stack([labels, torch.arange(len(labels))], dim=1).to(torch.uint8)[:, :, None, None]
        return Split(images, labels)

    classes = ("ant", "bee", "cow", "dog")
    return Dataset("toy", classes, split((5, 6, 7, 8)), split((1, 2, 3, 4)), augment_hint="none", data_source="test")


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


def honest(guard):
    return guard.forget_train()[1].sum()


def reads_retain_train(guard):
    return guard.retain_train(limit=2)[1].sum()


def reads_the_test_set(guard):
    return guard.retain_test()[1].sum() + guard.forget_test()[1].sum()


def loads_the_data_itself(_guard):
    return load("digits")


def loads_from_a_thread(_guard):
    thread = threading.Thread(target=load, args=("digits",))
    thread.start()
    thread.join()


CHEATS = {reads_retain_train: 6, reads_the_test_set: 10, loads_the_data_itself: 1797, loads_from_a_thread: 1797}


def test_an_honest_method_reads_no_retain_sample(toy):
    guard = Guard(toy, (2,))
    with guard.method():
        honest(guard)
    assert guard.retain_samples_read == 0
    assert guard.forget_samples_read == 7
    assert not guard.reads


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_a_cheating_method_is_caught(toy, cheat, monkeypatch, tmp_path):
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    guard = Guard(toy, (2,))
    with guard.method():
        honest(guard)
        cheat(guard)
    assert guard.retain_samples_read == CHEATS[cheat]
    cheat(guard)  # the laboratory may: outside the block nothing is held against the method
    assert guard.retain_samples_read == CHEATS[cheat]


def test_a_second_guard_with_other_forget_classes_is_no_way_around(toy):
    guard, other = Guard(toy, (2,)), Guard(toy, (3,))
    with guard.method():
        other.forget_train()
    assert guard.retain_samples_read == 8
    assert other.retain_samples_read == 0


def test_counting_ends_with_the_block_also_after_an_exception(toy):
    guard = Guard(toy, (2,))
    with pytest.raises(RuntimeError, match="the method failed"), guard.method():
        raise RuntimeError("the method failed")
    guard.retain_train()
    assert guard.retain_samples_read == 0
    assert guard.reads == {"retain_train": 19}


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ((), "forget is empty"),
        ((4,), r"classes in 0..3, got \(4,\)"),
        ((-1,), r"classes in 0..3, got \(-1,\)"),
        ((0, 1, 2, 3), "forget holds all 4 classes"),
    ],
)
def test_a_guard_refuses_impossible_forget_sets(toy, forget, message):
    with pytest.raises(ValueError, match=message):
        Guard(toy, forget)


def test_a_guard_refuses_an_empty_limit(toy):
    with pytest.raises(ValueError, match="limit must be at least 1 sample per class, got 0"):
        Guard(toy, (1,)).forget_train(limit=0)


def test_a_data_set_cannot_change(toy):
    assert isinstance(toy, Dataset)
    with pytest.raises(AttributeError):
        toy.train.images = None


# A share of a data set


def test_share_keeps_every_class_in_both_splits_and_has_a_hash_of_its_own():
    whole = read_digits()
    part = thinned(whole, 0.1)
    for split, of in ((part.train, whole.train), (part.test, whole.test)):
        counts = of.labels.bincount(minlength=10)
        assert split.labels.bincount(minlength=10).tolist() == [max(FEWEST, round(0.1 * n)) for n in counts.tolist()]
    assert part.sha256 != whole.sha256
    assert part.sha256 == thinned(whole, 0.1).sha256
    assert thinned(whole, 1.0) is whole


def test_smallest_share_leaves_a_few_images_of_each_class():
    part = thinned(read_digits(), 1e-6)
    assert part.train.labels.bincount().tolist() == part.test.labels.bincount().tolist() == [FEWEST] * 10


def test_of_many_classes_the_first_are_kept():
    whole = read_digits()
    counts = torch.arange(13).repeat_interleave(3)
    split = Split(whole.train.images[: len(counts)], counts)
    many = replace(whole, classes=tuple("abcdefghijklm"), train=split, test=split)
    part = thinned(many, 0.5)
    assert part.classes == tuple("abcdefghij")
    assert part.num_classes == 10
    assert part.train.labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=rf"share must lie in \(0, 1\], got {share}"):
        thinned(read_digits(), share)


# ---------------------------------------------------------------------------------------------- halves of a test set


def rows_of(images):
    return sorted(image.numpy().tobytes() for image in images)


def test_halves_share_nothing_and_together_are_the_test_set():
    splits = []
    for seed, each in enumerate((5, 8)):
        images = torch.randint(0, 256, (3 * each, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()
        splits.append(Split(images, torch.arange(3 * each) % 3))
    whole = Dataset("noise", ("a", "b", "c"), *splits, augment_hint="none", data_source="a generator")
    first, second = (halved(whole, name).test for name in ("first", "second"))
    assert rows_of(torch.cat([first.images, second.images])) == rows_of(whole.test.images)
    assert len(set(rows_of(whole.test.images))) == 24  # no image stands in for another
    for label in range(3):
        own = whole.test.images[whole.test.labels == label]
        assert torch.equal(first.images[first.labels == label], own[::2])
        assert torch.equal(second.images[second.labels == label], own[1::2])


def test_halves_of_an_odd_class_differ_by_one_and_nothing_else_of_the_set_changes():
    whole = read_digits()
    first, second = (halved(whole, name) for name in ("first", "second"))
    gaps = first.test.labels.bincount() - second.test.labels.bincount()
    assert set(gaps.tolist()) == {0, 1}
    assert first.train is second.train is whole.train
    assert first.classes == second.classes == whole.classes
    assert len({whole.sha256, first.sha256, second.sha256}) == 3


def test_halves_keep_the_order_of_the_test_set():
    whole = read_digits()
    part = halved(whole, "second").test
    place = {image.numpy().tobytes(): index for index, image in enumerate(whole.test.images)}
    order = [place[image.numpy().tobytes()] for image in part.images]
    assert order == sorted(order)


@pytest.mark.parametrize("name", ["third", "", "First"])
def test_a_half_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=f"a test half is 'first' or 'second', got '{name}'"):
        halved(read_digits(), name)


def test_a_single_test_image_cannot_be_halved():
    whole = read_digits()
    kept = torch.cat([(whole.test.labels != 4).nonzero().flatten(), (whole.test.labels == 4).nonzero()[0]])
    with pytest.raises(ValueError, match="test set of digits cannot be halved: class '4' has 1 image"):
        halved(replace(whole, test=whole.test.select(kept)), "first")
