"""Every bad option is refused with its value, and configurations survive the way through JSON."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from zspag.config import (
    LabelConfig,
    ProxyConfig,
    RemovalConfig,
    SubspaceConfig,
    UnlearnConfig,
    UpdateConfig,
    from_dict,
    to_dict,
)
from zspag.profiles import Ladders, Profile, TrainConfig

TRAIN = TrainConfig(epochs=2, batch_size=16, lr=0.1)
PROFILE = Profile(
    name="tiny",
    dataset="digits",
    arch="digits",
    width=3,
    classes=(4,),
    seeds=(0, 1),
    train=TRAIN,
    unlearn=UnlearnConfig(proxies=ProxyConfig(eps=0.1), update=UpdateConfig(ladder=(0.1, 0.3))),
    ladders=Ladders((0.001, 0.003), (0.01, 0.03), (0.1, 0.3)),
    methods=("zspag",),
)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (ProxyConfig, "eps", 0.0),
        (ProxyConfig, "eps", 1.5),
        (ProxyConfig, "eps_start", 0.0),
        (ProxyConfig, "hit_rate", 1.25),
        (ProxyConfig, "margin", 0.5),
        (ProxyConfig, "norm", "l1"),
        (ProxyConfig, "steps", 0),
        (ProxyConfig, "step_share", 2.0),
        (UpdateConfig, "layers", "middle"),
        (UnlearnConfig, "views", 0),
        (ProxyConfig, "per_class", 0),
        (ProxyConfig, "oversample", 0.5),
        (SubspaceConfig, "energy", 0.0),
        (SubspaceConfig, "merge_energy", 1.5),
        (SubspaceConfig, "combine", "average"),
        (SubspaceConfig, "kind", "medium"),
        (SubspaceConfig, "damping", 0.0),
        (LabelConfig, "strategy", "best"),
        (LabelConfig, "beta", -0.5),
        (LabelConfig, "solver", "lbfgs"),
        (LabelConfig, "damping", -1.0),
        (LabelConfig, "cg_iterations", 0),
        (UpdateConfig, "lr", -0.1),
        (UpdateConfig, "ladder", ()),
        (UpdateConfig, "ladder", (0.3, 0.1)),
        (UpdateConfig, "ladder", (0.0, 0.1)),
        (UpdateConfig, "momentum", 1.0),
        (UpdateConfig, "optimizer", "adam"),
        (UpdateConfig, "weight_decay", 0.0005),
        (UpdateConfig, "batch_size", 0),
        (UpdateConfig, "epochs", 0),
        (UpdateConfig, "forget_accuracy", 1.0),
        (UpdateConfig, "settle", -0.1),
        (UpdateConfig, "give_up", 0.0),
        (UnlearnConfig, "goal", "erase"),
        (RemovalConfig, "strength", -0.5),
        (RemovalConfig, "shares", ()),
        (RemovalConfig, "shares", (0.0, 0.5)),
        (RemovalConfig, "shares", (0.5, 1.5)),
        (RemovalConfig, "shares", (0.9, 0.5)),
        (RemovalConfig, "shares", (0.5, 0.5)),
        (RemovalConfig, "damage", 0.0),
        (RemovalConfig, "keep", 0.0),
        (RemovalConfig, "lr", -0.001),
        (RemovalConfig, "steps", 0),
        (RemovalConfig, "batch_size", 0),
        (RemovalConfig, "per_class", 0),
    ],
)
def test_a_bad_option_is_named_with_its_value(kind, option, value):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is checked below
        kind(**{option: value})
    assert str(caught.value).startswith(option)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"), [("epochs", 0), ("batch_size", 0), ("lr", 0.0), ("augment", "mixup"), ("rand_augment", 31)]
)
def test_a_bad_training_option_is_named_with_its_value(option, value):
    with pytest.raises(ValueError, match=f"^{option} must .*got {value!r}"):
        replace(TRAIN, **{option: value})


def test_adaptive_optimizers_and_weight_decay_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="adaptive optimizer .* back into the protected subspace"):
        UpdateConfig(optimizer="adam")
    with pytest.raises(ValueError, match="decay moves weights inside the protected subspace"):
        UpdateConfig(weight_decay=1e-4)


def test_the_edges_of_every_range_are_admitted():
    ProxyConfig(eps=1.0, eps_start=1.0, hit_rate=1.0, margin=1.0, steps=1, step_share=1.0, oversample=1.0)
    SubspaceConfig(energy=1.0, merge_energy=1.0)
    LabelConfig(beta=0.0, cg_iterations=1)
    UpdateConfig(lr=None, momentum=0.0, forget_accuracy=0.0)
    RemovalConfig(strength=0.0, shares=(1.0,), steps=1, batch_size=1, per_class=1)


def test_every_stage_has_defaults_and_nothing_can_be_reassigned():
    config = UnlearnConfig()
    stages = {"proxies", "subspace", "labels", "update", "views", "goal", "removal"}
    assert {item.name for item in fields(config)} == stages
    assert config.goal == "suppress"
    with pytest.raises(FrozenInstanceError):
        config.update.lr = 0.1


def test_a_profile_survives_the_way_through_json_and_equality_sees_one_option():
    again = from_dict(Profile, json.loads(json.dumps(to_dict(PROFILE))))
    assert again == PROFILE
    assert isinstance(again.unlearn.proxies, ProxyConfig)
    assert again.unlearn.removal == RemovalConfig()
    assert again.ladders.middle == (0.01, 0.03)  # a tuple again, so that it can be hashed
    assert again != replace(PROFILE, unlearn=UnlearnConfig(proxies=ProxyConfig(eps=0.2)))


def test_an_unknown_option_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="UpdateConfig has no option learning_rate; it has .*epochs.*lr, "):
        from_dict(UpdateConfig, {"learning_rate": 0.1})
    with pytest.raises(ValueError, match="ProxyConfig has no option budget"):
        from_dict(UnlearnConfig, {"proxies": {"budget": 3}})


def test_a_bad_value_is_refused_on_the_way_in_too():
    with pytest.raises(ValueError, match="energy must lie in"):
        from_dict(UnlearnConfig, {"subspace": {"energy": 7}})


@pytest.mark.parametrize("rates", [(), (0.3, 0.1), (0.0, 0.1)])
def test_a_bad_ladder_is_named(rates):
    with pytest.raises(ValueError, match="middle must hold positive rates in increasing order"):
        Ladders(low=(0.1, 0.3), middle=rates, high=(0.1, 0.3))


def test_nobody_gets_more_rates_than_another():
    with pytest.raises(ValueError, match=r"same number of rates, got \[1, 2\]"):
        Ladders(low=(0.1, 0.3), middle=(0.1,), high=(0.1, 0.3))
