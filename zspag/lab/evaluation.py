"""What is measured about an unlearned model, against the original and the retrained one.

The *masked original*, the original with the forget logits at a finite floor, is the yardstick for everything retained:
it is free, and it already has the accuracy that comes from removing a competitor.

Invariant: every figure is defined here once, as a function of logits; accuracies are fractions, divergences nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.runtime import logits_of
from zspag.subspaces import Moments, Subspace

FLOOR = -30.0  # log-probability of a masked class: -inf would break every divergence


def masked(logits: Tensor, *, forget: Sequence[int]) -> Tensor:
    """Return log-probabilities (n, K) of the masked original: forget classes at the floor, the rest renormalized."""
    hidden = logits.double().clone()
    hidden[:, list(forget)] = -torch.inf
    return hidden.log_softmax(1).clamp_min(FLOOR).log_softmax(1)


class Masked(nn.Module):
    """The masked original as a model that can be trained: logits of the forget classes lowered by ``-FLOOR``.

    Args:
        model: The original, which stays a part of it.
        forget: Forget classes.
        num_classes: Width of the logits.
    """

    shift: Tensor

    def __init__(self, model: nn.Module, *, forget: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.model = model
        shift = torch.zeros(num_classes)
        shift[list(forget)] = FLOOR
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, K)."""
        return self.model(images) + self.shift


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose argmax is the label (micro accuracy)."""
    return (logits.argmax(1) == labels).double().mean().item()


def recognized(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which rows have their label as argmax, shape (n,); a row that is not finite recognizes nothing."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)  # the argmax of NaN is a class like any other


def macro_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes present of each class's accuracy."""
    each = per_class_accuracy(logits, labels)
    return sum(each.values()) / len(each)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> dict[int, float]:
    """Return each present class's accuracy."""
    present, member, counts = labels.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(present), dtype=torch.float64, device=labels.device)
    hits.index_add_(0, member, (logits.argmax(1) == labels).double())
    return dict(zip(present.tolist(), (hits / counts).tolist(), strict=True))


def mean_kl(reference: Tensor, logits: Tensor) -> float:
    """Return mean KL(p || q) with p = softmax(reference), q = softmax(logits), in nats."""
    log_p, log_q = reference.double().log_softmax(1), logits.double().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean().item()


def mean_nll(logits: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of the labels under softmax(logits), in nats."""
    return -logits.double().log_softmax(1).gather(1, labels[:, None]).mean().item()


def mean_js(first: Tensor, second: Tensor) -> float:
    """Return the mean Jensen-Shannon divergence of two sets of logits, in nats (at most log 2)."""
    log_p, log_q = first.double().log_softmax(1), second.double().log_softmax(1)
    log_mean = torch.stack([log_p, log_q]).logsumexp(0) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    sides = [(log_side.exp() * (log_side - log_mean)).sum(1) for log_side in (log_p, log_q)]
    return ((sides[0] + sides[1]) / 2).mean().item()


def agreement(first: Tensor, second: Tensor) -> float:
    """Return the share of rows on which two sets of logits have the same argmax."""
    return (first.argmax(1) == second.argmax(1)).double().mean().item()


@dataclass(frozen=True)
class Parts:
    """One tensor per part of the data that a model is judged on."""

    forget_train: Tensor  # of the forget training samples
    forget_test: Tensor  # of the forget test samples
    retain_test: Tensor  # of the retained test samples

    def map_logits(self, model: nn.Module) -> "Parts":
        """Return the model's logits on every part."""
        return Parts(*(logits_of(model, part) for part in (self.forget_train, self.forget_test, self.retain_test)))


@dataclass(frozen=True)
class References:
    """What the models of one class and seed are judged on, and the logits of the reference models."""

    images: Parts
    labels: Parts
    original: Parts  # logits
    retrained: Parts | None  # logits; None where there is no retrained model
    forget: tuple[int, ...]  # classes


@dataclass(frozen=True)
class Scores:
    """What is measured of one model; accuracies are fractions, divergences nats.

    The last five compare with the retrained model; they are None where there is none.
    """

    acc_forget: float  # on test images of the forget classes
    acc_retain: float  # on test images of the retained classes, macro
    acc_retain_micro: float  # the same, micro
    acc_forget_train: float  # on the forget training samples
    over_unlearning: float  # acc_retain of the masked original minus acc_retain
    drift: float  # mean KL(masked original, model) on retained test images
    nll_retain: float  # mean negative log-likelihood of the true labels on retained test images
    gap: float | None  # mean absolute difference in accuracy over forget train, forget test, retain test
    agreement_forget: float | None  # share of forget test images on which both models agree
    agreement_retain: float | None  # the same on retained test images
    js_forget: float | None  # Jensen-Shannon divergence on forget test images
    js_retain: float | None  # the same on retained test images


def score(logits: Parts, references: References) -> Scores:
    """Return the scores of a model given its logits (or log-probabilities) on the images of the references.

    Non-finite logits count as wrong; their divergences are cut at a large finite value.
    """
    clean = Parts(*(finite(part) for part in (logits.forget_train, logits.forget_test, logits.retain_test)))
    labels, other = references.labels, references.retrained
    yardstick = masked(references.original.retain_test, forget=references.forget)
    acc_retain = macro_accuracy(clean.retain_test, labels.retain_test)
    beside: dict[str, float | None]
    beside = dict.fromkeys(("gap", "agreement_forget", "agreement_retain", "js_forget", "js_retain"))
    if other is not None:
        differences = [
            abs(accuracy(ours, truth) - accuracy(theirs, truth))
            for ours, theirs, truth in (
                (clean.forget_train, other.forget_train, labels.forget_train),
                (clean.forget_test, other.forget_test, labels.forget_test),
                (clean.retain_test, other.retain_test, labels.retain_test),
            )
        ]
        beside = {
            "gap": sum(differences) / len(differences),
            "agreement_forget": agreement(clean.forget_test, other.forget_test),
            "agreement_retain": agreement(clean.retain_test, other.retain_test),
            "js_forget": mean_js(clean.forget_test, other.forget_test),
            "js_retain": mean_js(clean.retain_test, other.retain_test),
        }
    return Scores(
        acc_forget=accuracy(clean.forget_test, labels.forget_test),
        acc_retain=acc_retain,
        acc_retain_micro=accuracy(clean.retain_test, labels.retain_test),
        acc_forget_train=accuracy(clean.forget_train, labels.forget_train),
        over_unlearning=macro_accuracy(yardstick, labels.retain_test) - acc_retain,
        drift=mean_kl(yardstick, clean.retain_test),
        nll_retain=mean_nll(clean.retain_test, labels.retain_test),
        **beside,
    )


def finite(logits: Tensor) -> Tensor:
    """A ruined model has infinite logits; it is judged as what it is, very wrong, without breaking the table."""
    return logits.nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6)


def masked_parts(references: References) -> Parts:
    """Return the masked original's log-probabilities on every part."""
    parts = (references.original.forget_train, references.original.forget_test, references.original.retain_test)
    return Parts(*(masked(part, forget=references.forget) for part in parts))


def captured(subspace: Subspace, moments: Moments) -> dict[str, float]:
    """Return, per weight, the share of the trace of ``moments`` that lies inside ``subspace``: tr(U^T C U) / tr(C)."""
    shares = {}
    for name, basis in subspace.bases.items():
        second = moments.second[name].to(basis)
        inside = (basis * (second @ basis)).sum()
        trace = second.diagonal(dim1=1, dim2=2).sum()
        shares[name] = (inside / trace.clamp_min(torch.finfo(trace.dtype).tiny)).item()  # a dead layer has no trace
    return shares


def selectivity(subspace: Subspace, *, forget: Moments, retain: Moments) -> dict[str, float]:
    """Return tr(P C_f) / tr(P C_r) per weight, trace-normalized: how much more forget than retain stays free."""
    free_forget, free_retain = captured(subspace, forget), captured(subspace, retain)
    return {name: (1 - free_forget[name]) / max(1 - free_retain[name], 1e-12) for name in subspace.bases}
