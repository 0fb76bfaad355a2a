"""What a model of the zoo is judged by: points lost, unseen images of the class, drift.

Invariant: every figure is a function of the model's own logits on test images that no method saw.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.external.originals import Original, on
from zspag.lab.evaluation import masked, mean_kl, recognized

CHUNK = 250  # test images per pass


@dataclass(frozen=True)
class Measured:
    """How a model compares with the masked original.

    Attributes:
        lost_points: Accuracy of the masked original minus that of the model on retained test images, in points.
        forget_unseen: Share of the class's test images that the model recognizes.
        drift: Mean KL(masked original || model) on retained test images, in nats; None where logits are not finite.
        retained: Accuracy of the model on retained test images, a fraction.
        masked_retained: The same of the masked original.
        original_forget: Share of the class's test images that the original recognizes.
        retained_images: Number of retained test images.
        forget_images: Number of the class's test images.
    """

    lost_points: float
    forget_unseen: float
    drift: float | None
    retained: float
    masked_retained: float
    original_forget: float
    retained_images: int
    forget_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor, device: str | torch.device) -> Tensor:
    """Return the logits (n, K), float64 on the CPU, of uint8 images (n, C, H, W), as their owner would ask for them."""
    rows = []
    for batch in images.split(CHUNK):
        output = model(on(device, batch))
        rows.append((output if isinstance(output, Tensor) else output.logits).double().cpu())
    return torch.cat(rows)


class Judge:
    """Compares models with the masked original on the test images of one net.

    Args:
        known: The net; its logits are computed once.
        device: Where the models are.
    """

    def __init__(self, known: Original, device: str | torch.device) -> None:
        self.known, self.device = known, device
        self.original = answers(known.model, known.test.images, device)

    def __call__(self, model: nn.Module, label: int) -> Measured:
        """Return how ``model`` compares after it forgot the class ``label``."""
        return self.judge(answers(model, self.known.test.images, self.device), label)

    def judge(self, logits: Tensor, label: int) -> Measured:
        """Return the same from logits (n, K) on all test images."""
        labels = self.known.test.labels
        kept, gone = labels != label, labels == label
        reference = masked(self.original[kept], forget=[label])
        best = recognized(reference, labels[kept]).double().mean().item()
        own = recognized(logits[kept], labels[kept]).double().mean().item()
        drift = mean_kl(reference, logits[kept]) if bool(logits[kept].isfinite().all()) else None
        return Measured(
            100 * (best - own),
            recognized(logits[gone], labels[gone]).double().mean().item(),
            drift,
            own,
            best,
            recognized(self.original[gone], labels[gone]).double().mean().item(),
            int(kept.sum()),
            int(gone.sum()),
        )

    def masked(self, label: int) -> Measured:
        """Return the masked original's own figures: nothing lost, nothing recognized, no drift."""
        return self.judge(masked(self.original, forget=[label]), label)
