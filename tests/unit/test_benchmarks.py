"""The benchmarks: loops take turns in processes of their own, and ratios are held to the accepted ones."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import orchestration, record, step
from benchmarks.figures import Figure, call, python
from benchmarks.racing import LAUNCH, Lap, launches_of, race
from benchmarks.traffic import bytes_of, size

MACHINE = {"bfloat16": "native"}


class Sleeper:
    """Takes a known time for a step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, steps: int) -> float:
        time.sleep(steps * self.seconds)
        return steps * self.seconds


def broken() -> Sleeper:
    raise ValueError("no such thing")


def test_loops_take_turns_and_copies_run_at_once() -> None:
    """The first slice does not count; copies last as long as any, and their memory is summed up."""
    racers = {name: partial(Sleeper, seconds) for name, seconds in (("a", 0.01), ("b", 0.02))}
    laps = race(racers, 2, 3, {"b": 2})
    assert laps["a"].seconds == [pytest.approx(0.03)] * 2
    assert laps["b"].seconds == [pytest.approx(0.06)] * 2
    assert laps["b"].peak_mib > 1.5 * laps["a"].peak_mib > 1
    assert laps["b"].launches is None  # no GPU is used


class Adding:
    """Adds two vectors of 1,000 numbers, and a third of them in place."""

    def __init__(self) -> None:
        self.a, self.b = torch.ones(2, 1000)

    def run(self, steps: int) -> float:
        for _ in range(steps):
            (self.a + self.b.reshape(10, 100).flatten())[:500].add_(self.a[:500])
        return 1.0


def test_bytes_that_a_step_moves() -> None:
    """Two vectors are read and one is written; then two halves and one of them; views are free."""
    assert bytes_of(Adding()) == 4 * (3 * 1000 + 3 * 500)
    assert race({"adding": Adding}, 1, 1)["adding"].moved == 4 * (3 * 1000 + 3 * 500)


def test_a_number_that_is_repeated_is_read_once() -> None:
    assert size([torch.ones(1).expand(1000), {"a": torch.ones(2, 2)}, "text"]) == 20


@pytest.mark.parametrize(
    "call", ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch"]
)
def test_what_counts_as_a_launch(call: str) -> None:
    assert LAUNCH.match(call)
    assert not LAUNCH.match("cudaMemcpyAsync")


class Adder:
    """Runs operations, none of them a GPU's."""

    def run(self, steps: int) -> float:
        return float(sum(torch.ones(steps)))


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_operations_of_the_processor_are_no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert launches_of(Adder()) == 0


def test_a_loop_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match="'bad' failed"):
        race({"bad": broken}, 1, 1)


def test_stored_logits_are_those_of_the_samples() -> None:
    logits = torch.arange(6.0).reshape(3, 2)
    out = step.Stored(logits)([torch.empty(2, 1, 1, 1)], torch.tensor([2, 0]))
    assert torch.equal(out.logits, logits[[2, 0]])


def test_every_lever_makes_an_entrant() -> None:
    plain = step.Entrant(Path("nowhere"))
    assert plain in [replace(plain, **settings) for settings in step.LEVERS.values()]
    assert {s.get("without", "") for s in step.LEVERS.values()} == {"", "memory", "channels_last", "fold"}


def test_runs_at_once_share_the_threads_and_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes twice as long as the usual loop alone: two of them are as fast as it."""
    started = {}

    def race(entrants, slices, steps, copies):  # type: ignore[no-untyped-def]
        started.update({name: (entrant.threads, entrant.compile) for name, entrant in entrants.items()})
        return {name: Lap([1.0 if name == step.REFERENCE else 2.0]) for name in entrants}

    monkeypatch.setattr(step, "race", race)
    levers = ("kdpipe", "kdpipe, CUDA graphs, bfloat16")
    rows = list(step.packing(step.Entrant(Path("nowhere"), threads=2), 1, 4, (1, 2), ["a:b"], levers))
    assert [(row.name, row.value, row.ratio) for row in rows] == [
        ("a to b, 1 at once", 128.0, 0.5),
        ("a to b, 2 at once", 256.0, 1.0),
        ("a to b, 1 at once, CUDA graphs, bfloat16", 128.0, 0.5),
        ("a to b, 2 at once, CUDA graphs, bfloat16", 256.0, 1.0),
    ]
    assert started.pop(step.REFERENCE) == (2, False)
    assert list(started.values()) == [(2, False), (1, False), (2, "graphs"), (1, "graphs")]


@pytest.mark.parametrize("ratio", [0.8, 1.3])
@pytest.mark.parametrize("better", ["more", "less"])
def test_a_ratio_that_got_worse_is_told(ratio: float, better: str) -> None:
    accepted = record.Record(MACHINE, [Figure("step", "kd", 1, "s", 1.0, better)])
    now = record.Record(MACHINE, [Figure("step", "kd", 9, "s", ratio, better)])
    assert bool(record.worse(now, accepted)) == ((ratio < 1) == (better == "more"))
    assert record.worse(now, accepted, tolerance=0.4) == []


def test_bfloat16_is_compared_among_its_like() -> None:
    accepted = record.Record(MACHINE, [Figure("step", "kd, bfloat16", 1, "s", 2.0, "more")])
    now = record.Record({"bfloat16": "emulated"}, [Figure("step", "kd, bfloat16", 1, "s", 0.3, "more")])
    assert record.worse(now, accepted) == []


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    figures = [Figure("startup", "import torch", 1.5, "s", 1.0), Figure("tables", "peak", 300.0, "MiB")]
    record.write(figures, {"cores": 2}, tmp_path / "found.json")
    assert record.read(tmp_path / "found.json") == record.Record({"cores": 2}, figures)


def test_the_accepted_figures_are_as_good_as_themselves() -> None:
    accepted = record.read(record.ACCEPTED)
    assert record.worse(accepted, accepted) == []
    assert {f.part for f in accepted.figures} <= record.TITLES.keys()


def test_a_made_up_study_has_about_as_many_runs_as_asked_for(tmp_path: Path) -> None:
    done = orchestration.made_up(tmp_path, 60).kdpipe("plan")
    assert 60 <= orchestration._runs(done) <= 120
    for runs in (1000, 10_000, 30_000):
        grid = orchestration.grid(runs)
        made = (
            len(grid["pairs"]) * len(grid["seeds"]) * len(orchestration.RECIPES) * len(orchestration.METHODS)
        )
        assert made == pytest.approx(runs, rel=0.15)
    assert json.loads((tmp_path / "config" / "config.yaml").read_text()) == {"studies": ["many"]}


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exited with 3"):
        call(python("-c", "raise SystemExit(3)"))
    assert call(python("-c", "raise SystemExit(3)"), check=False).processor >= 0
