"""Checkpoints of other projects become teachers: read safely, unwrapped, renamed, checked.

Read are safetensors and what `torch.save` writes: a plain state dict (torchvision), one inside a dict
(`model`: RepDistiller, mdistiller, DHKD, OFD; `state_dict`: SSKD, OFD), and one network out of a larger one
(mdistiller's distillers, ReviewKD's and SSKD's wrappers).
"""

from __future__ import annotations

import pickle
import re
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdpipe.api import ModelSpec
from kdpipe.core import registry
from kdpipe.core.errors import CheckpointError, ResultsError
from kdpipe.core.files import read_json, sha256, write_json, write_text
from kdpipe.core.paths import ImportPaths, RunPaths
from kdpipe.core.specs import Run
from kdpipe.engine.predict import save_predictions
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.provenance import provenance
from kdpipe.engine.weights import GET_AGAIN, load_weights, save_weights
from kdpipe.nn.cost import cost

State = dict[str, Tensor]

CONTAINERS = ("model", "state_dict", "net", "model_state_dict", "weights")  # keys that hold a state dict
WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into every key
PARTS = ("student", "teacher", "backbone", "model", "net")  # names of one network within a larger one
HEADS = ("fc", "linear", "classifier", "classifier.0", "head")  # names of the last linear layer
SYNONYMS = (("shortcut", "downsample"), ("downsample", "shortcut"))
SETTINGS = (  # what checkpoints hold beside tensors; nothing of it is needed
    "argparse.Namespace",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{made}" for core in ("core", "_core") for made in ("scalar", "_reconstruct")),
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
)
SHOWN = 3  # keys named in a message
OTHER_MODEL = "name its network with --model"


class Inert:
    """Stands in for an object that is not a tensor: it takes any content and keeps, and does, nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Fit:
    """How well a state dict fits a network.

    Attributes:
        part: where in the file it lies (`student.`), empty for all of it.
        state: its tensors under the network's names.
        renamed: names of the file -> the network's, where they differ.
        lacks: keys of the network that it does not have.
        extra: keys that the network does not have.
        shapes: keys whose shapes differ -> (of the file, of the network).
    """

    part: str
    state: State
    renamed: dict[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Number of keys that disagree."""
        return len(self.lacks) + len(self.extra) + len(self.shapes)


def import_checkpoint(
    file: Path,
    spec: ModelSpec,
    dataset: str,
    num_classes: int,
    in_channels: int,
    store: ImportPaths,
    *,
    file_hash: str,
    part: str | None = None,
    label: str = "",
) -> dict[str, Any]:
    """Read a checkpoint into the network `spec` and store its weights under our names.

    Args:
        file: the checkpoint.
        spec: the network it is said to be.
        dataset: name of the data set it was trained on.
        num_classes: of that data set.
        in_channels: of its images.
        store: where to put it; nothing is written when something is wrong.
        file_hash: SHA-256 of the file.
        part: `student` or `teacher`, where a file holds several networks that fit.
        label: what its user calls it.

    Returns:
        What is recorded of its origin: `file`, `sha256`, `container`, `part`, `renamed`, ...

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or its keys are not those of the network.
    """
    known = stored(store)
    if known:
        if part is not None and part not in known["part"].split("."):
            raise CheckpointError(
                f"a file is one teacher, and of this one the part '{known['part'].rstrip('.')}' was imported",
                where=str(store.root),
                fix=f"save the part '{part}' to a file of its own and import that",
            )
        return known
    model = spec.build(num_classes, in_channels)
    container, state = unwrap(read_checkpoint(file), file)
    fit = choose(state, model, spec, part, where=str(file))
    bad = [key for key, value in fit.state.items() if not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f"the weights are not finite: {_some(bad)}", where=str(file), fix="use a run that did not diverge"
        )
    model.load_state_dict(fit.state)
    save_weights(model, store.model)
    origin = {
        "file": file.name,
        "sha256": file_hash,
        "container": container,
        "part": fit.part,
        "renamed": fit.renamed,
        "model": spec.name,
        "dataset": dataset,
        "label": label,
        "imported": time.time(),
        "weights": sha256(store.model),
    }
    write_json(store.origin, origin)
    return origin


def stored(store: ImportPaths) -> dict[str, Any] | None:
    """The origin of what was imported before; None where that is missing or has changed since."""
    try:
        origin: dict[str, Any] = read_json(store.origin)
        return origin if origin["weights"] == sha256(store.model) else None
    except (ResultsError, OSError, KeyError, TypeError):
        return None


def adopt(run: Run, paths: RunPaths, prepared: Prepared, weights: Path, device: torch.device) -> None:
    """Make the run of an imported teacher: its weights, its predictions, and no training.

    Args:
        run: the run, whose recipe names the file.
        paths: its folder.
        prepared: the data set.
        weights: what `import_checkpoint` stored.
        device: where to predict.

    Raises:
        CheckpointError: the stored weights are missing, damaged or of another network.
    """
    started = time.time()
    store = ImportPaths(weights.parent)
    origin = stored(store)
    if origin is None:
        raise CheckpointError(
            "the imported weights are missing or have changed",
            where=str(store.root),
            fix="import the teacher again: kdpipe import-teacher --help",
        )
    spec: ModelSpec = registry.models.get(run.spec.model.name)
    model = spec.build(prepared.num_classes, prepared.shape[0])
    size = cost(model, prepared.shape)
    load_weights(model, weights)
    save_weights(model, paths.model)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_predictions(paths.predictions, model, prepared, run.spec, device)
    write_text(paths.history, "epoch\n")
    record = provenance(run, device) | {
        "started": started,
        "finished": time.time(),
        "seconds": 0.0,
        "model": asdict(size),
        "data": prepared.checksums,
        "teacher": None,
        "origin": origin,
        "outputs": {"model": sha256(paths.model), "predictions": sha256(paths.predictions)},
    }
    write_json(paths.provenance, record)
    write_json(paths.status, {"status": "finished", "epoch": 0, "reason": ""})


def read_checkpoint(file: Path) -> Any:
    """What a checkpoint file holds; code in it is never run.

    Tensors, numbers, texts and plain containers are read. The settings that some projects pickle beside
    them (`argparse.Namespace`, paths, what NumPy makes) are replaced by inert objects. Anything else is
    refused.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or asks for anything else.
    """
    if _is_safetensors(file):
        try:
            return load_file(file)
        except (SafetensorError, OSError):
            raise _damaged(file) from None
    if _inflates(file):
        raise CheckpointError(
            "the archive would unpack to more than it is, and torch.save compresses nothing; it was not read",
            where=str(file),
            fix="if you trust it, save its state dict with torch.save and import that",
        )
    stand_ins: list[Any] = [(Inert, name) for name in SETTINGS]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that torch.save did not write
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader raise almost anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise CheckpointError(
                f"the file asks for '{refused[1]}', which may run code; nothing of it was loaded",
                where=str(file),
                fix="if you trust it, save its state dict alone (tensors by name) and import that",
            ) from None
        raise _damaged(file) from None


def _is_safetensors(file: Path) -> bool:
    """Whether a file is meant as safetensors: by its name, or by the JSON after the 8 bytes of a length."""
    with file.open("rb") as opened:
        return file.suffix == ".safetensors" or opened.read(9)[8:] == b"{"


def _inflates(file: Path) -> bool:
    """Whether a zip archive's members are together larger than the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            return sum(member.file_size for member in archive.infolist()) > file.stat().st_size
    except (zipfile.BadZipFile, ValueError, OSError):  # the reader says what is wrong with it
        return False


def unwrap(content: Any, file: Path) -> tuple[str, State]:
    """The state dict within what a file holds, and the keys that lead to it (`model`).

    Raises:
        CheckpointError: there is none.
    """
    path: list[str] = []
    while isinstance(content, Mapping):
        key = next((k for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        path.append(key)
        content = content[key]
    state: State = {}
    if isinstance(content, Mapping):
        state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        what = f"it is a {type(content).__name__}"
        if isinstance(content, Mapping):
            what = f"its keys are {_some(map(str, content)) or 'none'}"
        raise CheckpointError(
            f"the file holds no state dict: {what}",
            where=str(file),
            fix=f"save tensors by name, alone or under one of: {', '.join(CONTAINERS)}",
        )
    return ".".join(path), {_bare(key): value for key, value in state.items()}


def choose(state: State, model: nn.Module, spec: ModelSpec, part: str | None, where: str) -> Fit:
    """The part of a state dict that is the network.

    Args:
        state: tensors by name.
        model: the network.
        spec: what it declares.
        part: the part to take (`student`); None takes the only one that fits.
        where: the file, for messages.

    Raises:
        CheckpointError: no part fits, or several do; the message names the first keys that disagree.
    """
    found = {name: fit(name, tensors, model, spec) for name, tensors in parts(state)}
    if part is not None:
        found = {name: f for name, f in found.items() if part in name.split(".")}
        if not found:
            have = ", ".join(name.rstrip(".") for name, _ in parts(state) if name) or "none"
            raise CheckpointError(
                f"the file has no part '{part}'; its parts: {have}",
                where=where,
                fix="name another with --part, or leave it out",
            )
    fits = [f for f in found.values() if not f.wrong]
    if len(fits) > 1:
        names = " and ".join(f"'{f.part.rstrip('.')}'" for f in fits)
        raise CheckpointError(
            f"several networks in the file are a {spec.name}: {names}",
            where=where,
            fix=f"choose one, as in --part {fits[0].part.split('.')[0]}",
        )
    if not fits:
        raise _another(min(found.values(), key=lambda f: f.wrong), spec, where)
    return fits[0]


def parts(state: State, prefix: str = "") -> Iterator[tuple[str, State]]:
    """The whole state dict and each network within it, by prefix (`student.`)."""
    yield prefix, state
    for name in PARTS:
        inner = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        if inner:
            yield from parts(inner, f"{prefix}{name}.")


def fit(part: str, tensors: State, model: nn.Module, spec: ModelSpec) -> Fit:
    """Lay a state dict beside a network: names translated, the rest compared.

    The counters of old batch norms (`num_batches_tracked`), which older files lack, are taken from the
    network; nothing reads them.
    """
    own = model.state_dict()
    names = {key: _translated(key, tensors, own, spec.classifier) for key in tensors}
    claims = Counter(names.values())  # two heads of the file may both be called the network's one
    state = {names[key]: value for key, value in tensors.items()}
    state |= {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in state}
    return Fit(
        part,
        state,
        {old: new for old, new in names.items() if old != new},
        lacks=tuple(k for k in own if k not in state),
        extra=tuple(k for k in tensors if names[k] not in own or claims[names[k]] > 1),
        shapes={
            k: (tuple(state[k].shape), tuple(v.shape))
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        },
    )


def _translated(key: str, tensors: State, own: Mapping[str, Tensor], head: str) -> str:
    """The network's name for a key of the file, or the key itself where there is none."""
    if key in own:
        return key
    layer, _, leaf = key.rpartition(".")
    guesses = [f"{head}.{leaf}"] if layer in HEADS else []
    guesses += [re.sub(rf"\b{theirs}\b", ours, key) for theirs, ours in SYNONYMS]
    return next((g for g in guesses if g in own and g not in tensors), key)


def _bare(key: str) -> str:
    return ".".join(name for name in key.split(".") if name not in WRAPPERS)


def _another(nearest: Fit, spec: ModelSpec, where: str) -> CheckpointError:
    """The error for a file whose keys are not the network's, naming the first that disagree."""
    if nearest.lacks or nearest.extra:
        told = [
            f"{word} {_some(keys)}"
            for word, keys in (("it lacks", nearest.lacks), ("it has besides", nearest.extra))
            if keys
        ]
        what, fix = f"its keys are not those of {spec.name}: {'; '.join(told)}", OTHER_MODEL
    elif set(nearest.shapes) <= {f"{spec.classifier}.weight", f"{spec.classifier}.bias"}:
        theirs, ours = next(iter(nearest.shapes.values()))
        what = f"its classifier ({spec.classifier}) has {theirs[0]} classes, the data set has {ours[0]}"
        fix = "name the data set that it was trained on with --dataset"
    else:
        told = [f"{k} is {_shape(a)} instead of {_shape(b)}" for k, (a, b) in nearest.shapes.items()]
        what = f"its shapes are not those of {spec.name}: {_some(told)}"
        fix = f"{OTHER_MODEL}, and with --dataset what it was trained on"
    part = f" (part '{nearest.part.rstrip('.')}')" if nearest.part else ""
    return CheckpointError(f"the checkpoint is another network{part}: {what}", where=where, fix=fix)


def _damaged(file: Path) -> CheckpointError:
    """The error for a file that cannot be read; what PyTorch says of one is advice to run the code in it."""
    return CheckpointError("the file is truncated or no checkpoint", where=str(file), fix=GET_AGAIN)


def _some(names: Any) -> str:
    listed = list(names)
    rest = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + rest


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
