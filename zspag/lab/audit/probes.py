"""Removal or suppression: is what a model knew of a class still there, whatever the model answers?

A classifier is fitted to features of all classes: if it tells the forgotten class, the class is still represented. A
retrained network is the measure, for its features tell much of a class that it never saw. A method may take away what a
linear probe reads and leave the rest, so there are probes of other kinds, which no method here trains against. And does
the class come back as soon as the last layer's change is undone (the logit-restored test)?

Invariant: a probe is judged on images that it was not fitted to, and changes no model.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from zspag.lab.audit.features import stage_features, unmasked
from zspag.runtime import seed_of


@dataclass(frozen=True)
class Recall:
    """Mean share of the test images of a class that a probe recognizes."""

    forget: float  # over the forget classes
    retain: float  # over the others: a probe that tells these no better than chance tells nothing


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    forget: Sequence[int],
    penalty: float,
) -> Recall:
    """Fit a linear classifier of all classes by ridge regression on one-hot targets, and judge it on test images.

    Args:
        train_features: Shape (n, d); they are standardized by their own mean and deviation.
        train_labels: Shape (n,); the forget classes are among them.
        test_features: Shape (m, d).
        test_labels: Shape (m,).
        forget: Forget classes.
        penalty: Weight of the squared coefficients beside the mean squared error, above 0.

    Raises:
        ValueError: If the penalty is not positive, a class has no images, or a feature is not finite.
    """
    from sklearn.linear_model import RidgeClassifier  # a second of import that most of the package does not need

    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    classifier = RidgeClassifier(alpha=penalty * len(train_features))
    return _judged(classifier, train_features, train_labels, test_features, test_labels, forget)


def mlp_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    forget: Sequence[int],
    units: int,
    epochs: int,
    lr: float,
    draws: int,
    generator: torch.Generator,
) -> Recall:
    """Fit small networks of one hidden layer and judge them on test images: what no linear probe finds.

    Args:
        train_features: As for ``linear_probe``, like the next three.
        train_labels: Shape (n,).
        test_features: Shape (m, d).
        test_labels: Shape (m,).
        forget: Forget classes.
        units: Width of the hidden layer.
        epochs: Passes over the training features at most; fitting ends earlier where the loss no longer falls.
        lr: Learning rate of Adam.
        draws: Networks, over which recalls are averaged: one alone depends on its first weights.
        generator: CPU generator of first weights and orders.

    Raises:
        ValueError: If there are no units, epochs or draws, a class has no images, or a feature is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    if min(units, epochs, draws) < 1:
        raise ValueError(f"units, epochs and draws must be at least 1, got {units}, {epochs} and {draws}")
    recalls = []
    for _ in range(draws):
        seed = seed_of(generator)
        classifier = MLPClassifier((units,), learning_rate_init=lr, max_iter=epochs, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs and no more were asked for
            recalls.append(_judged(classifier, train_features, train_labels, test_features, test_labels, forget))
    return Recall(fmean(one.forget for one in recalls), fmean(one.retain for one in recalls))


def neighbour_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    forget: Sequence[int],
    neighbours: int,
) -> Recall:
    """Give every test image the class that most of its nearest training images have, in standardized features.

    Args:
        train_features: As for ``linear_probe``, like the next three.
        train_labels: Shape (n,).
        test_features: Shape (m, d).
        test_labels: Shape (m,).
        forget: Forget classes.
        neighbours: Training images that vote; all of them where there are fewer.

    Raises:
        ValueError: If nobody votes, a class has no images, or a feature is not finite.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    classifier = KNeighborsClassifier(min(neighbours, len(train_features)))
    return _judged(classifier, train_features, train_labels, test_features, test_labels, forget)


def prototype_probe(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, *, forget: Sequence[int]
) -> Recall:
    """Give every test image the class whose mean is nearest; arguments and answer are those of ``linear_probe``.

    Raises:
        ValueError: If a class has no images, or a feature is not finite.
    """
    _check(train_features, train_labels, test_features, test_labels, forget)
    classes, train_labels = train_labels.cpu().unique(), train_labels.cpu()
    means = torch.stack([train_features[train_labels == label].mean(0) for label in classes])
    return _recall(classes[torch.cdist(test_features, means).argmin(1)], test_labels.cpu(), forget)


def _judged(
    classifier: Any,
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forget: Sequence[int],
) -> Recall:
    """Fit a classifier of scikit-learn to standardized features and judge it on test images."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check(train_features, train_labels, test_features, test_labels, forget)
    deviation, largest = train_features.std(0, correction=0), train_features.abs().amax(0)
    alive = deviation > torch.finfo(torch.float32).eps * largest
    # What never moved in training says nothing, wherever it moves later.
    train, test = ((features * alive).numpy() for features in (train_features, test_features))
    fitted = make_pipeline(StandardScaler(), classifier).fit(train, train_labels.cpu().numpy())
    return _recall(torch.from_numpy(fitted.predict(test)), test_labels.cpu(), forget)


def _check(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, forget: Sequence[int]) -> None:
    trained, tested = set(train_labels.tolist()), set(test_labels.tolist())
    for part, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if len(features) != len(labels):
            raise ValueError(f"{len(features)} {part} features come with {len(labels)} labels")
        if not bool(features.isfinite().all()):
            raise ValueError(f"{part} features are not finite: the model is ruined, there is nothing to probe")
    if not forget or not set(forget) < tested:
        raise ValueError(f"test images must be of the forget classes {list(forget)} and others, got {sorted(tested)}")
    if tested - trained:
        raise ValueError(f"test images are of classes {sorted(tested - trained)}, of which there is no train image")


def _recall(predicted: Tensor, labels: Tensor, forget: Sequence[int]) -> Recall:
    hit = (predicted == labels).double()
    shares = {int(label): hit[labels == label].mean().item() for label in labels.unique()}
    kept = [share for label, share in shares.items() if label not in forget]
    gone = [shares[label] for label in set(forget)]
    return Recall(forget=sum(gone) / len(gone), retain=sum(kept) / len(kept))


def logit_restored(original: nn.Module, unlearned: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of the unlearned model with the whole last layer of the original: does the class come back?

    All rows are put back, not those of the forget classes alone, and the shift of a masked original is taken away: a
    class may be hidden by raising the others. What the copy still does not recognize is gone before the last layer. A
    forward pass of the images tells which layer is the last.

    Raises:
        ValueError: If the models do not end in the same layer.
    """
    restored = copy.deepcopy(unmasked(unlearned))
    theirs, ours = (_last_layer(model, images[:1]) for model in (unmasked(original), restored))
    shapes, wanted = ({name: tuple(own.shape) for name, own in layer.items()} for layer in (ours, theirs))
    if shapes != wanted:
        raise ValueError(f"the last layer of the unlearned model has {shapes}, that of the original {wanted}")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])
    return restored


def _last_layer(model: nn.Module, images: Tensor) -> dict[str, nn.Parameter]:
    *_, last = stage_features(model, images, grid=1)
    return dict(model.get_submodule(last.rpartition(".")[0]).named_parameters(recurse=False))
