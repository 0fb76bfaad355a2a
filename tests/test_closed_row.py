"""No input reaches a closed row, rounding included; every head that is not the last step is left, by name."""

import copy
import re

import pytest
import torch
from external_nets import digits, mlp, trained
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from tests import reference
from zspag.heads import closed_row
from zspag.heads.closed_row import close_rows, original_row_closed
from zspag.heads.head import NoHeadError, features_and_logits, find_head, head_inputs, logits_under_head
from zspag.lab.evaluation import Masked

N, D, K = 23, 13, 7
GONE = (4, 0)  # 0 is what argmax says of a tie
KEPT = [label for label in range(K) if label not in GONE]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def linear(*, width=D, kind=torch.float32, scale=1.0):
    """Return a model whose features are its images: any features, of any sign, can be put in."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(width, K)).to(kind)
    net[1].weight.data.copy_(torch.randn(K, width) * scale)
    net[1].weight.data[:, 0] = scale  # on one feature all classes agree
    net[1].bias.data.copy_(torch.randn(K) * scale)
    return net


def hidden(net, features):
    """Return answers of the original without the classes GONE."""
    logits = net(features)
    logits[:, list(GONE)] = -torch.inf
    return logits.argmax(1)


def near_ties(net, lengths):
    """Return features of which only the one on which all classes agree is large: there rounding has the most to say."""
    features = torch.zeros(len(lengths), net[1].in_features, dtype=torch.float64)
    features[:, 0] = lengths / net[1].weight[0, 0].abs().double() * torch.randn(len(lengths)).sign()
    return features


def sizes(net, features):
    weight, bias = net[1].weight[KEPT].double(), net[1].bias[KEPT].double()
    return (features.double().abs() @ weight.abs().T + bias.abs()).amax(1)


# ---- the theorem


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_no_features_of_any_sign_within_reach_are_answered_with_a_closed_class(kind, scale):
    net, images = linear(kind=kind, scale=scale), torch.rand(N, 1, 1, D).to(kind)
    found = close_rows(net, GONE, images=images)
    assert (found.closed, found.reason, found.head) == (True, "", "1.weight")
    assert found.reach > (98 if kind != torch.float16 or scale < 300 else 20)  # there logits overflow first
    largest = sizes(net, images.flatten(1)).max()
    wanted = largest * torch.logspace(-3, 1.99, 4000, dtype=torch.float64)  # of the sizes; the reach is about 100
    random = torch.randn(4000, D, dtype=torch.float64)
    features = torch.cat([random * (wanted / sizes(net, random))[:, None], near_ties(net, wanted)]).to(kind)
    features = features[sizes(net, features) <= found.reach * largest]
    assert len(features) > 3000
    answers = found.model(features[:, None, None]).argmax(1)
    assert not set(answers.tolist()) & set(GONE)
    assert torch.equal(answers, hidden(net, features[:, None, None]))
    assert set(net(features[:, None, None]).argmax(1).tolist()) >= set(GONE)  # the open rows are reached


@torch.no_grad()
def test_in_bfloat16_at_a_large_scale_a_gap_of_one_is_not_enough(monkeypatch):
    net, images = linear(kind=torch.bfloat16, scale=300.0), torch.rand(N, 1, 1, D, dtype=torch.bfloat16)
    net[1].bias *= 0.001
    features = near_ties(net, torch.linspace(300, 3000, 1000)).bfloat16()[:, None, None]
    enough = close_rows(net, GONE, images=images)
    assert not set(enough.model(features).argmax(1).tolist()) & set(GONE)
    monkeypatch.setattr(closed_row, "_rounding", lambda kind, terms: 1e-9)
    found = close_rows(net, GONE, images=images)
    assert found.gap == 1
    assert set(found.model(features).argmax(1).tolist()) & set(GONE)


@torch.no_grad()
def test_far_beyond_its_reach_rounding_decides():
    net, images = linear(), torch.rand(N, 1, 1, D)
    found = close_rows(net, GONE, images=images)
    features = near_ties(net, torch.full((9,), 1e4 * found.reach)).float()
    assert set(found.model(features[:, None, None]).argmax(1).tolist()) & set(GONE)


@torch.no_grad()
def test_a_float32_model_stays_closed_under_autocast():
    net, images = linear(width=300, scale=5.0), torch.rand(N, 1, 1, 300)
    found = close_rows(net, GONE, images=images)
    features = near_ties(net, sizes(net, images.flatten(1)).max() * torch.linspace(0, 3, 2000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = found.model(features.float()[:, None, None]).argmax(1)
    assert not set(answers.tolist()) & set(GONE)


@torch.no_grad()
def test_a_lowered_bias_alone_is_reached_by_some_features():
    net = linear()
    lowered = copy.deepcopy(net)
    lowered[1].bias[list(GONE)] -= 30
    features = 100 * torch.randn(1000, 1, 1, D)
    assert set(lowered(features).argmax(1).tolist()) & set(GONE)
    found = close_rows(net, GONE, images=features / 100)
    assert not set(found.model(features).argmax(1).tolist()) & set(GONE)


@torch.no_grad()
def test_of_two_requests_the_second_must_close_the_first_class_again():
    net, images = linear(), torch.rand(N, 1, 1, D)
    first = close_rows(net, [4], images=images).model
    alone, together = (close_rows(first, gone, images=images) for gone in ([6], [4, 6]))
    crafted = 50 * (net[1].weight[6] + 0.3 * torch.randn(2000, D))[:, None, None]  # what class 6 was known by
    answers = alone.model(crafted).argmax(1)
    assert (answers == 4).double().mean() > 0.2  # class 6 lives on in row 4
    assert not (answers == 6).any()
    assert not set(together.model(crafted).argmax(1).tolist()) & {4, 6}
    weight, bias = together.model[1].weight, together.model[1].bias
    kept = [0, 1, 2, 3, 5]
    for row in (4, 6):
        torch.testing.assert_close(weight[row], weight[kept].mean(0))
        torch.testing.assert_close(bias[row], bias[kept].mean() - together.gap)
    assert together.gap == pytest.approx(close_rows(net, [6, 4], images=images).gap)  # it does not grow by itself


@torch.no_grad()
def test_all_classes_but_one_leave_that_one():
    net, features = linear(), torch.randn(500, 1, 1, D)
    found = close_rows(net, range(1, K), images=features)
    assert found.model(features).argmax(1).unique().tolist() == [0]


@torch.no_grad()
def test_retained_rows_and_everything_else_stay_bit_for_bit():
    net, images = linear(), torch.rand(N, 1, 1, D)
    found = close_rows(net, GONE, images=images)
    assert torch.equal(found.model(images)[:, KEPT], net(images)[:, KEPT])
    assert torch.equal(found.model[1].weight[KEPT], net[1].weight[KEPT])
    assert not torch.equal(found.model[1].weight, net[1].weight)


def test_the_model_passed_in_and_the_images_are_given_back_untouched():
    class InPlace(nn.Module):
        def forward(self, images):
            return images.sub_(0.5)

    net = nn.Sequential(InPlace(), nn.Flatten(), nn.Linear(D, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, K)).train()
    net[3].eval()
    net[2].weight.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    images = torch.rand(N, 1, 1, D)
    before, state = images.clone(), reference.state_of(net)
    found = close_rows(net, GONE, images=images)
    assert found.closed
    reference.assert_same_state(state, reference.state_of(net))
    assert torch.equal(images, before)
    assert [part.training for part in found.model.modules()] == [part.training for part in net.modules()]
    assert [p.requires_grad for p in found.model.parameters()] == [p.requires_grad for p in net.parameters()]


# ---- which layer is the head


class Odd(nn.Module):
    """Pixels are the features; ``ways`` lead from them to the logits."""

    def __init__(self, way, **parts):
        super().__init__()
        self.way = way
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images):
        return self.way(self, images.flatten(1))


def tokens(x):
    return torch.stack([x, x.roll(1, 1), x.square()], 1)  # (n, 3, D)


def maps(x):
    return tokens(x).transpose(1, 2)[..., None]  # (n, D, 3, 1)


def auxiliary(self, x):
    logits = self.head(x)
    self.other(x)  # executed last, of the same shape, and nobody reads it
    return logits


def head(way, **parts):
    """Return a model with a linear head, unless ``parts`` bring another one."""
    return Odd(way, **({"head": nn.Linear(D, K)} | parts))


def bare(self, x):
    return F.linear(x, self.head, bias=self.shift)


ROWS, SHIFT = nn.Parameter(torch.randn(K, D)), nn.Parameter(torch.randn(K))
MAPPED = nn.Conv2d(D, K, (2, 1), padding=(1, 0))
CLOSABLE = {
    "registered last is not executed last": head(
        lambda self, x: self.head(self.body(x)), head=nn.Linear(K, K), body=nn.Linear(D, K)
    ),
    "auxiliary head executed last": head(auxiliary, other=nn.Linear(D, K)),
    "one token of many": head(lambda self, x: self.head(tokens(x))[:, 1]),
    "mean of tokens": head(lambda self, x: self.head(tokens(x)).mean(1)),
    "tokens first": head(lambda self, x: self.head(tokens(x).transpose(0, 1)).mean(0)),
    "mean of a convolution's maps": head(lambda self, x: self.head(maps(x)).mean((2, 3)), head=MAPPED),
    "log-softmax": head(lambda self, x: self.head(x).log_softmax(1)),
    "normed features": head(lambda self, x: self.head(F.normalize(x, dim=1))),
    "bare parameters": head(bare, head=ROWS, shift=SHIFT),
    "dropout and a cast after it": head(lambda self, x: self.drop(self.head(x)).double(), drop=nn.Dropout(0.5)),
}


@pytest.mark.parametrize("name", CLOSABLE)
@torch.no_grad()
def test_a_head_that_gives_the_logits_is_found_however_it_is_called(name):
    net = copy.deepcopy(CLOSABLE[name]).eval()
    images = torch.randn(N, 1, 1, D)
    found = close_rows(net, GONE, images=images)
    assert (found.closed, found.reason) == (True, "")
    assert found.head == ("head" if name == "bare parameters" else "head.weight")
    features = torch.cat([torch.randn(3000, 1, 1, D), 50 * torch.randn(3000, 1, 1, D)])
    answers = found.model(features).argmax(1)
    assert not set(answers.tolist()) & set(GONE)
    assert torch.equal(answers, hidden(net, features))
    assert set(net(features).argmax(1).tolist()) & set(GONE)


def pruned():
    layer = nn.Linear(D, K).requires_grad_(False)  # or the masked weight cannot be copied
    prune.random_unstructured(layer, "weight", 0.3)
    return layer


def frozen():
    layer = nn.Linear(D, K)
    layer.weight.requires_grad_(False)
    return layer


def averaged(self, x):
    return (self.head(x) + self.other(x)) / 2


def normed_rows(self, x):
    return F.linear(F.normalize(x), F.normalize(self.head.weight), self.head.bias)


def grouped(self, x):
    return self.head(torch.cat([maps(x), maps(x)[:, :1]], 1)).mean((2, 3))


def together(self, x):
    return self.head(x[:3]).mean(0, keepdim=True).expand(len(x), -1)


def plain(self, x):
    return self.head(x)


CHANGED, NO_BIAS = "changed before they are returned", nn.Linear(D, K, bias=False)
LEFT = {
    "no bias": (head(plain, head=NO_BIAS), "has no bias"),
    "bias added later": (head(lambda self, x: self.head(x) + self.shift, head=NO_BIAS, shift=SHIFT), CHANGED),
    "scaled": (head(lambda self, x: 3 * self.head(x)), CHANGED),
    "capped": (head(lambda self, x: 30 * (self.head(x) / 30).tanh()), CHANGED),
    "clamp that does not act on these images": (head(lambda self, x: self.head(x).clamp(-1000, 1000)), CHANGED),
    "rectified": (head(lambda self, x: self.head(maps(x)).relu().mean((2, 3)), head=nn.Conv2d(D, K, 1)), CHANGED),
    "masked": (Masked(nn.Sequential(nn.Flatten(), nn.Linear(D, K)), forget=(1,), num_classes=K), CHANGED),
    "mean of two heads": (head(averaged, other=nn.Linear(D, K)), CHANGED),
    "rows of all images together": (head(together), CHANGED),
    "a choice of outputs": (head(lambda self, x: self.head(x)[:, :K], head=nn.Linear(D, K + 2)), "9 outputs are not"),
    "grouped": (head(grouped, head=nn.Conv2d(D + 1, K, 1, groups=7)), "7 outputs are not the 7 logits"),
    "normed rows": (head(normed_rows), "weight is no parameter"),
    "parametrized": (head(plain, head=parametrizations.weight_norm(nn.Linear(D, K))), "weight is no parameter"),
    "pruned": (head(plain, head=pruned()), "weight is no parameter"),
    "computed bias": (head(lambda self, x: F.linear(x, self.head.weight, self.head.bias * 2)), "bias is no parameter"),
    "tied": (head(lambda self, x: self.head(x + self.head.weight.mean(0))), "used elsewhere"),
    "used twice": (head(lambda self, x: self.head(self.head(x)), head=nn.Linear(K, K)), "used elsewhere"),
    "frozen": (head(plain, head=frozen()), "is frozen"),
    "matmul": (head(lambda self, x: x @ self.head.weight.T + self.head.bias), "on no linear layer or convolution"),
    "dictionary": (head(lambda self, x: {"logits": self.head(x)}), "returns dict, not a tensor"),
    "maps": (head(lambda self, x: self.head(tokens(x))), r"returns shape \(5, 3, 7\)"),
}


@pytest.mark.parametrize("name", LEFT)
def test_every_other_head_is_left_by_name_and_the_copy_is_unchanged(name):
    net, reason = LEFT[name]
    net, width = net.eval(), K if name == "used twice" else D
    found = close_rows(net, GONE, images=torch.rand(N, 1, 1, width))
    assert (found.closed, found.gap, found.reach) == (False, 0.0, 0.0)
    pytest.raises(ValueError, original_row_closed, net, GONE, images=torch.rand(N, 1, 1, width)).match(reason)
    before, after = net.state_dict(), found.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("weight", "reason"), [(1e4, "leave no room for a gap .*float16"), (torch.nan, "size nan")])
def test_a_type_without_room_for_the_gap_and_a_ruined_model_are_left(weight, reason):
    net = linear(kind=torch.float16)
    net[1].weight.data[1:3] *= weight
    found = close_rows(net, GONE, images=torch.rand(N, 1, 1, D, dtype=torch.float16))
    assert not found.closed
    assert re.search(reason, found.reason)


@pytest.mark.parametrize("classes", [[], [K], [-1, 2], list(range(K))])
def test_classes_that_cannot_be_closed_are_said(classes):
    with pytest.raises(ValueError, match=r"some, and not all, of 0\.\.6, got \["):
        close_rows(linear(), classes, images=torch.rand(N, 1, 1, D))


# ---- features, and the head of another model


@pytest.mark.parametrize(
    "name", ["one token of many", "mean of tokens", "tokens first", "mean of a convolution's maps"]
)
@torch.no_grad()
def test_features_are_one_row_per_image_whatever_the_layout(name):
    net, images = CLOSABLE[name], torch.randn(N, 1, 1, D)
    features = head_inputs(net, images, find_head(net, images))
    wanted = tokens(images.flatten(1)).mean(1)
    torch.testing.assert_close(features, wanted.double())


@pytest.mark.parametrize("name", CLOSABLE)
def test_features_and_logits_of_one_pass_are_those_of_two(name):
    net = copy.deepcopy(CLOSABLE[name]).double().eval()
    images, state = torch.randn(N, 1, 1, D, dtype=torch.float64), reference.state_of(net)
    place = find_head(net, images)
    features, logits = features_and_logits(net, images, place)
    assert torch.equal(logits, net(images))
    torch.testing.assert_close(features, head_inputs(net, images, place), rtol=1e-12, atol=1e-12)
    assert logits.requires_grad
    reference.assert_same_state(state, reference.state_of(net))


def test_gradients_of_features_and_logits_reach_the_body_and_those_of_features_no_further():
    net = Odd(lambda self, x: self.head(self.body(x).relu_()), body=nn.Linear(D, 9), head=nn.Linear(9, K))
    images = torch.randn(N, 1, 1, D)
    features, logits = features_and_logits(net, images, find_head(net, images))
    of_features, of_logits = (
        torch.autograd.grad(one.square().sum(), list(net.parameters()), retain_graph=True, allow_unused=True)
        for one in (features, logits)
    )
    names = [name for name, _ in net.named_parameters()]
    assert {name for name, one in zip(names, of_features, strict=True) if one is not None} == {
        "body.weight",
        "body.bias",
    }
    by_hand = torch.autograd.grad(net.body(images.flatten(1)).relu().square().sum(), list(net.body.parameters()))
    for name, expected in zip(("body.weight", "body.bias"), by_hand, strict=True):
        torch.testing.assert_close(of_features[names.index(name)], expected)
    assert all(one is not None and one.any() for one in of_logits)
    with torch.no_grad():
        assert not features_and_logits(net, images, find_head(net, images))[0].requires_grad


@torch.no_grad()
def test_the_head_put_back_reads_the_features_of_the_other_model():
    original = Odd(
        lambda self, x: 5 * F.linear(F.normalize(self.body(x)), F.normalize(self.head.weight)),
        body=nn.Linear(D, 9),
        head=nn.Linear(9, K),
    )
    changed, both = copy.deepcopy(original), copy.deepcopy(original)
    images = torch.randn(300, 1, 1, D)  # in several batches
    changed.head.weight[:] = torch.randn(K, 9)
    both.head.weight[:] = torch.randn(K, 9)
    both.body.weight += 1
    place = find_head(original, images)
    torch.testing.assert_close(logits_under_head(original, changed, images, place), original(images))
    assert not torch.allclose(logits_under_head(original, both, images, place), original(images))
    original.body.weight += 1
    torch.testing.assert_close(logits_under_head(original, both, images, place), original(images))


def test_a_model_that_is_no_classifier_has_no_head():
    with pytest.raises(NoHeadError, match="depend on no linear layer"):
        find_head(nn.Flatten(), torch.rand(N, 1, 1, D))


# ---- the control of every table


def test_the_untouched_original_with_its_row_closed_forgets_all_and_loses_nothing():
    net, (images, labels) = trained(mlp), digits()
    gone = labels == 3
    control = original_row_closed(net, [3], images=images[gone])
    answers, before = control(images).argmax(1), net(images).argmax(1)
    assert (before[gone] == 3).double().mean() > 0.9
    assert (answers[gone] == 3).double().mean() == 0
    assert torch.equal(answers, Masked(net, forget=(3,), num_classes=10)(images).argmax(1))
    assert (answers[~gone] == labels[~gone]).double().mean() >= (before[~gone] == labels[~gone]).double().mean()


def test_not_even_an_attack_on_the_closed_row_reaches_it():
    net, (images, labels) = trained(mlp), digits()
    control = original_row_closed(net, [3], images=images[labels == 3])
    hits = []
    for model in (net, control):
        moved = torch.rand_like(images).requires_grad_()
        for _ in range(30):
            logits = model(moved)
            (gradient,) = torch.autograd.grad((logits[:, 3] - logits.logsumexp(1)).sum(), moved)
            moved = (moved + 0.1 * gradient.sign()).clamp(0, 1).detach().requires_grad_()
        hits.append((model(moved).argmax(1) == 3).double().mean().item())
    assert hits[0] > 0.9
    assert hits[1] == 0
