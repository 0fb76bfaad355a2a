"""SalUn: which weights are salient, and that no other moves."""

from dataclasses import replace

import pytest
import torch
from laboratory import FORGET, small
from test_baselines import go, weights
from torch import nn
from torch.nn import functional as F

from zspag.lab.methods import saliency
from zspag.lab.methods.saliency import saliency_mask


def original_mask():
    case = small()
    return saliency_mask(case.model, case.images, case.labels, share=saliency.SALIENT_SHARE)


def with_momentum():
    config = small().config
    return replace(config, update=replace(config.update, momentum=0.9))


def moved(run, mask, *, salient):
    """Return how many weights of one side of the mask differ from the original's in any bit."""
    before = small().model.state_dict()
    return sum(int(((weights(run)[name] != before[name]) & (part == salient)).sum()) for name, part in mask.items())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
def test_mask_holds_the_largest_gradients_of_the_whole_model(share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    images, labels = torch.rand(7, 1, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 0, 1, 1, 0])
    parameters = dict(model.named_parameters())
    each = [torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(parameters.values()))
            for x, y in zip(images, labels, strict=True)]  # fmt: skip
    sizes = {
        name: torch.stack(parts).mean(0).abs() for name, parts in zip(parameters, zip(*each, strict=True), strict=True)
    }

    mask = saliency_mask(model, images, labels, share=share)
    assert {name: part.shape for name, part in mask.items()} == {name: part.shape for name, part in parameters.items()}
    inside, outside = (torch.cat([sizes[name][part == side] for name, part in mask.items()]) for side in (True, False))
    assert len(inside) == round(share * 53)
    assert inside.min() >= outside.max()
    assert len({part.double().mean().item() for part in mask.values()}) > 1  # one threshold, not one per layer


def test_masked_weights_keep_every_bit_under_momentum(monkeypatch):
    mask, config = original_mask(), with_momentum()
    (run,) = go("salun", ladder=(0.003,), config=config).runs
    assert moved(run, mask, salient=False) == 0
    salient = sum(int(part.sum()) for part in mask.values())
    assert moved(run, mask, salient=True) > 0.9 * salient

    monkeypatch.setattr(saliency, "held", lambda current, _: dict(current.named_parameters()))
    (leaking,) = go("salun", ladder=(0.003,), config=config).runs
    assert moved(leaking, mask, salient=False) > 0.5 * salient


def test_with_every_weight_salient_it_is_random_relabeling(monkeypatch):
    half = go("salun", ladder=(0.003,), config=with_momentum())
    monkeypatch.setattr(saliency, "SALIENT_SHARE", 1.0)
    whole = go("salun", ladder=(0.003,), config=with_momentum())
    other = go("random_relabeling", ladder=(0.003,), config=with_momentum())
    expected = weights(other.runs[0])
    # Not bit for bit: held weights lie channels outermost, whose convolutions add up in another order.
    torch.testing.assert_close(weights(whole.runs[0]), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(weights(half.runs[0]), expected, rtol=0.1, atol=0.01)


def test_labels_are_retained_and_drawn_afresh(monkeypatch):
    drawn, real = [], saliency.random_labels

    def spy(*args, **options):
        drawn.append(real(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(saliency, "random_labels", spy)
    go("salun", ladder=(1e-6, 2e-6))
    labels, half = torch.cat(drawn), len(drawn) // 2
    assert set(labels.argmax(1).tolist()) == set(range(10)) - {FORGET}
    assert not torch.equal(drawn[0], drawn[1])
    assert all(torch.equal(a, b) for a, b in zip(drawn[:half], drawn[half:], strict=True))  # the same for every rate
