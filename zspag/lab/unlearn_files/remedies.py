"""What the method refuses, said with the remedies that the command line has: options, found by trying where needed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.lab.data.folders import ForgetFolder
from zspag.lab.data.listing import read_classes
from zspag.lab.data.pictures import grey
from zspag.lab.unlearn_files.task import Task
from zspag.preflight.refusal import Refusal
from zspag.runtime import evaluating

# Sizes of images that nets are made for, which are tried where a net does not run on the photos as they are.
SIZES = (8, 16, 28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 336, 384, 448, 512)


def in_options(refusal: Refusal, task: Task, model: nn.Module, images: Tensor, photos: ForgetFolder) -> str:
    """Say a refusal of the method with the remedies that the command line has."""
    about, numbers, fact = refusal.about, refusal.numbers, refusal.fact
    if about == "pixels":
        return _other_pixels(task, model, images, fact)
    if about == "outputs":
        return width_refused(task, numbers[0], "the model has")
    if about in ("forget_labels", "already_forgotten"):
        place = "--already-forgotten"
        if about == "forget_labels":
            place = photos.places.get(numbers[0], str(task.forget))
        return (
            f"{place} names class {numbers[0]}, but the model has the classes 0 to {numbers[1] - 1}: give the place of"
            " the class among the outputs, counted from 0"
        )
    if about == "recognized":
        return (
            f"{fact}: check that {photos.places.get(numbers[0], task.forget)} is named by the place of its class among"
            " the outputs, counted from 0 (or give --classes-file), that --mean and --std are given if the model takes"
            " normalized images, and that the photos are upright"
        )
    if about == "unreachable":
        known = ",".join(map(str, numbers))
        return f"{fact}: if it was forgotten before, or is an output that is not used, give --already-forgotten {known}"
    return str(refusal)


def width_refused(task: Task, width: int, holder: str) -> str:
    """Say that the number of classes that was given is not ``width``, which somebody holds."""
    if task.num_classes is not None:
        return f"--num-classes is {task.num_classes}, but {holder} {width} classes: drop --num-classes"
    assert task.classes_file is not None
    named = len(read_classes(task.classes_file))
    return f"--classes-file {task.classes_file} names {named} classes, but {holder} {width}: name {width}, one a line"


def _other_pixels(task: Task, model: nn.Module, images: Tensor, fact: str) -> str:
    """Say which size or channels the model runs on, found by trying."""
    channels, height, width = images.shape[1:]
    first = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), channels)
    if task.mean is not None and len(task.mean) != first and first in (1, 3):
        given = len(task.mean)
        return (
            f"--mean and --std have length {given}, but the model takes {first} channels: give {first} numbers to each"
        )
    other = images[:1].expand(-1, 3, -1, -1) if channels == 1 else grey(images[:1])
    for size in SIZES:
        for image in (images[:1], other):
            if runs_on(model, F.interpolate(image.float(), size=(size, size)))[0]:
                return (
                    f"{task.model} fails on photos of {width}x{height} pixels, and runs on {size}x{size}: give"
                    f" --image-size {size}"
                )
    if first not in (1, 3):
        return f"{fact}: photos have 1 or 3 channels, the model takes {first}; call zspag.zero_shot_unlearn in Python"
    return f"{fact}: give the size that it was trained on, --image-size N"


def runs_on(model: nn.Module, image: Tensor) -> tuple[bool, int | None]:
    """Return whether a model runs on an image, and how many channels its first convolution saw."""
    seen: list[int] = []
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    hooks = [part.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1])) for part in convolutions]
    try:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        with evaluating(model), torch.no_grad():
            model(image.to(dtype) / 255)
    except Exception:  # noqa: BLE001  a model that does not run is what is asked; why, the method's own checks say
        return False, None
    finally:
        for hook in hooks:
            hook.remove()
    return True, seen[0] if seen else None
