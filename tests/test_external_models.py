"""Models of other people: taken as they are and given back untouched, or refused with the cause and the remedy.

The nets are in ``external_nets``. Each of them stands for a kind: what is done to get at its logits, which layout it
bears, what of it may move, and in which surroundings it is called.
"""

import copy
import pickle
import re
import warnings
from contextlib import contextmanager
from functools import cache

import external_nets
import pytest
import reference
import torch
from external_nets import BAD, CLASSES, FORGET, GOOD, forget_images, trained
from marks import slow_but
from torch import nn
from torch.nn import functional as F

from zspag import zero_shot_unlearn
from zspag.config import ProxyConfig, UnlearnConfig, UpdateConfig
from zspag.preflight import reachability
from zspag.preflight.checks import look, unsound
from zspag.preflight.classifiers import Classifier, cast_back, logits_in, own_model, own_name, place_of, working_copy
from zspag.preflight.model_checks import layout_of
from zspag.preflight.reachability import unreachable
from zspag.preflight.refusal import Refusal
from zspag.process.surroundings import SETTINGS, plain_layout, surroundings
from zspag.runtime import channels_last, copied


def looked_at(model, images=None, labels=FORGET, **options):
    with surroundings(model):
        return look(model, forget_images() if images is None else images, labels, **options)


OUTPUTS = {"dict output", "ModelOutput", "DataParallel"}
PLAIN = OUTPUTS | {"LeNet with view", "LeNet with view and batch norm", "log-softmax", "forward replaced", "double"}
WRAPPED = OUTPUTS | {"object with logits", "namedtuple with logits", "compiled"}
WRAPPED |= {"in-place normalize", "in-place without a change"}
WARNS = {"always dropout": "two answers to the same images", "batch statistics": "depends on the other images"}
HALF = {"bfloat16", "half", "half inside"}
FROZEN = {
    "attention": {"position": "used by add"},
    "cosine head": {"weight": "used by normalize"},
    "auxiliary head": {"aux.weight": "no forward pass used it"},
    "frozen backbone": {"0.weight": "requires_grad=False", "2.weight": "requires_grad=False"},
    "weight norm on the head": {f"4.parametrizations.weight.original{i}": "parametrized; .*remove" for i in (0, 1)},
    "weight norm of old": {f"1.weight_{part}": "used by _weight_norm" for part in "gv"},
    "recurrent": {f"rows.weight_{part}_l0": "used by gru" for part in ("ih", "hh")},
    "spectral norm on a layer": {"1.parametrizations.weight.original": "parametrized"},
    "a pruned layer": {"5.weight_orig": "pruned by a mask"},
    "a pruned layer after a pass": {"5.weight_orig": "pruned by a mask"},
    "a layer pruned for good": {"5.weight": "30 % of its entries are exactly 0"},
}


USUAL = HALF | WARNS.keys() | {"no norm", "batch norm", "attention", "frozen backbone", "a pruned layer"}
USUAL |= {"double", "dict output", "in-place normalize", "DataParallel"}


@torch.no_grad()
def answer_of(model, images):
    """Return what the user sees, in eval mode and in float32 or float64, from a model that may change the images."""
    answer = model.eval()(images.to(place_of(model)[1]).clone())
    logits = answer if isinstance(answer, torch.Tensor) else logits_in(answer)
    return logits if logits.dtype == torch.float64 else logits.float()


@pytest.mark.parametrize("name", GOOD)
def test_a_model_is_taken_as_it_is_answers_as_before_and_is_left_untouched(name):
    model, images = GOOD[name](), forget_images()
    before, images_before = reference.state_of(model), images.clone()
    net, forget, flight = looked_at(model, images)
    reference.assert_same_state(before, reference.state_of(model))
    assert torch.equal(images, images_before)

    inner = own_model(net)
    assert isinstance(net, Classifier) == (name in WRAPPED)
    assert type(inner) is type(model)
    assert inner is not model
    assert {own_name(net, n) for n, _ in net.named_parameters()} == dict(model.named_parameters()).keys()
    shared = {t.data_ptr() for t in model.state_dict().values()} & {t.data_ptr() for t in net.state_dict().values()}
    assert not shared

    assert flight.num_classes == CLASSES
    assert flight.layout == ("plain" if name in PLAIN | {"always dropout"} else "channels_last")
    assert flight.original_accuracy >= 0.9
    assert {own_name(net, key) for key in flight.frozen} == FROZEN.get(name, {}).keys()
    for key, reason in flight.frozen.items():
        assert re.search(FROZEN[name][own_name(net, key)], reason)
    assert len(flight.warnings) == (name in WARNS)
    assert WARNS.get(name, "") in "".join(flight.warnings)
    assert place_of(net)[1] == (torch.float64 if name == "double" else torch.float32)
    if name in WARNS.keys() | {"compiled", "weight norm of old"}:  # no second answer to compare with
        return
    with plain_layout(flight.layout == "plain"), torch.no_grad():
        answer = copied(net).eval()(channels_last(forget.images))
    tolerance = 0.05 if name in HALF else 1e-4
    torch.testing.assert_close(answer, answer_of(model, images), atol=tolerance, rtol=tolerance)


# A call of a quarter of a second: it forgets little, and goes through every stage.
FAST = UnlearnConfig(
    proxies=ProxyConfig(eps=1.0, steps=6, per_class=6),
    update=UpdateConfig(lr=0.03, layers="all", epochs=2, min_steps=2, settle=0.0),
    views=20,
)


def unlearned(model, images=None):
    """Call the method, whose warnings (it forgets too little) are not the point here."""
    images = forget_images() if images is None else images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zero_shot_unlearn(model, images, FORGET, config=FAST, progress=False)


@pytest.mark.parametrize("name", slow_but(USUAL, GOOD))
def test_the_result_is_the_users_model_in_type_names_and_dtypes_and_only_what_may_move_has_moved(name):
    model = GOOD[name]()
    before = reference.state_of(model)
    result = unlearned(model)
    reference.assert_same_state(before, reference.state_of(model))
    original = dict(model.named_parameters())
    for made in (result.model, result.open_model):
        assert type(made) is type(model)
        assert not unsound(made)
        kinds = {key: (weight.dtype, weight.requires_grad) for key, weight in made.named_parameters()}
        assert kinds == {key: (weight.dtype, weight.requires_grad) for key, weight in original.items()}
    moved = {k for k, weight in result.open_model.named_parameters() if not torch.equal(weight, original[k])}
    assert moved
    assert not moved & FROZEN.get(name, {}).keys()
    assert FROZEN.get(name, {}).keys() <= result.report.frozen.keys() <= original.keys()

    if name in HALF | {"no norm", "double", "dict output", "in-place normalize"}:  # closed, whatever the dtype
        noise = torch.rand(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        wild = torch.cat([external_nets.digits()[0], noise, forget_images(200)])
        assert result.report.silenced
        assert (answer_of(model, wild).argmax(1) == FORGET).any()
        assert not (answer_of(result.model, wild).argmax(1) == FORGET).any()


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_cannot_be_unlearned_is_refused_with_cause_and_remedy(name):
    make, message = BAD[name]
    model = make()
    readable = isinstance(model, nn.Module) and name not in {"on the meta device", "dynamically quantized", "lazy"}
    before = reference.state_of(model) if readable else None
    with pytest.raises(ValueError, match=message):
        looked_at(model)
    if before is not None and name != "NaN in a weight":
        reference.assert_same_state(before, reference.state_of(model))


def test_a_class_forgotten_before_may_be_unreachable():
    for make, label in ((external_nets.silenced, 7), (external_nets.unused_output, CLASSES)):
        assert looked_at(make(), already_forgotten=label)[2].already_forgotten == (label,)


def test_only_the_dead_logit_is_named():
    retained = tuple(label for label in range(CLASSES) if label != FORGET)
    assert not unreachable(trained(external_nets.mlp), forget_images(), retained)
    found = unreachable(external_nets.silenced(7), forget_images(), retained)
    assert found.keys() == {7}
    assert found[7] > 0


class Rugged(nn.Module):
    """Answers class 1 where all rows are .01 above those of forget images; no gradient leads there from afar."""

    def __init__(self, home):
        super().__init__()
        self.home = home

    def forward(self, x):
        moved = x.mean((1, 3)) - self.home
        first = torch.cos((moved - 0.01) * 40 * torch.pi) - 20 * moved.abs()
        return torch.stack([torch.full_like(first[:, 0], 0.5), first.mean(1)], 1)


def test_a_class_that_only_short_steps_reach_is_not_called_dead(monkeypatch):
    images = torch.full((4, 1, 8, 8), 0.7)
    assert not unreachable(Rugged(0.7), images, (1,))
    monkeypatch.setattr(reachability, "STAGES", reachability.STAGES[-1:])
    assert unreachable(Rugged(0.7), images, (1,)).keys() == {1}  # long steps miss it


def test_a_refusal_comes_out_of_a_worker_as_it_went_in():
    with pytest.raises(Refusal) as caught:
        looked_at(external_nets.silenced(7))
    there = pickle.loads(pickle.dumps(caught.value))
    assert type(there) is Refusal
    assert (str(there), vars(there)) == (str(caught.value), vars(caught.value))


def test_of_very_many_classes_the_lowest_are_tried():
    torch.manual_seed(0)
    head = nn.Linear(64, 300)
    with torch.no_grad():
        head.weight.mul_(30)
        head.weight[250], head.bias[250] = head.weight[:250].mean(0), -50.0
    assert 250 in unreachable(nn.Sequential(nn.Flatten(), head), forget_images(), tuple(range(300)))


# ---- The layout


def test_a_view_behind_a_convolution_fails_with_channels_innermost_and_works_in_plain_layout():
    model, images = trained(external_nets.LeNet), forget_images()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        copied(model)(channels_last(images))
    with plain_layout():
        torch.testing.assert_close(copied(model)(channels_last(images)), model(images))
        assert channels_last(torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)).is_contiguous()
    with pytest.raises(RuntimeError, match="view size is not compatible"), plain_layout(needed=False):
        copied(model)(channels_last(images))


def test_the_layout_is_found_in_the_backward_pass_and_in_the_numbers_too():
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient.view(-1).view(gradient.shape)

    def reads_memory(x):
        return x + 0.1 * x.as_strided((x.numel(),), (1,), x.storage_offset()).view(x.shape)

    class Between(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.net, self.function = trained(external_nets.plain_net), function

        def forward(self, x):
            return self.net[2:](self.function(self.net[:2](x)))

    images = forget_images(4)
    for function, layout in ((Backward.apply, "plain"), (reads_memory, "plain"), (torch.relu, "channels_last")):
        model = Between(function)
        assert layout_of(model, images, model(images).detach()) == layout


# ---- Copies


def test_a_copy_leaves_the_graph_behind_and_shares_nothing():
    model = external_nets.keeps_features()
    assert model.seen.grad_fn is not None
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model)
    twin = working_copy(model)
    assert twin.seen.grad_fn is None
    assert torch.equal(twin.seen, model.seen)
    assert twin.kept[0].data_ptr() != model.kept[0].data_ptr()


def test_a_tied_weight_stays_tied_in_a_half_precision_copy():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).half()
    model[1].weight = model[0].weight
    twin = working_copy(model)
    assert twin[0].weight is twin[1].weight
    assert twin[0].weight.dtype == torch.float32
    assert cast_back(twin, like=twin) is twin
    back = cast_back(twin, like=model)
    assert twin[0].weight.dtype == torch.float32
    assert back[1].weight is back[0].weight
    assert back[0].weight.dtype == torch.float16


def test_weights_that_are_not_finite_are_named():
    model = trained(external_nets.mlp)
    assert unsound(model) == ()
    with torch.no_grad():
        model[4].bias[3] = torch.inf
    assert unsound(model) == ("4.bias",)


# ---- Surroundings


@contextmanager
def setting(write, before, value):
    write(value)
    try:
        yield
    finally:
        write(before)


def set_device(device):
    torch.set_default_device(device)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default float64": lambda: setting(torch.set_default_dtype, torch.float32, torch.float64),
    "default bfloat16": lambda: setting(torch.set_default_dtype, torch.float32, torch.bfloat16),
    "default device": lambda: setting(set_device, None, "meta"),
    "device context": lambda: torch.device("meta"),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, False, True),
    "anomaly": torch.autograd.detect_anomaly,
    "matmul precision": lambda: setting(torch.set_float32_matmul_precision, "highest", "medium"),
    "flushed denormals": lambda: setting(torch.set_flush_denormal, False, True),
    "no oneDNN": lambda: setting(lambda v: setattr(torch.backends.mkldnn, "enabled", v), True, False),
    "benchmark": lambda: setting(lambda v: setattr(torch.backends.cudnn, "benchmark", v), False, True),
    "no fast attention": lambda: setting(torch.backends.mha.set_fastpath_enabled, True, False),
    "another seed": lambda: setting(torch.manual_seed, 1, 2),
}


def whole_call(model, images):
    """Everything from the user's model to the user's result."""
    return unlearned(model, images).model.state_dict()


@cache
def in_plain_surroundings(net):
    return whole_call(trained(getattr(external_nets, net)), forget_images())


def unprotected_call(model, images):
    device, dtype = place_of(model)
    changed = copy.deepcopy(model)
    for _ in range(2):
        loss = F.cross_entropy(changed(images), torch.full((len(images),), 5))
        gradients = torch.autograd.grad(loss, list(changed.parameters()))
        changed.load_state_dict(
            {n: w - 0.05 * g for (n, w), g in zip(changed.named_parameters(), gradients, strict=True)}
        )
    return changed.state_dict()


def quietly(context):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anomaly detection warns that it is slow
        return context()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("net", slow_but({"LeNet"}, ["LeNet", "Attention"]))
@pytest.mark.parametrize("name", slow_but({"autocast", "inference mode", "default float64", "default device"}, AROUND))
def test_the_same_call_gives_the_same_bits_in_any_surroundings(name, net):
    model, images = trained(getattr(external_nets, net)), forget_images()
    assert not same(in_plain_surroundings(net), model.state_dict())
    with quietly(AROUND[name]):
        found = whole_call(model, images)
    assert same(in_plain_surroundings(net), found)
    assert not any(tensor.is_inference() for tensor in found.values())


@pytest.mark.parametrize("name", ["autocast", "inference mode", "default device"])
def test_without_protection_these_surroundings_change_bits_or_fail(name):
    model, images = trained(external_nets.LeNet), forget_images()
    expected = unprotected_call(model, images)
    with AROUND[name]():
        try:
            found = unprotected_call(model, images)
        except (RuntimeError, NotImplementedError):
            return
    assert not same(expected, found)


def ambient():
    with torch.device("cpu"):  # the state of a generator has no meta form
        state = torch.get_rng_state().tolist()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    others = (torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled(), torch.get_default_device(), state)
    return [read() for read, _, _ in SETTINGS], grad, inference, *others


@pytest.mark.parametrize("name", AROUND)
def test_the_surroundings_are_pinned_and_left_as_they_were_found_even_after_an_error(name):
    model = nn.Linear(2, 2)
    with quietly(AROUND[name]):
        before = ambient()
        with pytest.raises(KeyError), surroundings(model):
            settings, *others = ambient()
            assert settings == [value for _, _, value in SETTINGS]
            assert others[:4] == [True, False, False, False]
            assert torch.zeros(1).device.type == "cpu"
            raise KeyError
        assert ambient() == before


def test_noise_inside_the_users_model_repeats_and_the_callers_generator_is_left_alone():
    model = external_nets.always_dropout()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = whole_call(model, forget_images())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same(first, whole_call(model, forget_images()))
