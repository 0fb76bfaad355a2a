"""``load``: a name becomes a data set, from the cache if its source has not changed.

The cache is a tensor file and a manifest per data set. It saves the decoding of images (a minute for CIFAR-10).

Invariant: what the cache hands out has the SHA-256 of its manifest and comes from the source as it is now; anything
else is built again. A set that cannot be had says in one sentence what to put where.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zspag.lab.data.folders import FolderOptions, read_image_folder
from zspag.lab.data.guard import count_read
from zspag.lab.data.listing import ARCHIVES, find_archive, walk
from zspag.lab.data.sources import DIGITS_SPLIT_SEED, OFFICIAL, provide, read_digits, read_official
from zspag.lab.data.splits import Dataset, Split
from zspag.report.files import data_root, read_json, replacing, write_json

notes = logging.getLogger("zspag.lab.data")

NAMED = ("digits", *OFFICIAL, "facescrub")
READING = 2  # counts the changes of how a folder becomes tensors: a cache of an older reading is made anew

Plan = tuple[str, dict[str, Any], Callable[[], Dataset]]  # key in the cache, facts that it depends on, reading


def load(name: str | Path, *, root: Path | None = None, **options: Any) -> Dataset:
    """Load a data set; while a guard's ``method()`` block runs, all its samples count as read.

    Args:
        name: One of ``NAMED``, or an image folder ``{train,test}/<class>/`` or ``<class>/``, or an archive of one: its
            path, or its name under ``root``.
        root: Folder of the data sets and of their cache; None means ``data_root()``.
        **options: For an image folder, fields of ``FolderOptions`` (image_size, test_share, split_seed, min_per_class);
            None means the default ("facescrub": images of 64 pixels).

    Raises:
        FileNotFoundError: If the set is missing and cannot be downloaded; the message says what to put where.
        ValueError: If the source is damaged, unsafe or not an image folder; the message names the file.
    """
    root = data_root() if root is None else Path(root)
    dataset = _cached(root / "cache", *plan(name, root, **options))
    count_read(len(dataset.train) + len(dataset.test))
    return dataset


def plan(name: str | Path, root: Path, **options: Any) -> Plan:
    """Find the source of a data set, unpacking or downloading it if need be, and say how it is read.

    Raises:
        FileNotFoundError: As for ``load``.
        ValueError: As for ``load``.
    """
    given = {option: value for option, value in options.items() if value is not None}
    chosen = replace(FolderOptions(image_size=64 if name == "facescrub" else None), **given)
    if given and name in NAMED and name != "facescrub":
        listed = ", ".join(f"{option}={value}" for option, value in given.items())
        raise ValueError(f"{listed} is for image folders; {name} has its own size and split")
    if name == "digits":
        facts = {"scikit-learn": version("scikit-learn"), "split_seed": DIGITS_SPLIT_SEED}
        return "digits", facts, read_digits
    if name in OFFICIAL:
        place, files = provide(str(name), root)
        if files is None:
            return str(name), _folder_facts(place), partial(_read_stand_in, place, str(name))
        return str(name), _signature(files, base=root), partial(read_official, str(name), root)
    source = find_folder(name, root)
    if source is None and name == "facescrub":
        raise FileNotFoundError(
            f"FaceScrub is not in {root}: it is published as links only, so fetch the photographs yourself and put the"
            f" face crops of every person under {root / name}/<person>/, or an archive facescrub.tar.xz of that into"
            f" {root}"
        )
    if source is None:
        raise FileNotFoundError(
            f"no data set {str(name)!r}: it is neither one of {', '.join(NAMED)} nor an image folder; put images under"
            f" {root / name}/train/<class>/ and {root / name}/test/<class>/, or under {root / name}/<class>/ to have"
            " them split"
        )
    if source.is_file() and not source.name.endswith(ARCHIVES):
        raise ValueError(f"{source} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    plain = next((source.name.removesuffix(s) for s in ARCHIVES if source.name.endswith(s)), source.name)
    digest = hashlib.sha256(f"{source.resolve()} {sorted(asdict(chosen).items())}".encode()).hexdigest()[:8]
    build = partial(read_image_folder, source, name=plain, options=chosen)
    return f"{plain}-{digest}", _folder_facts(source) | asdict(chosen), build


def find_folder(name: str | Path, root: Path) -> Path | None:
    """Return the image folder or archive of that path, or of that name under ``root``."""
    elsewhere = [] if name in NAMED else [Path(name)]
    candidates = [*elsewhere, root / name, find_archive(root, str(name))]
    return next((path for path in candidates if path is not None and path.exists()), None)


def _read_stand_in(source: Path, name: str) -> Dataset:
    official, published = OFFICIAL[name], FolderOptions(test_share=None)
    dataset = read_image_folder(source, name=name, options=published, augment_hint=official.augment_hint)
    if dataset.num_classes != official.num_classes:
        raise ValueError(
            f"{source} holds {dataset.num_classes} classes, but {official.title} has {official.num_classes}; rename it"
            " to load it as a data set of your own"
        )
    return dataset


def _folder_facts(source: Path) -> dict[str, Any]:
    paths, base = ([source], source.parent) if source.is_file() else ([path for _, path in walk(source)], source)
    return {"name": source.name, **_signature(paths, base=base), "reading": READING}


def _signature(paths: Sequence[Path], *, base: Path) -> dict[str, Any]:
    # Count, size in bytes and a hash of names, sizes and times of change, without reading the files.
    facts = [(path, path.stat()) for path in paths]
    rows = [[path.relative_to(base).as_posix(), fact.st_size, fact.st_mtime_ns] for path, fact in facts]
    listing = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"files": len(rows), "bytes": sum(fact.st_size for _, fact in facts), "listing_sha256": listing}


def _cached(folder: Path, key: str, source: dict[str, Any], build: Callable[[], Dataset]) -> Dataset:
    tensor_file, manifest_file = folder / f"{key}.safetensors", folder / f"{key}.json"
    try:
        return _read(tensor_file, read_json(manifest_file), source)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as reason:
        notes.info("the cache of %s is built again: %s", key, reason)
    dataset = build()
    tensors: dict[str, Tensor] = {}
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        tensors |= {f"{part}_images": split.images.contiguous(), f"{part}_labels": split.labels.contiguous()}
    manifest = {
        "schema": 2,
        "name": dataset.name,
        "classes": list(dataset.classes),
        "augment_hint": dataset.augment_hint,
        "data_source": dataset.data_source,
        "source": source,
        "counts": dataset.counts,
        "sha256": dataset.sha256,
    }
    try:
        with replacing(tensor_file) as temporary:
            save_file(tensors, temporary)
        write_json(manifest_file, manifest)
    except OSError as reason:  # a read-only disk costs time, not the result
        notes.info("%s is not cached: %s", key, reason)
    return dataset


def _read(tensor_file: Path, manifest: dict[str, Any], source: dict[str, Any]) -> Dataset:
    if manifest["source"] != source:
        raise ValueError(f"its source changed from {manifest['source']} to {source}")
    tensors = load_file(tensor_file)
    train, test = (Split(tensors[f"{part}_images"], tensors[f"{part}_labels"]) for part in ("train", "test"))
    facts = manifest["augment_hint"], manifest["data_source"]
    dataset = Dataset(manifest["name"], tuple(manifest["classes"]), train, test, *facts)
    if dataset.sha256 != manifest["sha256"]:
        raise ValueError("its contents do not have the SHA-256 of the manifest")
    return dataset
