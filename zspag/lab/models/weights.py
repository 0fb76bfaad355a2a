"""State dicts from files of any origin, brought into a model, and back into a file.

Invariant: nothing in a file is ever executed; what was changed on the way to the model's own names is said.
"""

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

SAFE = (".safetensors",)
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")  # where trainers put a state dict
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning and its kin
NAMED = 3  # names that a message lists of each kind

State = dict[str, Any]  # tensors, and what a module's ``get_extra_state`` returned


def read_state(path: Path) -> tuple[State, list[str]]:
    """Read a state dict on the CPU: a .safetensors file, or what torch.save wrote, alone or inside a dictionary.

    Returns:
        The state dict, and remarks on how it was found.

    Raises:
        ValueError: If the file is missing, damaged, of another kind, or would have to be executed.
        OSError: If it cannot be read.
        MemoryError: If it is too large.
    """
    if path.suffix not in (*SAFE, *PICKLED):
        raise ValueError(f"weights are read from {', '.join((*SAFE, *PICKLED))}, got {path}: save the state dict so")
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the model's state dict, saved by torch.save or safetensors")
    if path.suffix in SAFE:
        try:
            return dict(safetensors.torch.load_file(path)), []
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable safetensors file ({error}): save the weights again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files that it refuses, which the message here replaces
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in whatever way its bytes have it
        why = "is no readable file of torch.save"
        if "TorchScript" in str(error):
            why = "is a TorchScript program"
        elif code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            why = f"holds more than tensors ({code[1]}), such as a whole module, and reading it would run code"
        raise ValueError(
            f"{path} {why}: save the state dict alone, torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    return _unwrapped(held, path)


def _unwrapped(value: object, path: Path) -> tuple[State, list[str]]:
    held: list[Any] = []
    if isinstance(value, Mapping):
        held = list(value)
        named = all(isinstance(name, str) for name in held)
        nested = [name for name in held if isinstance(value[name], Mapping) and not str(name).endswith("_extra_state")]
        if named and not nested and any(isinstance(part, Tensor) for part in value.values()):
            return dict(value), []
        for name in NESTS:
            if name in nested:
                state, remarks = _unwrapped(value[name], path)
                return state, [f"the weights are those under {name!r} in {path.name}", *remarks]
    found = f"the entries {', '.join(map(repr, held[:8]))}" if held else type(value).__name__
    raise ValueError(f"{path} holds no state dict but {found}: save model.state_dict()")


def renamed(state: State, wanted: Mapping[str, Any]) -> tuple[State, list[str]]:
    """Take off the prefixes that wrappers put before all names, unless the ``wanted`` names have them; with remarks."""
    remarks: list[str] = []
    if "n_averaged" in state and "n_averaged" not in wanted:  # torch.optim.swa_utils.AveragedModel
        state = {name: value for name, value in state.items() if name != "n_averaged"}
    for prefix in WRAPPERS * 2:  # one may stand inside another
        own = any(name.startswith(prefix) for name in wanted)
        if state and not own and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            remarks.append(f"the prefix {prefix!r} was taken off the names of the weights")
    inner = "_orig_mod."
    if any(inner in name for name in state) and not any(inner in name for name in wanted):
        state = {name.replace(inner, ""): value for name, value in state.items()}
        remarks.append(f"{inner!r} was taken out of the names of the weights")
    return state, remarks


def load_into(model: nn.Module, state: State, *, weights: Path, place: str) -> list[str]:
    """Give a model its weights, in place, and return remarks; ``weights`` and ``place`` say where both come from.

    Raises:
        ValueError: If names or shapes do not fit; the message names some.
    """
    own = model.state_dict()
    state, remarks = renamed(state, own)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, KeyError) as error:
        lists = {
            "it lacks": [name for name in own if name not in state],
            "it has, and the model has not,": [name for name in state if name not in own],
            "shapes differ:": [
                f"{name} is {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the model"
                for name in own
                if isinstance(own[name], Tensor)
                and isinstance(state.get(name), Tensor)
                and state[name].shape != own[name].shape
            ],
        }
        why = "; ".join(f"{words} {_few(names)}" for words, names in lists.items() if names)
        raise ValueError(
            f"{weights} does not fit the model of {place}: {why or ' '.join(str(error).split())}; give the"
            " function that built the model whose weights these are"
        ) from error
    kinds, computes = (
        {value.dtype for value in values.values() if isinstance(value, Tensor) and value.is_floating_point()}
        for values in (state, own)
    )
    if kinds != computes and len(kinds) == len(computes) == 1:
        names = [str(kind).removeprefix("torch.") for kind in (*kinds, *computes)]
        remarks.append(f"the weights are {names[0]} and the model computes in {names[1]}, so that is what is written")
    return remarks


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def facts_from(state: State, own: Mapping[str, Any], *, probed: int) -> dict[str, int]:
    """Return num_classes and in_channels as far as the shapes of a state dict tell, by how a trial model's differ.

    Args:
        state: A state dict; the order of its names means nothing, for .safetensors keeps none.
        own: That of the model, built for ``probed`` classes.
        probed: A number of classes that no other size equals.
    """
    state, _ = renamed(state, own)
    found: dict[str, set[int]] = {"num_classes": set(), "in_channels": set()}
    for name in own.keys() & state.keys():
        ours, theirs = (tuple(getattr(values[name], "shape", ())) for values in (own, state))
        if len(ours) != len(theirs) or not ours:
            continue
        if ours[0] == probed:
            found["num_classes"].add(theirs[0])
        if len(ours) == 4 and ours[1] == 3 != theirs[1] and ours[0] == theirs[0]:
            found["in_channels"].add(theirs[1])
    return {fact: values.pop() for fact, values in found.items() if len(values) == 1}


def write_state(path: Path, state: Mapping[str, Any], *, suffix: str, metadata: dict[str, str]) -> None:
    """Write a state dict in the format of ``suffix``; ``metadata`` go into the header that .safetensors has.

    Raises:
        ValueError: If the format has no place for a value.
        OSError: If it cannot be written.
    """
    plain = {  # each tensor is copied, for .safetensors refuses tensors that share memory
        name: value.detach().cpu().contiguous().clone() if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
    if suffix not in SAFE:
        buffer = io.BytesIO()
        torch.save(plain, buffer)  # torch turns an error of the disk into one that does not say so
        path.write_bytes(buffer.getbuffer())
        return
    if odd := [name for name, value in plain.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{_few(odd)} is no tensor, and .safetensors holds nothing else: let the output end in .pt")
    try:
        safetensors.torch.save_file(plain, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path.parent} cannot be written to ({error})") from error
