"""One forward-mode product gives what n * K gradients give, and what one tiny step measures, sign included."""

import copy

import pytest
import reference
import torch
from torch import nn

from zspag.influence import (
    Kfac,
    add,
    conjugate_gradients,
    dot,
    gauss_newton_product,
    kfac_factors,
    label_scores,
    logit_derivatives,
    loss_gradient,
    soft_cross_entropy,
    weights_of,
)
from zspag.subspaces import second_moments

N, CLASSES = 6, 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def grouped():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6, CLASSES),
    )


def attending():
    return reference.Attending(channels=4, classes=CLASSES)


NETS = {"grouped convolution": grouped, "attention": attending}


def build(make):
    """Return a model in training mode, its images, and the names of the weights that may move."""
    model = make().double().train()
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    return model, torch.rand(N, 4, 4, 4, dtype=torch.float64), names


def direction_of(model, names):
    return {name: randn(*weight.shape) for name, weight in weights_of(model, names).items()}


def soft_labels(count=N, classes=CLASSES):
    return randn(count, classes).softmax(1)


# ---- Gradients and scores


@pytest.mark.parametrize("case", NETS)
def test_the_loss_gradient_is_that_of_the_mean_loss_in_eval_mode(case, monkeypatch):
    model, images, names = build(NETS[case])
    labels = soft_labels()
    monkeypatch.setattr("zspag.runtime.CHUNK", 4)
    before = reference.state_of(model)
    found = loss_gradient(model, images, labels, names=names)
    reference.assert_same_state(before, reference.state_of(model))
    expected = reference.gradient(model, soft_cross_entropy(model.eval()(images), labels), names)
    torch.testing.assert_close(reference.dense(found), expected)
    logits = randn(N, CLASSES)
    torch.testing.assert_close(soft_cross_entropy(logits, labels), nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("case", NETS)
def test_scores_are_those_of_one_gradient_per_sample_and_class(case, monkeypatch):
    model, images, names = build(NETS[case])
    direction = direction_of(model, names)
    monkeypatch.setattr("zspag.runtime.CHUNK", 4)
    before = reference.state_of(model)
    found = label_scores(model, images, direction)
    reference.assert_same_state(before, reference.state_of(model))
    expected = reference.label_scores(model.eval(), images, direction)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, expected.flip(0))
    q = soft_labels()  # scores are linear in the label
    gradient = loss_gradient(model, images[:1], q[:1], names=names)
    assert dot(direction, gradient) == pytest.approx((q[0] @ found[0]).item())


class Restored(nn.Module):
    """Pools and puts every maximum back where it was."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, images):
        maxima, places = nn.functional.max_pool2d(self.conv(images), 2, return_indices=True)
        return nn.functional.max_unpool2d(maxima, places, 2)


LAYERS = {
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, padding=1, groups=2, bias=False), randn(N, 4, 5)),
    "conv2d, twice": lambda: (
        nn.Sequential(nn.Conv2d(3, 3, 3, padding="same"), nn.Tanh(), nn.Conv2d(3, 4, 2)),
        randn(N, 3, 4, 5),
    ),
    "conv3d": lambda: (nn.Conv3d(2, 3, 2, dilation=(1, 2, 1)), randn(N, 2, 3, 4, 3)),
    "batch norm": lambda: (nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, eps=0.1), nn.ReLU()), randn(N, 3, 4, 5)),
    "plain batch norm": lambda: (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False)), randn(N, 5)),
    "max pooling": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.MaxPool2d((2, 1), 1)),
        randn(N, 3, 6, 7).contiguous(memory_format=torch.channels_last),
    ),
    "max pooling and back": lambda: (Restored(), randn(N, 3, 4, 6)),
    "statistics of the batch": lambda: (
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        randn(N, 5),
    ),
}


@pytest.mark.parametrize("everything", [False, True], ids=["weights move", "biases and scales too"])
@pytest.mark.parametrize("case", LAYERS)
def test_derivatives_through_every_layer_are_those_of_torchs_own_forward_mode(case, everything):
    layer, inputs = LAYERS[case]()
    layer = nn.Sequential(layer, nn.Flatten()).double()
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.copy_(randn(*buffer.shape).abs() + 0.5)
    names = [name for name, parameter in layer.named_parameters() if everything or parameter.dim() > 1]
    direction, weights = direction_of(layer, names), weights_of(layer, names)
    with torch.no_grad():
        expected = torch.func.jvp(
            lambda moved: torch.func.functional_call(layer.eval(), moved, (inputs,)), (weights,), (direction,)
        )
    found = logit_derivatives(layer, inputs, direction)
    torch.testing.assert_close(found, expected)
    assert found[1].abs().max() > 0.1


def test_a_direction_of_nothing_has_derivative_zero():
    model, images, _ = build(grouped)
    logits, tangents = logit_derivatives(model, images, {})
    assert tangents.shape == logits.shape
    assert not tangents.any()


@pytest.mark.parametrize("case", NETS)
def test_a_score_is_the_measured_decrease_of_the_retained_loss_after_one_tiny_step(case):
    model, images, names = build(NETS[case])
    retained, labels = torch.rand(5, 4, 4, 4, dtype=torch.float64), soft_labels(5)
    scores = label_scores(model, images, loss_gradient(model, retained, labels, names=names))
    model.eval()
    step, measured = 1e-6, torch.empty(N, CLASSES, dtype=torch.float64)
    before = soft_cross_entropy(model(retained), labels).item()
    for i in range(N):
        for k in range(CLASSES):
            moved = copy.deepcopy(model)
            gradient = loss_gradient(moved, images[i : i + 1], torch.eye(CLASSES).double()[k : k + 1], names=names)
            with torch.no_grad():
                for name, weight in moved.named_parameters():
                    if name in gradient:
                        weight -= step * gradient[name]
            measured[i, k] = (before - soft_cross_entropy(moved(retained), labels).item()) / step
    torch.testing.assert_close(scores, measured, rtol=1e-3, atol=1e-6)
    assert (scores > 0).any()
    assert (scores < 0).any()


def test_a_layer_that_does_not_reach_the_logits_has_gradient_zero():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.extra = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            self.extra(x)
            return self.main(x)

    model = Auxiliary().double()
    images, names = randn(N, 4), ["main.weight", "extra.weight"]
    gradient = loss_gradient(model, images, soft_labels(N, 3), names=names)
    assert gradient["main.weight"].abs().max() > 0
    assert not gradient["extra.weight"].any()
    moments = second_moments(model, images)
    factors = kfac_factors(model, images, second=moments.second, rows_per_sample=moments.rows_per_sample)
    assert not factors.solve(gradient, damping=0.1)["extra.weight"].any()


# ---- Curvature


@pytest.mark.parametrize("squared_loss", [False, True])
@pytest.mark.parametrize("case", NETS)
def test_gauss_newton_products_are_those_of_the_dense_matrix(case, squared_loss, monkeypatch):
    model, images, names = build(NETS[case])
    monkeypatch.setattr("zspag.runtime.CHUNK", 4)
    before = reference.state_of(model)
    direction = direction_of(model, names)
    found = gauss_newton_product(model, images, direction, damping=0.3, squared_loss=squared_loss)
    reference.assert_same_state(before, reference.state_of(model))
    matrix = reference.gauss_newton(model.eval(), images, names, squared_loss=squared_loss)
    v = reference.dense(direction)
    torch.testing.assert_close(reference.dense(found), matrix @ v + 0.3 * v)
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() > -1e-12 * values.max()


def test_gauss_newton_is_positive_where_the_exact_hessian_is_not():
    model, images, names = build(attending)
    model.eval()
    labels = torch.eye(CLASSES).double()[torch.arange(N) % CLASSES]

    def gradient_at(vector):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, piece in reference.undense(vector, weights_of(model, names)).items():
                dict(moved.named_parameters())[name].copy_(piece)
        return reference.dense(loss_gradient(moved, images, labels, names=names))

    here = reference.dense(weights_of(model, names))
    unit = torch.eye(len(here), dtype=torch.float64)
    hessian = torch.stack([(gradient_at(here + 1e-5 * e) - gradient_at(here - 1e-5 * e)) / 2e-5 for e in unit])
    assert torch.linalg.eigvalsh((hessian + hessian.T) / 2).min() < -1e-4
    for _ in range(20):
        v = direction_of(model, names)
        assert dot(v, gauss_newton_product(model, images, v, damping=0.0)) >= 0


def test_conjugate_gradients_solve_the_dense_system():
    model, images, names = build(grouped)
    target = direction_of(model, names)
    found = conjugate_gradients(
        lambda v: gauss_newton_product(model, images, v, damping=0.1), target, iterations=200, tolerance=1e-12
    )
    matrix = reference.gauss_newton(model.eval(), images, names, squared_loss=False)
    damped = matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64)
    expected = torch.linalg.solve(damped, reference.dense(target))
    torch.testing.assert_close(reference.dense(found), expected)
    few = conjugate_gradients(lambda v: gauss_newton_product(model, images, v, damping=0.1), target, iterations=1)
    assert not torch.allclose(reference.dense(few), expected)


def test_conjugate_gradients_stop_when_the_residual_is_small_enough():
    calls = []

    def product(v):
        calls.append(v)
        return {"w": torch.tensor([1.0, 2.0, 4.0, 8.0]).double() * v["w"]}

    target = {"w": randn(4)}
    loose = conjugate_gradients(product, target, iterations=50, tolerance=0.5)
    few = len(calls)
    exact = conjugate_gradients(product, target, iterations=50)
    assert few < len(calls) - few <= 6
    assert dot(add(target, product(loose), -1.0), add(target, product(loose), -1.0)) <= 0.25 * dot(target, target)
    torch.testing.assert_close(product(exact), target)
    assert not conjugate_gradients(product, {"w": torch.zeros(4).double()}, iterations=5)["w"].any()


# ---- K-FAC


@pytest.mark.parametrize("squared_loss", [True, False])
def test_kfac_is_exact_for_a_linear_model_under_squared_loss_and_only_near_under_cross_entropy(squared_loss):
    model, images, damping = nn.Sequential(nn.Linear(7, 4)).double(), 2 * randn(9, 7), 0.2
    moments = second_moments(model, images)
    factors = kfac_factors(
        model, images, second=moments.second, rows_per_sample=moments.rows_per_sample, squared_loss=squared_loss
    )
    target = direction_of(model, ["0.weight"])
    matrix = reference.gauss_newton(model, images, ["0.weight"], squared_loss=squared_loss)
    damped = matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
    expected = torch.linalg.solve(damped, reference.dense(target))
    found = reference.dense(factors.solve(target, damping=damping))
    assert torch.allclose(found, expected) == squared_loss
    assert nn.functional.cosine_similarity(found, expected, dim=0) > 0.7


def test_damping_of_kfac_is_relative_to_the_mean_diagonal():
    inputs, outputs = torch.eye(3).double()[None] * 4, torch.eye(2).double()[None] * 5
    direction = {"w": randn(2, 3)}
    for scale in (1.0, 100.0):
        solved = Kfac({"w": scale * inputs}, {"w": outputs}).solve(direction, damping=0.25)
        torch.testing.assert_close(solved["w"], direction["w"] / (20 * scale * 1.25))


@pytest.mark.parametrize("make", [grouped, lambda: nn.Sequential(nn.Conv2d(4, 6, 2), nn.Flatten(), nn.Linear(54, 4))])
def test_output_factors_are_those_of_one_backward_pass_per_sample_and_class(make):
    """In-place activations must not change what the outputs stand for, and groups keep factors of their own."""
    model, images, names = build(make)
    moments = second_moments(model, images)
    factors = kfac_factors(model, images, second=moments.second, rows_per_sample=moments.rows_per_sample)
    model.eval()
    layer, blocks = model[0], len(moments.second["0.weight"])
    sums = torch.zeros(blocks, 6 // blocks, 6 // blocks, dtype=torch.float64)
    rows = 0
    for image in images:
        layer_out = layer(image[None]).detach().requires_grad_()
        logits = model[1:](layer_out.clone())[0]
        p = logits.softmax(0).detach()
        for k in range(CLASSES):
            root = p[k].sqrt() * (torch.eye(CLASSES).double()[k] - p)
            (g,) = torch.autograd.grad(logits @ root, layer_out, retain_graph=True)
            per_block = g[0].flatten(1).T.reshape(-1, blocks, 6 // blocks)  # (positions, blocks, width)
            sums += torch.einsum("pbi,pbj->bij", per_block, per_block)
        rows += layer_out[0, 0].numel()
    torch.testing.assert_close(factors.outputs["0.weight"], sums / rows)
    torch.testing.assert_close(factors.inputs["0.weight"], moments.second["0.weight"] * rows / N)


def test_kfac_solves_for_every_weight_of_a_net_with_attention():
    model, images, names = build(attending)
    moments = second_moments(model, images)
    before = reference.state_of(model)
    factors = kfac_factors(model, images, second=moments.second, rows_per_sample=moments.rows_per_sample)
    reference.assert_same_state(before, reference.state_of(model))
    direction = direction_of(model, names)
    solved = factors.solve(direction, damping=0.1)
    assert {name: part.shape for name, part in solved.items()} == {name: v.shape for name, v in direction.items()}
    assert dot(direction, solved) > 0
    width = factors.outputs["attention.in_proj_weight"]
    assert torch.equal(width, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))  # outputs inside attention are hidden
