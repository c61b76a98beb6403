"""Weights on disk: safetensors with a checksum, compared whenever they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdpipe.core.errors import CheckpointError
from kdpipe.core.files import atomic, sha256
from kdpipe.core.specs import Precision

CHECKSUM = "sha256"  # in the file's header
GET_AGAIN = "get it again; what torch.save writes can be read, and .safetensors"


def save_weights(model: nn.Module, path: Path, precision: Precision = "float32") -> None:
    """Write a network's parameters and buffers atomically; `load_weights` gives them back in float32.

    Args:
        model: the network.
        path: the file.
        precision: float16 halves the file and keeps 11 significant bits of each number.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if precision == "float16":
        tensors = {k: _halved(v) for k, v in tensors.items()}
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, {CHECKSUM: _checksum(tensors)}))


def _halved(tensor: Tensor) -> Tensor:
    """The tensor in float16, unless it holds counts or what is too large for that."""
    half = tensor.half()
    return half if tensor.is_floating_point() and torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights into `model`, all of them and nothing else.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another network.
    """
    tensors = read_weights(path)
    own = model.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if wrong:
        raise CheckpointError(
            f"the weights belong to another network: {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more do not fit" if len(wrong) > 3 else " do not fit"),
            where=str(path),
            fix="delete this file's folder; the run will be made again",
        )
    model.load_state_dict(tensors)


def start_from(model: nn.Module, classifier: str, path: Path) -> None:
    """Read weights into `model`, all but those of its classifier, which may have other classes.

    Args:
        model: the network, its classifier drawn already.
        classifier: name of its last linear layer.
        path: weights of the same network, for any number of classes.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another network.
    """
    own, tensors = model.state_dict(), read_weights(path)
    body = {key for key in own if not key.startswith(f"{classifier}.")}
    theirs = {key for key in tensors if not key.startswith(f"{classifier}.")}
    wrong = sorted(body ^ theirs) + sorted(k for k in body & theirs if own[k].shape != tensors[k].shape)
    if wrong:
        raise CheckpointError(
            f"the weights to start from belong to another network: {', '.join(wrong[:3])} "
            f"{'does' if len(wrong) == 1 else 'do'} not fit",
            where=str(path),
            fix="import weights of this network, for images with as many channels",
        )
    model.load_state_dict({**own, **{key: tensors[key] for key in body}})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a checksum that it carries must be that of its tensors.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            stated = (file.metadata() or {}).get(CHECKSUM)
    except FileNotFoundError:
        raise CheckpointError("weights are missing", where=str(path), fix="train the run again") from None
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from None
    if stated is not None and stated != _checksum(tensors):
        raise _damaged(path, "they have changed since they were written")
    return tensors


def identity(file: Path) -> str:
    """SHA-256 of a checkpoint file.

    Raises:
        CheckpointError: it is missing, empty, a folder, or may not be read.
    """
    reason, fix = "the file is empty", GET_AGAIN
    try:
        hashed = sha256(file)
        if file.stat().st_size:
            return hashed
    except FileNotFoundError:
        reason, fix = "there is no such file", "name a checkpoint file"
    except IsADirectoryError:
        reason, fix = "it is a folder", "name a checkpoint file in it"
    except OSError as error:
        reason, fix = f"the file cannot be read: {error.strerror}", "name a file that you may read"
    raise CheckpointError(reason, where=str(file), fix=fix)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"weights are damaged: {what}", where=str(path), fix="delete the file; the run will be made again"
    )


def _checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the tensors with their names, types and shapes."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
