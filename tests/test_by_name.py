"""All methods behind one door: each by its name, on the same forget data, and ZS-PAG bit for bit."""

import copy
import inspect
import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from laboratory import changed_names
from reference import assert_same_state, state_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zspag.config import ProxyConfig, RemovalConfig, UnlearnConfig, UpdateConfig
from zspag.lab import by_name
from zspag.lab.by_name import method_named, unlearn_by
from zspag.lab.evaluation import accuracy
from zspag.lab.methods import METHODS, Problem
from zspag.profiles import LADDERS, Ladders
from zspag.proxy_statistics import prepare
from zspag.runtime import channels_last, generator_for, logits_of
from zspag.unlearning import zero_shot_unlearn

K, SIZE, GONE = 4, 8, 2
REMOVAL = RemovalConfig(steps=12, lr=0.01, per_class=8, shares=(0.5, 1.0))
CONFIG = UnlearnConfig(
    proxies=ProxyConfig(per_class=8, steps=8), update=UpdateConfig(epochs=2, min_steps=4), removal=REMOVAL
)
FORGET_ONLY = [name for name, method in METHODS.items() if not method.oracle]
ORACLES = [name for name, method in METHODS.items() if method.oracle]


def drawn(count, *, seed):
    """Noisy images of K patterns, in 256 grey levels, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (count,), generator=generator)
    patterns = torch.rand(K, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    return ((patterns[labels] + 0.15 * noise).clamp(0, 1) * 255).round() / 255, labels


@cache
def trained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1)
        head = [nn.ReLU(), nn.Flatten(), nn.Linear(7 * 16, K)]
        model = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, *head)
        images, labels = drawn(200, seed=1)
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            adam.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            adam.step()
        adam.zero_grad()
    return model.eval()


@cache
def forget_data():
    images, labels = drawn(120, seed=2)
    return images[labels == GONE], labels[labels == GONE]


def same(first, second):
    return not changed_names(first, second)


def by(name, *data, lr=0.01, **options):
    """Run a method on the trained net, on its forget set unless data are given."""
    return unlearn_by(name, trained(), *(data or forget_data()), lr=lr, config=CONFIG, **options)


@pytest.mark.parametrize("name", [name for name in FORGET_ONLY if name not in by_name.GOALS])
def test_every_method_that_reads_no_retain_data_runs_by_its_name(name):
    before = state_of(trained())
    result = by(name)
    report = result.report
    assert (report.chosen, report.forget_classes, report.lr) == (name, (GONE,), 0.01)
    assert report.original_accuracy > 0.9
    assert report.forget_accuracy == accuracy(logits_of(result.model, forget_data()[0]), forget_data()[1])
    assert all(bool(tensor.isfinite().all()) for tensor in result.model.state_dict().values())
    assert_same_state(before, state_of(trained()))
    assert not report.silenced
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    assert f"{name}, rate 0.01" in str(report)


@pytest.mark.parametrize("lr", [None, 1.0])
def test_zs_pag_behind_the_door_is_zero_shot_unlearn_bit_for_bit(lr):
    config = CONFIG if lr is None else replace(CONFIG, update=replace(CONFIG.update, lr=lr))
    direct = zero_shot_unlearn(trained(), *forget_data(), num_classes=K, config=config, seed=5)
    result = by("zs_pag", num_classes=K, lr=lr, seed=5)
    assert same(direct.model, result.model)
    assert not same(trained(), result.model)
    assert result.report.lr == direct.report.lr
    assert not same(direct.model, by("zs_pag", num_classes=K, lr=lr, seed=6).model)


@pytest.mark.parametrize("name", ["random_relabeling", "head_only", "unprojected"])
def test_a_method_behind_the_door_is_that_of_the_table_bit_for_bit(name):
    (images, labels), config = forget_data(), replace(CONFIG, update=replace(CONFIG.update, lr=0.01))
    images = channels_last(images)  # the order in which the door computes
    streams = {stream: generator_for(0, stream) for stream in ("material", "method")}
    statistics = prepare(trained(), images, forget=(GONE,), num_classes=K, config=config, generator=streams["material"])
    problem = Problem(trained(), images, labels, K, streams["method"], statistics)
    kept = METHODS[name].run(problem, config).kept
    assert same(kept.model, by(name).model)
    assert not same(kept.model, by(name, seed=1).model)


@pytest.mark.filterwarnings("ignore:not reached", "ignore:removal may cost")
@pytest.mark.parametrize("lr", [None, 0.003])
def test_remove_behind_the_door_is_zero_shot_unlearn_with_that_goal_bit_for_bit(lr):
    removal = REMOVAL if lr is None else replace(REMOVAL, lr=lr)
    config = replace(CONFIG, goal="remove", removal=removal)
    direct = zero_shot_unlearn(trained(), *forget_data(), num_classes=K, config=config, seed=5)
    result = by("remove", num_classes=K, lr=lr, seed=5)
    assert same(direct.open_model, result.open_model)
    assert same(direct.model, result.model)
    assert not same(trained(), result.open_model)
    assert (result.report.chosen, result.report.lr) == ("removal", direct.report.lr)
    assert not same(direct.open_model, by("remove", num_classes=K, lr=lr, seed=6).open_model)
    assert not same(direct.open_model, by("zs_pag", num_classes=K, lr=lr, seed=5).open_model)


def test_the_name_decides_on_the_goal_whatever_the_options_say():
    options = {"lr": 1.0, "seed": 5, "num_classes": K}
    remove = replace(CONFIG, goal="remove")
    asked = unlearn_by("zs_pag", trained(), *forget_data(), config=remove, **options)
    assert same(by("zs_pag", **options).model, asked.model)


FORMS = {
    "bytes and one label": lambda x, y: ((x * 255).round().to(torch.uint8).numpy(), GONE),
    "data set": lambda x, y: (TensorDataset(x, y),),
    "loader": lambda x, y: (DataLoader(TensorDataset(x, y), batch_size=7),),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forget_data_have_any_form_that_zero_shot_unlearn_takes(form):
    assert same(by("delete").model, by("delete", *form(*forget_data())).model)


def test_without_a_rate_a_method_climbs_its_own_ladder_until_the_forget_set_is_forgotten():
    report = by("delete", lr=None).report
    assert report.reached
    assert report.forget_accuracy <= CONFIG.update.forget_accuracy
    assert tuple(trial.lr for trial in report.tried) == LADDERS.low[: len(report.tried)]
    assert [trial.forgot for trial in report.tried] == [False] * (len(report.tried) - 1) + [True]
    assert report.lr == report.tried[-1].lr
    assert not report.at_edge


@pytest.mark.parametrize(
    ("lr", "facts", "warning"),
    [
        (None, (True, 0.01, True), "the smallest rate, 0.01, forgot already"),
        (1e-6, (False, 1e-6, False), "not forgotten: 100.0 %"),  # and nobody searched
    ],
)
def test_a_search_that_ends_at_its_edge_and_a_rate_that_does_not_forget_are_said(monkeypatch, lr, facts, warning):
    monkeypatch.setattr(by_name, "LADDERS", Ladders(low=(0.01, 0.03), middle=(0.01, 0.03), high=(0.01, 0.03)))
    report = by("delete", lr=lr).report
    assert (report.reached, report.lr, report.at_edge) == facts
    assert any(warning in one for one in report.warnings)


def test_a_rate_that_ruins_the_weights_gives_back_the_original_and_says_so():
    result = by("gradient_ascent", lr=1e30)
    assert same(trained(), result.model)
    assert result.model is not trained()
    assert not result.report.reached
    assert result.report.tried[0].forget_accuracy is None
    assert "copy of the original" in " ".join(str(result.report).split())


@pytest.mark.parametrize(("name", "moves"), [("delete", True), ("head_only", False)])
def test_a_frozen_parameter_that_a_method_moves_is_named(name, moves):
    model = copy.deepcopy(trained())
    model[0].weight.requires_grad_(False)
    warnings = unlearn_by(name, model, *forget_data(), lr=0.01, config=CONFIG).report.warnings
    assert any("delete moved 1 parameters that were frozen, 0.weight first" in one for one in warnings) == moves
    assert any("were frozen" in one for one in warnings) == moves


def test_autocast_around_the_call_changes_nothing():
    plain = by("delete")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trained()(forget_data()[0]).dtype == torch.bfloat16  # it would change much
        result = by("delete")
    assert same(plain.model, result.model)


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracle_is_refused_for_it_reads_retain_data(name):
    with pytest.raises(ValueError, match=f"'{name}' .* is an oracle: it reads retain data"):
        unlearn_by(name, trained(), *forget_data())


@pytest.mark.parametrize(("name", "nearest"), [("zs-pag", "'zs_pag'"), ("boundary_shrinking", "'boundary_shrink'")])
def test_of_an_unknown_name_the_nearest_ones_are_named(name, nearest):
    with pytest.raises(ValueError, match=f"no method '{name}': did you mean .*{nearest}.*`zspag methods`"):
        method_named(name)
    with pytest.raises(ValueError, match="no method 'xyzzy': choose from zs_pag, .*gkt; ") as caught:
        method_named("xyzzy")
    assert not [oracle for oracle in ORACLES if f" {oracle}," in str(caught.value)]


def test_nothing_behind_the_door_can_be_handed_retain_data():
    names = "name model forget_images forget_labels num_classes lr limit config seed"
    assert list(inspect.signature(unlearn_by).parameters) == names.split()
