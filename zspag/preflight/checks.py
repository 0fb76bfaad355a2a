"""Every refusal, before any work: ``look`` sees model, forget set and request together.

The accuracy of the original on the forget set is the one number that tells whether images, labels, normalization and
model belong together: each may be valid alone. It is measured before anything else is.

Invariant: nothing is changed, and what ``look`` lets pass fails later only for a reason that it could not see.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zspag.preflight.classifiers import classifier, place_of, working_copy
from zspag.preflight.inputs import FORGET_BYTES, ForgetSet, forget_set, whole_number
from zspag.preflight.model_checks import (
    check_gradients,
    check_logits,
    check_unbounded,
    immovable,
    inconstancy,
    layout_of,
)
from zspag.preflight.reachability import STAGES, unreachable
from zspag.preflight.refusal import Refusal
from zspag.process.surroundings import plain_layout
from zspag.runtime import logits_of


@dataclass(frozen=True)
class Preflight:
    """What a look at model and forget set says."""

    num_classes: int  # width K of the logits
    already_forgotten: tuple[int, ...]  # classes that earlier requests removed, as the caller named them
    original_accuracy: float  # accuracy of the model on the forget set, a fraction
    frozen: Mapping[str, str]  # weights that must not or cannot move, by their name in ``model``: the reason
    layout: str  # "channels_last", or "plain" where the model fails with channels innermost (``plain_layout``)
    warnings: tuple[str, ...]  # what the caller should be told, one sentence each


def look(
    model: nn.Module,
    images: Any,
    labels: Any = None,
    *,
    num_classes: Any = None,
    already_forgotten: Any = (),
    limit: Any = None,
) -> tuple[nn.Module, ForgetSet, Preflight]:
    """Look at everything that can be known before the first second of work; arguments as in ``zero_shot_unlearn``.

    Returns:
        A working copy of the model that gives logits, the forget set, and what was seen.

    Raises:
        ValueError: If the request cannot work; the message says what, where, the value and the remedy.
        Refusal: The same, where the command line has a remedy of its own.
    """
    working = working_copy(model)
    device, dtype = place_of(working)
    forget = forget_set(images, labels, device=device, dtype=dtype, limit=limit)
    net = classifier(working, forget.images, num_classes=num_classes)
    width = None if num_classes is None else whole_number(num_classes)
    if num_classes is not None and (width is None or width < 2):
        raise ValueError(f"num_classes must be a whole number of at least 2, got {num_classes!r}: leave it out")
    before = class_tuple(already_forgotten, "already_forgotten")
    with plain_layout():
        logits = check_logits(net, forget.images, num_classes=width)
        width = logits.shape[1]
        warnings = _check_classes(forget.classes, before, width)
        whole = logits_of(net, forget.images)
        check_unbounded(whole)
        answers = whole.argmax(1)
        check_gradients(net, forget.images)
        frozen = immovable(net, forget.images)
        warnings += _check_recognized(answers, forget, before)
        warnings += inconstancy(net, forget.images, logits)
        retained = tuple(label for label in range(width) if label not in {*forget.classes, *before})
        # One at a time: of very many classes not all would be tried.
        if alive := [label for label in before if not unreachable(net, forget.images, (label,), stages=STAGES[:1])]:
            warnings += (
                f"already_forgotten names class {', '.join(map(str, alive))}, which the model still answers: its row is"
                " closed and it is not protected; if it was not forgotten before, leave it out",
            )
        dead = unreachable(net, forget.images, retained)
        if dead:
            raise Refusal(
                f"no image makes the model answer class {', '.join(map(str, dead))} (the logit stays"
                f" {min(dead.values()):.3g} or more below the largest)",
                "an output that is not used, or a class that was forgotten before; pass"
                f" already_forgotten={(*before, *dead)} to leave it out of the retained classes",
                about="unreachable",
                numbers=(*before, *dead),
            )
    layout = layout_of(net, forget.images, logits)
    accuracy = (answers == forget.labels).double().mean().item()
    if forget.left_out and limit is None:
        used, given = len(forget.labels), len(forget.labels) + forget.left_out
        sampled = (
            f"{used} of the {given} forget images are used, equally many of each class, for all of them would take more"
            f" memory than {FORGET_BYTES / 2**30:.3g} GiB: pass limit={given} to use all, or limit={used} to agree"
        )
        warnings = (sampled, *warnings)
    return net, forget, Preflight(width, before, accuracy, frozen, layout, warnings)


def class_tuple(classes: Any, what: str) -> tuple[int, ...]:
    """Return class numbers as a tuple of ints, in the order given.

    Args:
        classes: One int, or ints in a list, tuple, set, range, tensor or array; None for no class.
        what: What the message calls them.

    Raises:
        ValueError: If something else is given, or a class twice.
    """
    if classes is None or whole_number(classes) is not None:
        classes = () if classes is None else (classes,)
    listed = isinstance(classes, Iterable) and not isinstance(classes, str | bytes | Mapping)
    numbers = list(map(whole_number, classes)) if listed and getattr(classes, "ndim", 1) == 1 else [None]
    found = tuple(number for number in numbers if number is not None)
    if len(found) < len(numbers):
        raise ValueError(f"{what} must hold class numbers, for example (3, 5), got {classes!r}")
    for number, count in Counter(found).items():
        if count > 1:
            raise ValueError(f"{what} names class {number} {count} times: name each class once")
    return found


def _check_classes(forget: tuple[int, ...], before: tuple[int, ...], num_classes: int) -> tuple[str, ...]:
    # CHOICE: the warning that single samples may have been meant begins at half of the classes, which .7 K samples
    # drawn at random are enough to name. It is no refusal, for so many whole classes are forgotten as well as one.
    for name, classes in (("forget_labels", forget), ("already_forgotten", before)):
        outside = [label for label in classes if not 0 <= label < num_classes]
        if outside:
            raise Refusal(
                f"{name} holds class {outside[0]}, outside 0..{num_classes - 1} (num_classes={num_classes})",
                "classes are numbered as the model's logits are",
                about=name,
                numbers=(outside[0], num_classes),
            )
    if len({*forget, *before}) == num_classes:
        raise ValueError(
            f"the classes to forget, with those already forgotten, are all {num_classes} classes, and each is forgotten"
            " whole: at least one must be retained. To forget single samples of all classes, retrain without them"
        )
    if 2 * len(forget) <= num_classes:
        return ()
    return (
        f"the forget set names {len(forget)} of {num_classes} classes, and each is forgotten whole, images that are"
        " not in the set included: if single samples were meant, retrain without them instead",
    )


def _check_recognized(answers: Tensor, forget: ForgetSet, before: tuple[int, ...]) -> tuple[str, ...]:
    # ``answers`` are the classes (n,) that the model gives the forget images.
    warnings = []
    for label in forget.classes:
        given = answers[forget.labels == label]
        right = int((given == label).sum())
        if 2 * right >= len(given):
            continue
        if right == 0 and label in before:
            raise ValueError(
                f"the model recognizes no image of class {label}, which already_forgotten names: leave its images out"
            )
        instead, times = Counter(given[given != label].tolist()).most_common(1)[0]
        text = (
            f"the model recognizes only {right} of the {len(given)} images labelled {label} as class {label} (it"
            f" answers {instead} for {times} of them)"
        )
        if right == 0:
            raise Refusal(
                text,
                "images and labels, or the normalization of the images, may not fit the model. Check the order of the"
                " classes and of the channels, whether the model expects [0, 1] (else put Normalize(mean, std) in front"
                f" of it), and whether the images are upright; their mean is {forget.images.mean().item():.3g}",
                about="recognized",
                numbers=(label,),
            )
        warnings.append(f"{text}: images and labels, or the normalization of the images, may not fit the model")
    return tuple(warnings)


def unsound(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the model's parameters and buffers that hold NaN or infinity."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return tuple(name for name, tensor in tensors if tensor.is_floating_point() and not bool(tensor.isfinite().all()))
