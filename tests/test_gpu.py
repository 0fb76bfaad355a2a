"""On a GPU everything comes out as on the CPU, and between steps, batches and chunks nobody waits for it."""

import copy
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import nbformat
import pytest
import torch
from fake_gpu import AWAY, HOME, fake_gpu, held
from laboratory import FORGET, rooted, small
from torch import Tensor
from torch.nn import functional as F

from benchmarks import gpu as measured
from benchmarks import stages
from benchmarks.stages import machine
from benchmarks.stages.settings import TINY
from zspag import runtime
from zspag.config import ProxyConfig, UpdateConfig
from zspag.influence import conjugate_gradients, label_scores, loss_gradient
from zspag.lab.methods import METHODS, Problem
from zspag.lab.models import build
from zspag.lab.training import train
from zspag.profiles import TrainConfig
from zspag.projected_sgd import projected_sgd
from zspag.proxies import attack
from zspag.proxy_statistics import prepare
from zspag.runtime import channels_last, generator_for, logits_of, sent
from zspag.subspaces import second_moments
from zspag.unlearning import zero_shot_unlearn

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
# Of the images of "gkt" some pass a gate, which decides all later shapes; how many trials a calibrated method makes
# depends on what they find, and "zs_pag_fixed" takes its steps.
CALIBRATED = ("zs_pag", "process_labels", "influence_labels", "second_best_labels", "random_labels")
STEPPING = [name for name in METHODS if name not in ("gkt", "remove", *CALIBRATED)]  # others have steps of their own


@pytest.fixture
def gpu():
    with fake_gpu() as gpu:
        yield gpu


@pytest.fixture(autouse=True)
def _chunks_alike(monkeypatch):
    """Sums over chunks of another size would differ in their last bits."""
    monkeypatch.setattr(runtime, "CHUNK_GPU", runtime.CHUNK)


def on_both(work):
    """Return what ``work`` gives on the CPU and on the fake GPU."""
    here = work(HOME)
    with fake_gpu():
        return here, work(AWAY)


def moved(tensor_or_net, device):
    """Return a copy on a device; both devices then have it laid out alike."""
    if isinstance(tensor_or_net, Tensor):
        return channels_last(tensor_or_net.to(device, copy=True))
    return copy.deepcopy(tensor_or_net).to(device)


def away(tensor_or_net):
    return moved(tensor_or_net, AWAY)


def assert_same_weights(net, other):
    first, second = (one.state_dict(keep_vars=True) for one in (net, other))  # detaching would need the device
    for (name, here), there in zip(first.items(), second.values(), strict=True):
        assert torch.equal(held(here), held(there)), name


def waits(gpu, work):
    """Return where the host waits for the device during ``work``."""
    gpu.waits = found = Counter()
    work()
    gpu.waits = Counter()
    return found


# What the fake GPU does


def test_operands_of_two_devices_are_refused(gpu):
    here = torch.rand(3)
    there = here.to(AWAY)
    for mix in (
        lambda: here + there,
        lambda: there @ here,
        lambda: here[there.long()],
        lambda: torch.cat([here, there]),
    ):
        with pytest.raises(RuntimeError, match="two devices"):
            mix()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=AWAY, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()


def test_single_numbers_and_indices_may_be_on_the_host(gpu):
    there = torch.arange(3.0).to(AWAY)
    assert (there + torch.tensor(2.0)).tolist() == [2, 3, 4]
    assert there[torch.tensor([2, 0])].tolist() == [2, 0]
    there[[0, 1]] = 7
    assert there.tolist() == [7, 7, 2]


WAITING = {
    "a value": lambda x: x.sum().item(),
    "a truth": lambda x: bool((x > 0).all()),
    "all values": lambda x: x.tolist(),
    "places": lambda x: (x > 0).nonzero(),
    "a mask": lambda x: x[x > 0],
    "classes": lambda x: x.unique(),
    "a list as index": lambda x: x[[0, 2]],
    "an index of the host": lambda x: x[torch.tensor([0, 2])],
    "a copy from the host": lambda x: torch.rand(3).to(x.device),
    "numbers of the host": lambda x: torch.tensor([1, 2], device=x.device),
}
BUSY = {
    "arithmetic": lambda x: (x * 2 + 1).softmax(0).argmax(),
    "an index of the device": lambda x: x[torch.arange(2, device=x.device)],
    "a choice": lambda x: torch.where(x > 0, x, 0),
    "what is drawn and sent": lambda x: sent(torch.rand(3), x.device) + x,
    "a change in place": lambda x: x[1:].mul_(2),
}


@pytest.mark.parametrize("kind", WAITING)
def test_what_waits_is_seen(gpu, kind):
    x = torch.arange(3.0).to(AWAY)
    assert waits(gpu, lambda: WAITING[kind](x)).total() >= 1


@pytest.mark.parametrize("kind", BUSY)
def test_what_does_not_wait_is_not(gpu, kind):
    x = torch.arange(3.0).to(AWAY)
    assert not waits(gpu, lambda: BUSY[kind](x))


def test_what_is_sent_arrives_and_keeps_its_kind(gpu):
    drawn = torch.randint(9, (4,))
    assert sent(drawn, AWAY).device == AWAY
    assert torch.equal(sent(drawn, AWAY).cpu(), drawn)
    assert sent(drawn, HOME) is drawn
    assert torch.zeros_like(sent(drawn, AWAY), device=HOME).tolist() == [0] * 4


# The same on both


def untimed(report):
    tried = tuple(replace(trial, seconds=0.0) for trial in report.tried)
    return replace(report, seconds={}, history=(), tried=tried)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not reached")  # of held-out images, on some processors: both agree
def test_unlearning_gives_the_weights_that_the_cpu_gives():
    case = small()
    config = replace(case.config, views=60, update=replace(case.config.update, lr=0.3, layers="all"))

    def work(device):
        parts = (moved(part, device) for part in (case.model, case.images, case.labels))
        return zero_shot_unlearn(*parts, num_classes=10, config=config, seed=0)

    here, there = on_both(work)
    assert_same_weights(here.model, there.model)
    assert untimed(here.report) == untimed(there.report)
    assert [one.loss for one in here.report.history] == [one.loss for one in there.report.history]
    assert not torch.equal(here.model.state_dict()["13.weight"], case.model.state_dict()["13.weight"])


RECIPES = {
    "plain": {},
    "augmented": {"augment": "shift_flip", "pad": 1, "mixup": 0.4},
    "distorted": {"rand_augment": 5, "optimizer": "adamw"},
}


def training(recipe, *, batch_size=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(120) % 4
    net = build("digits", num_classes=4, in_channels=1, image_size=8, width=4, mean=(0.5,), std=(0.3,), seed=0)
    config = TrainConfig(epochs=2, batch_size=batch_size, lr=0.01, **RECIPES[recipe])
    return lambda device: train(net, images, labels, config=config, seed=0, device=device).model


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_gives_the_weights_that_the_cpu_gives(recipe):
    assert_same_weights(*on_both(training(recipe)))


@cache
def statistics_on(device):
    case = small()
    model, images = moved(case.model, device), moved(case.images, device)
    generator = generator_for(0, "material")
    return prepare(model, images, forget=(FORGET,), num_classes=10, config=case.config, generator=generator)


def laddered(name, *, device, batch_size=None):
    """Run a method at one rate and return its run."""
    case, method = small(), METHODS[name]
    model, images, labels = (moved(part, device) for part in (case.model, case.images, case.labels))
    update = replace(
        case.config.update, lr=None, ladder=({"high": 0.3, "middle": 0.03, "low": 0.003}[method.ladder],), epochs=1,
        settle=0.0, give_up=1.0, whole_ladder=True,
    )  # fmt: skip
    if batch_size is not None:
        update = replace(update, batch_size=batch_size, min_steps=1)
    retain = tuple(moved(part, device) for part in (case.retain_images, case.retain_labels)) if method.oracle else None
    problem = Problem(model, images, labels, 10, generator_for(0, "method"), statistics_on(device), retain)
    return lambda: method.run(problem, replace(case.config, update=update)).runs[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_weights_that_the_cpu_gives(name):
    here, there = on_both(lambda device: laddered(name, device=device)())
    assert_same_weights(here.model, there.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPING)
def test_the_steps_of_a_method_do_not_wait(gpu, name):
    few, many = (waits(gpu, laddered(name, device=AWAY, batch_size=size)) for size in (30, 5))
    assert few.total() == many.total(), many - few


def fitted(device, *, loss=F.cross_entropy, names=("4.weight", "13.weight"), **options):
    """Run SGD without a projector on a device, the loss taken of logits and labels."""
    case = small()
    model, images, labels = (moved(part, device) for part in (case.model, case.images, case.labels))
    update = UpdateConfig(**{"lr": 0.01, "epochs": 3, "min_steps": 1, "give_up": 1.0, "settle": 0.0} | options)
    return projected_sgd(
        model,
        images,
        labels,
        loss=lambda current, batch: loss(current(images[batch]), labels[batch]),
        names=names,
        project=None,
        update=update,
        generator=torch.Generator().manual_seed(0),
    )


def test_a_bad_loss_leaves_the_weights_that_it_found():
    """On the CPU the loop ends there, on a GPU it goes on; both give back the same net and the same history."""

    def work(device, bad=7):
        calls = []

        def loss(logits, labels):
            calls.append(1)
            return F.cross_entropy(logits, labels) * (torch.inf if len(calls) == bad else 1)

        return fitted(device, loss=loss, batch_size=15), len(calls)

    (here, calls_here), (there, calls_there) = on_both(work)
    assert (calls_here, calls_there) == (7, 8)
    assert here.diverged
    assert there.diverged
    assert [(one.loss, one.forget_accuracy) for one in here.history] == [
        (one.loss, one.forget_accuracy) for one in there.history
    ]
    assert_same_weights(here.model, there.model)
    sound, _ = work(HOME, bad=0)
    assert not torch.equal(sound.model.state_dict()["4.weight"], here.model.state_dict()["4.weight"])


# What is long does not wait


def test_a_run_waits_once_more_per_epoch_and_never_per_batch(gpu):
    def count(size, loss=F.cross_entropy):
        options = {"loss": loss, "names": ("13.weight",), "lr": 1e-4, "epochs": 2, "batch_size": size}
        return waits(gpu, lambda: fitted(AWAY, **options)).total()

    def read(logits, labels):
        value = F.cross_entropy(logits, labels)
        return value * (value.item() >= 0)

    assert count(60) == count(10) == count(2)
    assert count(10, read) - count(60, read) == 2 * (6 - 1)  # the control: two epochs of six batches or of one


def attacked(device, steps):
    case = small()
    parts = (moved(part, device) for part in (case.model, case.images, torch.arange(60) % 10))
    return attack(*parts, eps=0.1, config=ProxyConfig(steps=steps), generator=generator_for(0))


def test_an_attack_never_waits_for_a_step_and_gives_what_the_cpu_gives(gpu):
    assert waits(gpu, lambda: attacked(AWAY, 2)).total() == waits(gpu, lambda: attacked(AWAY, 12)).total()
    here, there = attacked(HOME, 12), attacked(AWAY, 12)
    assert torch.equal(here.images, held(there.images))
    assert torch.equal(here.margins, held(there.margins))
    assert 0 < here.hits.sum() < 60  # some arrive, others do not


CHUNKED = {
    "logits": lambda case, model, images: logits_of(model, images),
    "moments": lambda case, model, images: second_moments(model, images),
    "influence": lambda case, model, images: label_scores(
        model, images, {name: away(torch.ones_like(part)) for name, part in _weights(case.model).items()}
    ),
    "gradient": lambda case, model, images: loss_gradient(
        model, images, torch.full((len(images), 10), 0.1).to(AWAY), names=tuple(_weights(case.model))
    ),
}  # fmt: skip


def _weights(model):
    return {
        name: part.detach() for name, part in model.named_parameters() if name.endswith("weight") and part.dim() > 1
    }


@pytest.mark.parametrize("kind", CHUNKED)
def test_chunks_do_not_wait_for_each_other(gpu, monkeypatch, kind):
    case = small()
    model, images = away(case.model), away(case.images)
    counts = []
    for size in (60, 5):
        monkeypatch.setattr(runtime, "CHUNK_GPU", size)
        counts.append(waits(gpu, lambda: CHUNKED[kind](case, model, images)).total())
    assert counts[0] == counts[1]


def test_conjugate_gradients_wait_once_per_step(gpu):
    target = {name: away(torch.ones(5)) for name in "ab"}
    scale = away(torch.arange(1.0, 6.0))

    def run(iterations):
        return lambda: conjugate_gradients(
            lambda v: {name: scale * part for name, part in v.items()}, target, iterations=iterations
        )

    counts = [waits(gpu, run(iterations)).total() for iterations in (1, 4)]
    assert counts == [1, 4]


@pytest.mark.parametrize("recipe", ["plain", "augmented"])
def test_training_waits_per_epoch_and_not_per_step(gpu, recipe):
    counts = [waits(gpu, lambda size=size: training(recipe, batch_size=size)(AWAY)).total() for size in (60, 12)]
    assert counts[0] == counts[1]


# On a real card, or on the fake one where there is none: close to the CPU, not equal to its last bits


@pytest.fixture
def card(monkeypatch):
    """A CUDA card without TF32, or the fake GPU.

    Yields:
        The device.
    """
    if not torch.cuda.is_available():
        with fake_gpu():
            yield AWAY
        return
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    yield torch.device("cuda")


def near(here, there, *, within):
    """Tell whether two tensors are near, as a share of the first one's length."""
    here, there = here.detach().double(), held(there).detach().cpu().double()
    return (here - there).norm() <= within * here.norm()


def test_an_attack_on_a_card_reaches_the_margins_of_the_cpu(card):
    here, there = attacked(HOME, 12), attacked(card, 12)
    assert near(here.images, there.images, within=1e-3)
    assert near(here.margins, there.margins, within=1e-2)
    assert not near(here.images, attacked(card, 3).images, within=1e-3)  # the control


def test_moments_on_a_card_are_those_of_the_cpu(card):
    case = small()
    here, there = (second_moments(moved(case.model, one), moved(case.images, one)) for one in (HOME, card))
    assert here.second
    assert all(near(second, there.second[name], within=1e-4) for name, second in here.second.items())
    fewer = second_moments(moved(case.model, card), moved(case.images, card)[:30])
    assert not any(near(second, fewer.second[name], within=1e-4) for name, second in here.second.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not reached")  # of held-out images, on some processors: both agree
def test_unlearning_on_a_card_forgets_and_moves_the_weights_as_on_the_cpu(card):
    case = small()
    config = replace(case.config, views=60, update=replace(case.config.update, lr=0.3, layers="all"))

    def work(device):
        model, images, labels = (moved(part, device) for part in (case.model, case.images, case.labels))
        return zero_shot_unlearn(model, images, labels, num_classes=10, config=config, seed=0)

    here, there = work(HOME), work(card)
    before, ours, theirs = (net.state_dict(keep_vars=True) for net in (case.model, here.open_model, there.open_model))
    changed = [name for name in before if not torch.equal(before[name], ours[name])]
    assert changed
    for name in changed:
        assert near(ours[name] - before[name], held(theirs[name]).cpu() - before[name], within=0.3), name
    assert there.report.reached == here.report.reached
    assert not (logits_of(there.model, moved(case.images, card)).argmax(1) == FORGET).any()


def test_training_on_a_card_ends_near_the_weights_of_the_cpu(card, monkeypatch):
    monkeypatch.setattr("zspag.lab.training.precision_of", lambda _device: torch.float32)
    here, there = (training("plain")(device).state_dict(keep_vars=True) for device in (HOME, card))
    assert all(near(here[name], there[name], within=0.05) for name in here if here[name].is_floating_point())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a CUDA card; its stand-in counts the waits above")
def test_an_attack_on_a_card_never_waits_for_a_step():
    def counted(steps):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                attacked("cuda", steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in seen)

    counted(2)
    assert counted(2) == counted(12) > 0


@pytest.mark.slow
def test_the_ways_to_attack_on_a_card_find_the_same_or_are_refused_with_a_reason(card, tmp_path, own_data, monkeypatch):
    monkeypatch.setenv("ZSPAG_ROOT", str(tmp_path))
    found = measured.attacks(tiny=True)
    ways, refused = found["ways"], found["refused"]
    assert {"float32", "TF32", "bfloat16", "TF32, channels outermost"} <= ways.keys()
    assert len(ways) + len(refused) == 7
    assert ways["TF32"]["distance from float32's, as a share of the change, median"] < 0.01
    assert all(row["hits that float32 denies"] <= 0.1 for row in ways.values())
    if card.type == "cuda":
        assert not refused
    else:
        assert refused["TF32, one CUDA graph"] == "RuntimeError: a CUDA graph takes a card"


# Benchmarks and notebooks


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages.stages_of(AWAY))
def test_a_stage_of_the_benchmark_runs_on_a_gpu(gpu, own_data, stage):
    here = machine.measure(AWAY, side=32, copied=2**12, repeats=2)
    assert list(stages.STAGES[stage](TINY, here, AWAY))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, data_folder):
    """A repository with the recorded results, where all notebooks share what they compute.

    Yields:
        The repository.
    """
    with rooted(tmp_path_factory.mktemp("smoke"), data_folder) as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSPAG_PROFILE", "smoke")
        (root / "results").symlink_to(REPOSITORY / "results")
        yield root


ON_THE_CPU = {"09_your_own_model"}  # a reader's model stays where it is


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_gpu(gpu, smoke, path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = {"__name__": path.stem}
    with runtime.threads(torch.get_num_threads()):  # a notebook sets its own
        for number, cell in enumerate(cells):
            exec(compile(cell.source, f"{path.stem}, code cell {number}", "exec"), names)  # noqa: S102
    if path.stem not in ON_THE_CPU:
        assert any("copy to the device" in where for where in gpu.waits)
    assert (smoke / "runs" / "smoke" / "seals" / f"{path.stem}.json").exists()
