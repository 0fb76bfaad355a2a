"""Slow, obvious versions of what the package computes: loops over samples, dense matrices, no tricks.

Every function follows its formula word for word; the tests compare the package with them in float64.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F


def convolution_rows(x, kernel, *, stride, padding, dilation, groups):
    """Cut every patch out by hand: rows of shape (groups, samples * positions, C / groups * prod(kernel))."""
    rank = len(kernel)
    x = F.pad(x, [amount for pair in reversed(padding) for amount in pair])
    lengths = [dilation[a] * (kernel[a] - 1) + 1 for a in range(rank)]
    starts = [range(0, x.shape[2 + a] - lengths[a] + 1, stride[a]) for a in range(rank)]
    channels = x.shape[1] // groups
    rows = [[] for _ in range(groups)]
    for sample in x:
        for start in itertools.product(*starts):
            window = sample[(slice(None), *(slice(s, s + n, d) for s, n, d in zip(start, lengths, dilation)))]  # noqa: B905
            for group in range(groups):
                rows[group].append(window[group * channels : (group + 1) * channels].flatten())
    return torch.stack([torch.stack(part) for part in rows])


def second_moment(rows):
    """Sum the outer products one row at a time: (R, d) -> (d, d)."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for row in rows:
        total += torch.outer(row.double(), row.double())
    return total / len(rows)


def energy_basis(second, *, energy):
    """Add eigenvectors one by one until their eigenvalues hold the energy: (d, d) -> (d, k)."""
    values, vectors = torch.linalg.eigh(second)
    order = values.argsort(descending=True)
    kept, held = [], 0.0
    for index in order:
        kept.append(vectors[:, index])
        held += values[index].item()
        if held >= energy * values.sum().item() - 1e-12:
            break
    return torch.stack(kept, 1)


def complement_projector(basis):
    """I - U U^T as a dense matrix."""
    return torch.eye(len(basis), dtype=basis.dtype) - basis @ basis.T


def principal_angles(first, second):
    """Angles between two spans, from the eigenvalues of P1 P2 P1: cos^2 of the angles, smallest angle first."""
    product = first @ first.T @ second @ second.T @ first @ first.T
    count = min(first.shape[1], second.shape[1])
    squares = torch.linalg.eigvalsh((product + product.T) / 2).flip(0)[:count]
    return squares.clamp(0, 1).sqrt().acos()


def dense(direction):
    """Lay a dictionary of tensors out as one vector."""
    return torch.cat([part.flatten() for part in direction.values()])


def undense(vector, like):
    """The inverse of ``dense``, with the shapes of ``like``."""
    sizes = [part.numel() for part in like.values()]
    return {name: piece.view_as(part) for (name, part), piece in zip(like.items(), vector.split(sizes), strict=True)}


def gradient(model, loss, names):
    """The gradient of one number with respect to the named parameters, in one vector."""
    parameters = dict(model.named_parameters())
    parts = torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def jacobians(model, images, names):
    """dlogit_k / dtheta by one backward pass per sample and class, shape (n, K, parameters)."""
    return torch.stack(
        [torch.stack([gradient(model, logit, names) for logit in model(image[None])[0]]) for image in images]
    )


def gauss_newton(model, images, names, *, squared_loss):
    """The mean of J^T H J as a dense matrix; H is diag(p) - p p^T, or I under half the squared error."""
    total = 0
    for image, jacobian in zip(images, jacobians(model, images, names), strict=True):
        p = model(image[None])[0].softmax(0).detach()
        hessian = torch.eye(len(p), dtype=p.dtype) if squared_loss else torch.diag(p) - torch.outer(p, p)
        total = total + jacobian.T @ hessian @ jacobian
    return total / len(images)


def label_scores(model, images, direction):
    """v^T grad(-log p_k(x_i)) by one backward pass for every sample i and class k, shape (n, K)."""
    names, v = list(direction), dense(direction)
    scores = [[v @ gradient(model, loss, names) for loss in -model(image[None])[0].log_softmax(0)] for image in images]
    return torch.tensor(scores, dtype=v.dtype)


def label_objective(q, scores, p, *, beta):
    """<q, s> - KL(q || p) / beta for rows of distributions q with no mass where p has none."""
    ratio = torch.where(q > 0, q.clamp_min(1e-300).log() - p.clamp_min(1e-300).log(), torch.zeros_like(q))
    return (q * scores).sum(-1) - (q * ratio).sum(-1) / beta


def attention(module, query, key, value):
    """Multi-head attention of one unpacked sample, head by head; returns (rows entering out_proj, output)."""
    width, heads = module.embed_dim, module.num_heads
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    else:
        weights = module.in_proj_weight.chunk(3)
    biases = module.in_proj_bias.chunk(3) if module.in_proj_bias is not None else (0, 0, 0)
    parts = [x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    size, inner = width // heads, []
    for head in range(heads):
        q, k, v = (part[:, head * size : (head + 1) * size] for part in parts)
        inner.append((q @ k.T / size**0.5).softmax(1) @ v)
    rows = torch.cat(inner, 1)
    return rows, F.linear(rows, module.out_proj.weight, module.out_proj.bias)


def state_of(model):
    """Everything about a model that its owner could notice, with copies of all tensors."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identity": {name: id(parameter) for name, parameter in model.named_parameters()},
        "modes": {name: part.training for name, part in model.named_modules()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "hooks": {
            name: [len(getattr(part, kind)) for kind in vars(part) if kind.endswith("_hooks")]
            for name, part in model.named_modules()
        },
    }


def assert_same_state(before, after):
    """Compare two results of ``state_of`` bit for bit."""
    for field in ("identity", "modes", "flags", "hooks"):
        assert before[field] == after[field], field
    for field in ("weights", "grads"):
        assert before[field].keys() == after[field].keys()
        for name, tensor in before[field].items():
            other = after[field][name]
            assert (tensor is None and other is None) or torch.equal(tensor, other), (field, name)


class Attending(nn.Module):
    """A small classifier with self-attention over the pixels of an image, for tests of influence and unlearning."""

    def __init__(self, channels=3, width=4, classes=5):
        super().__init__()
        self.embed = nn.Conv2d(channels, width, 2, stride=2)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.3, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.norm(tokens).mean(1))
