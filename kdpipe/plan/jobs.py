"""What jobs ask a cluster for: partition, account, memory, and run times from the plan's estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kdpipe.core.paths import Results
from kdpipe.plan.banks import Banks
from kdpipe.plan.config import Cluster, Config, Request, Rule
from kdpipe.plan.cost import NO_BANKS, read_rates, seconds_of
from kdpipe.plan.plan import Plan

RESOURCES = {  # a key of the site file -> what Snakemake's executor calls it
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "qos",
    "constraint": "constraint",
    "gpu_model": "gpu_model",
    "extra": "slurm_extra",
}


class Jobs:
    """The resources of the workflow's jobs.

    Args:
        plan: its runs' times are estimated.
        config: says what the site wants; where it does not, jobs have the resources that their rule names.
        estimated: whether to estimate at all: it reads what the results hold, and a job on a node need not.
        banks: the banks that students read.
    """

    def __init__(
        self, plan: Plan, config: Config, *, estimated: bool = True, banks: Banks = NO_BANKS
    ) -> None:
        self._plan, self._config, self._estimated, self._banks = plan, config, estimated, banks

    def __call__(
        self,
        rule: Rule,
        *,
        mem_mb: int | Callable[[Any], int],
        runtime: int,
        gpu: Any = 0,
        runs: Callable[[Any], Sequence[str]] | None = None,
    ) -> dict[str, Any]:
        """What a rule's jobs ask for, as a rule's `resources` take it.

        Args:
            rule: name of the rule.
            mem_mb: memory of the first attempt, unless the site says otherwise, or a function of a job's
                wildcards that gives it.
            runtime: minutes of the first attempt, where the site says nothing and no estimate is known.
            gpu: GPUs of a job, or a function of its wildcards that gives them; none if `gpus` is 0.
            runs: a function of a job's wildcards that names the runs that it trains, or the bank it makes.
        """
        cluster = self._config.cluster
        gpu = gpu if self._config.gpus else 0
        if cluster is None:
            return {"gpu": gpu, "mem_mb": mem_mb, "runtime": runtime}
        wants = request(cluster, rule, bool(gpu))

        def memory(wildcards: Any, attempt: int) -> int:
            own = mem_mb(wildcards) if callable(mem_mb) else mem_mb
            return grown(wants.mem_mb or own, attempt, cluster.most_mem_mb)

        def minutes(wildcards: Any, attempt: int) -> int:
            first = wants.minutes or (runs and self._minutes(runs(wildcards), cluster)) or runtime
            return grown(first, attempt, cluster.most_minutes)

        named = {name: getattr(wants, key) for key, name in RESOURCES.items()}
        return {
            **_gpus(gpu, wants),
            "mem_mb": memory,
            "runtime": minutes,
            **{name: value for name, value in named.items() if value is not None},
        }

    def _minutes(self, runs: Sequence[str], cluster: Cluster) -> float | None:
        """Minutes for some runs, one after the other; None where one's time is not known."""
        known = [self._seconds.get(run) for run in runs]
        if not runs or None in known:
            return None
        return max(cluster.safety * sum(filter(None, known)) / 60, cluster.least_minutes)

    @cached_property
    def _seconds(self) -> Mapping[str, float]:
        """Run or bank -> seconds, as far as they are known."""
        cluster, results = self._config.cluster, Results(Path(self._config.results))
        if not (self._estimated and cluster):
            return {}
        rates = read_rates(self._plan, results, Path(self._config.folder), cluster.device)
        return seconds_of(self._plan, rates, self._banks) if rates else {}


def request(cluster: Cluster, rule: Rule, gpu: bool) -> Request:
    """What a rule's jobs ask for: what every job does, then what jobs on GPUs do, then its own."""
    layers = [cluster.jobs, *([cluster.gpu_jobs] if gpu else []), cluster.rules.get(rule, Request())]
    return Request(
        **{key: value for layer in layers for key, value in layer.model_dump(exclude_unset=True).items()}
    )


def grown(first: float, attempt: int, most: int) -> int:
    """What an attempt, counted from 1, is given: twice as much each time, but `most`; never below `first`."""
    return math.ceil(max(first, min(math.ldexp(first, attempt - 1), most)))


def _gpus(gpu: Any, wants: Request) -> dict[str, Any]:
    """The GPUs, by name and number where the site has it so."""
    gres = wants.gres
    if not gpu or gres is None:
        return {"gpu": gpu}
    return {"gres": (lambda wildcards: f"{gres}:{gpu(wildcards)}") if callable(gpu) else f"{gres}:{gpu}"}
