"""The trained nets and their data: every original is trained once and then comes from ``runs/external/checkpoints``.

Invariant: a checkpoint is found by its recipe, its architecture and its data; an interrupted training goes on where it
stopped. Forget images are training images of the net.
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.external.nets import NETS, Net
from zspag.lab.checkpoints import load as load_checkpoint
from zspag.lab.checkpoints import save as save_checkpoint
from zspag.lab.data import load
from zspag.lab.data.splits import Dataset, Split, halved
from zspag.lab.evaluation import accuracy
from zspag.lab.training import train
from zspag.report.files import repository_root
from zspag.report.provenance import digest, record
from zspag.runtime import logits_of, spread_evenly

ORL_TEST_SHARE = 0.3
COMMITTED = {"cifar10-conv7": "results/cpu/checkpoints/original-cifar10-conv7-seed0.safetensors"}


@dataclass(frozen=True)
class Original:
    """A trained net with what it is judged on.

    Attributes:
        net: The entry of the zoo.
        model: The trained net, in eval mode, as other people would hand it over.
        twin: The same weights for fa40f86; the same object where there is no twin.
        train: Training images of the net, uint8, and labels.
        test: Test images that it is judged on, uint8, and labels.
        num_classes: Width K of the logits.
        test_accuracy: Accuracy of the original on those test images, a fraction.
        sha256: Hash of the weights.
        record: Provenance of the checkpoint.
    """

    net: Net
    model: nn.Module
    twin: nn.Module
    train: Split
    test: Split
    num_classes: int
    test_accuracy: float
    sha256: str
    record: dict[str, Any]


def runs() -> Path:
    """Return the folder of everything large."""
    return repository_root() / "runs" / "external"


@lru_cache(maxsize=4)
def dataset_of(name: str, image_size: int | None) -> Dataset:
    """Return a data set; a face has three of its ten images in the test."""
    return load(name) if image_size is None else load(name, image_size=image_size, test_share=ORL_TEST_SHARE)


def training_split(net: Net, dataset: Dataset) -> Split:
    """Return the images that the net is trained on, the same number of each class, evenly spaced."""
    if net.images is None:
        return dataset.train
    each = net.images // dataset.num_classes
    members = [(dataset.train.labels == label).nonzero().flatten() for label in range(dataset.num_classes)]
    return dataset.train.select(torch.cat([spread_evenly(own, each) for own in members]).sort().values)


def untrained(net: Net, *, twin: bool) -> nn.Module:
    """Build the net with the weights of its seed; the twin has the same."""
    build = net.twin if twin and net.twin is not None else net.build
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(net.seed)
        return build()


def recipe(name: str, dataset: Dataset) -> dict[str, Any]:
    """Return what a checkpoint depends on, as plain JSON values."""
    net = NETS[name]
    shapes = {key: list(value.shape) for key, value in untrained(net, twin=False).state_dict().items()}
    return {
        "net": name,
        "modules": digest([str(untrained(net, twin=False)), shapes]),
        "data": dataset.sha256,
        "train": None if net.train is None else asdict(net.train),
        "images": net.images,
        "seed": net.seed,
    }


def checkpoint_of(name: str, dataset: Dataset) -> Path:
    """Return where the net's weights lie, or will lie."""
    if name in COMMITTED:
        return repository_root() / COMMITTED[name]
    return runs() / "checkpoints" / f"{name}-{digest(recipe(name, dataset))[:12]}.safetensors"


def train_original(name: str, *, device: str | torch.device = "cpu") -> Path:
    """Train the net unless its checkpoint is there, and return the checkpoint.

    Raises:
        FileNotFoundError: If the net's checkpoint should be in the repository and is not.
    """
    net, dataset = NETS[name], dataset_of(NETS[name].data, NETS[name].image_size)
    path = checkpoint_of(name, dataset)
    if path.exists():
        return path
    if net.train is None:
        raise FileNotFoundError(f"{path} is missing: check it out of the repository, {name} is not trained here")
    split, started = training_split(net, dataset), time.time()
    state = path.with_suffix(".state")
    trained = train(
        untrained(net, twin=True),
        split.images,
        split.labels,
        config=net.train,
        seed=net.seed,
        device=device,
        state_path=state,
        title=name,
    )
    kept = record(
        config=recipe(name, dataset),
        seed=net.seed,
        data_sha256=dataset.sha256,
        device=torch.device(device).type,
        threads=torch.get_num_threads(),
        started=started,
    )
    kept["history"] = [asdict(epoch) for epoch in trained.history]
    save_checkpoint(path, trained.model.cpu().state_dict(), kept)
    state.unlink(missing_ok=True)
    return path


def original(name: str, *, device: str | torch.device = "cpu") -> Original:
    """Return a trained net on ``device`` with its data; it is trained first if need be."""
    net, dataset = NETS[name], dataset_of(NETS[name].data, NETS[name].image_size)
    tensors, kept = load_checkpoint(train_original(name, device=device))
    models = []
    for twin in (False, True):
        model = untrained(net, twin=twin)
        model.load_state_dict(tensors)
        models.append(model.to(device).eval())
    model, twin_model = models if net.twin is not None else (models[0], models[0])
    test = dataset.test if net.test_half is None else halved(dataset, net.test_half).test
    test_accuracy = accuracy(logits_of(twin_model, on(device, test.images)), test.labels.to(device))
    return Original(
        net,
        model,
        twin_model,
        training_split(net, dataset),
        test,
        dataset.num_classes,
        test_accuracy,
        weights_hash(tensors),
        kept,
    )


def on(device: str | torch.device, images: Tensor) -> Tensor:
    """Return uint8 images (n, C, H, W) as float on [0, 1] on a device."""
    return images.to(device).float() / 255


def forget_set(known: Original, label: int, count: int | None) -> Split:
    """Return training images of one class, evenly spaced; None takes all."""
    own = (known.train.labels == label).nonzero().flatten()
    return known.train.select(spread_evenly(own, count))


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """Return a SHA-256 (hex) of named tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
