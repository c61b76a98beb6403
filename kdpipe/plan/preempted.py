"""Jobs that were preempted for good: Snakemake's SLURM plugin would wait for them without end.

Where a cluster cancels what it preempts (`PreemptMode=CANCEL`), a job ends as PREEMPTED. The plugin takes
that word for a job that SLURM starts again by itself, as it does where it requeues them. Only the second
kind is still in the queue.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

PLUGIN = "snakemake_executor_plugin_slurm"


def notice_preempted() -> None:
    """Have the plugin take a preempted job that is in the queue no more for a cancelled one."""
    plugin: Any = sys.modules.get(PLUGIN)
    ask = getattr(plugin, "query_job_status", None)  # of Snakemake's own asking, which it loads first
    if ask is None or hasattr(ask, "notices"):
        return

    async def query_job_status(command: str, logger: Any) -> Any:
        states, seconds = await ask(command, logger)
        preempted = [job for job, state in (states or {}).items() if state.startswith("PREEMPTED")]
        if preempted and (queued := await _queued()) is not None:
            states.update(dict.fromkeys(set(preempted) - queued, "CANCELLED"))
        return states, seconds

    query_job_status.notices = True  # type: ignore[attr-defined]
    plugin.query_job_status = query_job_status


async def _queued() -> set[str] | None:
    """The user's jobs that wait, run or end; None where SLURM does not answer."""
    asked = await asyncio.create_subprocess_exec(
        *("squeue", "--me", "--noheader", "--format=%i"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    told, _ = await asked.communicate()
    return None if asked.returncode else set(told.decode().split())
