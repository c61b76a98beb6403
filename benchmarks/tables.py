"""Seconds and memory of a large study's tables and report: collecting, rendering, writing the pages.

The study is made up (no training): teachers by recipe, students by method and teacher, each with its files,
as many as asked for. A child process does the work, so that the peak memory is its own.

    python -m benchmarks tables --runs 10000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, call, most_resident_mib, python
from kdpipe.core.paths import Results
from kdpipe.plan.load import read_plan, write_plan
from kdpipe.tables.layout import lay_out
from kdpipe.tables.render import render
from kdpipe.tables.report import report
from tests.unit.synthetic import Made

RECIPES = [f"recipe_{i}" for i in range(4)]
METHODS = ["scratch", *(f"method_{i}" for i in range(19))]
METRICS = ("top1", "nll", "top5", "agreement")
SEEDS = range(3)


def make(root: Path, runs: int) -> tuple[Path, Made]:
    """A finished study of at least so many runs below `root`, and the file of its plan."""
    per_pair = len(SEEDS) * (len(RECIPES) * len(METHODS) + 1)  # a student without a teacher is one for all
    pairs = [(f"teacher_{i}", f"student_{i}") for i in range(-(-runs // per_pair))]
    made = Made(
        root, methods=METHODS, recipes=RECIPES, pairs=pairs, seeds=SEEDS, metrics=METRICS, curve=()
    ).finish()
    plan = root / "plan.json"
    write_plan(made.plan, plan)
    return plan, made


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds that `work` takes, by the clock and of the processor, and what it returns."""
    start, used = time.perf_counter(), time.process_time()
    done = work()
    return (time.perf_counter() - start, time.process_time() - used), done


def measure(plan_file: Path, root: Path) -> dict[str, Any]:
    """Seconds of each part, by the clock and of the processor, and the process's peak memory in MiB."""
    results = Results(root)
    seconds = {}
    seconds["read the plan"], plan = timed(lambda: read_plan(plan_file))
    (study,) = plan.studies.values()
    seconds["table files"], _ = timed(lambda: render(study, plan, results))
    seconds["report"], _ = timed(lambda: report(plan, results))
    seconds["all"] = (sum(clock for clock, _ in seconds.values()), sum(used for _, used in seconds.values()))
    seconds["(collecting alone, in both)"], _ = timed(lambda: lay_out(study, plan, results))
    return {"seconds": seconds, "peak_mib": most_resident_mib()}


def made_up(runs: int) -> dict[str, Any]:
    """What `measure` finds of a made-up study of at least so many runs, and how large its report is."""
    with tempfile.TemporaryDirectory() as folder:
        plan, made = make(Path(folder), runs)
        done = call(python("-m", "benchmarks.tables", "--child", plan, made.results.root))
        figures: dict[str, Any] = json.loads(done.output.splitlines()[-1])
        pages = [path for path in made.results.report.parent.rglob("*") if path.is_file()]
        return figures | {
            "runs": len(made.plan.runs),
            "report_files": len(pages),
            "report_mib": sum(path.stat().st_size for path in pages) / 2**20,
            "first_page_kib": made.results.report.stat().st_size / 2**10,
        }


def figures(runs: int) -> Iterator[Figure]:
    """Processor seconds of each part, and how many times that imports torch; memory, the report's size."""
    import_torch = call(python("-c", "import torch")).processor
    found = made_up(runs)
    about = f"{found['runs']:,} runs"
    for name, (_, used) in found["seconds"].items():
        yield Figure("tables", f"{name}, {about}", used, "s of the processor", used / import_torch)
    for name, unit in (("peak_mib", "MiB"), ("report_mib", "MiB"), ("first_page_kib", "KiB")):
        yield Figure("tables", f"{name.rsplit('_', 1)[0].replace('_', ' ')}, {about}", found[name], unit)


def main() -> None:
    """Measure in this process: the child of `made_up`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("PLAN", "RESULTS"), required=True)
    print(json.dumps(measure(*map(Path, parser.parse_args().child))))


if __name__ == "__main__":
    main()
