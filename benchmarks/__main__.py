"""Measure, and write one JSON file: `python -m benchmarks [PART ...]`; compare it with what was accepted.

python -m benchmarks --data data/cifar100 --out figures.json
python -m benchmarks --check figures.json
python -m benchmarks orchestration --runs 10000 --finished
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import grid, orchestration, record, startup, step, tables
from benchmarks.figures import Figure
from kdpipe.core import registry
from kdpipe.engine.device import pick_device
from kdpipe.engine.prepare import prepare

Part = Callable[[argparse.Namespace, Path], Iterator[Figure]]


def _plain(asked: argparse.Namespace, data: Path) -> step.Entrant:
    return step.Entrant(data, threads=asked.threads, device=asked.device)


def _step(asked: argparse.Namespace, data: Path) -> Iterator[Figure]:
    slow = step.SLOW_TO_START if asked.device == "cpu" and not asked.levers else set()
    chosen = [name for name in asked.levers or step.LEVERS if name not in slow]
    return step.levers(_plain(asked, data), asked.slices, asked.steps, chosen, asked.pairs)


def _methods(asked: argparse.Namespace, data: Path) -> Iterator[Figure]:
    return step.methods(_plain(asked, data), asked.slices, asked.steps, asked.methods, asked.pairs[-1:])


def _packing(asked: argparse.Namespace, data: Path) -> Iterator[Figure]:
    counts = asked.at_once or ([1, 8] if asked.device != "cpu" else sorted({1, asked.threads}))
    levers = ["kdpipe"] if asked.device == "cpu" else ["kdpipe", "kdpipe, CUDA graphs, bfloat16"]
    return step.packing(_plain(asked, data), asked.slices, asked.steps, counts, asked.pairs, levers)


def _grid(asked: argparse.Namespace, data: Path) -> Iterator[Figure]:
    about = {"samples": asked.samples, "threads": asked.threads, "device": asked.device}
    return grid.measure(grid.Grid(asked.data, asked.pairs[0], **about))


PARTS: dict[str, Part] = {
    "step": _step,
    "methods": _methods,
    "packing": _packing,
    "grid": _grid,
    "startup": lambda asked, data: startup.measure(data, asked.times, threads=asked.threads),
    "orchestration": lambda asked, data: orchestration.measure(
        asked.runs, finished=asked.finished, profiles=tuple(asked.profiles)
    ),
    "tables": lambda asked, data: tables.figures(asked.runs),
}
NEED_IMAGES = ("step", "methods", "packing", "startup")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    made.add_argument("--data", type=Path, default=Path("data/cifar100"), help="folder that holds CIFAR-100")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    made.add_argument("--threads", type=int, default=2, help="processor threads")
    made.add_argument("--pairs", nargs="+", default=step.PAIRS, metavar="TEACHER:STUDENT")
    made.add_argument("--levers", nargs="+", choices=step.LEVERS, metavar="LEVER", help="rows of `step`")
    made.add_argument("--methods", nargs="+", default=step.METHODS, help="rows of `methods`")
    made.add_argument("--at-once", type=int, nargs="+", metavar="RUNS", help="rows of `packing`")
    made.add_argument("--samples", type=int, default=10240, help="training images of `grid`; 50000 are all")
    made.add_argument("--slices", type=int, default=7, help="slices that are counted")
    made.add_argument("--steps", type=int, default=4, help="steps in a slice")
    made.add_argument("--times", type=int, default=5, help="calls of each command of `startup`")
    made.add_argument("--runs", type=int, default=1000, help="runs of the studies that are made up")
    made.add_argument("--finished", action="store_true", help="also a study that has all its files")
    made.add_argument("--profiles", nargs="*", default=orchestration.PROFILES)
    made.add_argument("--out", type=Path, help="JSON file for the figures")
    made.add_argument(
        "--check", type=Path, metavar="JSON", help="measure nothing; compare this file's ratios"
    )
    made.add_argument(
        "--tolerance", type=float, default=record.TOLERANCE, help="by which a ratio may be worse"
    )
    return made


def main() -> int:
    """Measure and print, or compare."""
    options = parser()
    asked = options.parse_args()
    if asked.check:
        worse = record.worse(record.read(asked.check), record.read(record.ACCEPTED), asked.tolerance)
        print("\n".join(worse) or "No ratio is worse than what was accepted.")
        return bool(worse)
    if unknown := sorted(set(asked.parts) - PARTS.keys()):
        options.error(f"there is no part '{unknown[0]}'")
    parts = asked.parts or list(PARTS)
    pick_device(asked.device)
    figures: list[Figure] = []
    start = record.load()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "cifar100"
        if set(parts) & set(NEED_IMAGES):
            prepare(registry.datasets.get("cifar100"), asked.data, data)
        for part in parts:
            for figure in PARTS[part](asked, data):
                figures.append(figure)
                ratio = "" if figure.ratio is None else f"{figure.ratio:10.2f} x"
                print(
                    f"{figure.part:<15}{figure.name:<60}{figure.value:>10.1f} {figure.unit:<22}{ratio}",
                    flush=True,
                )
    if asked.out:
        settings = {name: getattr(asked, name) for name in ("threads", "slices", "steps", "times")}
        record.write(figures, record.machine(asked.device, start) | settings, asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
