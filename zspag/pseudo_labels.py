"""Pseudo-labels: what the forget samples are fitted to.

The influence-tilted label maximizes <q, s_i> - (1 / beta) KL(q || p_masked(x_i)) over the simplex without the forget
classes. The answer is softmax(log p_masked + beta s): beta = 0 is the model's own answer without the forget
classes, beta -> infinity the most helpful hard label.

Invariant: a pseudo-label is a distribution with no mass on a forget class.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import LabelConfig
from zspag.influence import (
    Direction,
    conjugate_gradients,
    gauss_newton_product,
    kfac_factors,
    label_scores,
    loss_gradient,
)
from zspag.proxies import ProxySet
from zspag.runtime import logits_of
from zspag.subspaces import Moments, Projector

PseudoLabeler = Callable[[nn.Module], Tensor]


def masked_log_probabilities(logits: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Return log softmax of logits (n, K) with the forget classes at -inf."""
    masked = logits.clone()
    for label in forget:  # a list as an index would be copied to the device, and waited for
        masked[:, label] = -torch.inf
    return masked.log_softmax(1)


def retained_classes(num_classes: int, forget: Sequence[int]) -> Tensor:
    """Return the classes that stay, in order, on the CPU, where draws are made."""
    return torch.tensor([label for label in range(num_classes) if label not in forget])


def random_labels(count: int, *, num_classes: int, forget: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return one-hot labels (count, K), uniform over the retained classes."""
    retained = retained_classes(num_classes, forget)
    drawn = torch.randint(len(retained), (count,), generator=generator)
    return F.one_hot(retained[drawn], num_classes).float()


def second_best_labels(masked: Tensor) -> Tensor:
    """Return the one-hot argmax (n, K) of masked log-probabilities."""
    return F.one_hot(masked.argmax(1), masked.shape[1]).to(masked.dtype)


def tilted_labels(masked: Tensor, scores: Tensor, *, beta: float) -> Tensor:
    """Return softmax(masked + beta * scores), the closed form of the KL-regularized optimum.

    Args:
        masked: log p_masked, -inf on forget classes, shape (n, K).
        scores: Influence of fitting sample i to class k, positive helps, shape (n, K).
        beta: Strength of the tilt; 0 returns exp(masked).
    """
    return (masked + beta * scores).softmax(1)


def standardized(scores: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Center each sample's scores over the retained classes and scale all of them to standard deviation 1.

    Raw influences span orders of magnitude between models, so that no beta would mean the same twice.
    """
    retained = [label for label in range(scores.shape[1]) if label not in forget]
    centered = scores - scores[:, retained].mean(1, keepdim=True)
    return centered / centered[:, retained].std(correction=0).clamp_min(1e-12)


def pseudo_labeler(
    model: nn.Module,
    forget_images: Tensor,
    *,
    forget: Sequence[int],
    proxies: ProxySet | None,
    moments: Moments | None,
    projector: Projector | None,
    names: Sequence[str],
    config: LabelConfig,
    generator: torch.Generator,
) -> PseudoLabeler:
    """Return a function from the current model to pseudo-labels (n, K), called before every epoch.

    All strategies but "process" ignore the current model.

    Args:
        model: The original model.
        forget_images: Shape (n, C, H, W).
        forget: Forget classes.
        proxies: Stand-ins of the retained classes; needed by "influence" and "process".
        moments: Averaged input moments of the proxies, in their own size; needed by the "kfac" solver.
        projector: Projects the direction of "process"; None leaves it as it is.
        names: Weights that the update may move.
        config: Strategy, beta and solver.
        generator: CPU generator of "random".

    Raises:
        ValueError: If the strategy needs proxies or moments and there are none.
    """
    logits = logits_of(model, forget_images)
    masked = masked_log_probabilities(logits, forget=forget)
    if config.strategy == "random":
        fixed = random_labels(len(logits), num_classes=logits.shape[1], forget=forget, generator=generator).to(logits)
        return lambda _current: fixed
    if config.strategy in ("second_best", "soft"):
        fixed = masked.exp() if config.strategy == "soft" else second_best_labels(masked)
        return lambda _current: fixed
    if proxies is None:
        raise ValueError(f"strategy {config.strategy!r} measures influence on proxies, but there are none")
    images = proxies.images
    teacher = masked_log_probabilities(logits_of(model, images), forget=forget).exp()

    def tilted(current: nn.Module, direction: Direction) -> Tensor:
        scores = standardized(label_scores(current, forget_images, direction), forget=forget)
        return tilted_labels(masked, scores, beta=config.beta)

    def relabel(current: nn.Module) -> Tensor:
        """Tilt by the drift at the current weights: v = P g_r, the estimand of one projected step."""
        direction = loss_gradient(current, images, teacher, names=names)
        if projector is not None:
            direction = {name: projector(name, part) for name, part in direction.items()}
        return tilted(current, direction)

    if config.strategy == "process":
        return relabel
    gradient = loss_gradient(model, images, teacher, names=names)
    fixed = tilted(model, _retraining_direction(model, gradient, images, moments, config))
    return lambda _current: fixed


def _retraining_direction(
    model: nn.Module, gradient: Direction, images: Tensor, moments: Moments | None, config: LabelConfig
) -> Direction:
    """Return v = H^-1 g_r by the configured solver: the estimand of retraining with that label.

    Raises:
        ValueError: If the solver is "kfac" and there are no moments.
    """
    if config.solver == "identity":
        return gradient
    if config.solver == "cg":
        return conjugate_gradients(
            lambda v: gauss_newton_product(model, images, v, damping=config.damping),
            gradient,
            iterations=config.cg_iterations,
        )
    if moments is None:
        raise ValueError("solver 'kfac' reuses the proxies' input moments, but there are none")
    factors = kfac_factors(model, images, second=moments.second, rows_per_sample=moments.rows_per_sample)
    return factors.solve(gradient, damping=config.damping)
