"""Every figure of merit against its definition, worked by hand or by the slowest way there is."""

import math
from dataclasses import asdict, astuple, replace

import pytest
import torch

from zspag.lab.evaluation import (
    FLOOR,
    Parts,
    References,
    accuracy,
    agreement,
    captured,
    macro_accuracy,
    masked,
    masked_parts,
    mean_js,
    mean_kl,
    mean_nll,
    per_class_accuracy,
    score,
    selectivity,
)
from zspag.subspaces import Moments, Subspace

N, K = 11, 5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def votes(*classes, width=K):
    """Logits whose argmax are ``classes``, with a margin of 3 nats."""
    return 3 * torch.nn.functional.one_hot(torch.tensor(classes), width).double()


# The masked original


def test_masked_original_never_answers_a_forget_class_and_keeps_the_odds_of_the_others():
    logits, kept = randn(N, K) + 9 * torch.eye(K, dtype=torch.float64)[1], [0, 2, 3]
    before, after = logits.softmax(1), masked(logits, forget=(1, 4)).exp()

    assert (logits.argmax(1) == 1).all()  # otherwise masking would have nothing to do
    assert after[:, [1, 4]].max() < 1e-12
    torch.testing.assert_close(after.sum(1), torch.ones(N, dtype=torch.float64))
    torch.testing.assert_close(after[:, kept], before[:, kept] / before[:, kept].sum(1, keepdim=True))
    assert set(masked(logits, forget=(1, 4)).argmax(1).tolist()) <= set(kept)


def test_masked_original_is_finite_where_the_plain_mask_is_not_and_leaves_its_argument_alone():
    logits = torch.randn(N, K) * 200
    before = logits.clone()
    hidden = masked(logits, forget=(2,))
    assert torch.equal(logits, before)
    assert hidden.dtype == torch.float64
    assert torch.isfinite(hidden).all()
    assert hidden.min() >= FLOOR - 1e-6
    logits[:, 2] = -torch.inf
    assert torch.isinf(logits.log_softmax(1)).any()


# Accuracies


def test_macro_weighs_classes_and_micro_weighs_samples():
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 3])
    logits = votes(0, 0, 0, 1, 2, 0, 1)  # 3 of 4, 1 of 2, 0 of 1
    assert per_class_accuracy(logits, labels) == {0: 0.75, 2: 0.5, 3: 0.0}
    assert accuracy(logits, labels) == pytest.approx(4 / 7)
    assert macro_accuracy(logits, labels) == pytest.approx((0.75 + 0.5 + 0.0) / 3)


def test_macro_equals_micro_for_classes_of_equal_size_only():
    logits = votes(0, 1, 1, 1)
    for labels, equal in ((torch.tensor([0, 0, 1, 1]), True), (torch.tensor([0, 0, 0, 1]), False)):
        assert (macro_accuracy(logits, labels) == pytest.approx(accuracy(logits, labels))) == equal


# Divergences


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_divergences_match_their_sums_by_hand():
    first, second = randn(N, K), randn(N, K)
    pairs = list(zip(first.softmax(1).tolist(), second.softmax(1).tolist(), strict=True))
    assert mean_kl(first, second) == pytest.approx(sum(kl(p, q) for p, q in pairs) / N)
    halves = [([(a + b) / 2 for a, b in zip(p, q, strict=True)], p, q) for p, q in pairs]
    assert mean_js(first, second) == pytest.approx(sum((kl(p, m) + kl(q, m)) / 2 for m, p, q in halves) / N)


def test_divergences_vanish_for_equal_distributions_only():
    logits = randn(N, K)
    assert mean_kl(logits, logits + 7) == pytest.approx(0, abs=1e-12)  # a constant moves no distribution
    assert mean_js(logits, logits + 7) == pytest.approx(0, abs=1e-12)
    other = logits.clone()
    other[0, 0] += 0.1
    assert mean_kl(logits, other) > 1e-6
    assert mean_js(logits, other) > 1e-7


def test_js_is_symmetric_and_at_most_log_2_and_kl_is_not_symmetric():
    first, second = randn(N, K) * 3, randn(N, K) * 3
    assert mean_js(first, second) == pytest.approx(mean_js(second, first))
    assert mean_kl(first, second) != pytest.approx(mean_kl(second, first), abs=1e-3)
    assert 0 < mean_js(first, second) < math.log(2)
    assert mean_js(votes(0) * 100, votes(1) * 100) == pytest.approx(math.log(2))


def test_agreement_compares_answers_and_not_labels():
    assert agreement(votes(0, 1, 2, 3), votes(0, 1, 3, 3)) == 0.75
    assert agreement(votes(0, 1), votes(0, 1) / 50) == 1.0


def test_likelihood_is_that_of_the_true_class():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    by_hand = -(logits.softmax(1)[0, 2].log() + logits.softmax(1)[1, 1].log()) / 2
    assert mean_nll(logits, torch.tensor([2, 1])) == pytest.approx(by_hand.item())
    assert mean_nll(logits, torch.tensor([0, 1])) != pytest.approx(by_hand.item())
    assert mean_nll(logits + 5, torch.tensor([2, 1])) == pytest.approx(by_hand.item())


# Scores


def references_of(*, original=None, retrained=None):
    """Forget class 4; two forget training, two forget test and three retained samples."""
    labels = Parts(torch.tensor([4, 4]), torch.tensor([4, 4]), torch.tensor([0, 0, 1]))
    images = Parts(*(torch.zeros(len(part), 1, 2, 2) for part in (labels.forget_train, labels.forget_test)), labels)
    original = original or Parts(votes(4, 4), votes(4, 4), votes(0, 0, 1))
    retrained = retrained or Parts(votes(0, 1), votes(1, 1), votes(0, 0, 0))
    return References(images, labels, original, retrained, (4,))


def test_gap_is_the_mean_of_three_absolute_differences():
    logits = Parts(votes(4, 0), votes(4, 4), votes(1, 0, 1))  # 1/2, 1, 2/3; retrained: 0, 0, 2/3
    scores = score(logits, references_of())
    assert scores.gap == pytest.approx((0.5 + 1 + 0) / 3)
    assert (scores.acc_forget_train, scores.acc_forget) == (0.5, 1.0)
    assert scores.acc_retain_micro == pytest.approx(2 / 3)
    assert scores.acc_retain == pytest.approx((0.5 + 1) / 2)
    assert (scores.agreement_forget, scores.agreement_retain) == (0.0, pytest.approx(1 / 3))


def test_retrained_model_has_no_gap_to_itself_and_without_one_what_needs_it_is_none():
    references = references_of()
    own = score(references.retrained, references)
    assert (own.gap, own.agreement_forget, own.agreement_retain) == (0, 1, 1)
    assert (own.js_forget, own.js_retain) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    bare = replace(references, retrained=None)
    whole, without = (asdict(score(references.original, one)) for one in (references, bare))
    empty = {name for name, value in without.items() if value is None}
    assert empty == {"gap", "agreement_forget", "agreement_retain", "js_forget", "js_retain"}
    assert {name: value for name, value in whole.items() if name not in empty}.items() <= without.items()
    assert None not in whole.values()


def test_likelihood_is_judged_on_retained_images():
    references = references_of()
    logits = replace(references.original, retain_test=torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    own = score(logits, references).nll_retain
    assert own == pytest.approx(mean_nll(logits.retain_test, references.labels.retain_test))
    assert own != pytest.approx(score(references.original, references).nll_retain)


def test_over_unlearning_is_positive_for_lost_accuracy_and_negative_for_gained():
    worse = score(Parts(votes(0, 0), votes(0, 0), votes(0, 1, 1)), references_of())
    assert worse.over_unlearning == pytest.approx(1 - (0.5 + 1) / 2)
    weak = references_of(original=Parts(votes(4, 4), votes(4, 4), votes(1, 1, 1)))
    better = score(Parts(votes(0, 0), votes(0, 0), votes(0, 0, 1)), weak)
    assert better.over_unlearning == pytest.approx(0.5 - 1)


def test_masked_original_is_its_own_yardstick_and_the_original_is_not():
    references = references_of(original=Parts(votes(4, 4), votes(4, 4), votes(0, 4, 1)))  # frees the second answer
    own = score(masked_parts(references), references)
    assert (own.over_unlearning, own.drift) == (0, pytest.approx(0, abs=1e-12))
    assert own.acc_forget == 0
    original = score(references.original, references)
    assert original.drift > 0.1
    assert original.over_unlearning == pytest.approx(1 - (0.5 + 1) / 2)


@pytest.mark.parametrize("ruin", [math.nan, math.inf, -math.inf])
def test_ruined_model_is_judged_wrong_without_breaking_the_table(ruin):
    references = references_of()
    parts = (references.original.forget_train, references.original.forget_test, references.original.retain_test)
    scores = score(Parts(*(torch.full_like(part, ruin) for part in parts)), references)
    assert all(math.isfinite(value) for value in astuple(scores))
    assert scores.acc_forget == 0  # all logits equal: class 0, never the forget class 4
    assert scores.acc_retain == 0.5
    assert scores.over_unlearning == 0.5


def test_single_infinite_logit_costs_one_answer():
    references = references_of()
    logits = references.original.retain_test.clone()
    logits[0, 3] = math.inf
    scores = score(replace(references.original, retain_test=logits), references)
    assert scores.acc_retain == pytest.approx((0.5 + 1) / 2)
    assert math.isfinite(scores.drift)
    assert scores.drift > 100


# Subspaces


def case_of(*, d=7, ranks=(3, 2)):
    """Two blocks of unequal rank, and the moments of retain and forget rows."""
    bases = torch.zeros(2, d, max(ranks), dtype=torch.float64)
    for block, rank in enumerate(ranks):
        bases[block, :, :rank] = torch.linalg.qr(randn(d, rank)).Q
    roots = randn(2, 2, d, d)
    seconds = roots @ roots.transpose(-1, -2)
    retain, forget = (Moments({"w": second}, {"w": 1.0}, {}) for second in seconds)
    return Subspace({"w": bases}, {"w": ranks}), retain, forget


def test_captured_is_the_trace_inside_over_the_trace():
    subspace, retain, _ = case_of()
    inside = whole = 0.0
    for basis, second in zip(subspace.bases["w"], retain.second["w"], strict=True):
        projection = basis @ basis.T
        inside += torch.trace(projection @ second @ projection).item()
        whole += torch.trace(second).item()
    share = captured(subspace, retain)["w"]
    assert share == pytest.approx(inside / whole)
    assert 0 < share < 1


def test_captured_is_one_for_a_full_basis_and_zero_for_an_empty_one():
    _, retain, _ = case_of()
    full = Subspace({"w": torch.linalg.qr(randn(2, 7, 7)).Q}, {"w": (7, 7)})
    empty = Subspace({"w": torch.zeros(2, 7, 1, dtype=torch.float64)}, {"w": (0, 0)})
    assert captured(full, retain)["w"] == pytest.approx(1)
    assert captured(empty, retain)["w"] == 0


def test_selectivity_is_the_ratio_of_what_stays_free():
    second = {"forget": torch.diag(torch.tensor([1.0, 4.0])), "retain": torch.diag(torch.tensor([8.0, 2.0]))}
    forget, retain = (Moments({"w": second[kind].double()[None]}, {"w": 1.0}, {}) for kind in ("forget", "retain"))
    first_axis = Subspace({"w": torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)}, {"w": (1,)})
    assert selectivity(first_axis, forget=forget, retain=retain)["w"] == pytest.approx((4 / 5) / (2 / 10))
    assert selectivity(first_axis, forget=retain, retain=forget)["w"] == pytest.approx((2 / 10) / (4 / 5))


def test_selectivity_ignores_the_size_of_the_activations():
    subspace, retain, forget = case_of()
    larger = Moments({"w": forget.second["w"] * 1000}, {"w": 1.0}, {})
    plain = selectivity(subspace, forget=forget, retain=retain)["w"]
    assert selectivity(subspace, forget=larger, retain=retain)["w"] == pytest.approx(plain)
    assert plain != pytest.approx(1)
