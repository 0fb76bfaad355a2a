"""Checkpoints: named tensors and their record in one safetensors file, whole or absent, verified when read.

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
from zspag.report.provenance import KEY

Tensors = dict[str, Tensor]


class CorruptCheckpoint(ValueError):  # noqa: N818  named after what is wrong
    """A checkpoint whose bytes are not those that were written."""


def save(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` and their provenance to ``path``, atomically.

    Args:
        path: Where to write; a file of that name stays whole until the new one is.
        tensors: A state dict or any named tensors; devices are not kept.
        record: See ``zspag.report.provenance.record``.

    Note:
        Names that share one storage with equal offset, shape and strides (tied weights) come back tied. Views that
        overlap in any other way come back as separate tensors of the same values.
    """
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
    header, data = _split(safetensors.torch.save(stored))
    layout = {"ties": ties, "strides": strides, "order": list(tensors)}
    header["__metadata__"] = {KEY: _json(record), "layout": _json(layout)}
    header["__metadata__"]["sha256"] = _hash(header, data)
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to eight bytes
    with replacing(path) as temporary:
        temporary.write_bytes(struct.pack("<Q", len(text)) + text + data)


def load(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Read and verify a checkpoint.

    Args:
        path: A file written by ``save``.

    Returns:
        The tensors on the CPU, none of them sharing memory but the tied ones, and the record.

    Raises:
        CorruptCheckpoint: If a byte changed or the file ends early.
    """
    blob, cause = Path(path).read_bytes(), None
    reason = "its contents do not match the SHA-256 in its header"
    try:
        header, data = _split(blob)
        metadata = header["__metadata__"]
        if metadata.pop("sha256") == _hash(header, data):
            return _restored(safetensors.torch.load(blob), json.loads(metadata["layout"])), json.loads(metadata[KEY])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        cause, reason = error, f"{type(error).__name__} while reading its header"
    raise CorruptCheckpoint(f"{path} is damaged ({reason}); delete it and run again") from cause


def _split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", blob)
    header: dict[str, Any] = json.loads(blob[8 : 8 + length].decode("utf-8"))
    return header, blob[8 + length :]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(header: dict[str, Any], data: bytes) -> str:
    return hashlib.sha256(_json(header).encode() + data).hexdigest()


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether the strides are a permutation of contiguous ones (channels_last is), without gaps or overlap."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _restored(stored: Tensors, layout: dict[str, Any]) -> Tensors:
    loaded: Tensors = {}
    for name in layout["order"]:
        if name in layout["ties"]:
            loaded[name] = loaded[layout["ties"][name]]
            continue
        plain = stored[name]
        strides = layout["strides"].get(name, plain.stride())
        loaded[name] = torch.empty_strided(plain.shape, strides, dtype=plain.dtype).copy_(plain)
    return loaded
