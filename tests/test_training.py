"""Training is a function of its arguments: the same bits again, also after an interrupt."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from zspag.lab import training
from zspag.lab.models import build
from zspag.lab.training import augmented, distorted, mixed, one_cycle, precision_of, train
from zspag.profiles import TrainConfig

CONFIG = TrainConfig(epochs=4, batch_size=16, lr=0.1, augment="shift_flip", pad=2)
ADAMW = replace(CONFIG, optimizer="adamw", lr=0.01)


def make_model(*, channels=2, width=3):
    body = build("digits", num_classes=3, in_channels=channels, image_size=6, width=width, seed=0)
    return nn.Sequential(*body[:-1], nn.Dropout(0.3), body[-1])


@pytest.fixture
def samples():
    """Three classes that differ in where a 6x6 image of two channels is bright; 50 is no multiple of the batch."""
    labels = torch.arange(50) % 3
    images = torch.rand(50, 2, 6, 6, generator=torch.Generator().manual_seed(0)) * 100
    images[:, 0] += 50 * labels[:, None, None]
    return images.to(torch.uint8), labels


def pictures(count, channels=3):
    return torch.randint(0, 256, (count, channels, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(samples, *, config=CONFIG, seed=1, model=None, **options):
    return train(make_model() if model is None else model, *samples, config=config, seed=seed, **options)


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns_and_records_every_epoch(samples):
    trained = run(samples, config=replace(CONFIG, epochs=10, augment="none", pad=0))
    assert [epoch.epoch for epoch in trained.history] == list(range(1, 11))
    assert trained.history[-1].loss < 0.7 * trained.history[0].loss
    assert trained.history[-1].accuracy > 0.8 > trained.history[0].accuracy
    assert all(epoch.images_per_second == pytest.approx(50 / epoch.seconds) for epoch in trained.history)
    assert trained.precision == "float32"


def test_the_trained_model_is_ready_to_use_and_the_model_passed_in_is_left_alone(samples):
    model = make_model().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = run(samples, model=model).model
    assert not any(part.training for part in trained.modules())
    assert all(parameter.grad is None for parameter in (*trained.parameters(), *model.parameters()))
    assert all(tensor.is_contiguous() for tensor in trained.state_dict().values())
    assert same_bits(model.state_dict(), before)
    assert model.training
    assert not model[1].training
    assert torch.equal(trained[0].weight, model[0].weight)  # frozen
    assert not torch.equal(trained[-1].weight, model[-1].weight)


def test_the_same_arguments_give_the_same_bits_and_the_global_stream_is_neither_read_nor_moved(samples):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = run(samples).model.state_dict()
    assert torch.equal(torch.rand(2), expected)
    assert same_bits(first, run(samples).model.state_dict())  # from another state of the stream
    assert not same_bits(first, run(samples, seed=2).model.state_dict())
    images, labels = samples
    assert same_bits(first, run((images.float() / 255, labels)).model.state_dict())


# Interrupts


def interrupted(samples, state, monkeypatch, **options):
    """Train until two epochs are saved, then interrupt."""
    save, saved = training._save_state, []

    def save_then_interrupt(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save_state", save_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(samples, state_path=state, **options)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "lr": 0.01}, {"mixup": 0.3}], ids=str)
def test_two_epochs_and_two_more_after_an_interrupt_are_four_epochs_bit_for_bit(
    options, samples, tmp_path, monkeypatch
):
    config, state = replace(CONFIG, **options), tmp_path / "state.safetensors"
    whole = run(samples, config=config)
    interrupted(samples, state, monkeypatch, config=config)
    resumed = run(samples, config=config, state_path=state)
    assert same_bits(resumed.model.state_dict(), whole.model.state_dict())
    facts = [[(e.epoch, e.loss, e.accuracy) for e in one.history] for one in (resumed, whole)]
    assert facts[0] == facts[1]


def test_a_training_with_distortions_goes_on_bit_for_bit_and_gives_the_global_generator_back(tmp_path, monkeypatch):
    given, before = (pictures(50), torch.arange(50) % 3), torch.get_rng_state()
    options = {"config": replace(CONFIG, rand_augment=9), "model": make_model(channels=3)}
    whole, plain = run(given, **options), run(given, model=options["model"])
    assert torch.equal(torch.get_rng_state(), before)
    interrupted(given, tmp_path / "state.safetensors", monkeypatch, **options)
    resumed = run(given, state_path=tmp_path / "state.safetensors", **options)
    assert same_bits(resumed.model.state_dict(), whole.model.state_dict())
    assert not same_bits(plain.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize(("config", "lost"), [(CONFIG, "momentum_buffer/"), (ADAMW, "exp_avg_sq/")])
def test_going_on_without_a_part_of_the_optimizers_state_would_end_elsewhere(
    config, lost, samples, tmp_path, monkeypatch
):
    whole, state = run(samples, config=config), tmp_path / "state.safetensors"
    interrupted(samples, state, monkeypatch, config=config)
    with safe_open(state, "pt") as opened:
        metadata, names = opened.metadata(), list(opened.keys())
        kept = {name: opened.get_tensor(name) * (0 if name.startswith(lost) else 1) for name in names}
    assert any(name.startswith(lost) for name in names)
    save_file(kept, state, metadata)
    resumed = run(samples, config=config, state_path=state)
    assert not same_bits(resumed.model.state_dict(), whole.model.state_dict())


def test_an_interrupt_inside_an_epoch_goes_on_from_the_last_whole_one(samples, tmp_path, monkeypatch):
    state, steps = tmp_path / "state.safetensors", []
    whole = run(samples)

    def rate(step, total, *, peak):
        steps.append(step)
        if step == 9:  # four batches an epoch: the second batch of the third
            raise KeyboardInterrupt
        return one_cycle(step, total, peak=peak)

    with monkeypatch.context() as patch:
        patch.setattr(training, "one_cycle", rate)
        with pytest.raises(KeyboardInterrupt):
            run(samples, state_path=state)
    resumed = run(samples, state_path=state)
    assert steps == list(range(10))
    assert same_bits(resumed.model.state_dict(), whole.model.state_dict())


def test_the_state_of_a_finished_training_answers_for_it_and_for_no_other(samples, tmp_path, monkeypatch):
    state, (images, labels) = tmp_path / "state.safetensors", samples
    first = run(samples, state_path=state)
    monkeypatch.setattr(training, "_run_epoch_", None)  # calling it would fail
    again = run(samples, state_path=state)
    assert same_bits(first.model.state_dict(), again.model.state_dict())
    assert again.history == first.history
    for changes, field in (
        ({"seed": 2}, "seed is 2 here and 1 there"),
        ({"config": replace(CONFIG, lr=0.2)}, "config"),
        ({"model": make_model(width=2)}, "initial weights"),
        ({"samples": (images.flip(3), labels)}, "training set"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another training: {field}"):
            run(**{"samples": samples, "state_path": state} | changes)
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged .*delete it"):
        run(samples, state_path=state)


# Rates, decay, augmentation


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.ones(1, 2, 6, 6))
        self.head = nn.Linear(72, 3)

    def forward(self, images):
        return self.head((images * 0 + self.position * 0 + images).flatten(1))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_pulls_weights_and_leaves_positions_norms_and_biases(optimizer, samples):
    torch.manual_seed(0)
    model = Tokens()
    config = replace(CONFIG, optimizer=optimizer, lr=1e-3, weight_decay=30.0, augment="none", pad=0)
    trained = run(samples, model=model, config=config).model
    assert trained.head.weight.norm() < 0.8 * model.head.weight.norm()
    assert torch.equal(trained.position, model.position)  # its gradient is zero: only decay could have moved it
    net = make_model()
    groups = training._optimizer(net, config).param_groups
    decaying = {parameter for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert decaying == {part.weight for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters())) > len(decaying)


def test_one_cycle_rises_to_its_peak_and_falls_to_zero():
    rates = [one_cycle(step, 50, peak=0.3) for step in range(50)]
    assert max(rates) == rates[9] == pytest.approx(0.3)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert one_cycle(0, 1, peak=0.3) == pytest.approx(0.3)


def shifted_by_padding(image, rows, columns, pad):
    """The slow version: pad with reflection, then cut the window out."""
    padded = nn.functional.pad(image[None].double(), (pad,) * 4, mode="reflect")[0]
    height, width = image.shape[1:]
    return padded[:, pad + rows : pad + rows + height, pad + columns : pad + columns + width]


@pytest.mark.parametrize("augment", ["shift", "shift_flip"])
def test_every_augmented_image_is_a_window_of_the_reflected_image(augment):
    images = torch.randint(0, 256, (40, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved = augmented(images, augment=augment, pad=2, generator=torch.Generator().manual_seed(1))
    assert (moved.dtype, moved.shape) == (torch.uint8, images.shape)
    flips, places = 0, set()
    for before, after in zip(images, moved, strict=True):
        windows = {
            (rows, columns, flip): window.flip(2) if flip else window
            for rows in range(-2, 3)
            for columns in range(-2, 3)
            for flip in ((False, True) if augment == "shift_flip" else (False,))
            for window in [shifted_by_padding(before, rows, columns, 2)]
        }
        found = [place for place, window in windows.items() if torch.equal(window, after.double())]
        assert len(found) == 1
        flips += found[0][2]
        places.add(found[0][:2])
    assert len(places) > 10
    assert (10 < flips < 30) if augment == "shift_flip" else flips == 0


def test_mixing_is_between_pairs_of_the_batch_and_labels_follow(samples):
    images, labels = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2), torch.arange(5)
    blend, other, share = mixed(images, labels, most=0.4, generator=torch.Generator().manual_seed(0))
    assert 0 < share <= 0.4
    assert sorted(other.tolist()) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(blend[:, 0, 0, 0], (1 - share) * labels + share * other)
    plain, blended = (run(samples, config=replace(CONFIG, mixup=most)).model.state_dict() for most in (0.0, 0.3))
    assert not same_bits(plain, blended)


def test_what_changes_nothing_draws_nothing():
    images, labels, generator = pictures(5), torch.arange(5), torch.Generator().manual_seed(0)
    before, ambient = generator.get_state(), torch.get_rng_state()
    assert augmented(images, augment="none", pad=0, generator=generator) is images
    assert mixed(images, labels, most=0.0, generator=generator)[0] is images
    assert distorted(images, magnitude=0) is images
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), ambient)


@pytest.mark.parametrize("channels", [1, 3])
def test_distortions_are_drawn_for_every_group_and_from_the_seeded_generator(channels):
    alike = pictures(1, channels).expand(3 * training.DISTORTED_ALIKE, -1, -1, -1).contiguous()
    answers = []
    for seed in (2, 2, 3):
        torch.manual_seed(seed)
        answers.append(distorted(alike, magnitude=20))
    first, again, other = answers
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.dtype, first.shape) == (alike.dtype, alike.shape)
    groups = first.split(training.DISTORTED_ALIKE)
    assert all(torch.equal(group, group[:1].expand_as(group)) for group in groups)  # one draw for a whole group
    assert any(not torch.equal(groups[0], group) for group in groups[1:])  # and a fresh one for the next


@pytest.mark.parametrize(("has_it", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_follows_the_device(has_it, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_options: has_it)
    assert precision_of(torch.device("cuda")) == expected
    assert precision_of(torch.device("cpu")) == torch.float32


# What is refused


BAD = {
    "empty": (lambda images, labels: (images[:0], labels[:0]), "must hold images of shape .* n > 0"),
    "flat": (lambda images, labels: (images.flatten(1), labels), r"got \(50, 72\)"),
    "short labels": (lambda images, labels: (images, labels[:-1]), r"int64 of shape \(50,\), got torch.int64 \(49,\)"),
    "float labels": (lambda images, labels: (images, labels.float()), "got torch.float32"),
    "label 5": (lambda images, labels: (images, labels + 3), r"labels must lie in 0..2, .*got 3..5"),
    "label -1": (lambda images, labels: (images, labels - 1), r"got -1..1"),
    "pixels to 99": (lambda images, labels: (images.float(), labels), r"images must lie in \[0, 1\], got"),
    "nan pixels": (lambda images, labels: (images.float() * float("nan"), labels), r"got nan..nan"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_training_sets_are_named_with_their_value(samples, case):
    spoil, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run(spoil(*samples))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": replace(CONFIG, pad=0)}, "pad must lie in 1..5 pixels for 'shift_flip', got 0"),
        ({"config": replace(CONFIG, pad=6)}, "got 6"),
        ({"config": replace(CONFIG, augment="hint")}, "augment 'hint' leaves the choice to the data set"),
        ({"model": nn.Conv2d(2, 4, 3, padding=1)}, r"logits of shape \(n, K\), got \(1, 4, 6, 6\)"),
        ({"config": replace(CONFIG, rand_augment=9)}, "rand_augment needs .* got torch.uint8 with 2 channels"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), "config": replace(CONFIG, lr=1e30)},
            r"the loss became (nan|inf) in epoch \d of 4: lower lr \(now 1e\+30\)",
        ),
    ],
)
def test_what_cannot_be_trained_is_named_with_its_value(samples, changes, message):
    with pytest.raises(ValueError, match=message):
        run(samples, **changes)


def test_distortions_need_images_of_bytes():
    given = (pictures(9).float() / 255, torch.arange(9) % 3)
    with pytest.raises(ValueError, match="rand_augment needs grey or RGB images of uint8, got torch.float32 with 3"):
        run(given, model=make_model(channels=3), config=replace(CONFIG, rand_augment=9))
