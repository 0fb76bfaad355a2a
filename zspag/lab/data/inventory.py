"""What ``zspag data`` says: which data sets there are, where they are looked for, and whether the cache is true.

Invariant: nothing here is downloaded or unpacked unless it is asked for by ``get``.
"""

from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zspag.lab.data.cache import counts
from zspag.lab.data.loading import NAMED, find_folder, load, plan
from zspag.lab.data.official import OFFICIAL, locate
from zspag.report.files import data_root, read_json

WHAT = {name: official.what for name, official in OFFICIAL.items()} | {
    "digits": "1 797 handwritten digits, 8x8, grey",
    "facescrub": "faces, one class per person, resized to 64x64; the photographs are fetched by the user",
}
WANTED = {name: official.wanted.removesuffix(",") for name, official in OFFICIAL.items()} | {
    "digits": "nothing: they come with scikit-learn",
    "facescrub": "the image folder facescrub/<person>/ or its archive facescrub.tar.xz",
}


def listing() -> Iterator[str]:
    """Yield what is known of every named data set, and of the image folders that were cached under other names."""
    root, manifests = data_root(), _manifests(data_root() / "cache")
    yield f"data sets are looked for in {root}"
    for name in dict.fromkeys([*NAMED, *sorted(manifests)]):
        yield f"{name}: {WHAT.get(name, 'an image folder of your own')}"
        if name in WANTED:
            place = _place(name, root)
            yield f"  looks for: {WANTED[name]}"
            yield f"  source: {'not there' if place is None else f'found, {place}'}"
        for manifest in manifests[name]:
            yield f"  cached: {_summary(manifest)}"


def get(name: str, **options: Any) -> str:
    """Read the data set, from its source or from the cache, fetching what is missing, and say in one line what it is.

    Args:
        name: As for ``load``.
        **options: As for ``load``.
    """
    dataset = load(name, **options)
    shape = "x".join(map(str, dataset.train.images.shape[1:]))
    facts = {"counts": counts(dataset), "sha256": dataset.sha256, "data_source": dataset.data_source}
    return f"{dataset.name}: {_summary(facts)}, images of {shape}"


def check(name: str, **options: Any) -> tuple[bool, str]:
    """Read the source again and compare it with what the cache was made from.

    Args:
        name: As for ``load``.
        **options: As for ``load``.

    Returns:
        Whether they agree, and a line that says so.

    Raises:
        FileNotFoundError: If the source is gone, or nothing is cached.
    """
    root = data_root()
    if name in OFFICIAL and locate(name, root) is None:
        raise FileNotFoundError(f"{name} is not in {root}, so nothing can be compared; put {WANTED[name]} into it")
    chosen = plan(name, root, **{option: value for option, value in options.items() if value is not None})
    path = root / "cache" / f"{chosen.key}.json"
    manifest = _manifest(path)
    if manifest is None:
        raise FileNotFoundError(f"{name} is not cached with these options; run `zspag data get {name}` first")
    dataset = chosen.build()
    if dataset.sha256 == manifest["sha256"]:
        return True, f"{name}: source and cache agree, {_summary(manifest)}"
    source = {"counts": counts(dataset), "sha256": dataset.sha256, "data_source": dataset.data_source}
    return False, (
        f"{name}: source and cache differ: the source holds {_summary(source)}, the cache {_summary(manifest)};"
        f" delete {path} and run `zspag data get {name}` to take the source"
    )


def _manifests(cache: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for manifest in filter(None, map(_manifest, sorted(cache.glob("*.json")))):
        found[manifest["name"]].append(manifest)
    return found


def _manifest(path: Path) -> dict[str, Any] | None:
    """Return a manifest; None if there is none, or none that ``load`` would not write anew."""
    manifest = read_json(path) if path.is_file() else {}
    return manifest if {"name", "counts", "sha256"} <= manifest.keys() else None


def _place(name: str, root: Path) -> str | None:
    if name == "digits":
        return None if find_spec("sklearn") is None else "inside scikit-learn"
    place = locate(name, root) if name in OFFICIAL else find_folder(name, root)
    return None if place is None else place.name


def _summary(facts: dict[str, Any]) -> str:
    """Say counts, source and hash of a manifest; one of an older version does not know its source."""
    train, test = (sum(facts["counts"][part].values()) for part in ("train", "test"))
    source = facts.get("data_source", "source not noted")
    return f"{train} + {test} images of {len(facts['counts']['train'])} classes, {source}, SHA-256 {facts['sha256']}"
