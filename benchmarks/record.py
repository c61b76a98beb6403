"""Figures on disk: with the machine that they come from, compared with accepted ones, and as a page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

ACCEPTED = Path(__file__).with_name("accepted.json")
TOLERANCE = 0.15  # a ratio's quartiles on a shared machine lie about as far apart
UNSTABLE = ("roofline", "bandwidth", "memory")  # parts that say where one stands, and are not compared
TITLES = {
    "step": "Ordinary KD, by lever",
    "methods": "Other methods",
    "packing": "Several runs at once",
    "grid": "A grid of students, end to end",
    "roofline": "How much of the processor they use",
    "bandwidth": "How much of the memory's speed they use",
    "memory": "Peak memory",
    "launches": "Launches of a GPU",
    "startup": "Start-up",
    "orchestration": "Planning",
    "tables": "Tables and report",
}


@dataclass(frozen=True)
class Record:
    """What one call measured.

    Attributes:
        machine: hardware, versions and settings.
        figures: what was measured.
    """

    machine: dict[str, Any]
    figures: list[Figure]


def machine(device: str, load_before: float) -> dict[str, Any]:
    """Hardware and versions.

    Args:
        device: where trainings ran.
        load_before: the load average at the start.
    """
    import torch

    flags = _processor("flags").split()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "processor": _processor("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bfloat16": "native" if {"avx512_bf16", "amx_bf16"} & set(flags) else "emulated",
        "gpu": gpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": [round(load_before, 1), round(load(), 1)],
    }


def load() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def write(figures: Sequence[Figure], about: dict[str, Any], path: Path) -> None:
    """Write a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(f), "value": _short(f.value), "ratio": _short(f.ratio)} for f in figures]
    path.write_text(json.dumps({"machine": about, "figures": rows}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Record:
    """Read a record."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Record(found["machine"], [Figure(**row) for row in found["figures"]])


def worse(now: Record, accepted: Record, tolerance: float = TOLERANCE) -> list[str]:
    """The figures of `now` whose ratio is worse than the accepted one by more than `tolerance`, in words.

    bfloat16 is compared only between processors that have it, or between those that have not.
    """
    before = {(f.part, f.name): f for f in accepted.figures if f.ratio is not None}
    alike = now.machine["bfloat16"] == accepted.machine["bfloat16"]
    lines = []
    for figure in now.figures:
        known = before.get((figure.part, figure.name))
        if known is None or known.ratio is None or figure.ratio is None or figure.part in UNSTABLE:
            continue
        if "bfloat16" in figure.name and not alike:
            continue
        change = figure.ratio / known.ratio
        if (1 / change if figure.better == "more" else change) > 1 + tolerance:
            lines.append(f"{figure.part}: {figure.name}: {figure.ratio:.2f}, accepted {known.ratio:.2f}")
    return lines


def page(record: Record) -> str:
    """The page of the docs: the accepted figures, part by part."""
    about = record.machine
    where = about["gpu"] or f"{about['processor']}, {about['cores']} cores"
    lines = [
        "# Figures",
        "",
        "<!-- Made by `make docs` from benchmarks/accepted.json; do not edit. -->",
        "",
        "What was measured last and accepted; [how, and which levers there are](../benchmarks/README.md). "
        "A ratio is to the yardstick of its table, in the same call: of steps, the field's usual loop, alone "
        "or its grid (more is better); of memory, that loop's; of everything else, the processor time of "
        "`import torch`.",
        "",
        f"{where}; {about['threads']} threads, load average {about['load'][0]} to {about['load'][1]}; "
        f"bfloat16 is {about['bfloat16']}; torch {about['torch']}, Python {about['python']}. "
        f"Steps are medians of {about['slices']} slices of {about['steps']} steps that take turns, batch 64.",
    ]
    for part, title in TITLES.items():
        rows = [f for f in record.figures if f.part == part]
        if rows:
            lines += ["", f"## {title}", "", "| what | | | ratio |", "|---|---:|---|---:|"]
            lines += [f"| {f.name} | {f.value:,.1f} | {f.unit} | {_ratio(f)} |" for f in rows]
    if not any(f.part == "step" for f in record.figures):
        lines += ["", "No steps were accepted yet: they want an idle machine."]
    return "\n".join(lines) + "\n"


def files(root: Path) -> dict[str, str]:
    """The page, by its path in the project; for `python -m tools`."""
    accepted = root / "benchmarks" / ACCEPTED.name
    return {"docs/benchmarks.md": page(read(accepted))}


def _ratio(figure: Figure) -> str:
    return "" if figure.ratio is None else f"{figure.ratio:.2f}"


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def _processor(key: str) -> str:
    """An entry of Linux's description of its first processor; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")
