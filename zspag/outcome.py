"""The answer of one run of ``zspag.zero_shot_unlearn`` besides the model: a frozen ``Report``.

``print(report)`` is a page of plain text, ``report.to_dict()`` is JSON, ``report.plot()`` draws it.

Invariant: accuracies, hits, leaks and shares are fractions, drifts are nats, times are wall-clock seconds. Everything
was measured on the forget set and on proxies made from it; nothing here has seen retain or test data.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any


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
        layers: Which layers moved: "all", "body" (all but the last) or "head" (the last).
        lr: Learning rate.
        forget_accuracy: Accuracy on held-out forget samples where there were folds, else on the forget set; None where
            the run diverged.
        drift: Mean KL divergence from the masked original on held-out proxies, in nats; None where not measured.
        forgot: Whether the accuracy fell far enough.
        seconds: Wall-clock seconds.
    """

    layers: str
    lr: float
    forget_accuracy: float | None
    drift: float | None
    forgot: bool
    seconds: float


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
        measurable: False where the two overlap too much for any probe to tell something.
        probe_before: Accuracy of a ridge probe on the original's features.
        probe_after: The same on the open model's features.
        probe_chance: The same under permuted labels: what nothing looks like.
        original_head: Share of the forget samples that the original's head, put back, still recognizes.
        note: What limits the measurement, in a sentence.
    """

    measurable: bool
    probe_before: float | None
    probe_after: float | None
    probe_chance: float | None
    original_head: float | None
    note: str


@dataclass(frozen=True)
class Report:
    """How a result came about.

    Attributes:
        forget_classes: Classes that were forgotten, each of them whole.
        already_forgotten: Classes that were named as forgotten before.
        samples: Forget images.
        original_accuracy: Accuracy of the original on the forget set.
        forget_accuracy: Accuracy of the open model on the forget set.
        unseen_accuracy: Accuracy on forget samples that a run had not fitted (cross-fitted); None without folds.
        eps: Radius of the attack, in pixels on [0, 1].
        hits: Share of the attacked samples that arrived, per retained class.
        layers: Every weight that could be looked at.
        chosen: Which layers moved: "all", "body" or "head".
        lr: Learning rate used.
        tried: Every rate tried, in the order in which they were tried.
        history: One entry per epoch of the final run.
        drift: Mean KL divergence of the open model from the masked original on held-out proxies, in nats.
        remainder: What is left in the features; None where it was not looked at.
        reached: Whether the open model forgot.
        silenced: Whether the forget classes' rows of ``Unlearned.model`` are closed.
        at_edge: The search for a rate ended at the edge of its range.
        warnings: What was warned of, in sentences.
        seconds: Wall-clock seconds per stage.
        unseen_samples: Samples behind ``unseen_accuracy``; None means all of ``samples``.
        left_open: Why the rows could not be closed, "" where they were or nobody asked for it.
    """

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
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    """Return the value as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
