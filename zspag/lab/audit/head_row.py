"""One row of the head: how much of slow relearning it makes alone.

Retraining without a class leaves its row of the head below all others, and its bias low. Training has to raise that row
before the class can be answered, whatever the features hold: relearning under the own head, and AIN with it, measure
this row. So an audit looks at the original with this row edited, and trains every network once more with the row drawn
anew.

Invariant: all that comes before the head and the rows of the other classes stay as they are, bit for bit; the models
passed in are only read.
"""

import copy

import torch
from torch import Tensor, nn

from zspag.heads.head import Head, NoHeadError, find_head
from zspag.lab.audit.features import unmasked

# CHOICE: so small that the draw gives no network a lead. On digits retrained networks then need 85 to 97 steps (two
# seeds, three classes; the originals 9 to 17), with a tenth in its place 50 to 89.
SMALL = 0.01  # weights of a fresh row beside those of the other rows (root mean squares)


def row_edited(original: nn.Module, retrained: nn.Module, *, forget: int, images: Tensor) -> nn.Module | None:
    """Return the original, the class's row as far below the others as in the retrained network: the control.

    With ``v`` and ``c`` the rows and biases of the retrained network's head, ``o`` over the other classes and the
    means of rows over ``o``,

        w_f = mean_o w_o + mean over features of (v_f - mean_o v_o),    b_f = mean_o b_o + (c_f - mean_o c_o):

    the same number in every feature. The row holds two numbers of the retrained network and nothing else.

    Args:
        original: Not changed.
        retrained: Of the same architecture. Not changed.
        forget: The class.
        images: At least one, shape (n, C, H, W); they show which layer is the head.

    Returns:
        A copy, or None where the rows of the head are not the classes or cannot be written (``Head.obstacle``).

    Note:
        Nothing has to be tuned. On digits (classes 1, 3, 8, two seeds) it needs .95 to 1.10 times the steps of the
        retrained network under the own head. Where features have both signs,
        such a row need not be slow.
    """
    edited = copy.deepcopy(original).requires_grad_()
    if (head := _writable(edited, images)) is None:
        return None
    ours, theirs = dict(edited.named_parameters()), dict(retrained.named_parameters())
    with torch.no_grad():
        for name in (head.name, head.bias):
            own, other = ours[name], theirs[name]
            kept = [label for label in range(len(own)) if label != forget]
            own[forget] = own[kept].mean(0) + (other[forget] - other[kept].mean(0)).mean()
    return edited


def row_redrawn(model: nn.Module, *, forget: int, images: Tensor, generator: torch.Generator) -> nn.Module | None:
    """Return a copy whose head knows nothing of the class: a small random row, and a bias that is the others' mean.

    Args:
        model: Not changed. Of a masked original the shift is taken away.
        forget: The class.
        images: At least one, shape (n, C, H, W); they show which layer is the head.
        generator: CPU generator of the row.

    Returns:
        The copy, or None where the rows of the head are not the classes or cannot be written (``Head.obstacle``).

    Note:
        The other rows are the model's own, and count: on digits a head-only edit, which leaves all features alone,
        needs 18 steps where the original needs 10 and the retrained network 85.
    """
    changed = copy.deepcopy(unmasked(model)).requires_grad_()
    if (head := _writable(changed, images)) is None:
        return None
    parameters = dict(changed.named_parameters())
    weight, bias = parameters[head.name], parameters[head.bias]
    kept = [label for label in range(len(weight)) if label != forget]
    with torch.no_grad():
        size = SMALL * weight[kept].square().mean().sqrt()
        weight[forget] = size * torch.randn(weight[forget].shape, generator=generator).to(weight)
        bias[forget] = bias[kept].mean()
    return changed


def _writable(model: nn.Module, images: Tensor) -> Head | None:
    try:
        head = find_head(model, images)
    except NoHeadError:
        return None
    return None if head.obstacle else head
