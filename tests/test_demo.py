"""The demo: what ships with the package is what its program makes, and one command shows the method on it."""

import pytest
import torch
from PIL import Image

from benchmarks import demo_net
from zspag.__main__ import main
from zspag.lab import demo
from zspag.runtime import logits_of


def test_the_net_is_small_and_knows_digits_that_it_never_saw():
    assert sum(path.stat().st_size for path in (demo.NET, demo.IMAGES)) < 500_000
    images, labels = demo.digits("test")
    assert len(labels) == 450
    assert (logits_of(demo.net(), images).argmax(1) == labels).double().mean() > 0.97
    assert (logits_of(demo.untrained(), images).argmax(1) == labels).double().mean() < 0.4
    seen, _ = demo.digits("train")
    assert len(torch.cat([seen, images]).flatten(1).unique(dim=0)) > len(seen) + len(images) - 20  # hardly a double


def test_images_of_one_class_alone():
    images, labels = demo.digits("train", only=7)
    assert images.shape[1:] == (1, 8, 8)
    assert labels.eq(7).all()
    assert 0 <= images.min() < images.max() <= 1
    with pytest.raises(ValueError, match="a class from 0 to 9, got 'train' and 10"):
        demo.digits("train", only=10)


def test_one_command_forgets_a_digit_and_draws_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--forget", "5"]) == 0
    said = capsys.readouterr().out
    assert "digit 5, unseen images recognized: " in said
    after = float(said.split(" before, ")[1].split("%")[0])
    kept = [float(part.split("%")[0]) for part in said.split("recognized: ")[2].split(" forbidden, ")]
    assert after <= 5
    assert kept[1] >= float(said.split("other digits recognized: ")[1].split("%")[0]) - 1
    assert "reached by the method's own report, without these test images: True" in said
    with Image.open(tmp_path / "zspag-demo.png") as picture:
        assert picture.width > 600


def test_a_digit_that_is_none_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--forget", "11"]) == 2
    assert "zspag demo: a digit is a number from 0 to 9, got 11" in capsys.readouterr().err
    assert main(["demo", "--out", "picture.jpg"]) == 2
    assert "--out must be a file that ends in .png, got picture.jpg: picture.png" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_program_makes_the_same_digits_and_as_good_a_net(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "NET", tmp_path / "net.safetensors")
    monkeypatch.setattr(demo, "IMAGES", tmp_path / "digits.npz")
    monkeypatch.setattr(demo_net, "EPOCHS", 5)
    assert demo_net.main() == 0
    again = demo.digits("train")
    assert float(capsys.readouterr().out.split("accuracy ")[1].split("%")[0]) > 93
    monkeypatch.undo()
    assert all(torch.equal(one, other) for one, other in zip(again, demo.digits("train"), strict=True))
