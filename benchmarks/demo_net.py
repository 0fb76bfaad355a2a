"""Train the net of ``zspag demo`` and write it beside its digits: ``python -m benchmarks.demo_net``."""

import io
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from zspag.lab import demo
from zspag.report import provenance
from zspag.report.files import replacing

EPOCHS, BATCH, RATE, TESTED, SEED = 30, 64, 0.1, 450, 0


def main() -> int:
    """Write both files, and say how well the net does on test images."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    images = pixels.reshape(-1, 8, 8).astype(np.uint8)  # 0 to 16
    parts = {"test": order[:TESTED], "train": order[TESTED:]}
    kept = {f"{part}_images": images[places] for part, places in parts.items()}
    kept |= {f"{part}_labels": labels[places].astype(np.uint8) for part, places in parts.items()}
    packed = io.BytesIO()
    np.savez_compressed(packed, **kept)
    with replacing(demo.IMAGES) as temporary:
        temporary.write_bytes(packed.getvalue())
    torch.manual_seed(SEED)
    model = demo.untrained().train()
    x, y = demo.digits("train")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for places in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[places]), y[places]).backward()
            optimizer.step()
        schedule.step()
    x, y = demo.digits("test")
    with torch.no_grad():
        right = (model.eval()(x).argmax(1) == y).double().mean().item()
    facts = {
        "commit": provenance.git("rev-parse", "HEAD") or "unknown",
        "test_accuracy": f"{right:.4f}",
        "seed": str(SEED),
    }
    with replacing(demo.NET) as temporary:
        save_file(model.state_dict(), temporary, metadata=facts)
    sys.stdout.write(f"test accuracy {right:.1%}; wrote {demo.NET.name} and {demo.IMAGES.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
