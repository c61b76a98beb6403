"""Seconds and memory of a large study's tables and report: collecting, rendering, writing the pages.

The study is made up (no training): teachers by recipe, students by method and teacher, each with its files,
as many as asked for. A child process does the work, so that the peak memory is its own.

    python -m benchmarks.tables --runs 10000
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--child", nargs=2, metavar=("PLAN", "RESULTS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(*map(Path, asked.child))))
        return
    with tempfile.TemporaryDirectory() as folder:
        plan, made = make(Path(folder), asked.runs)
        command = [sys.executable, "-m", "benchmarks.tables", "--child", str(plan), str(made.results.root)]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        pages = [path for path in made.results.report.parent.rglob("*") if path.is_file()]
        figures["runs"] = len(made.plan.runs)
        figures["report_files"] = len(pages)
        figures["report_mib"] = sum(path.stat().st_size for path in pages) / 2**20
        figures["first_page_kib"] = made.results.report.stat().st_size / 2**10
    print(f"{figures['runs']} runs; Python {platform.python_version()}, {platform.machine()}")
    print(f"{'':<32}{'seconds':>10}{'of processor':>14}")
    for name, (clock, used) in figures.pop("seconds").items():
        print(f"{name:<32}{clock:>10.1f}{used:>14.1f}")
        figures[name] = {"seconds": clock, "processor_seconds": used}
    print(
        f"peak memory {figures['peak_mib']:.0f} MiB; {figures['report_files']} files in the report, ", end=""
    )
    print(f"{figures['report_mib']:.0f} MiB; first page {figures['first_page_kib']:.1f} KiB")
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
