"""One tensor file per data set, with a manifest that says where it came from.

Invariant: what the cache hands out has the SHA-256 of its manifest and comes from the source as it is now; anything
else is built again.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zspag.lab.data.splits import Dataset, Split, content_hash
from zspag.report.files import read_json, replacing, write_json

notes = logging.getLogger("zspag.lab.data")


def cached(folder: Path, key: str, *, source: dict[str, Any], build: Callable[[], Dataset]) -> Dataset:
    """Return the cached data set, or build and cache it.

    Args:
        folder: Folder of the cache.
        key: Name of the two files, ``key.safetensors`` and ``key.json``.
        source: Facts of the source (path, size, time of change); the cache holds only as long as they do.
        build: Reads the source.

    Returns:
        The data set.
    """
    try:
        return _read(folder, key, source)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as reason:
        notes.info("the cache of %s is built again: %s", key, reason)
    dataset = build()
    try:
        _write(folder, key, source, dataset)
    except OSError as reason:  # a read-only disk costs time, not the result
        notes.info("%s is not cached: %s", key, reason)
    return dataset


def _read(folder: Path, key: str, source: dict[str, Any]) -> Dataset:
    manifest = read_json(folder / f"{key}.json")
    if manifest["source"] != source:
        raise ValueError(f"its source changed from {manifest['source']} to {source}")
    tensors = load_file(folder / f"{key}.safetensors")
    train, test = (Split(tensors[f"{part}_images"], tensors[f"{part}_labels"]) for part in ("train", "test"))
    classes = tuple(manifest["classes"])
    if content_hash(classes, train, test) != manifest["sha256"]:
        raise ValueError("its contents do not have the SHA-256 of the manifest")
    facts = (manifest[fact] for fact in ("sha256", "augment_hint", "data_source"))
    return Dataset(manifest["name"], classes, train, test, *facts)


def _write(folder: Path, key: str, source: dict[str, Any], dataset: Dataset) -> None:
    parts = {"train": dataset.train, "test": dataset.test}
    tensors = {f"{part}_images": split.images for part, split in parts.items()}
    tensors |= {f"{part}_labels": split.labels for part, split in parts.items()}
    with replacing(folder / f"{key}.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    manifest = {
        "schema": 2,
        "name": dataset.name,
        "classes": list(dataset.classes),
        "augment_hint": dataset.augment_hint,
        "data_source": dataset.data_source,
        "source": source,
        "counts": counts(dataset),
        "sha256": dataset.sha256,
    }
    write_json(folder / f"{key}.json", manifest)


def counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Return the number of images of every class, by split."""
    return {
        part: dict(zip(dataset.classes, split.labels.bincount(minlength=dataset.num_classes).tolist(), strict=True))
        for part, split in (("train", dataset.train), ("test", dataset.test))
    }
