"""Metrics usable alone: every figure against the definition in ``lab.evaluation``, whatever form the data have."""

import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from zspag.lab.evaluation import Masked, Parts, References, score
from zspag.lab.metrics import evaluate, wilson
from zspag.runtime import logits_of

N, C, H, W, K = 151, 2, 5, 3, 4  # N: more than one chunk
GONE = (1, 3)


@pytest.fixture(scope="module")
def images():
    return torch.rand(N, C, H, W, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels():
    return torch.randint(K, (N,), generator=torch.Generator().manual_seed(1))


def net(seed, width=K):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(C * H * W, width)
        linear.weight.data.mul_(9)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear)


@pytest.fixture
def model():
    return net(2)


@pytest.fixture
def original():
    return net(3)


def test_the_figures_are_those_of_the_evaluation(model, original, images, labels):
    hidden = torch.isin(labels, torch.tensor(GONE))

    def parts(every):
        return Parts(every[hidden], every[hidden], every[~hidden])

    before = parts(logits_of(original, images))
    references = References(parts(images), parts(labels), before, None, GONE)
    expected = score(parts(logits_of(model, images)), references)
    found = evaluate(model, (images, labels), GONE, original=original)

    assert found.acc_forget == expected.acc_forget
    assert found.acc_retain == pytest.approx(expected.acc_retain, abs=1e-12)
    assert found.acc_retain_micro == expected.acc_retain_micro
    assert found.over_unlearning == pytest.approx(expected.over_unlearning, abs=1e-12)
    assert found.drift == pytest.approx(expected.drift, rel=1e-6)
    assert (found.n_forget, found.n_retain) == (int(hidden.sum()), int((~hidden).sum()))
    assert found.acc_forget_interval == wilson(found.acc_forget, found.n_forget)
    assert found.acc_retain_micro_interval == wilson(found.acc_retain_micro, found.n_retain)
    assert found.per_class_interval[2] == wilson(found.per_class[2], int((labels == 2).sum()))
    assert found.acc_retain != found.acc_retain_micro  # classes of unequal size, otherwise macro proves nothing
    assert found.per_class == {
        label: (logits_of(model, images)[labels == label].argmax(1) == label).double().mean().item()
        for label in range(K)
    }


class Pairs(Dataset):
    """A data set with nothing but what the protocol asks for."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


FORMS = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "data set": Pairs,
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=37),
    "shuffled loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=37, shuffle=True),
    "dicts": lambda x, y: ({"pixel_values": a, "labels": b} for a, b in zip(x.split(40), y.split(40), strict=True)),
    "list of batches": lambda x, y: list(zip(x.split(40), y.split(40), strict=True)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_whatever_form_the_data_have_the_figures_are_the_same(form, model, original, images, labels):
    expected = evaluate(model, (images, labels), GONE, original=original)
    found = evaluate(model, form(images, labels), GONE, original=original)
    assert found.per_class == expected.per_class
    assert found.drift == pytest.approx(expected.drift, rel=1e-6)
    assert evaluate(model, form(images, labels.flip(0)), GONE).per_class != expected.per_class


def test_both_models_see_the_same_batches_even_from_a_loader_that_shuffles(original, images, labels):
    shuffled = DataLoader(TensorDataset(images, labels), batch_size=10, shuffle=True)
    itself = evaluate(Masked(original, forget=GONE, num_classes=K), shuffled, GONE, original=original)
    assert itself.drift == pytest.approx(0, abs=1e-6)
    assert itself.over_unlearning == 0
    assert itself.acc_forget == 0
    assert evaluate(original, shuffled, GONE, original=original).drift > 0.1


def test_bytes_are_scaled_and_normalized_images_are_left_alone(model, images, labels):
    grey = (images * 255).round().to(torch.uint8)
    scaled = evaluate(model, (grey, labels), GONE, original=net(3))
    assert scaled.drift == evaluate(model, (grey.float() / 255, labels), GONE, original=net(3)).drift
    shifted = nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, K))
    shifted[1].load_state_dict({"weight": model[2].weight, "bias": model[2].bias - model[2].weight.sum(1)})
    by_hand = evaluate(shifted, (images + 1, labels), GONE)
    assert by_hand.per_class == evaluate(model, (images, labels), GONE).per_class


def test_a_ruined_model_recognizes_nothing_although_the_argmax_of_nan_is_a_class(model, images, labels):
    model[2].weight.data.fill_(torch.nan)
    assert (model(images).argmax(1) == labels).any()  # what a plain accuracy would count
    found = evaluate(model, (images, labels), GONE, original=net(3))
    assert set(found.per_class.values()) == {0}
    assert (found.acc_forget, found.acc_retain) == (0, 0)
    assert math.isfinite(found.drift)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (1, 7), (5, 11), (11, 11)])
def test_ends_of_the_interval_are_1_96_standard_deviations_away_from_the_share(hits, count):
    share = hits / count
    for end in wilson(share, count):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count))
    low, high = wilson(share, count)
    assert 0 <= low <= share <= high <= 1
    assert low < high
    assert wilson(share, 9 * count)[1] - wilson(share, 9 * count)[0] < high - low


class Named(nn.Module):
    """A model in the manner of Hugging Face, which normalizes in place as well."""

    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, images):
        images -= 0.5
        images += 0.5
        return self.wrap(self.inner(images))


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("wrap", [Output, lambda logits: {"logits": logits}], ids=["attribute", "key"])
def test_logits_are_taken_out_of_an_answer_and_the_images_are_not_changed(wrap, model, images, labels):
    before = images.clone()
    found = evaluate(Named(model, wrap), (images, labels), GONE)
    assert found.per_class == evaluate(model, (images, labels), GONE).per_class
    assert torch.equal(images, before)
    assert evaluate(model.bfloat16(), (images, labels), GONE).n_forget > 0  # judged in its own precision


def test_the_model_its_modes_and_the_random_state_are_left_as_they_were(model, images, labels):
    model.train()
    model[2].bias.requires_grad_(False)
    state = torch.random.get_rng_state()
    first = evaluate(model, DataLoader(TensorDataset(images, labels), shuffle=True), GONE)
    assert first == evaluate(model, (images, labels), GONE)  # dropout was off
    assert all(part.training for part in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_there_is_no_image_or_no_original_for_is_none(model, images, labels):
    kept = ~torch.isin(labels, torch.tensor(GONE))
    bare = evaluate(model, (images, labels), GONE)
    assert (bare.over_unlearning, bare.drift) == (None, None)
    retained = evaluate(model, (images[kept], labels[kept]), GONE, original=net(3))
    assert (retained.n_forget, retained.acc_forget, retained.acc_forget_interval) == (0, None, None)
    forget = evaluate(model, (images[~kept], labels[~kept]), GONE, original=net(3))
    assert (forget.n_retain, forget.acc_retain, forget.drift, forget.over_unlearning) == (0, None, None, None)
    for found in (bare, retained, forget):
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_it_prints_as_a_small_table_and_cannot_be_changed(model, images, labels):
    found = evaluate(model, (images, labels), GONE)
    assert f"{100 * found.acc_retain:.1f} %" in str(found)
    assert max(map(len, str(found).splitlines())) <= 88
    with pytest.raises(FrozenInstanceError):
        found.drift = 0.0


@pytest.mark.parametrize("gone", [1, [1], (1, 1), np.int64(1), np.array([1]), torch.tensor([1])])
def test_forget_classes_may_be_one_number_or_several(gone, model, images, labels):
    assert evaluate(model, (images, labels), gone).forget_classes == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget_classes": 4}, r"classes in 0..3, got \[4\]"),
        ({"forget_classes": [-1, 2]}, r"classes in 0..3, got \[-1, 2\]"),
        ({"forget_classes": []}, "one class number or several, got \\[\\]"),
        ({"forget_classes": 1.5}, "one class number or several, got 1.5"),
        ({"forget_classes": range(4)}, "all 4 classes"),
        ({"num_classes": 10}, "4 logits, but num_classes=10"),
        ({"original": net(3, width=5)}, "4 logits, but the original 5"),
        ({"data": (torch.zeros(2, C, H, W), [0, 9])}, "hold class 9, outside 0..3"),
        ({"data": []}, "no images to evaluate on"),
        ({"data": (torch.zeros(2, C, H, W), [0])}, "2 forget images but 1 labels"),
        ({"model": nn.Identity()}, r"logits of shape \(128, K\), got"),
        ({"model": Named(net(2), lambda logits: (logits, logits))}, "got tuple"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value(change, message, model, images, labels):
    given = {"model": model, "data": (images, labels), "forget_classes": GONE} | change
    with pytest.raises(ValueError, match=message):
        evaluate(**given)
