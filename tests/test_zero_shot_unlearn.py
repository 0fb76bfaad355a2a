"""The public call: in whatever form the forget data come, and wherever it is made, one request has one answer."""

import json
from dataclasses import replace
from functools import cache

import pytest
import reference
import torch
from external_nets import CLASSES, FORGET, digits, forget_images, mlp, trained
from laboratory import changed_names
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zspag import zero_shot_unlearn
from zspag.config import ProxyConfig, UnlearnConfig, UpdateConfig

pytestmark = pytest.mark.filterwarnings("ignore:retained classes may have lost")  # few, crude proxies
COUNT = 12
QUICK = UnlearnConfig(
    proxies=ProxyConfig(steps=5, per_class=6),
    update=UpdateConfig(lr=1.0, layers="all", epochs=4, batch_size=16, min_steps=2),
    views=30,
)
HEAD = {"4.weight", "4.bias"}  # of mlp()


def unlearn(model=None, images=None, labels=FORGET, **options):
    images = forget_images(COUNT) if images is None else images
    return zero_shot_unlearn(model or trained(mlp), images, labels, **{"config": QUICK, **options})


@cache
def expected():
    """What the plainest call gives."""
    return unlearn()


def assert_same_bits(found, other=None):
    other = other or expected()
    for ours, theirs in ((found.model, other.model), (found.open_model, other.open_model)):
        assert changed_names(ours, theirs) == set()
    mine, their = (one.report for one in (found, other))
    assert untimed(mine) == untimed(their)


def untimed(report):
    """The report as JSON, without what the clock said."""

    def stripped(value):
        if isinstance(value, dict):
            return {key: stripped(one) for key, one in value.items() if key != "seconds"}
        return [stripped(one) for one in value] if isinstance(value, list) else value

    return stripped(report.to_dict())


# ---- Forms of forget data; tests/test_user_inputs.py holds all of them


def one_label_each():
    return torch.full((COUNT,), FORGET)


FORMS = {
    "arrays": lambda x: (x.double().numpy(), one_label_each().numpy()),
    "a loader": lambda x: (DataLoader(TensorDataset(x, one_label_each()), batch_size=5), None),
    "one batch as a dict": lambda x: ({"image": x, "label": one_label_each()}, None),
    "a generator of batches": lambda x: (((part, [FORGET] * len(part)) for part in x.split(5)), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_data_gives_the_same_bits(form):
    assert_same_bits(unlearn(None, *FORMS[form](forget_images(COUNT))))


def test_bytes_give_the_bits_of_their_quotients():
    pixels = (255 * forget_images(COUNT)).round().to(torch.uint8)
    floats = unlearn(images=pixels.float() / 255)
    assert_same_bits(unlearn(images=pixels), floats)
    assert_same_bits(unlearn(images=pixels.numpy()), floats)
    assert changed_names(floats.open_model, expected().open_model)  # rounding to bytes is seen


def test_other_images_give_other_bits():
    assert changed_names(unlearn(images=forget_images(COUNT + 1)[1:]).open_model, expected().open_model)


def test_the_number_of_classes_is_found_and_a_wrong_one_is_refused():
    assert_same_bits(unlearn(num_classes=CLASSES))
    with pytest.raises(ValueError, match=r"num_classes.*9|9.*num_classes"):
        unlearn(num_classes=CLASSES - 1)


# ---- What comes back


def test_the_open_model_differs_from_the_closed_one_in_rows_of_the_head_only():
    result = expected()
    assert changed_names(result.open_model, result.model) == HEAD
    others = [label for label in range(CLASSES) if label != FORGET]
    for name in HEAD:
        opened, closed = (dict(one.named_parameters())[name] for one in (result.open_model, result.model))
        assert torch.equal(opened[others], closed[others])
        assert not torch.equal(opened[FORGET], closed[FORGET])
        assert opened.data_ptr() != closed.data_ptr()


def test_no_input_makes_the_closed_model_answer_a_forgotten_class():
    images, labels = digits()
    wild = torch.cat([images, 3 * torch.randn(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0))])
    assert (trained(mlp)(wild).argmax(1) == FORGET).sum() > 50
    closed = expected().model(wild)
    assert not (closed.argmax(1) == FORGET).any()
    retained = [label for label in range(CLASSES) if label != FORGET]
    assert torch.equal(closed[:, retained], expected().open_model(wild)[:, retained])  # and nothing else is changed
    before = (trained(mlp)(images).argmax(1) == labels)[labels != FORGET].double().mean()
    assert (closed[: len(images)].argmax(1) == labels)[labels != FORGET].double().mean() > before - 0.05


def test_the_report_holds_what_came_out():
    report = expected().report
    assert (report.reached, report.silenced) == (True, True)
    assert (report.forget_classes, report.samples) == ((FORGET,), COUNT)
    assert report.hits.keys() == set(range(CLASSES)) - {FORGET}
    assert {layer.name for layer in report.layers} == {"1.weight", "4.weight"}
    assert set(report.seconds) == {"checks", "proxies", "subspaces", "calibration", "update", "closing"}
    assert min(report.seconds.values()) >= 0
    assert str(report).startswith(f"Unlearning class {FORGET} with {COUNT} images")
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()


def test_the_accuracies_of_the_report_are_those_of_the_open_model_and_the_original():
    report, images = expected().report, forget_images(COUNT)
    assert report.forget_accuracy == (expected().open_model(images).argmax(1) == FORGET).double().mean().item()
    assert report.original_accuracy == (trained(mlp)(images).argmax(1) == FORGET).double().mean().item() > 0.9


def test_warnings_of_the_report_are_python_warnings_too():
    with pytest.warns(UserWarning, match="not reached") as caught:
        result = unlearn(config=replace(QUICK, update=replace(QUICK.update, lr=1e-5)))
    assert tuple(str(one.message) for one in caught) == result.report.warnings
    assert not result.report.reached
    assert caught[0].filename == __file__  # it points to the line that called


# ---- The caller's things


def test_model_images_and_random_state_are_left_bit_for_bit():
    model, images, labels = trained(mlp).train(), forget_images(COUNT), one_label_each()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    before, kept, state = reference.state_of(model), images.clone(), torch.get_rng_state()
    result = unlearn(model, images, labels)
    reference.assert_same_state(before, reference.state_of(model))
    assert torch.equal(images, kept)
    assert torch.equal(labels, one_label_each())
    assert torch.equal(torch.get_rng_state(), state)
    assert changed_names(model, result.open_model) == {"1.weight", "4.weight"}  # what came back did move
    assert result.model.training
    assert_same_bits(result)


# ---- The same answer


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    assert_same_bits(unlearn(seed=0))
    assert changed_names(unlearn(seed=1).open_model, expected().open_model)


# ---- One request after the other


def test_two_requests_in_sequence_close_both_rows_and_protect_neither():
    second = 7
    result = unlearn(expected().model, forget_images(COUNT, second), second, already_forgotten=FORGET)
    report = result.report
    assert (report.forget_classes, report.already_forgotten) == ((second,), (FORGET,))
    assert report.hits.keys() == set(range(CLASSES)) - {FORGET, second}
    images, labels = digits()
    answers = result.model(images).argmax(1)
    assert not set(answers.tolist()) & {FORGET, second}
    kept = (labels != FORGET) & (labels != second)
    original = (trained(mlp)(images).argmax(1) == labels)[kept].double().mean()
    assert (answers == labels)[kept].double().mean() > original - 0.05
    rows = [dict(result.model.named_parameters())[name] for name in sorted(HEAD)]
    assert all(torch.equal(row[FORGET], row[second]) for row in rows)


@pytest.mark.filterwarnings("ignore:not reached")
def test_several_classes_are_forgotten_at_once():
    images = torch.cat([forget_images(8, label) for label in (2, 6)])
    result = unlearn(images=images, labels=[2] * 8 + [6] * 8)
    assert result.report.forget_classes == (2, 6)
    assert not set(result.model(digits()[0]).argmax(1).tolist()) & {2, 6}
    assert set(trained(mlp)(images).argmax(1).tolist()) >= {2, 6}


# ---- A model whose rows cannot be closed


class Normed(nn.Module):
    """Logits that a norm follows: there is no last linear row to close."""

    def __init__(self):
        super().__init__()
        self.net, self.norm = mlp(), nn.LayerNorm(CLASSES)

    def forward(self, x):
        return 4 * self.norm(self.net(x))


@pytest.mark.filterwarnings("ignore:not reached")
def test_where_rows_cannot_be_closed_both_models_are_the_same_and_the_report_says_why():
    result = unlearn(trained(Normed))
    assert changed_names(result.model, result.open_model) == set()
    assert not result.report.silenced
    assert result.report.left_open
    assert "open: " in str(result.report)
    assert result.model is not result.open_model
