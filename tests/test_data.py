"""Data from small files in the official formats, archives that attack, a cache that notices, a guard that counts."""

import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import zspag.data
from zspag.data import Dataset, Guard, Split, channel_statistics, data_root, gaussians2d, load
from zspag.data.archives import UnsafeArchiveError, files_in, unpack
from zspag.data.splits import assemble

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def picture(seed, *, size=(4, 4), grey=False):
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    buffer, options = io.BytesIO(), {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_files(*, grey=(), classes=("ant", "bee"), train=3, test=2):
    """Return path and bytes of a small image folder; the classes have unequal counts, the last one a single image."""
    files, seed = {}, 0
    for split, count in (("train", train), ("test", test)):
        for position, name in enumerate(classes):
            for number in range(1 if position == len(classes) - 1 else count):
                path = f"{split}/{name}/{name}_{number}.png"
                files[path] = encoded(picture(seed, grey=path in grey))
                seed += 1
    return files


def write_folder(root, files):
    for name, contents in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    return root


def write_tar(path, members, mode="w:xz"):
    """Write an archive of (name, bytes) or ready ``TarInfo`` members."""
    with tarfile.open(path, mode) as archive:
        for name, contents in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return path


def assert_same_set(first, second):
    assert first.classes == second.classes
    assert first.sha256 == second.sha256
    for one, other in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


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


# ------------------------------------------------------------------------------------------- MNIST and CIFAR-10 files


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def mnist_files():
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 13), ("t10k", 11)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_mnist_is_read_from_the_official_files(tmp_path):
    files = mnist_files()
    write_folder(tmp_path / "MNIST" / "raw", files)
    mnist = load("mnist", root=tmp_path)
    assert mnist.train.images.shape == (13, 1, 28, 28)
    assert mnist.test.images.numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert mnist.test.labels.tolist() == [*range(10), 0]
    assert_same_set(mnist, load("mnist", root=tmp_path))


@pytest.mark.parametrize("kind", ["tar.xz", "zip"])
def test_mnist_is_unpacked_from_an_archive(tmp_path, kind):
    members = [(f"MNIST/raw/{name}", contents) for name, contents in mnist_files().items()]
    (write_zip if kind == "zip" else write_tar)(tmp_path / f"mnist.{kind}", members)
    assert load("mnist", root=tmp_path).train.labels.tolist() == [*range(10), 0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST", "cache", f"mnist.{kind}"]


def test_a_cut_mnist_file_is_named(tmp_path):
    files = mnist_files()
    files["train-images-idx3-ubyte"] = files["train-images-idx3-ubyte"][:-5]
    write_folder(tmp_path / "MNIST" / "raw", files)
    with pytest.raises(ValueError, match=r"raw.train-images-idx3-ubyte is damaged.*delete the folder"):
        load("mnist", root=tmp_path)


def test_an_incomplete_mnist_names_the_missing_file(tmp_path):
    files = mnist_files()
    del files["t10k-labels-idx1-ubyte"]
    write_folder(tmp_path / "MNIST" / "raw", files)
    with pytest.raises(FileNotFoundError, match="lacks t10k-labels-idx1-ubyte; put it there"):
        load("mnist", root=tmp_path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist", r"^MNIST is not in \S+ and cannot be downloaded \(.*\); put train-images-idx3-ubyte, .* into"),
        ("cifar10", r"^CIFAR-10 is not in \S+ and cannot be downloaded \(.*no network.*\); put cifar-10-python.tar.gz"),
    ],
)
def test_a_missing_set_without_a_network_says_in_one_line_what_to_put_where(tmp_path, name, message):
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load(name, root=tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


def served(monkeypatch, files):
    """Serve ``files`` by the last part of their address in place of the network."""

    class Answer(io.BytesIO):
        length = url = None
        headers = {"Content-Length": "0"}  # noqa: RUF012

    monkeypatch.setattr(
        "urllib.request.urlopen", lambda request, **_: Answer(files[request.full_url.rpartition("/")[2]])
    )


@pytest.mark.usefixtures("capsys")
def test_mnist_is_downloaded_whole_when_there_is_a_network(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    packed = {f"{name}.gz": gzip.compress(contents) for name, contents in mnist_files().items()}
    served(monkeypatch, packed)
    checksums = [(name, hashlib.md5(contents).hexdigest()) for name, contents in packed.items()]
    monkeypatch.setattr(MNIST, "resources", checksums)
    assert len(load("mnist", root=tmp_path).train) == 13

    served(monkeypatch, dict.fromkeys(packed, b"not what was asked for"))
    with pytest.raises(FileNotFoundError, match="cannot be downloaded"):
        load("mnist", root=tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


CIFAR_SPLITS = (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"]))


def cifar_entries():
    """Return split, batch, label, file name and pixels of 46 images, in an order that is not alphabetical."""
    rng = np.random.default_rng(0)
    entries = []
    for split, batches in CIFAR_SPLITS:
        for batch in batches:
            for _ in range(11 if split == "test" else 4 + int(batch[-1])):
                label = 3 * len(entries) % 10
                name = f"{CIFAR_CLASSES[label][:4]}_s_{rng.integers(10**6):06d}"
                entries.append((split, batch, label, name, picture(len(entries), size=(32, 32))))
    return entries


def cifar_batches(entries):
    files = {}
    for _, batches in CIFAR_SPLITS:
        for batch in batches:
            rows = [entry for entry in entries if entry[1] == batch]
            content = {
                "data": np.stack([pixels.transpose(2, 0, 1).reshape(-1) for *_, pixels in rows]),
                "labels": [label for _, _, label, _, _ in rows],
                "filenames": [f"{name}.png" for *_, name, _ in rows],
            }
            files[batch] = pickle.dumps(content)
    files["batches.meta"] = pickle.dumps({"label_names": list(CIFAR_CLASSES)})
    return files


def cifar_members(entries):
    for split, _, label, name, pixels in reversed(entries):
        yield f"cifar10/{split}/{CIFAR_CLASSES[label]}/{name}.webp", encoded(pixels, "WEBP")


@pytest.fixture
def official_checksums(monkeypatch):
    from torchvision.datasets import CIFAR10

    files = cifar_batches(cifar_entries())
    sums = {name: hashlib.md5(contents).hexdigest() for name, contents in files.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in CIFAR_SPLITS[0][1]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return files


def test_cifar_is_one_data_set_from_the_official_batches_an_archive_or_a_folder(tmp_path, official_checksums):
    entries = cifar_entries()
    write_folder(tmp_path / "batches" / "cifar-10-batches-py", official_checksums)
    (tmp_path / "archive").mkdir()
    write_tar(tmp_path / "archive" / "cifar10.tar.xz", cifar_members(entries))
    write_folder(tmp_path / "folder", dict(cifar_members(entries)))
    (tmp_path / "packed").mkdir()
    members = [(f"cifar-10-batches-py/{name}", contents) for name, contents in official_checksums.items()]
    write_tar(tmp_path / "packed" / "cifar-10-python.tar.gz", members, "w:gz")

    first, *others = [load("cifar10", root=tmp_path / place) for place in ("batches", "archive", "folder", "packed")]
    assert first.classes == CIFAR_CLASSES
    assert (len(first.train), len(first.test)) == (35, 11)
    by_name = sorted((entry for entry in entries if entry[0] == "test"), key=lambda entry: (entry[2], entry[3]))
    assert first.test.labels.tolist() == [entry[2] for entry in by_name]
    assert np.array_equal(first.test.images.permute(0, 2, 3, 1).numpy(), np.stack([entry[4] for entry in by_name]))
    for other in others:
        assert_same_set(first, other)


def test_cifar_batches_without_the_official_checksums_are_refused(tmp_path, official_checksums):
    spoilt = official_checksums | {"data_batch_3": official_checksums["data_batch_4"]}
    write_folder(tmp_path / "cifar-10-batches-py", spoilt)
    with pytest.raises(ValueError, match=r"cifar-10-batches-py.data_batch_3 does not have the official checksum"):
        load("cifar10", root=tmp_path)


REAL = data_root() / "cache" / "cifar10.safetensors"


@pytest.mark.skipif(not REAL.exists(), reason="the real CIFAR-10 has not been loaded here")
def test_the_real_cifar_has_its_published_statistics():
    cifar = load("cifar10")
    assert cifar.classes == CIFAR_CLASSES
    assert cifar.train.labels.bincount().tolist() == [5000] * 10
    assert channel_statistics(cifar.train.images)[0] == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


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
        ("cats", {"image_size": 0}, ValueError, "image_size must be at least 1 pixel, got 0"),
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
    "symbolic link": (member("data/evil", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
    "hard link": (member("data/evil", tarfile.LNKTYPE, "data/first"), "is a link to 'data/first'"),
    "device": (member("data/evil", tarfile.CHRTYPE), "is a device or a pipe"),
    "pipe": (member("data/evil", tarfile.FIFOTYPE), "is a device or a pipe"),
}


def assert_refused(archive, folder, message):
    folder.mkdir()
    for act in (lambda: list(files_in(archive)), lambda: unpack(archive, folder / "data")):
        with pytest.raises(UnsafeArchiveError, match=rf"{archive.name} is refused: its member .*evil' {message}"):
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
    with pytest.raises(UnsafeArchiveError, match=r"'../evil.png' leaves the folder"):
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
    read = zspag.data.loading.read_image_folder

    def counting(*arguments, **options):
        reads.append(1)
        return read(*arguments, **options)

    monkeypatch.setattr("zspag.data.loading.read_image_folder", counting)
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
    with caplog.at_level(logging.INFO, "zspag.data"):
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
    with caplog.at_level(logging.INFO, "zspag.data"):
        assert len(load(folder, root=tmp_path).train) == 4
    assert "is not cached" in caplog.text


@pytest.mark.parametrize("part", ["classes", "labels", "images"])
def test_the_hash_covers_class_names_labels_and_images(part):
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    labels, classes = torch.tensor([0, 1, 1]), ("ant", "bee")
    base = assemble("x", classes, Split(images, labels), Split(images, labels), augment_hint="none", data_source="test")
    renamed = assemble(
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
        assemble(
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
        assemble("x", ("ant", "bee"), split, split, augment_hint="none", data_source="test")


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
    return assemble("toy", classes, split((5, 6, 7, 8)), split((1, 2, 3, 4)), augment_hint="none", data_source="test")


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
