"""What ``zspag data`` says: which data sets there are, where they are looked for, and whether the cache is true.

Invariant: nothing here is downloaded or unpacked unless it is asked for by ``get``.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zspag.lab.data.loading import NAMED, find_folder, load, plan
from zspag.lab.data.sources import OFFICIAL, locate
from zspag.lab.data.splits import Dataset
from zspag.report.files import data_root, read_json

WHAT = {name: official.what for name, official in OFFICIAL.items()} | {
    "digits": "1 797 handwritten digits, 8x8, grey",
    "facescrub": "faces, one class per person, resized to 64x64; the photographs are fetched by the user",
}
WANTED = {name: official.wanted for name, official in OFFICIAL.items()} | {
    "digits": "nothing: they come with scikit-learn",
    "facescrub": "the image folder facescrub/<person>/ or its archive facescrub.tar.xz",
}


def listing() -> Iterator[str]:
    """Yield what is known of every named data set, and of the image folders that were cached under other names."""
    root = data_root()
    manifests = list(filter(None, map(_manifest, sorted((root / "cache").glob("*.json")))))
    yield f"data sets are looked for in {root}"
    for name in dict.fromkeys([*NAMED, *sorted(manifest["name"] for manifest in manifests)]):
        yield f"{name}: {WHAT.get(name, 'an image folder of your own')}"
        if name in WANTED:
            place = locate(name, root) if name in OFFICIAL else find_folder(name, root)
            found = None if place is None else place.name
            if name == "digits" and find_spec("sklearn") is not None:
                found = "inside scikit-learn"
            yield f"  looks for: {WANTED[name]}"
            yield f"  source: {'not there' if found is None else f'found, {found}'}"
        yield from (f"  cached: {_summary(manifest)}" for manifest in manifests if manifest["name"] == name)


def get(name: str, **options: Any) -> str:
    """Load the data set, fetching what is missing, and say in one line what it is."""
    dataset = load(name, **options)
    shape = "x".join(map(str, dataset.train.images.shape[1:]))
    return f"{dataset.name}: {_summary(dataset)}, images of {shape}"


def check(name: str, **options: Any) -> tuple[bool, str]:
    """Read the source again and compare it with the cache; return whether they agree, and a line that says so.

    Raises:
        FileNotFoundError: If the source is gone, or nothing is cached.
    """
    root = data_root()
    if name in OFFICIAL and locate(name, root) is None:
        raise FileNotFoundError(f"{name} is not in {root}, so nothing can be compared; put {WANTED[name]} into it")
    key, _, build = plan(name, root, **options)
    path = root / "cache" / f"{key}.json"
    manifest = _manifest(path)
    if manifest is None:
        raise FileNotFoundError(f"{name} is not cached with these options; run `zspag data get {name}` first")
    dataset = build()
    if dataset.sha256 == manifest["sha256"]:
        return True, f"{name}: source and cache agree, {_summary(manifest)}"
    return False, (
        f"{name}: source and cache differ: the source holds {_summary(dataset)}, the cache {_summary(manifest)};"
        f" delete {path} and run `zspag data get {name}` to take the source"
    )


def _manifest(path: Path) -> dict[str, Any] | None:
    manifest = read_json(path) if path.is_file() else {}
    return manifest if {"name", "counts", "sha256"} <= manifest.keys() else None


def _summary(facts: dict[str, Any] | Dataset) -> str:
    if isinstance(facts, Dataset):
        facts = {"counts": facts.counts, "sha256": facts.sha256, "data_source": facts.data_source}
    train, test = (sum(facts["counts"][part].values()) for part in ("train", "test"))
    source = facts.get("data_source", "source not noted")  # a manifest of an older version does not know it
    return f"{train} + {test} images of {len(facts['counts']['train'])} classes, {source}, SHA-256 {facts['sha256']}"
