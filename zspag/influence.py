"""Influence of a label: how much fitting a forget sample to class k helps or hurts the retained loss.

The gradient of cross-entropy with a soft label q is linear in q. With p_i the model's softmax at x_i and J_i v the
directional derivative of its logits along v,

    s_ik = v^T grad(-log p_k(x_i)) = <p_i, J_i v> - (J_i v)_k

is the first-order *decrease* of the retained loss per unit step when x_i is fitted to label k: positive helps. All K
scores of a batch come from one forward-mode product. Two estimands, not to be mixed: v = P g_r for one projected step,
v = H^-1 g_r for the effect of retraining with that label (Koh and Liang, 2017).

Invariant: directions are dictionaries over parameter names; the model and its ``.grad`` are left alone.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from zspag.activations import Outputs, as_blocks, watching
from zspag.runtime import chunks, frozen, plain_attention
from zspag.speedups.conv_bn import conv_bn_pairs, fuse_conv_bn
from zspag.speedups.forward_mode import FastTangents

Direction = dict[str, Tensor]


def weights_of(model: nn.Module, names: Iterable[str]) -> Direction:
    """Return detached parameters by name."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() for name in names}


@contextmanager
def _differentiable(model: nn.Module) -> Generator[None, None, None]:
    with frozen(model), plain_attention(), warnings.catch_warnings():
        # torch's own forward-mode rules are compiled by torch.jit.script, which torch itself calls deprecated
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        yield


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (n, K) with soft labels (n, K)."""
    return -(labels * logits.log_softmax(1)).sum(1).mean()


def loss_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    names: Iterable[str],
    loss: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
) -> Direction:
    """Return the gradient of the mean loss over (images, labels) with respect to the named weights.

    Args:
        model: The classifier.
        images: Shape (m, C, H, W).
        labels: What ``loss`` expects, first axis m.
        names: Parameter names.
        loss: Maps logits and labels to their mean loss.
    """
    weights = weights_of(model, names)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def share(logits: Tensor, q: Tensor) -> Tensor:
        return loss(logits, q) * (len(q) / len(images))

    _add_gradient_(total, model, images, labels, share)
    return total


def _add_gradient_(
    total: Direction, model: nn.Module, images: Tensor, others: Tensor, share: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Add the gradients, with respect to the weights in ``total``, of ``share(logits, others)`` over all chunks."""
    weights = {name: weight.clone().requires_grad_(True) for name, weight in weights_of(model, total).items()}
    with _differentiable(model):
        for x, other in chunks(images, others):
            value = share(functional_call(model, weights, (x,)), other)
            parts = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
            for name, part in zip(weights, parts, strict=True):
                total[name] += part


def logit_derivatives(model: nn.Module, images: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """Return logits and their directional derivatives J_i v, both (n, K), by forward mode.

    With y = W x the tangent is dy = W dx + (dW) x: three products where a forward pass has one, two in the first layer,
    and about as many passes over the activations as a forward pass has. For many images batch norms are folded, the
    derivative of their convolutions with them.
    """
    parameters, pairs = dict(model.named_parameters()), conv_bn_pairs(model, images, passes=2)
    parts = []
    with _differentiable(model), torch.no_grad(), forward_ad.dual_level():
        weights = weights_of(model, direction)
        duals = {name: forward_ad.make_dual(weight, direction[name]) for name, weight in weights.items()}
        moving: dict[Tensor, Tensor] = {parameters[name]: dual for name, dual in duals.items()}
        with FastTangents(), fuse_conv_bn([pair.called_with(moving) for pair in pairs]):
            for (x,) in chunks(images):
                logits, tangents = forward_ad.unpack_dual(functional_call(model, duals, (x,)))
                parts.append((logits, torch.zeros_like(logits) if tangents is None else tangents))
    logits, tangents = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(tangents)


def label_scores(model: nn.Module, images: Tensor, direction: Direction) -> Tensor:
    """Return s_ik = <p_i, J_i v> - (J_i v)_k for all samples and classes, shape (n, K).

    With v the gradient of a loss, a positive score means that fitting sample i to class k lowers that loss.
    """
    logits, tangents = logit_derivatives(model, images, direction)
    return (logits.softmax(1) * tangents).sum(1, keepdim=True) - tangents


def gauss_newton_product(
    model: nn.Module, images: Tensor, direction: Direction, *, damping: float, squared_loss: bool = False
) -> Direction:
    """Return (G + damping I) v with G the mean of J_i^T H_i J_i over the images.

    H_i is the Hessian of the loss in the logits: diag(p) - p p^T for cross-entropy (G is then the Fisher matrix), I for
    half the squared error. G is positive semidefinite by construction; the exact Hessian is not.
    """
    logits, u = logit_derivatives(model, images, direction)
    if not squared_loss:
        p = logits.softmax(1)
        u = p * u - p * (p * u).sum(1, keepdim=True)
    product = {name: damping * part for name, part in direction.items()}
    _add_gradient_(product, model, images, u, lambda logits, u: (logits * u).sum() / len(images))
    return product


def conjugate_gradients(
    product: Callable[[Direction], Direction], target: Direction, *, iterations: int, tolerance: float = 1e-8
) -> Direction:
    """Solve product(v) = target for a symmetric positive definite product.

    Args:
        product: v -> H v.
        target: Right-hand side.
        iterations: Most steps.
        tolerance: Stops when the residual has this share of the target's norm.
    """
    solution = {name: torch.zeros_like(part) for name, part in target.items()}
    residual, search = dict(target), dict(target)
    norm = goal = inner_product(target, target)
    for _ in range(iterations):
        if bool(norm <= tolerance**2 * goal):  # the one time per step that the host waits for the device
            break
        image = product(search)
        step = norm / inner_product(search, image)
        solution = add(solution, search, step)
        residual = add(residual, image, -step)
        norm, before = inner_product(residual, residual), norm
        search = add(residual, search, norm / before)
    return solution


def dot(first: Direction, second: Direction) -> float:
    """Return the inner product of two directions, in float64."""
    return inner_product(first, second).item()


def inner_product(first: Direction, second: Direction) -> Tensor:
    """Return the inner product of two directions as a scalar in float64 on their device; it does not wait."""
    products = [(first[name].double() * second[name].double()).sum() for name in first]
    return sum(products[1:], start=products[0])


def add(first: Direction, second: Direction, factor: float | Tensor) -> Direction:
    """Return first + factor * second."""
    return {name: first[name] + factor * second[name] for name in first}


@dataclass(frozen=True)
class Kfac:
    """Kronecker factors of the Gauss-Newton matrix, one pair per weight and block: G ~ B (x) A.

    Attributes:
        inputs: A, rows per sample times E[a a^T], float64, shape (blocks, d, d).
        outputs: B, mean over rows of the outputs' curvature, float64, shape (blocks, d_out / blocks, same).
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def solve(self, direction: Direction, *, damping: float) -> Direction:
        """Return (B (x) A + lambda I)^-1 v, lambda = damping * mean diagonal of B (x) A, per weight and block."""
        solved = {}
        for name, part in direction.items():
            a, left = torch.linalg.eigh(self.inputs[name])
            b, right = torch.linalg.eigh(self.outputs[name])
            spectrum = b.clamp_min(0)[:, :, None] * a.clamp_min(0)[:, None, :]  # (blocks, o, d)
            level = damping * spectrum.mean((1, 2), keepdim=True).clamp_min(1e-300)
            stacked = as_blocks(part.double(), len(a))
            rotated = right.transpose(1, 2) @ stacked @ left / (spectrum + level)
            solved[name] = (right @ rotated @ left.transpose(1, 2)).reshape(part.shape).to(part.dtype)
        return solved


def kfac_factors(
    model: nn.Module,
    images: Tensor,
    *,
    second: Mapping[str, Tensor],
    rows_per_sample: dict[str, float],
    squared_loss: bool = False,
) -> Kfac:
    """Return Kronecker factors, reusing the input moments of the subspace stage.

    Args:
        model: The classifier.
        images: Samples for the output factors, shape (m, C, H, W).
        second: E[a a^T] per weight, as in ``Moments.second``.
        rows_per_sample: As in ``Moments.rows_per_sample``.
        squared_loss: Curvature I in the logits instead of diag(p) - p p^T.

    Note:
        Exact for one linear layer under squared loss. For a convolution it is the usual approximation that treats
        positions as independent. Projections inside attention do not show their outputs; their B is the identity.
    """
    sums: dict[str, Tensor] = {}
    for (x,) in chunks(images):
        for name, gram in _output_grams(model, x, squared_loss=squared_loss).items():
            sums[name] = sums[name] + gram if name in sums else gram
    parameters = dict(model.named_parameters())
    outputs = {}
    for name, inputs in second.items():
        width = parameters[name].shape[0] // len(inputs)
        if name in sums:
            outputs[name] = sums[name] / (len(images) * rows_per_sample[name])
        else:
            outputs[name] = torch.eye(width, dtype=inputs.dtype, device=inputs.device).expand(len(inputs), -1, -1)
    return Kfac({name: rows_per_sample[name] * inputs for name, inputs in second.items()}, outputs)


def _output_grams(model: nn.Module, x: Tensor, *, squared_loss: bool) -> dict[str, Tensor]:
    """Sum g g^T over rows, g the rows' gradients of sqrt(H)^T logits, one backward pass per class."""
    seen: list[tuple[str, GradientEdge, Callable[[Tensor], Tensor]]] = []

    def keep(name: str, _rows: Tensor, outputs: Outputs | None) -> None:
        if outputs is not None and outputs.raw.requires_grad:
            # The edge, not the tensor: an in-place activation behind the layer would change what the tensor stands for.
            seen.append((name, get_gradient_edge(outputs.raw), outputs.rows))

    with watching(model, keep):
        logits = model(x.detach().requires_grad_(True))
    grams: dict[str, Tensor] = {}
    edges = [edge for _, edge, _ in seen]
    for root in _curvature_roots(logits.detach(), squared_loss=squared_loss):
        gradients = torch.autograd.grad((logits * root).sum(), edges, retain_graph=True, allow_unused=True)
        for (name, _, as_rows), raw in zip(seen, gradients, strict=True):
            if raw is not None:  # None: the output does not reach the logits
                g = as_rows(raw).double()
                gram = g.transpose(1, 2) @ g
                grams[name] = grams[name] + gram if name in grams else gram
    return grams


def _curvature_roots(logits: Tensor, *, squared_loss: bool) -> Iterable[Tensor]:
    """Yield K tensors (n, K) whose outer products add up to the Hessian of the loss in the logits."""
    p = logits.softmax(1)
    for k in range(logits.shape[1]):
        root = torch.zeros_like(logits)
        root[:, k] = 1
        yield root if squared_loss else p[:, k : k + 1].sqrt() * (root - p)
