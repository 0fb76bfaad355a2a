"""``load``: a name becomes a data set, from the cache if its source has not changed.

Invariant: a set that cannot be had says in one sentence what to put where.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zspag.lab.data.archives import SUFFIXES, find_archive
from zspag.lab.data.cache import cached
from zspag.lab.data.folders import FolderOptions, folder_signature, read_image_folder, signature
from zspag.lab.data.guard import count_load
from zspag.lab.data.official import OFFICIAL, provide, read_official
from zspag.lab.data.sources import DIGITS_SPLIT_SEED, read_digits
from zspag.lab.data.splits import Dataset
from zspag.report.files import data_root

NAMED = ("digits", *OFFICIAL, "facescrub")
FOLDER_DEFAULTS = FolderOptions(image_size=None, test_share=0.2, split_seed=0, min_per_class=10)
FACESCRUB_DEFAULTS = replace(FOLDER_DEFAULTS, image_size=64)
AS_PUBLISHED = replace(FOLDER_DEFAULTS, test_share=None)  # the folder must have the published split


@dataclass(frozen=True)
class Plan:
    """How a data set is had.

    Attributes:
        key: Its name in the cache.
        source: Facts that the cache depends on.
        build: Reads the source.
    """

    key: str
    source: dict[str, Any]
    build: Callable[[], Dataset]


def load(
    name: str | Path,
    *,
    root: Path | None = None,
    image_size: int | None = None,
    test_share: float | None = None,
    split_seed: int | None = None,
    min_per_class: int | None = None,
) -> Dataset:
    """Load a data set; while a guard's ``method()`` block runs, all its samples count as read.

    Args:
        name: One of ``NAMED``, or an image folder ``{train,test}/<class>/`` or ``<class>/``, or an archive of one: its
            path, or its name under ``root``.
        root: Folder of the data sets and of their cache; None means ``data_root()``.
        image_size: Height and width that the images of a folder are resized to, in pixels; None leaves them alone
            ("facescrub": 64).
        test_share: Share of every class for the test where a folder has no train/ and test/; None means 0.2.
        split_seed: Seed of that split; None means 0.
        min_per_class: Fewest images of a class that is split so; None means 10.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If the set is missing and cannot be downloaded; the message says what to put where.
        ValueError: If the source is damaged, unsafe or not an image folder; the message names the file.
    """
    root = data_root() if root is None else Path(root)
    options = {
        "image_size": image_size,
        "test_share": test_share,
        "split_seed": split_seed,
        "min_per_class": min_per_class,
    }
    chosen = plan(name, root, **{option: value for option, value in options.items() if value is not None})
    dataset = cached(root / "cache", chosen.key, source=chosen.source, build=chosen.build)
    count_load(dataset)
    return dataset


def plan(name: str | Path, root: Path, **given: Any) -> Plan:
    """Find the source of a data set, unpacking or downloading it if need be, and say how it is read.

    Args:
        name: As for ``load``.
        root: Folder of the data sets.
        **given: Fields of ``FolderOptions`` that replace the defaults.

    Raises:
        ValueError: If an option does not fit.
    """
    defaults = FACESCRUB_DEFAULTS if name == "facescrub" else FOLDER_DEFAULTS
    options = replace(defaults, **given)
    if given and name in NAMED and name != "facescrub":
        listed = ", ".join(f"{option}={value}" for option, value in given.items())
        raise ValueError(f"{listed} is for image folders; {name} has its own size and split")
    if name == "digits":
        facts = {"scikit-learn": version("scikit-learn"), "split_seed": DIGITS_SPLIT_SEED}
        return Plan("digits", facts, read_digits)
    return _official_plan(str(name), root) if name in OFFICIAL else _folder_plan(name, root, options)


def _official_plan(name: str, root: Path) -> Plan:
    source, files = provide(name, root)
    if files is not None:
        return Plan(name, dict(signature(files, base=root)), partial(read_official, name, root))
    build = partial(_stand_in, source, name)
    return Plan(name, {"name": source.name, **folder_signature(source)}, build)


def _stand_in(source: Path, name: str) -> Dataset:
    """Read the image folder that stands in for official files.

    Raises:
        ValueError: If it has another number of classes.
    """
    official = OFFICIAL[name]
    dataset = read_image_folder(source, name=name, options=AS_PUBLISHED, augment_hint=official.augment_hint)
    if dataset.num_classes != official.num_classes:
        raise ValueError(
            f"{source} holds {dataset.num_classes} classes, but {official.title} has {official.num_classes}; rename it"
            " to load it as a data set of your own"
        )
    return dataset


def _folder_plan(name: str | Path, root: Path, options: FolderOptions) -> Plan:
    source = find_folder(name, root)
    if source is None:
        raise FileNotFoundError(_missing(str(name), root))
    if source.is_file() and not source.name.endswith(SUFFIXES):
        raise ValueError(f"{source} is neither a folder nor an archive ({', '.join(SUFFIXES)})")
    plain = next((source.name.removesuffix(s) for s in SUFFIXES if source.name.endswith(s)), source.name)
    facts = {"name": source.name, **folder_signature(source), **asdict(options)}
    place = hashlib.sha256(f"{source.resolve()} {sorted(asdict(options).items())}".encode()).hexdigest()[:8]
    return Plan(f"{plain}-{place}", facts, partial(read_image_folder, source, name=plain, options=options))


def find_folder(name: str | Path, root: Path) -> Path | None:
    """Return the image folder or archive of that path, or of that name under ``root``."""
    elsewhere = [] if name in NAMED else [Path(name)]
    candidates = [*elsewhere, root / name, find_archive(root, str(name))]
    return next((path for path in candidates if path is not None and path.exists()), None)


def _missing(name: str, root: Path) -> str:
    if name == "facescrub":
        return (
            f"FaceScrub is not in {root}: it is published as links only, so fetch the photographs yourself and put the"
            f" face crops of every person under {root / name}/<person>/, or an archive facescrub.tar.xz of that into"
            f" {root}"
        )
    return (
        f"no data set {name!r}: it is neither one of {', '.join(NAMED)} nor an image folder; put images under"
        f" {root / name}/train/<class>/ and {root / name}/test/<class>/, or under {root / name}/<class>/ to have them"
        " split"
    )
