"""Removal or suppression: is what a model knew of a class still there, whatever the model answers?

A classifier is fitted to features of all classes: if it tells the forgotten class, the class is still represented. A
retrained network is the measure, for its features tell much of a class that it never saw. And does the class come back
as soon as the last layer's change is undone (the logit-restored test)?

Invariant: a probe is judged on images that it was not fitted to, and changes no model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zspag.lab.audit.features import stage_features, unmasked


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
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    _check(train_features, train_labels, test_features, test_labels, forget)
    deviation, largest = train_features.std(0, correction=0), train_features.abs().amax(0)
    alive = deviation > torch.finfo(torch.float32).eps * largest
    # What never moved in training says nothing, wherever it moves later.
    train, test = ((features * alive).numpy() for features in (train_features, test_features))
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty * len(train)))
    classifier.fit(train, train_labels.cpu().numpy())
    return _recall(torch.from_numpy(classifier.predict(test)), test_labels.cpu(), forget)


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
