"""Teachers whose weights come from a file: how a study names them, and which runs they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdpipe.core.errors import CheckpointError
from kdpipe.core.paths import ImportPaths, Results
from kdpipe.core.specs import IMPORTED, DataSpec, Frozen, Part, Protocol, Run, RunSpec
from kdpipe.plan.plan import Plan

if TYPE_CHECKING:
    from kdpipe.api.dataset import DatasetSpec
    from kdpipe.api.model import ModelSpec

# A spec has a protocol; this one stands where the weights were trained elsewhere, in a way nobody recorded.
UNKNOWN = Protocol(lr=1, epochs=1, batch_size=2)


class Imported(Frozen):
    """Settings of the recipe `imported`.

    Attributes:
        files: network -> SHA-256 of the file that holds its weights.
    """

    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(
        description="network -> SHA-256 of its file, as `kdpipe import-teacher` prints it"
    )


def imported_run(dataset: DatasetSpec, model: ModelSpec, sha256: str, test_samples: int | None = None) -> Run:
    """The run of an imported teacher; all seeds and protocols of a study share it.

    Args:
        dataset: what it is measured on.
        model: its network.
        sha256: of the file it comes from.
        test_samples: size of the test subset; None is everything.
    """
    spec = RunSpec(
        data=DataSpec(dataset=dataset.name, revision=dataset.revision, test_samples=test_samples),
        model=Part(name=model.name, revision=model.revision),
        protocol=UNKNOWN,
        recipe=Part(name=IMPORTED, revision=1, settings={"sha256": sha256}),
        seed=0,
    )
    return Run(
        spec=spec,
        label=f"imported_{dataset.name}_{model.name}",
        protocol=IMPORTED,
        pair=(model.name, None),
        recipe=IMPORTED,
    )


def check_imports(plan: Plan, results: Results) -> None:
    """Raise unless every imported teacher of a plan, and all weights that networks start from, are there.

    Raises:
        CheckpointError: one is missing; the message says which command to run.
    """
    for error in missing_imports(plan, results):
        raise error


def missing_imports(plan: Plan, results: Results) -> Iterator[CheckpointError]:
    """What has to be imported before a plan's runs can be made, each as the error that says how."""
    for planned in plan.runs.values():
        store = store_of(planned.run, results)
        if store and not store.model.is_file():
            spec = planned.run.spec
            yield CheckpointError(
                f"the teacher {spec.model.name} has not been imported yet; "
                f"the SHA-256 of its file is {planned.run.imported}",
                where=str(store.root),
                fix=import_command(spec.data.dataset, spec.model.name, str(results.root)),
            )
        file, start = start_of(planned.run, results), planned.run.spec.start
        if file and start and not file.is_file():
            model = planned.run.spec.model.name
            yield CheckpointError(
                f"the weights that {model} starts from have not been imported yet; "
                f"the SHA-256 of their file is {start.sha256}",
                where=str(file.parent),
                fix=import_command(start.dataset, model, str(results.root)),
            )


def store_of(run: Run, results: Results) -> ImportPaths | None:
    """Where the weights of an imported teacher lie; None for a run that is trained."""
    if run.imported is None:
        return None
    return results.imported(run.spec.data.dataset, run.spec.model.name, run.imported)


def start_of(run: Run, results: Results) -> Path | None:
    """The weights that a run's network starts from; None for one that is drawn."""
    start = run.spec.start
    return results.imported(start.dataset, run.spec.model.name, start.sha256).model if start else None


def import_command(dataset: str, model: str, results: str = "results") -> str:
    """The command that imports a teacher."""
    option = "" if results == "results" else f" --results {results}"
    return f"kdpipe import-teacher FILE --model {model} --dataset {dataset}{option}"
