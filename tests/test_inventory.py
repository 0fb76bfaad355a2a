"""``zspag data``: what is there, where it came from, and whether the cache still says what the source says."""

import json
import os

import pytest
from datafiles import encoded, folder_files, idx_files, picture, write_folder

from zspag.__main__ import main
from zspag.lab.data import load
from zspag.lab.data.inventory import listing
from zspag.lab.data.loading import NAMED


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data folder, and no network: whoever asks for it fails."""

    def unexpected(*_args, **_options):
        raise AssertionError("nothing asked for a download")

    monkeypatch.setattr("urllib.request.urlopen", unexpected)
    monkeypatch.setenv("ZSPAG_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(root, capsys):
    """Run ``zspag data`` and return exit code and output, which is one line."""

    def command(*arguments):
        code = main(["data", *arguments])
        out, err = capsys.readouterr()
        assert (out + err).count("\n") == 1
        return code, out + err

    return command


def test_list_names_every_set_with_its_places_and_fetches_nothing(root, capsys):
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines() if line[0] != " "][1:] == list(NAMED)
    assert out.count("  source: not there") == len(NAMED) - 1  # the digits are always there
    for place in ("FashionMNIST/raw/", "cifar-100-python.tar.gz", "test_32x32.mat", "facescrub/<person>/"):
        assert place in out
    assert "cached" not in out
    assert list(root.iterdir()) == []


def test_list_says_what_is_there_and_what_is_cached(root):
    write_folder(root / "FashionMNIST" / "raw", idx_files())
    write_folder(root / "insects", folder_files())
    load("insects")
    lines = list(listing())
    assert lines[lines.index("fashion: 70 000 garments, 28x28, grey") + 2] == "  source: found, FashionMNIST"
    where = lines.index("insects: an image folder of your own")
    assert lines[where + 1].startswith("  cached: 4 + 3 images of 2 classes, image folder of .png files, SHA-256 ")


def test_a_manifest_of_an_older_version_is_readable_and_written_anew(root):
    load("digits")
    path = root / "cache" / "digits.json"
    manifest = json.loads(path.read_text())
    del manifest["data_source"]
    path.write_text(json.dumps(manifest))
    assert any("1438 + 359 images of 10 classes, source not noted" in line for line in listing())
    assert load("digits").data_source == "scikit-learn's own copy"
    assert json.loads(path.read_text())["data_source"] == "scikit-learn's own copy"
    path.write_text("{}")  # load would write this one anew, too
    assert not [line for line in listing() if "cached" in line]


def test_get_hands_the_options_on(root, run):
    write_folder(root, {f"pets/{name}/{i}.png": encoded(picture(i)) for name in ("ant", "bee") for i in range(4)})
    options = ["--image-size", "6", "--min-per-class", "4", "--split-seed", "3", "--test-share", "0.5"]
    code, out = run("get", "pets", *options)
    assert code == 0
    assert out.startswith("pets: 4 + 4 images of 2 classes")
    assert "resized to 6x6, split by seed 3 with 50 % for the test, SHA-256 " in out
    assert out.endswith(", images of 3x6x6\n")
    code, err = run("get", "pets")
    assert (code, "fewer than 10" in err) == (2, True)


def test_check_agrees_with_an_unchanged_source_and_names_both_sides_of_a_difference(root, run):
    write_folder(root / "insects", folder_files())
    before = load("insects").sha256
    os.utime(root / "insects" / "train" / "ant" / "ant_0.png", (1, 1))  # touched, not changed
    assert run("check", "insects")[1].startswith("insects: source and cache agree, 4 + 3 images of 2 classes")
    (root / "insects" / "train" / "ant" / "ant_9.png").write_bytes(encoded(picture(99)))
    code, out = run("check", "insects")
    assert code == 1
    assert "the source holds 5 + 3 images" in out
    assert f"the cache 4 + 3 images of 2 classes, image folder of .png files, SHA-256 {before}" in out


def test_check_finds_a_change_that_keeps_size_and_time_of_the_files(root, run):
    path = write_folder(root / "MNIST" / "raw", idx_files()) / "t10k-images-idx3-ubyte"
    load("mnist")
    contents, fact = bytearray(path.read_bytes()), path.stat()
    contents[-1] ^= 1
    path.write_bytes(contents)
    os.utime(path, ns=(fact.st_atime_ns, fact.st_mtime_ns))
    load("mnist")  # notices nothing, for it reads no source that looks unchanged
    code, out = run("check", "mnist")
    assert (code, "source and cache differ" in out) == (1, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "digits is not cached with these options; run `zspag data get digits` first"),
        ("svhn", "so nothing can be compared; put train_32x32.mat and"),
    ],
)
def test_check_without_cache_or_source_says_so_and_exits_with_2(run, name, message):
    code, err = run("check", name)
    assert (code, message in err) == (2, True)
