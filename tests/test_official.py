"""The published data sets from small files in their own formats, downloads that break off, and pickles that attack."""

import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from datafiles import (
    CIFAR_FOLDERS,
    IDX_LOADERS,
    SVHN_LABELS,
    assert_same_set,
    cifar_classes,
    cifar_entries,
    cifar_members,
    encoded,
    idx_files,
    official_files,
    picture,
    served,
    svhn_files,
    svhn_pixels,
    write_folder,
    write_tar,
    write_zip,
)

from zspag.lab.data import channel_statistics, data_root, load

OFFICIAL = ("mnist", "fashion", "cifar10", "cifar100", "svhn")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# MNIST and Fashion-MNIST


@pytest.mark.parametrize("name", IDX_LOADERS)
@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
def test_idx_files_are_read_from_their_folder_or_an_archive(tmp_path, name, kind):
    files = {f"{IDX_LOADERS[name]}/raw/{file}": contents for file, contents in idx_files().items()}
    if kind == "folder":
        write_folder(tmp_path, files)
    else:
        (write_zip if kind == "zip" else write_tar)(tmp_path / f"{name}.{kind}", files.items())
    found = load(name, root=tmp_path)
    assert found.train.images.shape == (13, 1, 28, 28)
    assert found.test.images.numpy().tobytes() == idx_files()["t10k-images-idx3-ubyte"][16:]
    assert found.test.labels.tolist() == [*range(10), 0]
    assert found.classes[:2] == (("0", "1") if name == "mnist" else ("T-shirt/top", "Trouser"))
    assert found.data_source == "official files"
    kept = {IDX_LOADERS[name], "cache"} | ({f"{name}.{kind}"} if kind != "folder" else set())
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.usefixtures("no_network")
def test_packed_idx_files_are_unpacked_if_they_have_their_checksum(tmp_path, monkeypatch):
    files, sent = official_files("mnist", monkeypatch)
    write_folder(tmp_path / "plain", files)
    raw = write_folder(tmp_path / "packed" / "MNIST" / "raw", sent)
    assert_same_set(load("mnist", root=tmp_path / "plain"), load("mnist", root=tmp_path / "packed"))

    (raw / "train-labels-idx1-ubyte").unlink()
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(sent["t10k-labels-idx1-ubyte.gz"])
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz does not have the official checksum"):
        load("mnist", root=tmp_path / "packed")
    assert not (raw / "train-labels-idx1-ubyte").exists()


SPOILERS = {
    "cut": lambda contents: contents[:-5],
    "longer": lambda contents: contents + b"0",
    "empty": lambda _contents: b"",
    "head only": lambda contents: contents[:4],
    "text": lambda _contents: b"<html>404</html>",
    "not of bytes": lambda contents: contents[:2] + b"\x0d" + contents[3:],
    "of another kind": lambda contents: contents[:2] + b"\x0a" + contents[3:],
}


@pytest.mark.parametrize("case", SPOILERS)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_idx_file_is_named(tmp_path, case, file):
    files = idx_files()
    write_folder(tmp_path / "MNIST" / "raw", files | {file: SPOILERS[case](files[file])})
    with pytest.raises(ValueError, match=rf"raw.{file} is damaged.*delete the folder"):
        load("mnist", root=tmp_path)


def test_idx_files_that_do_not_fit_together_or_are_missing_are_named(tmp_path):
    files = idx_files()
    labels = "train-labels-idx1-ubyte"
    raw = write_folder(tmp_path / "FashionMNIST" / "raw", files | {labels: files["t10k-labels-idx1-ubyte"]})
    with pytest.raises(ValueError, match=rf"{raw} do not fit together: 13 images have 11 labels; delete them"):
        load("fashion", root=tmp_path)
    (raw / labels).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {labels}; put it there"):
        load("fashion", root=tmp_path)


# CIFAR-10 and CIFAR-100


@pytest.mark.parametrize("number", CIFAR_FOLDERS)
def test_cifar_is_one_data_set_from_the_official_batches_an_archive_or_a_folder(tmp_path, monkeypatch, number):
    name, entries, kind = f"cifar{number}", cifar_entries(number), {10: "WEBP", 100: "PNG"}[number]
    files, _ = official_files(name, monkeypatch)
    write_folder(tmp_path / "batches", files)
    write_folder(tmp_path / "folder", dict(cifar_members(number, kind)))
    for place in ("archive", "packed"):
        (tmp_path / place).mkdir()
    write_tar(tmp_path / "archive" / f"{name}.tar.xz", cifar_members(number, kind))
    write_tar(tmp_path / "packed" / f"cifar-{number}-python.tar.gz", files.items(), "w:gz")

    first, *others = [load(name, root=tmp_path / place) for place in ("batches", "packed", "archive", "folder")]
    assert first.classes == cifar_classes(number)
    assert len(first.train) + len(first.test) == len(entries)
    by_name = sorted((entry for entry in entries if entry[0] == "test"), key=lambda entry: (entry[2], entry[3]))
    assert first.test.labels.tolist() == [entry[2] for entry in by_name]
    assert np.array_equal(first.test.images.permute(0, 2, 3, 1).numpy(), np.stack([entry[4] for entry in by_name]))
    for other in others:
        assert_same_set(first, other)
    sources = [found.data_source for found in (first, *others)]
    assert sources == ["official files"] * 2 + [f"image folder of .{kind.lower()} files"] * 2


def test_jpeg_coded_cifar_is_read_under_its_own_archive_name_and_says_that_it_is_lossy(tmp_path):
    write_tar(tmp_path / "cifar100-jpeg.tar.xz", cifar_members(100, "JPEG"))
    for _ in range(2):  # read, and from the cache
        found = load("cifar100", root=tmp_path)
        assert found.data_source == "image folder of .jpeg files, JPEG-coded (lossy)"
    assert (len(found.train), len(found.test), found.num_classes) == (101, 101, 100)


@pytest.mark.parametrize("number", CIFAR_FOLDERS)
def test_a_batch_without_the_official_checksum_is_named_and_never_unpickled(tmp_path, monkeypatch, number):
    files, _ = official_files(f"cifar{number}", monkeypatch)

    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "evil",)

    for path in files:
        root = write_folder(tmp_path / path.replace("/", "-"), files | {path: pickle.dumps(Attack())})
        with pytest.raises(ValueError, match=rf"{path.replace('/', '.')} does not have the official checksum"):
            load(f"cifar{number}", root=root)
    assert not (tmp_path / "evil").exists()
    pickle.loads(pickle.dumps(Attack()))
    assert (tmp_path / "evil").exists()  # the attack would have worked


def test_a_missing_batch_is_named_and_an_empty_folder_is_an_incomplete_set(tmp_path, monkeypatch):
    files, _ = official_files("cifar10", monkeypatch)
    folder = write_folder(tmp_path, files) / "cifar-10-batches-py"
    for name, pattern in (("batches.meta", "batches.meta"), ("data_batch_1", "*")):
        for path in folder.glob(pattern):
            path.unlink()
        with pytest.raises(ValueError, match=f"cifar-10-batches-py is incomplete, {name} is missing; delete it"):
            load("cifar10", root=tmp_path)


def test_a_folder_with_other_classes_or_without_the_published_split_is_not_taken_for_cifar(tmp_path):
    write_folder(
        tmp_path, {path.replace("cifar10/", "cifar100/"): contents for path, contents in cifar_members(10, "PNG")}
    )
    with pytest.raises(ValueError, match="holds 10 classes, but CIFAR-100 has 100; rename it"):
        load("cifar100", root=tmp_path)
    write_folder(tmp_path / "cifar10", {f"cat/{i}.png": encoded(picture(i)) for i in range(20)})
    with pytest.raises(ValueError, match=r"no class folders in train/ and test/; it must hold \{train,test\}/<class>"):
        load("cifar10", root=tmp_path)


REAL = data_root() / "cache"


@pytest.mark.skipif(not (REAL / "cifar10.safetensors").exists(), reason="the real CIFAR-10 has not been loaded here")
def test_the_real_cifar_10_has_its_published_statistics_and_the_hash_of_the_committed_checkpoints(monkeypatch):
    def refuse(*_):
        raise OSError("the user's folder is only read")

    monkeypatch.setattr("zspag.lab.data.loading.replacing", refuse)
    monkeypatch.setattr("zspag.lab.data.sources.unpack", None)
    monkeypatch.setattr("zspag.lab.data.sources._download", None)
    cifar = load("cifar10", root=REAL.parent)
    assert cifar.classes == cifar_classes(10)
    assert cifar.train.labels.bincount().tolist() == [5000] * 10
    assert channel_statistics(cifar.train.images)[0] == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert cifar.sha256.startswith("48cbb188fae1bbdb")


# SVHN


def test_house_numbers_are_read_with_the_digit_0_for_the_label_10(tmp_path, monkeypatch):
    files, _ = official_files("svhn", monkeypatch)
    svhn = load("svhn", root=write_folder(tmp_path / "whole", files))
    for part, split in (("train", svhn.train), ("test", svhn.test)):
        assert split.labels.tolist() == [label % 10 for label in SVHN_LABELS[part]]
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), svhn_pixels(part))
    assert (svhn.classes, svhn.augment_hint) == (tuple("0123456789"), "shift")  # a mirrored digit is none
    assert svhn.data_source == "official files"

    cut = write_folder(tmp_path / "cut", files | {"test_32x32.mat": files["test_32x32.mat"][:-9]})
    with pytest.raises(ValueError, match=r"test_32x32.mat does not have the official checksum; delete it"):
        load("svhn", root=cut)


def test_house_numbers_come_from_a_folder_too(tmp_path):
    names = [f"svhn/{part}/{digit}/{i}.png" for part in ("train", "test") for digit in range(10) for i in range(2)]
    write_folder(tmp_path, {name: encoded(picture(seed, size=(32, 32))) for seed, name in enumerate(names)})
    svhn = load("svhn", root=tmp_path)
    assert svhn.train.labels.bincount().tolist() == [2] * 10
    assert (svhn.augment_hint, svhn.data_source) == ("shift", "image folder of .png files")


# Downloads


WANTED = {
    "mnist": "MNIST is not in .*put train-images-idx3-ubyte, .* under MNIST/raw/, or mnist.tar.xz",
    "fashion": "Fashion-MNIST is not in .*put train-images-idx3-ubyte, .* under FashionMNIST/raw/, or fashion.tar.xz",
    "cifar10": "CIFAR-10 is not in .*put cifar-10-python.tar.gz .*folder cifar10/.*archive cifar10.tar.xz",
    "cifar100": "CIFAR-100 is not in .*put cifar-100-python.tar.gz .*folder cifar100/.*cifar100-jpeg.tar.xz",
    "svhn": "SVHN is not in .*put train_32x32.mat and test_32x32.mat, .*folder svhn/",
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_set_without_a_network_says_in_one_line_what_to_put_where(tmp_path, name):
    root = tmp_path / "new"
    with pytest.raises(FileNotFoundError, match=f"^{WANTED[name]}.* into {root}$") as caught:
        load(name, root=root)
    assert "cannot be downloaded" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(root.iterdir()) == []


@pytest.mark.usefixtures("capsys")
@pytest.mark.parametrize("name", OFFICIAL)
def test_a_download_that_fails_leaves_nothing_and_a_whole_one_gives_what_the_files_give(tmp_path, monkeypatch, name):
    files, sent = official_files(name, monkeypatch)
    root = tmp_path / "downloaded"
    served(monkeypatch, dict.fromkeys(sent, b"not what was asked for"))
    with pytest.raises(FileNotFoundError, match="cannot be downloaded"):
        load(name, root=root)
    assert list(root.iterdir()) == []
    for broken_at in range(len(sent)):
        served(monkeypatch, sent, broken_at=broken_at)
        with pytest.raises(KeyboardInterrupt):
            load(name, root=root)
        assert list(root.iterdir()) == []
    served(monkeypatch, sent)
    assert_same_set(load(name, root=root), load(name, root=write_folder(tmp_path / "given", files)))
    assert not list(root.glob(".*"))


@pytest.mark.usefixtures("capsys")
def test_what_a_killed_download_left_behind_is_not_taken_for_data(tmp_path, monkeypatch):
    _, sent = official_files("svhn", monkeypatch)
    write_folder(tmp_path / ".downloading-killed", {"train_32x32.mat": sent["train_32x32.mat"][:50]})
    write_folder(tmp_path, {"train_32x32.mat": svhn_files()["train_32x32.mat"]})  # killed between the two files
    served(monkeypatch, sent)
    assert len(load("svhn", root=tmp_path).train) == len(SVHN_LABELS["train"])
