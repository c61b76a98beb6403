"""Reading the taps of a network with hooks, and pairing the stages of two networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdpipe.api import ModelSpec, Norms, Outputs, Shapes, Tap, TeacherPart
from kdpipe.core.errors import ConfigError, PluginError


class Catcher:
    """A network whose wished-for taps are returned beside its logits.

    `catcher(images)` runs the network once. With no taps it registers no hook at all. Register hooks
    first and compile the network afterwards (`model.compile()`): hooks added later would be ignored.

    Args:
        model: the network; it is referred to, not copied.
        spec: where its taps are.
        names: taps to read, without groups.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, names: Sequence[str]) -> None:
        self.model = model
        self.names = tuple(names)
        self._caught: dict[str, Tensor] = {}
        self._handles = [self._hook(name, spec.taps[name], spec) for name in self.names]

    def __call__(self, images: Tensor) -> Outputs:
        """Logits and taps of images (B x C x H x W).

        Raises:
            PluginError: the network did not run a module that one of its taps names.
        """
        self._caught.clear()
        logits = self.model(images)
        missed = [name for name in self.names if name not in self._caught]
        if missed:
            raise PluginError(f"tap '{missed[0]}' names a module that the forward pass does not call")
        taps = {name: self._caught[name] for name in self.names}
        self._caught.clear()  # so that nothing outlives the step in here
        return Outputs(logits, taps)

    def remove(self) -> None:
        """Take the hooks off the network; it then gives its logits only."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.names = [], ()

    def _hook(self, name: str, tap: Tap, spec: ModelSpec) -> RemovableHandle:
        try:
            module = self.model.get_submodule(tap.module)
        except AttributeError:
            raise PluginError(f"{spec.name}: tap '{name}' names no module '{tap.module}'") from None
        if tap.side == "input":
            return module.register_forward_pre_hook(self._keep_input(name))
        return module.register_forward_hook(self._keep_output(name))

    def _keep_input(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._caught[name] = inputs[0]

        return hook

    def _keep_output(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._caught[name] = output

        return hook


def catch(model: nn.Module, spec: ModelSpec, names: Sequence[str]) -> Catcher:
    """A catcher of the named taps (groups allowed) of `model`.

    Raises:
        PluginError: a tap is unknown, or names no module of the network.
    """
    return Catcher(model, spec, expand(spec, names))


def through(network: Callable[[Tensor], Outputs], inputs: Sequence[Tensor]) -> Outputs:
    """Outputs of a network for several inputs, one pass each: the first's, with the others in `more`."""
    first, *others = [network(images) for images in inputs]
    return replace(first, more=tuple(others))


def transformed(out: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """The outputs with every tensor changed."""
    return Outputs(
        change(out.logits),
        {name: change(tap) for name, tap in out.taps.items()},
        tuple(transformed(other, change) for other in out.more),
    )


def in_float32(out: Outputs) -> Outputs:
    """The outputs in float32, whatever precision the network ran in."""
    return transformed(out, Tensor.float)


def extended(part: TeacherPart, out: Outputs) -> Outputs:
    """A teacher's outputs with the taps that its part adds, `more` included."""
    more = tuple(extended(part, other) for other in out.more)
    return replace(out, taps={**out.taps, **part.extend(out)}, more=more)


def extended_shapes(part: TeacherPart, found: Shapes) -> Shapes:
    """`found` (a teacher's tap shapes) with those of the taps that its part adds; the part must be built."""
    zeros = {name: torch.zeros(2, *shape) for name, shape in found.items()}
    mode = part.training
    with torch.no_grad():
        taps = part.eval().extend(Outputs(zeros.pop("logits"), zeros))
    part.train(mode)
    return {**found, **{name: tuple(tap.shape[1:]) for name, tap in taps.items()}}


def expand(spec: ModelSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Tap names for a wish: groups spelt out, repeats dropped, in the order of the network.

    Args:
        spec: the network.
        names: taps, or the groups `stages` (every stage) and `stages.pre` (every stage before its
            last ReLU).

    Raises:
        PluginError: the network has no such tap; the message names those it has.
    """
    wished: set[str] = set()
    for name in names:
        group = re.fullmatch(r"stages(\.\w+)?", name)
        wished |= {f"{stage}{group[1] or ''}" for stage in spec.stages} if group else {name}
    unknown = sorted(wished - set(spec.taps))
    if unknown:
        raise PluginError(f"{spec.name} has no tap '{unknown[0]}'; it has: {', '.join(spec.taps)}")
    return tuple(name for name in spec.taps if name in wished)


def shapes(model: nn.Module, spec: ModelSpec, names: Sequence[str], image_shape: Sequence[int]) -> Shapes:
    """Shapes of the named taps and of the logits for one image, from one forward pass.

    The pass runs on two zero images in eval mode without gradients; the network's modes and buffers
    and the state of the random generators stay as they were. Call it before compiling the network.

    Args:
        model: the network.
        spec: where its taps are.
        names: taps and groups.
        image_shape: (C, H, W).

    Returns:
        Tap name -> shape without the batch, in the order of the network, `logits` last.
    """
    parameter = next(model.parameters())
    images = torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype)
    modes = [(module, module.training) for module in model.modules()]
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    catcher = catch(model, spec, names)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            model.eval()
            out = catcher(images)
    finally:
        catcher.remove()
        for module, mode in modes:
            module.training = mode
    found = {name: tuple(tap.shape[1:]) for name, tap in out.taps.items()}
    return {**found, "logits": tuple(out.logits.shape[1:])}


def norms(model: nn.Module, spec: ModelSpec, names: Sequence[str]) -> Norms:
    """Weights and biases of the batch norms in front of the named taps (groups allowed), where known."""
    found = {}
    for name in expand(spec, names):
        path = spec.taps[name].norm
        if path:
            weight, bias = (model.get_parameter(f"{path}.{end}") for end in ("weight", "bias"))
            found[name] = (weight.detach().clone(), bias.detach().clone())
    return found


def pair_stages(student: Shapes, teacher: Shapes, suffix: str = "") -> list[tuple[str, str]]:
    """Stages of two networks whose maps have equal sizes: the one rule for every method that needs it.

    For each map size (H, W) that both networks have, the deepest stage of that size of either is
    taken. Stages without a partner are left out, so networks of three and four stages pair too.

    Args:
        student: shapes of the student's taps, stages among them.
        teacher: shapes of the teacher's taps, stages among them.
        suffix: `.pre` to pair the taps before the last ReLU.

    Returns:
        (student's tap, teacher's tap) pairs, from the first stage to the last.

    Raises:
        ConfigError: no stage of one has the size of a stage of the other.
    """
    mine, theirs = _deepest(student, suffix), _deepest(teacher, suffix)
    pairs = [(name, theirs[size]) for size, name in mine.items() if size in theirs]
    if not pairs:
        raise ConfigError(
            "no stage of the student has a map of the size of a stage of the teacher "
            f"(student: {_sizes(mine)}; teacher: {_sizes(theirs)})",
            fix="choose a pair of networks whose stages have equal strides, or another method",
        )
    return pairs


def unpaired(student: ModelSpec, teacher: ModelSpec) -> str | None:
    """Why `pair_stages` would find nothing for these networks, or None when it would; for `Method.skip`."""
    mine = sorted({student.taps[s].stride for s in student.stages})
    theirs = sorted({teacher.taps[s].stride for s in teacher.stages})
    if set(mine) & set(theirs):
        return None
    return f"no stages of equal stride ({student.name}: {mine}, {teacher.name}: {theirs})"


def _deepest(shapes: Shapes, suffix: str) -> dict[tuple[int, ...], str]:
    """Map size -> name of the deepest stage of that size, from the first stage to the last."""
    stages = {}
    for name, shape in shapes.items():
        found = re.fullmatch(r"stage(\d+)" + re.escape(suffix), name)
        if found:
            stages[int(found[1])] = (name, shape[1:])
    deepest: dict[tuple[int, ...], str] = {}
    for _, (name, size) in sorted(stages.items()):
        deepest.pop(size, None)
        deepest[size] = name
    return deepest


def _sizes(stages: dict[tuple[int, ...], str]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, size))}" for size, name in stages.items()) or "none"
