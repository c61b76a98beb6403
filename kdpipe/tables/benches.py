"""Figures and verdicts of theory benches, from the tables that their runs left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.core import registry
from kdpipe.core.errors import ResultsError
from kdpipe.core.files import read_json, sha256, write_json
from kdpipe.core.paths import Results
from kdpipe.plan.plan import BenchCell, Plan, PlannedStudy
from kdpipe.tables.chains import chain_frame
from kdpipe.tables.layout import lay_out
from kdpipe.tables.plots import draw_plot

if TYPE_CHECKING:
    import pandas as pd

    from kdpipe.api.bench import Finding


def draw_bench(name: str, study: PlannedStudy, plan: Plan, results: Results) -> list[Path]:
    """Draw one figure of a study's benches, and write what is told of it beside: title, caption, verdicts.

    Returns:
        The `.svg`, `.png`, `.csv` and `.json` in the study's folder.

    Raises:
        ResultsError: none of the bench's runs is there, or one cannot be read.
    """
    found = findings(study, study.plots[name], plan, results)
    if not found:
        raise ResultsError(
            f"no run of bench '{study.plots[name]}' is finished",
            where=str(results.root / "runs"),
            fix=f"snakemake --workflow-profile workflow/profiles/local --config study={study.name}",
        )
    bench = found[0].bench
    plot = bench.draw(name, found)
    told = {
        "title": plot.title,
        "caption": plot.caption,
        "verdicts": [asdict(verdict) for verdict in bench.verdicts(name, found)],
    }
    written = draw_plot(plot, results.study(study.name) / name)
    record = results.plot(study.name, name)
    write_json(record, told)
    return [*written, record]


def findings(study: PlannedStudy, bench: str, plan: Plan, results: Results) -> list[Finding]:
    """What the finished runs of one of a study's benches found, in the order of the study.

    Where the study has chains too, the table `chains` of each finding holds their accuracies.
    """
    from kdpipe.api.bench import Bench, Finding

    extra = {"chains": chain_frame(lay_out(study, plan, results))} if study.study.chains else {}
    found = []
    for cell in study.benches:
        paths = results.run(cell.run)
        if cell.bench == bench and paths.status.is_file():
            spec = plan.benches[cell.run].run.spec
            kind = registry.benches.get(bench)
            own = kind(kind.Config(**spec.bench.settings))
            assert isinstance(own, Bench)
            tables = {**_tables(cell, results), **extra}
            found.append(Finding(cell.label, cell.seed, own, tables, spec.data.name if spec.data else ""))
    return found


def _tables(cell: BenchCell, results: Results) -> Mapping[str, pd.DataFrame]:
    import pandas as pd

    paths = results.run(cell.run)
    found = {}
    for name, stated in read_json(paths.provenance)["outputs"].items():
        try:
            if sha256(paths.table(name)) != stated:
                raise ValueError("it has changed since the run was finished")
            found[name] = pd.read_csv(paths.table(name))
        except (OSError, ValueError) as error:
            raise ResultsError(
                f"a bench's table cannot be read: {error}",
                where=str(paths.table(name)),
                fix="delete the run's folder; it will be made again",
            ) from None
    return found
