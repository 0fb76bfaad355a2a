"""Layers and rate are judged by samples and proxies that were held out, and what is held out has taken no part."""

import math
from dataclasses import replace
from functools import cache

import pytest
import reference
import torch
from external_nets import digits, normed_net, trained
from external_nets import mlp as mlp_of_digits
from laboratory import changed_names
from torch import nn

from zspag import zero_shot_unlearn
from zspag.calibration import cross_fitting, trials, verdict
from zspag.calibration.cross_fitting import fit_views, free_dimension, free_shares, unlearn_with
from zspag.calibration.open_search import SMALLEST, rate_at
from zspag.calibration.trials import FITTED, attempt, held_out_damage, make_folds
from zspag.config import ProxyConfig, UnlearnConfig, UpdateConfig
from zspag.preflight.checks import unsound
from zspag.projected_sgd import fit_labels, rate_search
from zspag.proxy_statistics import prepare
from zspag.runtime import generator_for, logits_of
from zspag.subspaces import accumulate, by_energy, hard_projector, projector, second_moments, soft_projector

CLASSES, FORGET = 10, 3
CONFIG = UnlearnConfig(
    proxies=ProxyConfig(steps=5, per_class=8), update=UpdateConfig(layers="all", batch_size=32, min_steps=8), views=60
)
QUICK = replace(CONFIG, update=UpdateConfig(lr=0.1, layers="all", epochs=4, batch_size=16, min_steps=2), views=30)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# ---- Damage


def slow_damage(before, after, *, forget):
    """The definition, one sample and one class after the other."""
    total, retained = 0.0, [k for k in range(before.shape[1]) if k not in forget]
    for old, new in zip(before.exp().tolist(), after.exp().tolist(), strict=True):
        stayed_old, stayed_new = (sum(one[k] for k in retained) for one in (old, new))
        for k in retained:
            p, q = old[k] / stayed_old, new[k] / stayed_new
            total += p * math.log(p / q)
        total += max(0.0, math.log(stayed_old / sum(old)) - math.log(stayed_new / sum(new)))
    return total / len(before)


def logits(count=11, *, classes=5):
    return 2 * torch.randn(count, classes, dtype=torch.float64)


@pytest.mark.parametrize("forget", [[1], [0, 3], [4, 0, 2]])
def test_damage_is_its_definition(forget):
    before = logits()
    for scale in (0.01, 1.0, 3.0):
        after = before + scale * torch.randn_like(before)
        expected = slow_damage(before, after, forget=forget)
        assert held_out_damage(before, after, forget=forget) == pytest.approx(expected, rel=1e-9)
        assert held_out_damage(before.float(), after.float(), forget=forget) == pytest.approx(expected, rel=1e-4)
        assert expected > 0


def test_to_lose_probability_of_a_forgotten_class_is_no_damage():
    before, drop = logits(), torch.zeros(5, dtype=torch.float64)
    drop[[1, 3]] = torch.tensor([7.0, 3.0], dtype=torch.float64)
    assert held_out_damage(before, before - drop, forget=[1, 3]) == pytest.approx(0, abs=1e-12)
    assert held_out_damage(before, before - drop + 5, forget=[1, 3]) == pytest.approx(0, abs=1e-12)  # as softmax does
    assert held_out_damage(before, before - drop, forget=[1]) > 0.01  # class 3 is retained here


def test_what_is_pushed_into_a_forgotten_class_counts_and_nothing_makes_up_for_it():
    before, push = logits(), torch.zeros(11, 5, dtype=torch.float64)
    push[::2, 2] = 4.0
    stayed = [(1 - one.softmax(1)[:, 2]).log() for one in (before, before + push)]
    expected = (stayed[0] - stayed[1]).mean().item()
    assert held_out_damage(before, before + push, forget=[2]) == pytest.approx(expected)
    assert expected > 0.1
    push[1::2, 2] = -9.0  # other samples lose what these gained
    assert held_out_damage(before, before + push, forget=[2]) == pytest.approx(expected)


def test_damage_is_finite_as_long_as_the_logits_are_and_never_below_zero():
    before = logits()
    for after in (before * 1e6, -before * 1e30, before.float() + torch.tensor([3e38, 0, 0, 0, -3e38])):
        assert 1 < held_out_damage(before, after, forget=[2]) < math.inf
    for bad in (math.inf, -math.inf, math.nan):
        after = before.clone()
        after[7, 0] = bad
        assert held_out_damage(before, after, forget=[2]) == math.inf
    for _ in range(50):
        before = logits(3)
        assert held_out_damage(before, before + 1e-9 * torch.randn_like(before), forget=[0]) >= 0


# ---- Shares


class Mixed(nn.Module):
    """Grouped convolution, attention in packed form, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, groups=2, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 1, groups=6)
        self.rest = reference.Attending(channels=6, width=4, classes=5)

    def forward(self, x):
        return self.rest(torch.relu(self.depthwise(self.grouped(x))))


def mixed():
    return Mixed().double().eval(), torch.rand(9, 4, 6, 6, dtype=torch.float64), torch.rand(7, 4, 6, 6).double()


def dense(form, matrix):
    """P as matrices (blocks, d, d)."""
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype)
    products = {
        "times": lambda: matrix,
        "keep": lambda: matrix @ matrix.mT,
        "remove": lambda: identity - matrix @ matrix.mT,
    }
    return products[form]()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_free_share_is_what_the_projector_leaves_of_the_second_moment(kind, monkeypatch):
    model, seen, other = mixed()
    moments = second_moments(model, seen, precision=torch.float64)
    project = hard_projector(by_energy(moments, energy=0.8)) if kind == "hard" else soft_projector(moments, damping=0.3)
    shares = free_shares(model, other, project)
    second = second_moments(model, other, precision=torch.float64).second
    assert shares.keys() == project.factors.keys() == second.keys()
    assert {len(matrix) for _, matrix in project.factors.values()} == {1, 2, 3, 6}  # plain, grouped, packed, depthwise
    for name, factor in project.factors.items():
        p, c = dense(*factor), second[name]
        kept, whole = (matrix.diagonal(dim1=1, dim2=2).sum().item() for matrix in (p @ c @ p, c))
        assert shares[name] == pytest.approx(kept / whole, rel=1e-9)
    assert all(0 <= share <= 1 for share in shares.values())
    assert max(shares.values()) > 0.05
    monkeypatch.setattr("zspag.runtime.CHUNK", 3)
    assert free_shares(model, other, project) == pytest.approx(shares, rel=1e-9)


def test_nothing_is_free_where_everything_is_protected_and_everything_where_nothing_is():
    model, seen, other = mixed()
    moments = second_moments(model, seen, precision=torch.float64)
    own = free_shares(model, seen, hard_projector(by_energy(moments, energy=1.0)))
    assert max(own.values()) == pytest.approx(0, abs=1e-9)
    less = free_shares(model, seen, hard_projector(by_energy(moments, energy=0.8)))
    assert all(share <= 0.2 + 1e-9 for share in less.values())  # what an energy of .8 promises
    empty = by_energy(moments, energy=0.8)
    empty = replace(empty, bases={name: 0 * basis for name, basis in empty.bases.items()})
    open_ = replace(hard_projector(empty), factors={name: ("remove", basis) for name, basis in empty.bases.items()})
    assert list(free_shares(model, other, open_).values()) == pytest.approx([1.0] * len(own))
    assert free_shares(model, torch.zeros_like(seen), open_)["grouped.weight"] == 0  # only zeros enter: no share


@pytest.mark.parametrize("energy", [0.3, 0.999])
def test_the_free_dimension_is_the_trace_of_the_projector(energy):
    model, seen, _ = mixed()
    moments = second_moments(model, seen, precision=torch.float64)
    subspace = by_energy(moments, energy=energy)
    assert free_dimension(hard_projector(subspace)) == subspace.free_dimension()
    soft = soft_projector(moments, damping=0.3)
    traces = {name: dense(*factor).diagonal(dim1=1, dim2=2).sum() for name, factor in soft.factors.items()}
    assert free_dimension(soft) == {name: int(trace + 1e-6) for name, trace in traces.items()}


# ---- A net without norm that works on values from 0 to 12, as nets of unscaled images do


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@cache
def split():
    """Return 1,000 training digits and 797 test digits."""
    images, labels = digits()
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


@cache
def raw_net():
    images, labels, _, _ = split()
    torch.manual_seed(0)
    net = nn.Sequential(
        Times(12.0), nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(12):
        for batch in torch.randperm(1000, generator=order).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    net.zero_grad()
    return net.eval()


def forget_set(count=20, classes=(FORGET,)):
    images, labels, _, _ = split()
    chosen = torch.cat([(labels == label).nonzero()[:count, 0] for label in classes])
    return images[chosen], labels[chosen]


def prepared(count=20, *, classes=(FORGET,), config=CONFIG):
    images, labels = forget_set(count, classes)
    statistics = prepare(
        raw_net(), images, forget=classes, num_classes=CLASSES, config=config, generator=generator_for(0, "material")
    )
    return labels, statistics


@cache
def calibrated():
    """The whole method on the raw net: labels, proxy statistics, and what was made of them."""
    labels, statistics = prepared()
    return labels, statistics, unlearn_with(raw_net(), labels, statistics, forget=(FORGET,), config=CONFIG, seed=0)


def test_accuracy(model):
    """Return accuracies on test digits of the other classes and of the forgotten one."""
    _, _, images, labels = split()
    right, gone = logits_of(model, images).argmax(1) == labels, labels == FORGET
    return right[~gone].double().mean().item(), right[gone].double().mean().item()


test_accuracy.__test__ = False


# ---- Folds


def test_no_image_is_on_both_sides_and_each_judges_once():
    labels, statistics = prepared(9, classes=(FORGET, 7))
    folds = make_folds(raw_net(), statistics, labels, subspace=CONFIG.subspace)
    images = statistics.views.images
    for fold, other in zip(folds, reversed(folds), strict=True):
        fitted = set(statistics.views.sources[fold.fitted].tolist())
        judged = {int((images[:18] == one).flatten(1).all(1).nonzero()[0]) for one in fold.unseen}
        assert not fitted & judged
        assert fitted | judged == set(range(18))
        assert len(judged) == len(fold.unseen) == 9
        assert fitted == {int((images[:18] == one).flatten(1).all(1).nonzero()[0]) for one in other.unseen}
        assert torch.equal(fold.unseen_labels, labels[sorted(judged)])
        assert fold.unseen_labels.bincount()[[FORGET, 7]].sort().values.tolist() == [4, 5]  # halved class by class
    assert len(folds[0].fitted) + len(folds[1].fitted) == len(images) > 18
    assert torch.equal(statistics.half_of, statistics.half_of[:18][statistics.views.sources])  # views stay with it


def test_a_proxy_that_judges_never_made_the_basis_of_its_fold():
    labels, statistics, _ = calibrated()
    model, proxies = raw_net(), statistics.proxies
    made_from = statistics.half_of[proxies.sources]
    folds = make_folds(model, statistics, labels, subspace=CONFIG.subspace)
    assert sum(len(fold.barely) for fold in folds) == len(proxies.labels)
    for half, fold in enumerate(folds):
        own = made_from == half
        assert 0 < own.sum() < len(own)
        assert torch.equal(fold.barely, proxies.barely[~own])
        torch.testing.assert_close(fold.before, logits_of(model, proxies.barely[~own]))
        classes = [proxies.images[own & (proxies.labels == label)] for label in proxies.labels.unique()]
        moments = accumulate((second_moments(model, part) for part in classes if len(part)), classes=len(classes))
        expected = projector(moments.pooled, config=CONFIG.subspace)
        everything = projector(second_moments(model, proxies.images), config=CONFIG.subspace)
        apart = []
        for name, factor in fold.project.factors.items():
            torch.testing.assert_close(dense(*factor), dense(*expected.factors[name]), rtol=1e-6, atol=1e-6)
            apart.append((dense(*factor) - dense(*everything.factors[name])).abs().max().item())
        assert max(apart) > 0.1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_few_images_the_views_are_halved(count):
    labels, statistics = prepared(count)
    folds = make_folds(raw_net(), statistics, labels, subspace=CONFIG.subspace)
    sizes = [len(fold.fitted) for fold in folds]
    assert abs(sizes[0] - sizes[1]) <= 1
    assert all(0 < len(fold.unseen) <= max(1, count - 1) for fold in folds)
    made_from = statistics.half_of[statistics.proxies.sources]
    assert all(
        torch.equal(fold.barely, statistics.proxies.barely[made_from != half]) for half, fold in enumerate(folds)
    )
    assert not set(folds[0].fitted.tolist()) & set(folds[1].fitted.tolist())


@pytest.mark.filterwarnings("ignore:retained classes may have lost")  # a net that learned next to nothing
def test_a_single_image_without_views_fits_and_judges_and_the_report_claims_nothing_of_unseen_ones():
    config = replace(QUICK, views=1)
    labels, statistics = prepared(1, config=config)
    assert len(statistics.views.images) == 1
    for fold in make_folds(raw_net(), statistics, labels, subspace=CONFIG.subspace):
        assert fold.fitted.tolist() == [0]
        assert len(fold.barely) == len(statistics.proxies.labels)
    images, labels = forget_set(1)
    with pytest.warns(UserWarning, match="none of 1 images was held out: whether unseen images of the class are"):
        report = zero_shot_unlearn(raw_net(), images, labels, config=config).report
    assert report.unseen_accuracy is None
    assert report.reached


# ---- What the calibration is for


def test_a_rate_that_overshoots_is_not_chosen_where_the_gentlest_of_a_ladder_loses_most():
    labels, statistics, made = calibrated()
    original = test_accuracy(raw_net())
    options = {"config": CONFIG, "seed": 0}
    old = rate_search(lambda lr: fit_views(raw_net(), labels, statistics, made, lr=lr, **options), update=CONFIG.update)
    assert old.kept.lr == min(CONFIG.update.ladder)
    assert old.kept.reached(CONFIG.update.forget_accuracy)
    assert test_accuracy(old.kept.model)[0] < original[0] - 0.3
    retained, forgotten = test_accuracy(made.run.model)
    assert retained > original[0] - 0.02
    assert forgotten < 0.1 < 0.8 < original[1]
    assert made.run.lr < old.kept.lr
    assert made.damage < 0.1
    chosen = made.calibration
    assert not chosen.at_edge
    assert made.trials == ()  # the final run forgot at once
    assert chosen.trial in chosen.trials
    assert chosen.names == statistics.names


def test_held_out_proxies_tell_the_rate_that_overshoots_although_it_forgets():
    labels, statistics, made = calibrated()
    model = raw_net()
    folds = make_folds(model, statistics, labels, subspace=CONFIG.subspace)
    before = reference.state_of(model)
    overshot = attempt(
        model,
        statistics.views.images,
        labels[statistics.views.sources],
        folds=folds,
        relabel=made.relabel,
        forget=(FORGET,),
        layers="all",
        names=statistics.names,
        update=replace(CONFIG.update, lr=0.3),
        seed=0,
    )
    reference.assert_same_state(before, reference.state_of(model))
    chosen = made.calibration.trial
    assert (chosen.forgot, chosen.layers, chosen.lr) == (True, made.calibration.layers, made.run.lr)
    assert chosen.drift < 0.1
    assert overshot.drift is None or overshot.drift > 10 * chosen.drift


def test_every_layer_is_reported_with_what_it_leaks_and_what_is_free():
    labels, statistics, made = calibrated()
    folds = make_folds(raw_net(), statistics, labels, subspace=CONFIG.subspace)
    leaks, shares = (
        [free_shares(raw_net(), part, fold.project) for part, fold in zip(parts, folds, strict=True)]
        for parts in ([fold.barely for fold in folds], [fold.unseen for fold in folds])
    )
    assert [layer.name for layer in made.layers] == list(statistics.names) == ["2.weight", "4.weight", "6.weight"]
    assert [layer.dimension for layer in made.layers] == [64, 40, 24]
    for layer in made.layers:
        assert layer.moved
        assert layer.free == free_dimension(made.project)[layer.name] < layer.dimension
        assert layer.leak == pytest.approx(sum(one[layer.name] for one in leaks) / 2)
        assert layer.free_share == pytest.approx(sum(one[layer.name] for one in shares) / 2)
        assert 0 <= layer.leak <= 1
    assert leaks != shares


# ---- What is fixed


def run(model=None, *, config=QUICK, **options):
    images, labels = forget_set()
    return zero_shot_unlearn(model or raw_net(), images, labels, config=config, **options)


def options(**changes):
    return replace(QUICK, update=replace(QUICK.update, **changes))


def test_a_rate_of_the_users_is_the_only_one_for_every_choice_of_layers(monkeypatch):
    monkeypatch.setattr("zspag.calibration.open_search.HARMLESS", -1.0)
    report = run(config=options(layers="auto")).report
    assert [(trial.layers, trial.lr) for trial in report.tried] == [("all", 0.1), ("body", 0.1), ("head", 0.1)]
    assert report.lr == 0.1
    assert not report.at_edge


@pytest.mark.parametrize(
    ("layers", "moved"),
    [("all", {"2.weight", "4.weight", "6.weight"}), ("body", {"2.weight", "4.weight"}), ("head", {"6.weight"})],
)
@pytest.mark.filterwarnings("ignore:retained classes may have lost")  # a net that learned next to nothing
def test_layers_of_the_users_choice_move_and_no_others(layers, moved):
    result = run(config=options(layers=layers, epochs=1, forget_accuracy=0.99))
    assert changed_names(raw_net(), result.open_model) == moved
    assert result.report.chosen == layers
    assert {trial.layers for trial in result.report.tried} == {layers}
    assert result.report.free_dimension.keys() == moved
    assert result.report.frozen.keys() == {"2.weight", "4.weight", "6.weight"} - moved


class Partly(nn.Module):
    """An embedding that cannot be projected, a scalar (which no table lists), and three layers."""

    def __init__(self):
        super().__init__()
        self.body = mlp_of_digits()[:4]
        self.position = nn.Parameter(0.01 * torch.randn(1, 40))
        self.middle, self.head = nn.Linear(40, 24), nn.Linear(24, CLASSES)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.scale * self.head(torch.relu(self.middle(self.body(x) + self.position)))


@pytest.mark.filterwarnings("ignore:not reached")
def test_frozen_weights_stay_bit_for_bit_and_are_named():
    model = trained(Partly)
    model.body.requires_grad_(False)
    result = run(model)
    frozen = result.report.frozen
    assert frozen.keys() == {"body.1.weight", "position"}
    assert "used by add" in frozen["position"]
    assert "requires_grad=False" in frozen["body.1.weight"]
    assert changed_names(model, result.open_model) == {"middle.weight", "head.weight"}
    assert result.report.free_dimension.keys() == {"middle.weight", "head.weight"}
    free = run(trained(Partly))
    assert changed_names(model, free.open_model) == {"body.1.weight", "middle.weight", "head.weight"}


def test_reasons_of_the_caller_freeze_too_and_only_leaves_no_choice():
    labels, statistics, _ = calibrated()
    common = {"forget": (FORGET,), "config": QUICK, "seed": 0}
    made = unlearn_with(raw_net(), labels, statistics, **common, frozen={"4.weight": "asked for"})
    assert changed_names(raw_net(), made.run.model) == {"2.weight", "6.weight"}
    assert [layer.reason for layer in made.layers if not layer.moved] == ["asked for"]
    only = unlearn_with(raw_net(), labels, statistics, **common, only=["4.weight"])
    assert changed_names(raw_net(), only.run.model) == {"4.weight"}
    with pytest.raises(
        ValueError, match=r"every weight is frozen \(2.weight: a; 4.weight: b; 6.weight: c\): free some"
    ):
        unlearn_with(
            raw_net(), labels, statistics, **common, frozen={"2.weight": "a", "4.weight": "b", "6.weight": "c"}
        )


# ---- What goes wrong


def test_where_every_rate_ruins_the_model_it_comes_back_silenced_and_not_reached(monkeypatch):
    def fit(*parts, update, **rest):
        return fit_labels(*parts, update=replace(update, lr=update.lr * 1e30), **rest)

    for module in (cross_fitting, trials):
        monkeypatch.setattr(module, "fit_labels", fit)
    with pytest.warns(UserWarning, match="not reached: every rate made the weights infinite"):
        result = run(config=options(lr=None))
    report = result.report
    assert changed_names(raw_net(), result.open_model) == set()
    assert changed_names(raw_net(), result.model) == {"6.weight", "6.bias"}
    assert not unsound(result.model)
    assert (report.reached, report.silenced, report.at_edge) == (False, True, True)
    assert all((trial.forget_accuracy, trial.drift, trial.forgot) == (None, None, False) for trial in report.tried)
    assert min(trial.lr for trial in report.tried) == rate_at(SMALLEST)
    assert report.drift is None
    assert "NO" in str(report)
    images, _ = forget_set()
    assert not (result.model(images).argmax(1) == FORGET).any()
    assert (result.open_model(images).argmax(1) == FORGET).double().mean() == report.forget_accuracy > 0.9


@pytest.mark.parametrize(
    ("net", "lr"), [("no norm", 1e6), ("no norm", 1e38), pytest.param("batch norm", 1e6, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:not reached")
def test_a_huge_rate_of_the_users_never_makes_weights_that_are_not_finite(net, lr):
    model = raw_net() if net == "no norm" else trained(normed_net, nn.BatchNorm2d)
    result = run(model, config=options(lr=lr))
    assert not unsound(result.model)
    assert not unsound(result.open_model)
    assert result.report.lr == lr
    images, _ = forget_set()
    assert result.model(images).isfinite().all()
    if net == "no norm":
        assert not result.report.reached
        assert changed_names(model, result.open_model) == set()


# ---- Forgotten where fitted, recognized where not


def one_pixel_each(*, common=False):
    """Eight images of class 0 that share nothing, and a model that knows each by a pixel of its own.

    Only the first weight may move, and a step on one image changes the answer to that image alone. With ``common``,
    the images differ in brightness only.
    """
    body, head = nn.Linear(20, 20, bias=False), nn.Linear(20, 3)
    turn = torch.linalg.qr(torch.randn(20, 20)).Q
    blocks = 4.0 * torch.block_diag(torch.ones(1, 8), torch.ones(1, 6), torch.ones(1, 6))
    with torch.no_grad():
        body.weight.copy_(turn)
        head.weight.copy_(blocks @ turn.T)
        head.bias.zero_()
    head.requires_grad_(False)
    images = torch.eye(20)[[0] * 8] * torch.linspace(0.8, 1, 8)[:, None] if common else torch.eye(20)[:8]
    return nn.Sequential(nn.Flatten(), body, head), images.view(8, 1, 4, 5)


ALONE = UnlearnConfig(
    proxies=ProxyConfig(eps=1.0, norm="linf", random_start=False, steps=5, per_class=8),
    update=UpdateConfig(batch_size=8, min_steps=4),
    views=1,
)


def test_not_reached_where_held_out_samples_are_recognized_though_the_fitted_ones_are_not():
    model, images = one_pixel_each()
    with pytest.warns(UserWarning, match="not reached: .* 100 % of held-out forget samples were still recognized"):
        report = zero_shot_unlearn(model, images, 0, config=ALONE).report
    assert report.forget_accuracy == 0
    assert report.unseen_accuracy == 1
    assert any(trial.forgot for trial in report.tried)
    assert not report.reached
    alike, images = one_pixel_each(common=True)  # the control: these images have something in common
    report = zero_shot_unlearn(alike, images, 0, config=ALONE).report
    assert (report.forget_accuracy, report.unseen_accuracy, report.reached) == (0, 0, True)


@pytest.mark.filterwarnings("ignore:retained classes may have lost")  # a net that learned next to nothing
def test_a_trial_fits_no_more_than_its_share_of_views(monkeypatch):
    seen = []
    for module in (cross_fitting, trials):
        monkeypatch.setattr(module, "fit_labels", lambda *a, **k: seen.append(len(a[1])) or fit_labels(*a, **k))
    monkeypatch.setattr(verdict, "RUINOUS", math.inf)  # one epoch of an untrained net
    run(config=replace(options(epochs=1, forget_accuracy=0.99), views=20 * 20))
    *tried, final = seen
    assert tried == [FITTED, FITTED]
    assert final > 2 * FITTED  # the final run fits them all
