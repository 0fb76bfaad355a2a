"""Checkpoints: one safetensors file each, whole or absent, verified when read, found by what made it.

Invariant: what was saved comes back bit for bit (values, dtypes, strides, tied tensors), or ``CorruptCheckpoint`` is
raised. Every byte that matters, the record included, is under the SHA-256 in the header.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from zspag.report.files import replacing
from zspag.report.provenance import KEY, differences, digest, safetensors_metadata

Tensors = dict[str, Tensor]


class CorruptCheckpoint(ValueError):  # noqa: N818  named after what is wrong
    """A checkpoint whose bytes are not those that were written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged ({reason}); delete it and run again")


def save(path: str | Path, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """Write ``tensors`` and their provenance to ``path``, atomically.

    Args:
        path: Where to write; a file of that name stays whole until the new one is.
        tensors: A state dict or any named tensors; devices are not kept.
        record: See ``zspag.report.provenance.record``.

    Note:
        Names that share one storage with equal offset, shape and strides (tied weights) come back tied. Views that
        overlap in any other way come back as separate tensors of the same values.
    """
    _write(Path(path), tensors, {KEY: _json(record)})


def load(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Read and verify a checkpoint.

    Args:
        path: A file written by ``save``.

    Returns:
        The tensors on the CPU, none of them sharing memory but the tied ones, and the record.

    Raises:
        CorruptCheckpoint: If a byte changed or the file ends early.
    """
    path = Path(path)
    blob = path.read_bytes()
    try:
        header, data = _split(blob)
        metadata = header["__metadata__"]
        if metadata.pop("sha256") != _hash(header, data):
            raise CorruptCheckpoint(path, "its contents do not match the SHA-256 in its header")
        return _restore(safetensors.torch.load(blob), json.loads(metadata["layout"])), json.loads(metadata[KEY])
    except (struct.error, KeyError, TypeError, AttributeError, UnicodeDecodeError, SafetensorError) as error:
        raise CorruptCheckpoint(path, f"{type(error).__name__} while reading its header") from error
    except json.JSONDecodeError as error:
        raise CorruptCheckpoint(path, "its header is not JSON") from error


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    stored, layout = _flatten(tensors)
    header, data = _split(safetensors.torch.save(stored))
    header["__metadata__"] = metadata | {"layout": _json(layout)}
    header["__metadata__"]["sha256"] = _hash(header, data)
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to eight bytes
    with replacing(path) as temporary:
        temporary.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", blob)
    header: dict[str, Any] = json.loads(blob[8 : 8 + length].decode("utf-8"))
    return header, blob[8 + length :]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(header: dict[str, Any], data: bytes) -> str:
    return hashlib.sha256(_json(header).encode() + data).hexdigest()


def _flatten(tensors: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Any]]:
    """Return contiguous tensors without aliases, and what is needed to undo that."""
    stored: Tensors = {}
    ties: dict[str, str] = {}
    strides: dict[str, list[int]] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            ties[name] = seen[place]
            continue
        seen[place] = name
        stored[name] = tensor.detach().cpu().contiguous().clone()
        if tensor.stride() != stored[name].stride() and _is_dense(tensor):
            strides[name] = list(tensor.stride())
    return stored, {"ties": ties, "strides": strides, "order": list(tensors)}


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether the strides are a permutation of contiguous ones (channels_last is), without gaps or overlap."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _restore(stored: Tensors, layout: dict[str, Any]) -> Tensors:
    loaded: Tensors = {}
    for name in layout["order"]:
        if name in layout["ties"]:
            loaded[name] = loaded[layout["ties"][name]]
            continue
        plain = stored[name]
        strides = layout["strides"].get(name, plain.stride())
        loaded[name] = torch.empty_strided(plain.shape, strides, dtype=plain.dtype).copy_(plain)
    return loaded


class Store:
    """Checkpoints under one folder, each named by the hash of the key that says what made it.

    Args:
        root: The folder; made when the first checkpoint is put.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, kind: str, key: dict[str, Any]) -> Path:
        """Return where the checkpoint of ``kind`` (a folder, such as "original") made by ``key`` lies, or would lie."""
        return self.root / kind / f"{digest(key)}.safetensors"

    def get(self, kind: str, key: dict[str, Any]) -> tuple[Tensors, dict[str, Any]] | None:
        """Return tensors and record of the checkpoint made by ``key``, or None; a damaged one raises as in ``load``."""
        path = self.path(kind, key)
        return load(path) if path.exists() else None

    def put(self, kind: str, key: dict[str, Any], tensors: Mapping[str, Tensor], record: dict[str, Any]) -> Path:
        """Store ``tensors`` under ``key``, atomically, and return the file."""
        path = self.path(kind, key)
        _write(path, tensors, {KEY: _json(record), "key": _json(key)})
        return path

    def explain(self, kind: str, key: dict[str, Any]) -> str:
        """Return one sentence on why ``get`` finds nothing: the fields in which the nearest stored key differs."""
        stored = self._keys(kind)
        if not stored:
            return f"nothing of kind {kind!r} is stored in {self.root}"
        nearest = min((differences(key, other, names=("wanted", "stored")) for other in stored), key=len)
        if not nearest:
            return f"{self.path(kind, key)} is stored"
        return f"the nearest stored {kind!r} differs in " + "; ".join(nearest)

    def _keys(self, kind: str) -> list[dict[str, Any]]:
        keys = []
        for path in sorted((self.root / kind).glob("*.safetensors")):
            if path.name.startswith("."):
                continue  # what a killed writer left behind
            try:
                keys.append(json.loads(safetensors_metadata(path)["key"]))
            except (struct.error, ValueError, KeyError, TypeError):
                continue  # damaged: `get` says so, an explanation need not
        return keys
