"""Are the stored results whole, and made by the code at hand?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.core.errors import UserError
from kdpipe.core.files import read_json, sha256
from kdpipe.core.fingerprint import code_of, fingerprint
from kdpipe.core.paths import BankPaths, Results, RunPaths
from kdpipe.core.specs import Bank, BenchRun, Run
from kdpipe.plan.plan import Plan


def verify_results(plan: Plan, results: Results) -> list[str]:
    """One line for each stored run or bank of the plan that is damaged, incomplete or made by other code."""
    found = []
    for name, planned in plan.runs.items():
        paths = results.run(name)
        if paths.status.is_file():
            found += [f"{name}: {problem}" for problem in _problems(planned.run, paths)]
    for name, bench in plan.benches.items():
        paths = results.run(name)
        if paths.status.is_file():
            found += [f"{name}: {problem}" for problem in _bench_problems(bench.run, paths)]
    for name, planned_bank in plan.banks.items():
        bank = results.bank(name)
        if bank.record.is_file():
            found += [f"{name}: {problem}" for problem in _bank_problems(planned_bank.bank, bank)]
    return found


def _problems(run: Run, paths: RunPaths) -> list[str]:
    outputs = {"model": paths.model, "history": paths.history}
    if run.kind != "part":
        outputs["predictions"] = paths.predictions
    files = (*outputs.values(), paths.spec, paths.provenance)
    missing = [file.name for file in files if not file.is_file()]
    return [f"lacks {', '.join(missing)}"] if missing else _differences(run, paths, outputs)


def _bench_problems(run: BenchRun, paths: RunPaths) -> list[str]:
    missing = [file.name for file in (paths.spec, paths.provenance) if not file.is_file()]
    if missing:
        return [f"lacks {', '.join(missing)}"]
    try:
        outputs = {name: paths.table(name) for name in read_json(paths.provenance)["outputs"]}
    except (UserError, KeyError) as error:
        return [f"cannot be read: {error}"]
    lost = [file.name for file in outputs.values() if not file.is_file()]
    return [f"lacks {', '.join(lost)}"] if lost else _differences(run, paths, outputs)


def _bank_problems(bank: Bank, paths: BankPaths) -> list[str]:
    problems = []
    try:
        record = read_json(paths.record)
        if record["bank"] != bank.id:
            problems.append("its bank.json belongs to another bank")
        problems += _other_code(bank, record["provenance"])
        if record["finite"]:
            logits = np.load(paths.logits, mmap_mode="r", allow_pickle=False)
            for number, told in enumerate(record["epochs"], 1):
                if hashlib.sha256(logits[number - 1].data).hexdigest() != told:
                    problems.append(f"epoch {number} of logits.npy has changed since it was written")
    except (UserError, KeyError, IndexError, OSError, ValueError, EOFError) as error:
        problems.append(f"cannot be read: {error}")
    return problems


def _differences(run: Run | BenchRun, paths: RunPaths, outputs: dict[str, Path]) -> list[str]:
    """How the stored files differ from what their records say."""
    problems = []
    try:
        record = read_json(paths.provenance)
        if read_json(paths.spec)["id"] != run.id:
            problems.append("its spec.json belongs to another run")
        problems += _other_code(run, record)
        for key, file in outputs.items():
            if sha256(file) != record["outputs"].get(key, sha256(file)):  # older records lack the history
                problems.append(f"{file.name} has changed since it was written")
    except (UserError, KeyError) as error:
        problems.append(f"cannot be read: {error}")
    return problems


def _other_code(made: Run | BenchRun | Bank, provenance: dict[str, Any]) -> list[str]:
    code = provenance["code"]
    return [] if code == fingerprint(code_of(made)) else [f"made by other code ({code})"]
