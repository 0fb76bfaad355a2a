"""The answer of one run of ``zspag.zero_shot_unlearn`` besides the model: a frozen ``Report``.

``print(report)`` is a page of plain text, ``report.to_dict()`` is JSON, ``report.plot()`` draws it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zspag.outcome import page
from zspag.outcome.answers import (
    CONFIDENCE,
    LAYERS,
    REMOVAL,
    Answers,
    Epoch,
    Layer,
    Remainder,
    Trial,
    upper_bound,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CONFIDENCE", "LAYERS", "REMOVAL", "Epoch", "Layer", "Remainder", "Report", "Trial", "upper_bound"]


@dataclass(frozen=True)
class Report(Answers):
    """How a result came about.

    Attributes:
        forget_classes: Classes that were forgotten, each of them whole.
        already_forgotten: Classes that were named as forgotten before.
        samples: Forget images that were used.
        original_accuracy: Accuracy of the original on the forget set.
        forget_accuracy: Accuracy of the open model on the forget set.
        unseen_accuracy: Accuracy on forget samples that a run had not fitted (cross-fitted); None without folds.
        eps: Radius of the attack, in pixels on [0, 1].
        hits: Share of the attacked samples that arrived, per retained class; empty where nothing was attacked.
        layers: Every weight that could be looked at.
        chosen: Which layers moved: "all", "body" or "head"; "removal"; of another method than ZS-PAG, its name.
        lr: Learning rate used; of a removal the share of the way to the fitted weights.
        tried: Every rate tried, in the order in which they were tried.
        history: One entry per epoch of the final run.
        drift: Mean KL divergence of the open model from the masked original on proxies that were not fitted, in nats.
        remainder: What is left in the features; None where it was not looked at.
        reached: Whether the open model forgot.
        silenced: Whether the forget classes' rows of ``Unlearned.model`` are closed.
        at_edge: The search for a rate ended at the edge of its range.
        warnings: What was warned of, in sentences.
        seconds: Wall-clock seconds per stage.
        unseen_samples: Samples behind ``unseen_accuracy``; None means all of ``samples``.
        left_open: Why the rows could not be closed, without a full stop; "" where they were or nobody asked for it.
        left_out: Forget images that were passed beyond the limit and not used.
    """

    def __str__(self) -> str:
        return "\n".join(page.lines(self))

    @property
    def verdict(self) -> str:
        """What was reached, and no more than that: suppressed is not removed."""
        return page.judged(self)

    @property
    def legends(self) -> dict[str, str]:
        """What the tables mean: how the choice among the trials was made ("tried"), and the columns of "layers"."""
        return {"tried": f"{page.choice(self)} {page.trial_rule(self)}", "layers": page.layer_terms(self)}

    def plot(self) -> "Figure":
        """Draw the rates tried, forgetting over the epochs, leak and free share per layer, and what is left.

        Returns:
            A figure of its own, 1000 pixels wide: no window opens and no state of pyplot changes. A notebook shows it;
            elsewhere, ``report.plot().savefig("report.png")``.
        """
        from zspag.outcome.plot import draw  # late: matplotlib takes a second

        verdict = "goal NOT reached, only silenced" if self.silenced else "goal NOT reached"
        if self.reached:
            verdict = "answered no more" if self.chosen == REMOVAL else "suppressed"
        return draw(self.to_dict(), title=f"{page.title(self)}: {verdict}")
