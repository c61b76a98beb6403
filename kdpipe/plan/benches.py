"""The benches of a study: their runs, with every setting filled in and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdpipe.api.dataset import DatasetSpec
from kdpipe.api.settings import later_settings
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.specs import BenchRun, BenchSpec, Part
from kdpipe.plan.config import Config, explain
from kdpipe.plan.plan import BenchCell, PlannedBench
from kdpipe.plan.study import Entry, Study


def bench_runs(
    name: str,
    study: Study,
    seeds: tuple[int, ...],
    dataset: DatasetSpec | None,
    config: Config,
    where: str,
    reduced: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, PlannedBench], tuple[BenchCell, ...]]:
    """Every run of a study's benches: one per entry and seed.

    Args:
        name: of the study.
        study: its content.
        seeds: those of its scale.
        dataset: what benches that need images see.
        config: the workflow's settings.
        where: the study's file, for messages.
        reduced: settings of its scale, by bench.

    Raises:
        ConfigError: a setting is wrong, or images are needed and none are named.
    """
    runs: dict[str, PlannedBench] = {}
    cells = []
    for entry in study.benches:
        bench = registry.benches.get(entry.name, where=f"{where}, key 'benches'")
        if bench.needs_images and dataset is None:
            raise ConfigError(
                f"bench '{entry.name}' needs images", where=f"{where}, key 'dataset'", fix="dataset: digits"
            )
        part, sources = _part(entry, name, study, config, where, reduced.get(entry.name, {}))
        for seed in seeds:
            data = (
                Part(name=dataset.name, revision=dataset.revision) if bench.needs_images and dataset else None
            )
            spec = BenchSpec(bench=part, data=data, seed=seed)
            run = BenchRun(spec=spec, sources=sources, later=later_settings(bench.Config))
            folder = dataset.folder if data and dataset else None
            runs[run.name] = PlannedBench(run, folder, (name,))
            cells.append(BenchCell(entry.name, entry.label, seed, run.name))
    return runs, tuple(cells)


def plots_of(study: Study, where: str) -> dict[str, str]:
    """The figures that a study's benches draw, each with its bench: those in `plots`, else all.

    Raises:
        ConfigError: two benches of the study draw figures of one name.
        UnknownNameError: a figure in `plots` is drawn by none of them.
    """
    known: dict[str, str] = {}
    for bench in dict.fromkeys(entry.name for entry in study.benches):
        for plot in registry.benches.get(bench).plots:
            if plot in known and (not study.plots or plot in study.plots):
                raise ConfigError(
                    f"both '{known[plot]}' and '{bench}' draw a figure called '{plot}'",
                    where=f"{where}, key 'plots'",
                    fix="list the figures that are wanted, or make two studies",
                )
            known.setdefault(plot, bench)
    for plot in study.plots:
        if plot not in known:
            raise UnknownNameError.of("plot", plot, known, where=f"{where}, key 'plots'")
    return {plot: known[plot] for plot in study.plots or known}


def _part(
    entry: Entry, name: str, study: Study, config: Config, where: str, reduced: Mapping[str, Any]
) -> tuple[Part, dict[str, str]]:
    """A bench's settings: default < study < entry < scale < command line."""
    bench = registry.benches.get(entry.name)
    layers: tuple[tuple[Mapping[str, Any], str], ...] = (
        (study.settings.get(entry.name, {}), f"study {name}"),
        (entry.settings, f"study {name}"),
        (reduced, "scale"),
        (config.settings.get(entry.name, {}), "command line"),
    )
    values: dict[str, Any] = {}
    sources = dict.fromkeys(bench.Config.model_fields, "default")
    for settings, source in layers:
        values |= settings
        sources |= dict.fromkeys(settings, source)
    try:
        settings = bench.Config.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        raise explain(error, bench.Config, f"{where}, settings of bench '{entry.label}'") from None
    return Part(name=entry.name, revision=bench.revision, settings=settings), sources
