"""The closed form of the label optimum beats every other label, and no label has mass on a forget class."""

import copy

import pytest
import reference
import torch
from torch import nn

from zspag.config import SOLVERS, STRATEGIES, LabelConfig
from zspag.influence import conjugate_gradients, gauss_newton_product, kfac_factors, label_scores, loss_gradient
from zspag.proxies import ProxySet
from zspag.pseudo_labels import (
    masked_log_probabilities,
    pseudo_labeler,
    random_labels,
    second_best_labels,
    standardized,
    tilted_labels,
)
from zspag.runtime import logits_of
from zspag.subspaces import averaged, by_energy, hard_projector, second_moments

N, CLASSES = 6, 5
FORGET, RETAINED = (1, 3), [0, 2, 4]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def masked():
    return masked_log_probabilities(2 * randn(N, CLASSES), forget=FORGET)


def assert_labels(q):
    assert q.shape == (N, CLASSES)
    torch.testing.assert_close(q.sum(1), torch.ones(N, dtype=q.dtype))
    assert (q >= 0).all()
    assert not q[:, list(FORGET)].any()


# ---- The closed form


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_the_closed_form_beats_thousands_of_points_of_the_simplex(beta):
    log_p, scores = masked(), 3 * randn(N, CLASSES)
    p = log_p.exp()
    best = tilted_labels(log_p, scores, beta=beta)
    assert_labels(best)
    top = reference.label_objective(best, scores, p, beta=beta)
    far = torch.zeros(3000, N, CLASSES, dtype=torch.float64)
    far[..., RETAINED] = torch.distributions.Dirichlet(torch.full((3,), 0.5).double()).sample((3000, N))
    near = 0.98 * best + 0.02 * far
    for others in (far, near):
        assert (reference.label_objective(others, scores, p, beta=beta) < top).all()
    wrong = tilted_labels(log_p, -scores, beta=beta)
    assert (reference.label_objective(wrong, scores, p, beta=beta) < top).all()
    # value of the optimum: the log-partition, so the reference and the closed form agree on the scale too
    torch.testing.assert_close(top, (log_p + beta * scores).logsumexp(1) / beta)


def test_beta_runs_from_the_second_opinion_to_the_most_helpful_hard_label():
    log_p, scores = masked(), randn(N, CLASSES)
    torch.testing.assert_close(tilted_labels(log_p, scores, beta=0.0), log_p.exp())
    helpful = scores[:, RETAINED].argmax(1)
    hard = tilted_labels(log_p, scores, beta=1e4)
    assert [RETAINED[k] for k in helpful.tolist()] == hard.argmax(1).tolist()
    torch.testing.assert_close(hard.amax(1), torch.ones(N, dtype=torch.float64))
    alone = standardized(randn(1, 2), forget=(0,))  # one sample and one retained class leave nothing to choose
    assert tilted_labels(torch.tensor([[-torch.inf, 0.0]]).double(), alone, beta=1.0).tolist() == [[0, 1]]


# ---- The pieces


def test_masking_removes_the_forget_classes_and_keeps_the_odds_of_the_others():
    logits = randn(N, CLASSES)
    untouched = logits.clone()
    log_p = masked_log_probabilities(logits, forget=FORGET)
    assert torch.equal(logits, untouched)
    assert_labels(log_p.exp())
    torch.testing.assert_close(log_p[:, 0] - log_p[:, 4], logits[:, 0] - logits[:, 4])


def test_random_labels_are_one_hot_uniform_over_the_retained_classes_and_repeatable():
    def draw(seed, count=3000):
        generator = torch.Generator().manual_seed(seed)
        return random_labels(count, num_classes=CLASSES, forget=FORGET, generator=generator)

    labels = draw(0)
    assert labels.sum(1).unique().tolist() == [1.0]
    assert labels.sum(0)[list(FORGET)].tolist() == [0.0, 0.0]
    assert labels.mean(0)[RETAINED].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert torch.equal(labels, draw(0))
    assert not torch.equal(labels, draw(1))


def test_standardized_scores_are_centered_per_sample_and_have_one_common_scale():
    raw = 1e-5 * randn(N, CLASSES) + randn(N, 1)
    raw[:, list(FORGET)] = 1e6
    found = standardized(raw, forget=FORGET)[:, RETAINED]
    torch.testing.assert_close(found.mean(1), torch.zeros(N).double(), rtol=0, atol=1e-9)
    assert found.std(correction=0).item() == pytest.approx(1)
    centered = raw[:, RETAINED] - raw[:, RETAINED].mean(1, keepdim=True)
    torch.testing.assert_close(found / found[0, 0], centered / centered[0, 0])
    torch.testing.assert_close(standardized(1000 * raw, forget=FORGET)[:, RETAINED], found)


# ---- The strategies


class Setting:
    """A small model with everything that ``pseudo_labeler`` takes."""

    def __init__(self):
        self.model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(64, CLASSES),
        ).double()
        self.images = torch.rand(N, 2, 4, 4, dtype=torch.float64)
        retain = torch.rand(9, 2, 4, 4, dtype=torch.float64)
        labels = torch.tensor(RETAINED).repeat_interleave(3)
        self.proxies = ProxySet(retain, labels, torch.arange(9), {}, 0.1, barely=retain)
        self.parts = [second_moments(self.model, self.proxies.of_class(label)) for label in RETAINED]
        self.moments = averaged(self.parts)
        self.projector = hard_projector(by_energy(self.moments, energy=0.7))
        self.names = list(self.moments.second)

    def relabel(self, *, seed=0, **options):
        config = LabelConfig(**{"beta": 1.0, "damping": 0.1} | options)
        arguments = {"proxies": self.proxies, "moments": self.moments, "projector": self.projector}
        return self.build(config, seed=seed, **arguments)

    def build(self, config, *, seed=0, **arguments):
        return pseudo_labeler(
            self.model, self.images, forget=FORGET, names=self.names, config=config,
            generator=torch.Generator().manual_seed(seed), **arguments,
        )  # fmt: skip

    def log_p(self):
        return masked_log_probabilities(logits_of(self.model, self.images), forget=FORGET)

    def teacher(self):
        return masked_log_probabilities(logits_of(self.model, self.proxies.images), forget=FORGET).exp()

    def moved(self):
        """A copy whose weights have moved, as after an epoch."""
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            for name in self.names:
                dict(other.named_parameters())[name].add_(0.3 * randn(*dict(other.named_parameters())[name].shape))
        return other


@pytest.fixture
def setting():
    return Setting()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_puts_mass_on_a_forget_class_or_touches_a_model(setting, strategy, solver):
    setting.model.train()
    current = setting.moved()
    before, other = reference.state_of(setting.model), reference.state_of(current)
    assert_labels(setting.relabel(strategy=strategy, solver=solver)(current))
    reference.assert_same_state(before, reference.state_of(setting.model))
    reference.assert_same_state(other, reference.state_of(current))


def test_labels_without_influence_are_the_masked_answer_its_argmax_or_drawn(setting):
    torch.testing.assert_close(setting.relabel(strategy="soft")(setting.model), setting.log_p().exp())
    hard = setting.relabel(strategy="second_best")(setting.model)
    assert torch.equal(hard, second_best_labels(setting.log_p()))
    assert torch.equal(hard.argmax(1), setting.log_p().argmax(1))
    drawn = [setting.relabel(strategy="random", seed=seed)(setting.model) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].dtype == torch.float64


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_the_process_looks_at_the_current_model(setting, strategy):
    relabel = setting.relabel(strategy=strategy)
    first, second = relabel(setting.moved()), relabel(setting.moved())
    assert torch.equal(first, second) == (strategy != "process")


@pytest.mark.parametrize("projected", [True, False])
def test_process_labels_tilt_along_the_projected_drift_of_the_current_model(setting, projected):
    current, config = setting.moved(), LabelConfig(strategy="process", beta=0.4)
    gradient = loss_gradient(current, setting.proxies.images, setting.teacher(), names=setting.names)
    if projected:
        gradient = {name: setting.projector(name, part) for name, part in gradient.items()}
    scores = standardized(label_scores(current, setting.images, gradient), forget=FORGET)
    projector = setting.projector if projected else None
    found = setting.build(config, proxies=setting.proxies, moments=None, projector=projector)(current)
    torch.testing.assert_close(found, tilted_labels(setting.log_p(), scores, beta=0.4))


@pytest.mark.parametrize("solver", SOLVERS)
def test_fixed_influence_labels_tilt_along_the_solved_direction(setting, solver):
    gradient = loss_gradient(setting.model, setting.proxies.images, setting.teacher(), names=setting.names)
    if solver == "cg":
        gradient = conjugate_gradients(
            lambda v: gauss_newton_product(setting.model, setting.proxies.images, v, damping=0.1),
            gradient,
            iterations=7,
        )
    if solver == "kfac":
        gradient = kfac_factors(
            setting.model, setting.proxies.images, second=setting.moments.second,
            rows_per_sample=setting.moments.rows_per_sample,
        ).solve(gradient, damping=0.1)  # fmt: skip
    scores = standardized(label_scores(setting.model, setting.images, gradient), forget=FORGET)
    expected = tilted_labels(setting.log_p(), scores, beta=0.4)
    found = setting.relabel(strategy="influence", solver=solver, beta=0.4, cg_iterations=7)(setting.moved())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "has_proxies", "message"),
    [
        ({"strategy": "influence"}, False, "strategy 'influence' measures influence on proxies"),
        ({"strategy": "process"}, False, "strategy 'process' measures influence on proxies"),
        ({"strategy": "influence", "solver": "kfac"}, True, "solver 'kfac' reuses the proxies' input moments"),
    ],
)
def test_what_a_strategy_lacks_is_named(setting, options, has_proxies, message):
    with pytest.raises(ValueError, match=message):
        setting.build(
            LabelConfig(**options), proxies=setting.proxies if has_proxies else None, moments=None, projector=None
        )
