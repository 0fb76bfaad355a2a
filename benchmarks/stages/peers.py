"""What others do for the same end: their own code where it installs, else their published algorithm in a few lines.

``make bench`` fetches the packages; a column whose package is missing stays empty.

Invariant: a peer gets the same model, images and batches, and no work that its answer does not need.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn import functional as F

from zspag.config import ProxyConfig
from zspag.influence import Direction, weights_of
from zspag.runtime import chunks, frozen

UNSC_ENERGY = 0.97  # as published, of every class and of their union
AT_ONCE = 8  # images whose gradients for all classes are in memory together

Attack = Callable[[Tensor, Tensor], object]


def torchattacks_pgd(model: nn.Module, config: ProxyConfig, *, eps: float) -> Attack | None:
    """Return torchattacks' targeted PGD with as many steps, or None where it is not installed."""
    try:
        import torchattacks
    except ImportError:
        return None
    kind, radius = (torchattacks.PGD, eps) if config.norm == "linf" else (torchattacks.PGDL2, 1.0)
    peer = kind(model, eps=radius, alpha=radius * config.step_share, steps=config.steps, random_start=False)
    peer.set_mode_targeted_by_label(quiet=True)
    return lambda x, targets: [peer(*part) for part in chunks(x, targets)]


def foolbox_pgd(model: nn.Module, config: ProxyConfig, *, eps: float) -> Attack | None:
    """Return foolbox's targeted PGD with as many steps, or None where it is not installed."""
    try:
        import foolbox
    except ImportError:
        return None
    kind, radius = (foolbox.attacks.LinfPGD, eps) if config.norm == "linf" else (foolbox.attacks.L2PGD, 1.0)
    peer = kind(rel_stepsize=config.step_share, steps=config.steps, random_start=False)

    def run(x: Tensor, targets: Tensor) -> None:
        with frozen(model):  # otherwise it takes the gradients in the weights too
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
            for part, wanted in chunks(x, targets):
                peer.run(wrapped, part, foolbox.criteria.TargetedMisclassification(wanted), epsilon=radius)

    return run


def scores_by_gradients(model: nn.Module, x: Tensor, direction: Direction) -> Tensor:
    """Return the scores (n, K) of all labels from one gradient per sample and class (vmap of vjp)."""
    weights = weights_of(model, direction)

    def losses(moved: Direction, image: Tensor) -> Tensor:
        return -functional_call(model, moved, (image[None],))[0].log_softmax(0)  # (K,)

    def scores(image: Tensor) -> Tensor:
        gradients = jacrev(losses)(weights, image)  # per weight (K, *weight)
        return sum((gradients[name] * direction[name]).flatten(1).sum(1) for name in direction)

    return vmap(scores, chunk_size=AT_ONCE)(x)


def scores_by_jvp(model: nn.Module, x: Tensor, direction: Direction) -> Tensor:
    """Return the scores (n, K) of all labels from one forward-mode product by ``torch.func.jvp``."""
    weights = weights_of(model, direction)
    return torch.cat(
        [
            jvp(lambda moved, x=part: -functional_call(model, moved, (x,)).log_softmax(1), (weights,), (direction,))[1]
            for (part,) in chunks(x)
        ]
    )


def curvlinops_product(model: nn.Module, x: Tensor, names: Sequence[str]) -> Callable[[Direction], Direction] | None:
    """Return curvlinops' product with the Gauss-Newton matrix, or None where it is not installed."""
    try:
        from curvlinops import GGNLinearOperator
    except ImportError:
        return None
    parameters = dict(model.named_parameters())
    # The matrix does not depend on the labels.
    data = [(part, torch.zeros(len(part), dtype=torch.long, device=x.device)) for (part,) in chunks(x)]
    matrix = GGNLinearOperator(
        model, nn.CrossEntropyLoss(), [parameters[name] for name in names], data, check_deterministic=False
    )
    return lambda direction: dict(zip(names, matrix @ [direction[name] for name in names], strict=True))


@torch.no_grad()
def unsc_projectors(
    model: nn.Module, classes: Sequence[Tensor], *, energy: float = UNSC_ENERGY, merge_energy: float = UNSC_ENERGY
) -> list[Tensor]:
    """Return UNSC's projector I - U U^T (d, d) of every convolution and linear layer, in order of use.

    The left singular vectors of what enters a layer are cut class by class; then those of their union are cut again.

    Reference: Chen, Zhu, Yu and Zhou, "Machine Unlearning via Null Space Calibration", IJCAI 2024, Algorithm 1.

    Args:
        model: In eval mode.
        classes: Images (n, C, H, W) of every retained class. DIFFERS: published are retain images; here proxies.
        energy: Share of the squared singular values that the basis of a class holds.
        merge_energy: The same of the union. DIFFERS: the paper does not give it; published code takes one for both.

    Note:
        DIFFERS: patches have the padding and the stride of their convolution, which published code ignores.
    """
    bases = [[leading(rows_of(*one).T, energy=energy) for one in entering(model, images)] for images in classes]
    merged = [leading(torch.cat(layer, 1), energy=merge_energy) for layer in zip(*bases, strict=True)]
    return [torch.eye(len(basis)).to(basis) - basis @ basis.T for basis in merged]


def leading(columns: Tensor, *, energy: float) -> Tensor:
    """Return the left singular vectors (d, k) of columns (d, R) that hold a share of the squared singular values."""
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    held = values.square().cumsum(0) / values.square().sum()
    return left[:, : int((held < energy).sum()) + 1]


@torch.no_grad()
def entering(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Return the convolution and linear layers with what enters them, in order of use."""
    found: list[tuple[nn.Module, Tensor]] = []
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda part, given: found.append((part, given[0]))) for layer in layers]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def rows_of(layer: nn.Module, given: Tensor) -> Tensor:
    """Return the rows (R, d) that enter a layer, as one call of ``F.unfold`` cuts them."""
    if not isinstance(layer, nn.Conv2d):
        return given.reshape(-1, given.shape[-1])
    cut = F.unfold(given, layer.kernel_size, padding=layer.padding, stride=layer.stride)
    return cut.transpose(1, 2).reshape(-1, cut.shape[1])
