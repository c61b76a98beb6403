"""Cards: everything there is to know about a plug-in, a protocol or a study, as text."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.api.bench import Bench
from kdpipe.api.dataset import Dataset, DatasetSpec, RegressionSpec
from kdpipe.api.model import ModelSpec, Tap
from kdpipe.api.objective import Objective
from kdpipe.api.settings import Paper, Settings, field_note
from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.registry import REGISTRIES
from kdpipe.core.specs import Augmentation, Protocol
from kdpipe.plan.config import names, read_protocol, read_study
from kdpipe.plan.datasets import all_datasets

if TYPE_CHECKING:
    from kdpipe.api.objective import Method
    from kdpipe.nn.pair import Network

PLUGINS = {  # kinds as people call them -> as the registry does
    "methods": "method",
    "recipes": "recipe",
    "parts": "part",
    "models": "model",
    "datasets": "dataset",
    "benches": "bench",
}
KINDS = (*PLUGINS, "protocols", "studies")
PAIR, SAMPLES = "resnet32x4/resnet8x4", 50_000  # where a method's costs are shown unless told otherwise


def card(name: str, folder: Path, pair: str | None = None, classes: int = 100) -> str:
    """The card of whatever is called `name`.

    Args:
        name: a plug-in, protocol or study.
        folder: the config folder.
        pair: `TEACHER/STUDENT`, the networks for which a method's costs are shown; None is `PAIR`.
        classes: how many they tell apart.

    Raises:
        UnknownNameError: nothing has that name.
        ConfigError: a pair is given for something else than a method.
    """
    for kind in KINDS:
        if name in members(kind, folder) or _is_family(kind, name):
            if kind == "methods":
                return _method(REGISTRIES["method"].get(name), pair or PAIR, classes)
            if pair is not None:
                raise ConfigError(
                    f"'{name}' is no method, and costs for a pair are those of a method", where="--pair"
                )
            return card_of(kind, name, folder)
    known = [n for kind in KINDS for n in members(kind, folder)]
    raise UnknownNameError.of("plug-in, protocol or study called", name, known)


def members(kind: str, folder: Path) -> dict[str, str]:
    """Names of a kind (one of `KINDS`), each with what it is in one line."""
    if kind == "datasets":
        return {name: one_line(spec) for name, spec in all_datasets(folder).items()}
    if kind == "protocols":
        return {name: read_protocol(name, folder).title for name in names(kind, folder)}
    if kind == "studies":
        return {name: read_study(name, folder).title for name in names(kind, folder)}
    return {name: one_line(plugin) for name, plugin in REGISTRIES[PLUGINS[kind]].items()}


def card_of(kind: str, name: str, folder: Path) -> str:
    """The card of a member of a kind (one of `KINDS`)."""
    if kind == "datasets":
        return _dataset(all_datasets(folder)[name])
    if kind == "protocols":
        return _protocol(name, folder)
    if kind == "studies":
        return _study(name, folder)
    plugin = REGISTRIES[PLUGINS[kind]].get(name)
    if kind == "methods":
        return _method(plugin, PAIR, 100)
    if kind == "benches":
        return _bench(plugin)
    return _model(plugin) if kind == "models" else _objective(plugin)


def one_line(plugin: Any) -> str:
    """A plug-in in one line."""
    if isinstance(plugin, ModelSpec):
        return f"{plugin.params:>12,} parameters (100 classes)  {_cited(plugin.paper)}"
    if isinstance(plugin, DatasetSpec):
        shape = "x".join(map(str, plugin.shape))
        sizes = f"{plugin.sizes['train']:,} + {plugin.sizes['test']:,}" if plugin.sizes else "counted"
        return f"{plugin.num_classes or 'counted'} classes, {shape}, {sizes} images"
    if isinstance(plugin, RegressionSpec):
        return f"{plugin.about}, {plugin.samples} samples"
    about = (inspect.getdoc(plugin) or "").splitlines()[0]
    if issubclass(plugin, Bench):
        return f"{about} [{_cited(plugin.paper)}]"
    status = f"unsettled: {plugin.unsettled}" if plugin.unsettled else "checked"
    return f"{about} [{_cited(plugin.paper)}; {status}]"


def _cited(paper: Paper) -> str:
    """Authors and year, as a text cites them."""
    first, *others = paper.authors.split("; ")[0].split(", ")
    authors = f"{first} et al." if len(others) > 1 else " and ".join([first, *others])
    return f"{authors} {paper.year}"


def _is_family(kind: str, name: str) -> bool:
    """Whether a file answers to a name that it does not list: `wrn_28_10`, `kd+fitnet`."""
    if kind not in ("models", "methods"):
        return False
    try:
        REGISTRIES[PLUGINS[kind]].get(name)
    except UnknownNameError:
        return False
    return True


def _objective(plugin: Any) -> str:
    lines = [f"{plugin.name} (revision {plugin.revision})", "", inspect.getdoc(plugin) or "", ""]
    if plugin.unsettled:
        lines += [f"Unsettled: {plugin.unsettled}", ""]
    lines += _settings(plugin.Config)
    if plugin.published:
        lines += ["", "Published values (data set, teacher -> student, recipe):"]
        lines += [
            f"  {p.dataset}, {p.teacher} -> {p.student}, {p.recipe}: "
            + ", ".join(f"{k} = {v}" for k, v in p.settings.items())
            + f"  [{p.source}]"
            for p in plugin.published
        ]
    wish = plugin().taps()
    taps = ", ".join([*(f"student {t}" for t in wish.student), *(f"teacher {t}" for t in wish.teacher)])
    return "\n".join([*lines, "", f"Taps beside the logits: {taps or 'none'}", f"Paper: {plugin.paper}"])


def _settings(config: type[Settings]) -> list[str]:
    """Every setting with its default and its source."""
    lines = ["Settings:"] if config.model_fields else []
    for key, info in config.model_fields.items():
        lines.append(f"  {key} = {info.default!r}: {info.description}")
        lines.append(f"      source: {field_note(info, 'source')}")
    return lines


def _bench(plugin: type[Bench]) -> str:
    lines = [f"{plugin.name} (revision {plugin.revision})", "", inspect.getdoc(plugin) or "", ""]
    lines += [*_settings(plugin.Config), "", "Figures:"]
    lines += [f"  {name}: {what}" for name, what in plugin.plots.items()]
    images = "the study's data set" if plugin.needs_images else "none"
    return "\n".join([*lines, "", f"Images: {images}", f"Paper: {plugin.paper}"])


def _method(plugin: type[Method], pair: str, classes: int) -> str:
    """The card of an objective, with what it takes to distil a pair with it."""
    teacher, student = (REGISTRIES["model"].get(name, where="--pair") for name in _names(pair))
    card, title = f"{_objective(plugin)}\n", f"On {teacher.name} -> {student.name}"
    reason = plugin().skip(student, teacher)
    if reason is not None:
        return f"{card}\n{title}: not possible, {reason}"
    side = max(teacher.side, student.side)
    title += f", {classes} classes, {SAMPLES:,} images of 3 x {side} x {side}, at the defaults:"
    networks = (_network(spec.name, classes, side) for spec in (student, teacher))
    return "\n".join([card, title, *(f"  {line}" for line in _demands(plugin, *networks))])


def _names(pair: str) -> tuple[str, str]:
    teacher, slash, student = pair.partition("/")
    if not slash:
        raise ConfigError(f"'{pair}' is no pair", where="--pair", fix=f"TEACHER/STUDENT, for example {PAIR}")
    return teacher, student


@cache
def _network(name: str, classes: int, side: int) -> Network:
    from kdpipe.nn.pair import Network

    return Network.fresh(REGISTRIES["model"].get(name), classes, side)


def _demands(plugin: type[Method], student: Network, teacher: Network) -> list[str]:
    """What a method asks for and costs, a line each."""
    from kdpipe.nn.demands import EPOCHS, demands

    method = plugin()
    found = demands(method, student, teacher, SAMPLES)
    passes = " + ".join(f"{images:g}" for images in found.views)
    where_asked = {
        f"forward passes: {len(found.views)} of each network, with {passes} images for each of the batch": (
            found.views != (1,)
        ),
        f"first stage: {method.first_stage()} epochs": method.first_stage(),
        f"trained on the teacher beforehand: {_sizes(found.part, 'parameters')}": found.part,
        f"peers: {method.peers()} like the student": method.peers(),
        f"anchors: {len(method.anchors(EPOCHS))} of {EPOCHS} epochs of the teacher": method.anchors(EPOCHS),
        "the teacher's batch norms use the batch's statistics": method.taps().batch_statistics,
    }
    own_backward = plugin.backward is not Objective.backward
    return [
        f"trained beside the student: {_sizes(found.parameters, 'parameters')}",
        f"buffers: {_sizes(found.memory, 'bytes')}",
        *(line for line, asked in where_asked.items() if asked),
        f"a step: {found.relative:.2f} times that of the student alone, in multiply-adds",
        f"  for one image: student {found.student:,}, teacher {found.teacher:,}, own layers {found.own:,}; "
        f"the student alone {found.alone:,}",
        "  counted: convolutions and linear layers, the student's backward as two forwards",
        *(["  not counted: a second backward pass, where it makes one"] if own_backward else []),
    ]


def _sizes(sizes: dict[str, int], unit: str) -> str:
    """Sizes in all and each: `65,536 bytes (memory 65,536)`."""
    each = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    return f"{sum(sizes.values()):,} {unit} ({each})" if sizes else "nothing"


def _model(spec: ModelSpec) -> str:
    from kdpipe.nn.cost import declared_cost

    counts = (f"{spec.params_at(n):,} ({n} classes)" for n in (10, 100, 200, 1000))
    size = f"3 x {spec.side} x {spec.side}{' (no other size)' if spec.fixed else ''}"
    cost = declared_cost(spec, 100)
    lines = [
        f"{spec.name} (revision {spec.revision})",
        "",
        _about(spec),
        "",
        f"Parameters: {', '.join(counts)}",
        f"Multiply-adds: {cost.multiply_adds:,} for an image of {size}, 100 classes",
        f"Fingerprint: {cost.fingerprint} (100 classes, 3 channels)",
        f"Classifier: {spec.classifier}, from {spec.embed_dim} features",
        "Taps:",
        *(f"  {name:<12}{_tap(tap)}" for name, tap in spec.taps.items()),
        *(f"Printed as: {', '.join(names)} on {dataset}" for dataset, names in spec.printed.items()),
        *(["Trained at a protocol's rate for light networks"] if spec.light else []),
        f"Paper: {spec.paper}",
    ]
    return "\n".join(lines)


def _about(spec: ModelSpec) -> str:
    """What the file of a network says of it."""
    tree = ast.parse(REGISTRIES["model"].file(spec.name).read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def _tap(tap: Tap) -> str:
    place = f"{tap.side} of {tap.module}: "
    if tap.kind == "vector":
        return f"{place}vector of {tap.channels}"
    large = f" ({tap.stride_64} from 64 pixels on)" if tap.stride_64 else ""
    return f"{place}{tap.channels} channels, stride {tap.stride}{large}, {tap.kind}"


def _dataset(spec: Dataset) -> str:
    if isinstance(spec, RegressionSpec):
        facts = [f"{key} = {value}  [{source}]" for key, (value, source) in spec.settings.items()]
    else:
        assert isinstance(spec, DatasetSpec)
        facts = _images(spec)
    lines = [
        f"{spec.name} (revision {spec.revision})",
        "",
        one_line(spec),
        *facts,
        f"Licence: {spec.licence}",
    ]
    if spec.paper.authors:
        return "\n".join([*lines, f"Paper: {spec.paper}"])
    told = {"Title": spec.paper.title, "Source": spec.paper.url}  # a data set of a user's own
    return "\n".join([*lines, *(f"{key}: {text}" for key, text in told.items() if text)])


def _images(spec: DatasetSpec) -> list[str]:
    stats = f"mean {spec.mean}, std {spec.std}" if spec.mean else "mean and std"
    facts = [f"Normalisation: {stats} ({spec.stats_source})"]
    if spec.preprocessing == "unit-norm":
        facts = ["Preprocessing: each image divided by its 2-norm"]
    if spec.targets:
        facts.append(f"Targets of a regression, by class: {', '.join(f'{t:+g}' for t in spec.targets)}")
    if spec.layout:
        facts.append(f"Folder: {spec.layout}")
    return [*facts, f"Download: {'kdpipe prepare --download' if spec.download else 'none'}"]


def _protocol(name: str, folder: Path) -> str:
    file = read_protocol(name, folder)
    lines = [name, "", file.title, f"Source: {file.source}"]
    if file.reports:
        lines.append(f"Reports: {file.reports.value}  [{file.reports.source}]")
    if file.gpus > 1:
        lines.append(f"GPUs: {file.gpus} share the work on each batch")
    lines += ["", "Settings:"]
    for key, value in file.settings:
        source = f"  [{file.sources[key]}]" if key in file.sources else ""
        lines.append(f"  {key} = {_value(value)}{source}")
        if key == "lr" and file.light:
            lines.append(f"  lr = {file.light.lr} for light networks  [{file.light.source}]")
    if file.settings.milestones:
        lines += ["", f"The rate falls in epochs {_falls(file.settings)}, counted from 1."]
    return "\n".join(lines)


def _falls(protocol: Protocol) -> str:
    return ", ".join(str(m + (protocol.drop == "after")) for m in protocol.milestones)


def _value(value: Any) -> str:
    """A setting as text: augmentations like calls, lists without brackets."""
    if isinstance(value, Augmentation):
        return f"{value.name}({', '.join(f'{k} {v}' for k, v in value.settings.items())})"
    if isinstance(value, tuple):
        return ", ".join(map(_value, value)) or "none"
    return str(value)


def _study(name: str, folder: Path) -> str:
    study = read_study(name, folder)
    lines = [name, "", study.title, study.about, ""]
    told = {
        "Data set": ", else ".join(
            filter(None, [study.dataset, study.otherwise.dataset if study.otherwise else ""])
        ),
        "Protocol": str(study.protocol),
        "Scale": study.scale,
        "Seeds": ", ".join(map(str, study.seeds)),
        "Pairs": ", ".join(f"{p.teacher} -> {p.student}" for p in study.pairs),
        "Recipes": ", ".join(r.label for r in study.recipes),
        "Methods": ", ".join(m.label for m in study.methods),
        "Chains": "; ".join(
            f"{c.label}, {c.steps} steps, α {', '.join(f'{a:g}' for a in c.alphas)}" for c in study.chains
        ),
        "Benches": ", ".join(f"{b.name} ({b.label})" for b in study.benches),
        "Measures": ", ".join(study.metrics) if study.pairs or study.chains else "",
    }
    lines += [f"{key}: {value}" for key, value in told.items() if value]
    return "\n".join(lines)
