"""A job that was preempted for good is not waited for; one that SLURM starts again is."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType

import pytest

from kdpipe.plan.preempted import PLUGIN, notice_preempted


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Writes a `squeue` that lists some jobs and ends with a code."""

    def make(jobs, code=0):
        file = tmp_path / "squeue"
        listed = "".join(f"echo {job}\n" for job in jobs)
        file.write_text(f"#!/bin/sh\n{listed}exit {code}\n")
        file.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return make


@pytest.fixture
def told(monkeypatch):
    """What the plugin is told of jobs, of which it knows some states."""
    states = {"1": "PREEMPTED", "2": "PREEMPTED", "3": "RUNNING", "4": "COMPLETED"}
    plugin = ModuleType(PLUGIN)

    async def query_job_status(command, logger):
        return (dict(states), 0.1) if command else (None, None)

    plugin.query_job_status = query_job_status
    monkeypatch.setitem(sys.modules, PLUGIN, plugin)
    notice_preempted()
    notice_preempted()  # a Snakefile may be read twice
    return lambda command: asyncio.run(plugin.query_job_status(command, None))


def test_one_that_left_the_queue_counts_as_cancelled(told, squeue):
    squeue(["2", "3"])
    assert told("sacct") == ({"1": "CANCELLED", "2": "PREEMPTED", "3": "RUNNING", "4": "COMPLETED"}, 0.1)
    squeue([])
    assert told("sacct")[0]["2"] == "CANCELLED"


def test_where_slurm_does_not_answer_nothing_changes(told, squeue):
    squeue([], code=1)
    assert told("sacct")[0]["1"] == "PREEMPTED"
    assert told("") == (None, None)


def test_the_plugin_asks_as_it_is_expected_to():
    plugin = importlib.import_module(PLUGIN)
    assert asyncio.iscoroutinefunction(plugin.query_job_status)
    assert "query_job_status" in plugin.Executor.check_active_jobs.__code__.co_names


def test_without_the_plugin_nothing_happens(monkeypatch):
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    notice_preempted()
    assert PLUGIN not in sys.modules
