"""What a run of ``zspag.zero_shot_unlearn`` answers besides the model: epochs, trials, layers, and what is left.

Invariant: accuracies, hits, leaks and shares are fractions, drifts are nats, times are wall-clock seconds. Everything
was measured on the forget set and on proxies made from it; nothing here has seen retain or test data.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

CONFIDENCE = 0.95  # of the bound on what unseen images will do
LAYERS = ("all", "body", "head")  # what may be chosen; a report of another method names the method
REMOVAL = "removal"  # what stands there where features were moved: what is tried then is a share, and no rate


@dataclass(frozen=True)
class Epoch:
    """One pass over the fitted samples: mean loss, accuracy on the judged ones afterwards (a fraction), seconds."""

    loss: float
    forget_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One learning rate tried on one choice of layers.

    Attributes:
        layers: Which layers moved: "all", "body" (all but the last) or "head" (the last); "removal" where features did.
        lr: Learning rate; of a removal the share of the way to the fitted weights.
        forget_accuracy: Accuracy on held-out forget samples where there were folds, else on the forget set; None where
            the run diverged.
        drift: Mean KL divergence from the masked original on held-out proxies, in nats; None where not measured.
        forgot: Whether the accuracy fell far enough.
        seconds: Wall-clock seconds.
        unseen: Per class how many of its held-out forget samples were recognized, and of how many; where there were
            folds.
    """

    layers: str
    lr: float
    forget_accuracy: float | None
    drift: float | None
    forgot: bool
    seconds: float
    unseen: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """One weight of the model and what the subspace leaves free in it.

    Attributes:
        name: Name of the weight.
        dimension: Input directions.
        free: Input directions left to the update.
        leak: Share of held-out proxies' energy outside the protected subspace: the damage an update can do.
        free_share: Share of held-out forget samples' energy outside it: what an update can take hold of.
        moved: Whether the update moved it.
        reason: Why it stayed frozen, "" if it moved.
    """

    name: str
    dimension: int
    free: int
    leak: float | None
    free_share: float | None
    moved: bool
    reason: str


@dataclass(frozen=True)
class Remainder:
    """What is left of the forget classes in the features, judged by held-out forget samples and held-out proxies.

    Attributes:
        measurable: False where a probe of the original itself cannot tell the two apart.
        probe_before: Accuracy of a ridge probe that tells them apart by the original's features.
        probe_after: The same on the open model's features.
        probe_chance: The same under permuted labels: what nothing looks like.
        original_head: Share of the forget samples that the original's head, put back, still recognizes.
        note: What limits the measurement, without a full stop.
    """

    measurable: bool
    probe_before: float | None
    probe_after: float | None
    probe_chance: float | None
    original_head: float | None
    note: str


@dataclass(frozen=True)
class Answers:
    """The fields of a ``Report``, which describes them, and the numbers that follow from them."""

    forget_classes: tuple[int, ...]
    already_forgotten: tuple[int, ...]
    samples: int
    original_accuracy: float
    forget_accuracy: float
    unseen_accuracy: float | None
    eps: float
    hits: dict[int, float]
    layers: tuple[Layer, ...]
    chosen: str
    lr: float
    tried: tuple[Trial, ...]
    history: tuple[Epoch, ...]
    drift: float | None
    remainder: Remainder | None
    reached: bool
    silenced: bool
    at_edge: bool
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    unseen_samples: int | None = None
    left_open: str = ""
    left_out: int = 0

    @property
    def unseen_bound(self) -> float | None:
        """What the accuracy on unseen images lies below, at 95 % confidence; None where nothing was held out.

        It holds for independent images of the same source as the forget set, judged by runs like the final one.
        """
        if self.unseen_accuracy is None:
            return None
        recognized, held = self._held_out()
        return upper_bound(recognized, held)

    def _held_out(self) -> tuple[int, int]:
        """Return how many held-out forget samples were recognized, and how many there were."""
        assert self.unseen_accuracy is not None
        held = self.samples if self.unseen_samples is None else self.unseen_samples
        return round(self.unseen_accuracy * held), held

    @property
    def frozen(self) -> dict[str, str]:
        """Weights that did not move, by name, with the reason."""
        return {layer.name: layer.reason for layer in self.layers if not layer.moved}

    @property
    def free_dimension(self) -> dict[str, int]:
        """Input directions left to the update, per weight that moved."""
        return {layer.name: layer.free for layer in self.layers if layer.moved}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: lists, text keys, and None for what is not finite."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    """Return the value as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def upper_bound(hits: int, count: int) -> float:
    """Return the largest share that still gives so few hits with probability 5 % (Clopper and Pearson, one-sided).

    Args:
        hits: How often it happened.
        count: How often it could have.

    Returns:
        A fraction; without a hit about ``3 / count``.

    Example:
        >>> round(upper_bound(0, 100), 3)
        0.03
    """
    if hits >= count:
        return 1.0
    log_all = math.lgamma(count + 1)  # logarithms, for the coefficients of 2,000 overflow
    ways = [log_all - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(hits + 1)]
    low, high = hits / count, 1.0
    for _ in range(50):
        share = (low + high) / 2
        log_share, log_rest = math.log(share), math.log1p(-share) if share < 1 else -math.inf
        at_most = sum(math.exp(way + i * log_share + (count - i) * log_rest) for i, way in enumerate(ways))
        low, high = (share, high) if at_most > 1 - CONFIDENCE else (low, share)
    return high
