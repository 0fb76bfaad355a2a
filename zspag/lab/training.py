"""Training of the original model and of the retrained reference: SGD or AdamW under a one-cycle rate.

Channels are innermost everywhere; a GPU that has bfloat16 uses it (autocast). Nothing is compiled: on two cores
``torch.compile`` made a step 1.1 to 1.3 times as fast and took a minute to begin; a GPU was not measured.

Invariant: an epoch is a function of (weights, optimizer state, seed, epoch), so an interrupted training that goes on
from its state file ends in the same bits as one that was never interrupted (on a CPU; a GPU adds in any order).
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.config import to_dict
from zspag.profiles import TrainConfig
from zspag.report.files import replacing
from zspag.runtime import channels_last, copied, derive_seed, device_of, generator_for, progress, sent

RISE = 0.2  # share of all steps in which a one-cycle rate rises
DISTORTED_ALIKE = 32  # images that share the two distortions RandAugment draws: one by one they would starve a GPU


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured, on the augmented training images as the weights moved."""

    epoch: int  # from 1
    loss: float  # mean cross-entropy in nats
    accuracy: float  # share of images classified correctly
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class TrainedModel:
    """What a training left behind."""

    model: nn.Module  # the trained copy, in evaluation mode
    history: tuple[Epoch, ...]
    precision: str  # of the forward and backward passes, "float32" or "bfloat16"; weights stay float32


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: TrainConfig,
    seed: int,
    device: torch.device | str | None = None,
    state_path: Path | None = None,
    title: str = "",
) -> TrainedModel:
    """Train a copy of ``model`` on labelled images.

    Args:
        model: Maps images in [0, 1] to logits (n, K); it is left alone.
        images: Shape (n, C, H, W), uint8 on 0..255 or float on [0, 1]; uint8 images need a quarter of the memory.
        labels: Shape (n,), int64.
        config: The recipe.
        seed: Seed of order, augmentation and dropout; the initial weights are the model's own.
        device: Where to train; None means where the model is.
        state_path: File that holds weights, optimizer state and progress after every epoch; a training that finds its
            own state there goes on from it.
        title: Title of the progress bar.

    Returns:
        The trained copy and its history.

    Raises:
        ValueError: If the training set is empty or does not fit the model, if the state file belongs to another
            training or is damaged, or if the loss stops being finite; the message names the value and the remedy.
    """
    place = torch.device(device) if device is not None else device_of(model)
    _check_training_set(model, images, labels, config)
    identity = None if state_path is None else _identity(model, images, labels, config, seed)
    model = copied(model).to(place)
    optimizer = _optimizer(model, config)
    history: list[Epoch] = []
    if state_path is not None and identity is not None and state_path.exists():
        history = _load_state_(state_path, identity, model, optimizer)
    images, labels = images.to(place), labels.to(place)
    per_epoch = math.ceil(len(images) / config.batch_size)
    remaining = range(len(history) * per_epoch, config.epochs * per_epoch)
    bar = progress(remaining, total=len(remaining), title=title or "training", unit="step")
    steps = iter(bar)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        for epoch in range(len(history), config.epochs):
            torch.manual_seed(derive_seed(seed, "dropout", epoch))
            done = _run_epoch_(model, optimizer, images, labels, config, seed, epoch, steps)
            history.append(done)
            bar.set_postfix_str(
                f"loss {done.loss:.3f}, {100 * done.accuracy:.1f} %, {done.images_per_second:.0f} images/s"
            )
            if state_path is not None and identity is not None:
                _save_state(state_path, identity, model, optimizer, history)
    next(steps, None)  # closes the bar
    optimizer.zero_grad()
    trained = model.to(memory_format=torch.contiguous_format).eval()
    return TrainedModel(trained, tuple(history), str(precision_of(place)).removeprefix("torch."))


def precision_of(device: torch.device) -> torch.dtype:
    """Return the arithmetic of forward and backward passes: bfloat16 on a GPU that has it, else float32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def one_cycle(step: int, total: int, *, peak: float) -> float:
    """Return the learning rate of ``step``: linear from 0 to ``peak`` in the first fifth, then a half cosine to 0.

    Example:
        >>> [round(one_cycle(step, 10, peak=1.0), 2) for step in (0, 1, 6, 9)]
        [0.5, 1.0, 0.4, 0.01]
    """
    rise = max(1, round(RISE * total))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step + 0.5 - rise) / (total - rise)))


def augmented(images: Tensor, *, augment: str, pad: int, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``pad`` pixels each way, with reflected borders, and flip half of them if asked.

    Args:
        images: Shape (n, C, H, W), any type.
        augment: "none", "shift" or "shift_flip".
        pad: Largest shift in pixels, less than H and W.
        generator: CPU generator of shifts and flips.

    Returns:
        Images of the same shape and type; pixels are moved, never blended.
    """
    if augment == "none":
        return images
    count, _, height, width = images.shape
    shifts = torch.randint(-pad, pad + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + shifts[0]).abs()  # (n, H)
    rows = torch.where(rows >= height, 2 * (height - 1) - rows, rows)
    columns = (torch.arange(width) + shifts[1]).abs()  # (n, W)
    columns = torch.where(columns >= width, 2 * (width - 1) - columns, columns)
    if augment == "shift_flip":
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = sent(rows, images.device), sent(columns, images.device)
    samples = torch.arange(count, device=images.device)[:, None, None]
    moved = images[samples, :, rows[:, :, None], columns[:, None, :]]  # (n, H, W, C): one gather does it all
    return moved.permute(0, 3, 1, 2)


def distorted(images: Tensor, *, magnitude: int) -> Tensor:
    """Distort images by RandAugment (Cubuk et al., 2020): two operations in a row, each drawn from fourteen.

    Args:
        images: Shape (n, C, H, W), uint8, C of 1 or 3.
        magnitude: Strength, 1 to 30; 0 draws nothing and returns the images.

    Returns:
        Images of the same shape and type, on the device they were on.

    Note:
        DIFFERS: the draw is one for ``DISTORTED_ALIKE`` images, not for each. torchvision draws from the global
        generator, which ``train`` seeds for every epoch and gives back as it was.
    """
    if magnitude == 0:
        return images
    from torchvision.transforms import v2  # late: most trainings do without, and it takes a second

    distort = v2.RandAugment(num_ops=2, magnitude=magnitude)
    return torch.cat([distort(group) for group in images.split(DISTORTED_ALIKE)])


def _run_epoch_(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    seed: int,
    epoch: int,
    steps: Iterator[int],
) -> Epoch:
    started, count = time.perf_counter(), len(images)
    generator = generator_for(seed, "training", epoch)
    per_epoch = math.ceil(count / config.batch_size)
    order = torch.randperm(count, generator=generator).to(images.device)
    loss_sum, correct = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
    precision = precision_of(images.device)
    model.train()
    # Batches of nearly equal size: a ragged last one would weigh its few images more and upset batch norm.
    for chosen, step in zip(order.tensor_split(per_epoch), steps, strict=False):
        rate = one_cycle(step, config.epochs * per_epoch, peak=config.lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        moved = augmented(images[chosen], augment=config.augment, pad=config.pad, generator=generator)
        batch = _scaled(distorted(moved, magnitude=config.rand_augment))
        batch, other, share = mixed(batch, labels[chosen], most=config.mixup, generator=generator)
        with torch.autocast(batch.device.type, precision, enabled=precision != torch.float32):
            logits = model(batch).float()
        loss = (1 - share) * F.cross_entropy(logits, labels[chosen], label_smoothing=config.label_smoothing)
        if share:
            loss = loss + share * F.cross_entropy(logits, other, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(chosen)
        correct += (logits.detach().argmax(1) == labels[chosen]).sum()
    mean_loss, seconds = loss_sum.item() / count, time.perf_counter() - started
    if not math.isfinite(mean_loss):
        raise ValueError(
            f"the loss became {mean_loss} in epoch {epoch + 1} of {config.epochs}: lower lr (now {config.lr}) or check"
            " that the images are finite and lie in [0, 1]"
        )
    return Epoch(epoch + 1, mean_loss, correct.item() / count, seconds, count / seconds)


def mixed(images: Tensor, labels: Tensor, *, most: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Mix every image with another of the batch (mixup, Zhang et al., 2018).

    Args:
        images: Shape (n, C, H, W), float.
        labels: Shape (n,).
        most: Largest share of the other image; 0 draws nothing and mixes nothing.
        generator: CPU generator of the pairs and of the share.

    Returns:
        The mixed images, the other image's label for each, and its share.

    Note:
        DIFFERS: the share is uniform on [0, most] instead of Beta, so that the first image always prevails and the
        accuracy on its labels stays readable.
    """
    if most == 0:
        return images, labels, 0.0
    share = most * torch.rand((), generator=generator).item()
    pair = sent(torch.randperm(len(images), generator=generator), images.device)
    return images.lerp(images[pair], share), labels[pair], share


def _scaled(images: Tensor) -> Tensor:
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    return channels_last(scaled)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    moving = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = {name for name, p in moving.items() if p.ndim > 1 and name.endswith("weight")}  # no token, no position
    groups = [
        {"params": [p for name, p in moving.items() if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in moving.items() if name not in decayed], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def _check_training_set(model: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"the training set must hold images of shape (n, C, H, W), n > 0, got {tuple(images.shape)}")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 of shape ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if images.is_floating_point() and not (images.min() >= 0 and images.max() <= 1):  # NaN fails both
        raise ValueError(
            f"images must lie in [0, 1], got {images.min().item()}..{images.max().item()}; scale them, and let the"
            " model's first layer normalize"
        )
    if config.augment != "none" and not 0 < config.pad < min(images.shape[2:]):
        raise ValueError(
            f"pad must lie in 1..{min(images.shape[2:]) - 1} pixels for {config.augment!r}, got {config.pad}"
        )
    if config.rand_augment and (images.dtype != torch.uint8 or images.shape[1] not in (1, 3)):
        raise ValueError(
            f"rand_augment needs grey or RGB images of uint8, got {images.dtype} with {images.shape[1]} channels"
        )
    if config.augment == "hint":
        raise ValueError("augment 'hint' leaves the choice to the data set: replace it by the data set's augment_hint")
    probe = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = probe(_scaled(images[:1]).to(device_of(probe)))
    if logits.ndim != 2:
        raise ValueError(f"the model must return logits of shape (n, K), got {tuple(logits.shape)} for one image")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels must lie in 0..{logits.shape[1] - 1}, the width of the logits, got"
            f" {int(labels.min())}..{int(labels.max())}"
        )


def _identity(model: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig, seed: int) -> dict[str, object]:
    hashes = []
    for tensors in (model.state_dict().values(), (images, labels)):
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        hashes.append(digest.hexdigest()[:16])
    return {
        "config": to_dict(config),
        "seed": seed,
        "initial weights": hashes[0],
        "training set": hashes[1],
        "threads": torch.get_num_threads(),
    }


def _save_state(
    path: Path, identity: dict[str, object], model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Epoch]
) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}/{name}"] = tensor
    plain = torch.contiguous_format
    whole = {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in tensors.items()}
    metadata = {"identity": json.dumps(identity), "history": json.dumps([asdict(epoch) for epoch in history])}
    with replacing(path) as temporary:
        save_file(whole, temporary, metadata)


def _load_state_(
    path: Path, identity: dict[str, object], model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[Epoch]:
    try:
        with safe_open(path, "pt") as state:
            metadata = state.metadata()
            tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118  not a dict
    except SafetensorError as error:
        raise ValueError(f"the training state {path} is damaged ({error}); delete it and train again") from error
    stored = json.loads(metadata["identity"])
    for field, value in identity.items():
        if stored.get(field) != value:
            raise ValueError(
                f"{path} belongs to another training: {field} is {value} here and {stored.get(field)} there; delete"
                " it or give another state_path"
            )
    model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind != "model":  # on the CPU: the number of steps AdamW counts; else laid out in memory as its parameter is
            kept = tensor if tensor.ndim == 0 else torch.empty_like(parameters[name]).copy_(tensor)
            optimizer.state[parameters[name]][kind] = kept
    return [Epoch(**values) for values in json.loads(metadata["history"])]
