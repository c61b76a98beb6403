"""Where things lie in the results folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdpipe.core.specs import Precision, point


@dataclass(frozen=True)
class RunPaths:
    """Files of one run, `results/runs/<label>-<id>/`.

    The resume state is not a declared output of any rule, so an interrupted job keeps it.
    """

    root: Path

    @property
    def spec(self) -> Path:
        """The run as resolved (JSON of `Run`)."""
        return self.root / "spec.json"

    @property
    def model(self) -> Path:
        """The last epoch's weights."""
        return self.root / "model.safetensors"

    @property
    def history(self) -> Path:
        """One row per epoch: epoch, lr, seconds, loss, loss_<term>..., train_top1, {val,test}_{top1,loss}."""
        return self.root / "history.csv"

    @property
    def predictions(self) -> Path:
        """`test_logits` (N x C), `test_labels`, `test_index` (rows of the prepared arrays); `val_...` too.

        `test_reference` (N x C) where the images' true label distributions are known; `test_auxiliary`
        (N x C) of a second head that was dropped after training.
        """
        return self.root / "predictions.npz"

    @property
    def features(self) -> Path:
        """What the last layer sees of plain images, where a study asks for it, and that layer.

        `train_...` and `test_...`: `features` (N x D, float32), `logits`, `labels`, `index`; `weight` (C x D)
        and `bias` (C).
        """
        return self.root / "features.npz"

    @property
    def status(self) -> Path:
        """`{"status": "finished" | "collapsed", "epoch": int, "reason": str}`."""
        return self.root / "status.json"

    @property
    def provenance(self) -> Path:
        """Versions, hardware, git state, times, hashes of inputs."""
        return self.root / "provenance.json"

    @property
    def metrics(self) -> Path:
        """Measures computed from the predictions."""
        return self.root / "metrics.json"

    def table(self, name: str) -> Path:
        """Of a bench: one of its tables."""
        return self.root / "tables" / f"{name}.csv"

    @property
    def journal(self) -> Path:
        """What MLflow shall know of the run, appended line by line."""
        return self.root / "journal.jsonl"

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self.root / "train.log"

    @property
    def lock(self) -> Path:
        """Locked by the process that trains the run, as long as it lives."""
        return self.root / ".lock"

    @property
    def state(self) -> Path:
        """Folder of the resume state; removed at the end."""
        return self.root / "state"

    @property
    def finished(self) -> Path:
        """Folder of second links to the results, which stay when Snakemake deletes the first ones."""
        return self.root / ".finished"

    @property
    def checkpoint_record(self) -> Path:
        """Of a sampled checkpoint: which epoch it is, and how a rule came to choose it."""
        return self.root / "checkpoint.json"

    def checkpoint(self, epoch: int, precision: Precision = "float32") -> Path:
        """Weights after `epoch` epochs."""
        return self.root / "checkpoints" / f"{point(epoch, precision)}.safetensors"

    def peer(self, number: int) -> Path:
        """The last weights of a network that was trained beside the run's own."""
        return self.root / f"peer-{number}.safetensors"

    def sampled(self, checkpoint: int | str) -> RunPaths:
        """A sampled checkpoint, by epoch or name: its own predictions and metrics, as if it were a run."""
        name = point(checkpoint) if isinstance(checkpoint, int) else checkpoint
        return RunPaths(self.root / "sampled" / name)


@dataclass(frozen=True)
class BankPaths:
    """A bank, `results/banks/<label>-<id>/`. No rule declares its files: an interrupted job keeps them."""

    root: Path

    @property
    def logits(self) -> Path:
        """Epochs x samples x classes; bfloat16 as `uint16` of the same bits."""
        return self.root / "logits.npy"

    @property
    def record(self) -> Path:
        """What the logits are of, and a checksum of each epoch; written when all are there."""
        return self.root / "bank.json"

    @property
    def progress(self) -> Path:
        """The same of the epochs that a bank in the making has."""
        return self.root / "progress.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that makes the bank, as long as it lives."""
        return self.root / ".lock"


@dataclass(frozen=True)
class ImportPaths:
    """An imported checkpoint, `results/imported/<dataset>_<model>-<hash of its file>/`.

    It lies apart from the runs that use it, which Snakemake may delete and make again.
    """

    root: Path

    @property
    def model(self) -> Path:
        """Its weights, under our names."""
        return self.root / "model.safetensors"

    @property
    def origin(self) -> Path:
        """The file it comes from, its hash, and how its keys were read."""
        return self.root / "origin.json"


@dataclass(frozen=True)
class Results:
    """The results folder."""

    root: Path

    def run(self, name: str) -> RunPaths:
        """Files of a run."""
        return RunPaths(self.root / "runs" / name)

    def data(self, name: str) -> Path:
        """Folder of a prepared data set."""
        return self.root / "data" / name

    def imported(self, dataset: str, model: str, sha256: str) -> ImportPaths:
        """What was imported from the file of that hash."""
        return ImportPaths(self.root / "imported" / f"{dataset}_{model}-{sha256[:12]}")

    def plot(self, study: str, name: str) -> Path:
        """What is told of a bench's figure: title, caption, verdicts; the images lie beside it."""
        return self.study(study) / f"{name}.json"

    def study(self, name: str) -> Path:
        """Folder of a study's tables and figures."""
        return self.root / "studies" / name

    def measures(self, study: str) -> Path:
        """What says that a study's results are measured: the place of each, and a hash of its sources."""
        return self.study(study) / "measures.json"

    def bank(self, name: str) -> BankPaths:
        """Files of a bank."""
        return BankPaths(self.banks / name)

    @property
    def banks(self) -> Path:
        """Folder of the banks: which students read which, and a marker for each that was made."""
        return self.root / "banks"

    @property
    def packs(self) -> Path:
        """Folder of the packs: their runs, and a marker for each that was trained."""
        return self.root / "packs"

    @property
    def plans(self) -> Path:
        """Folder of resolved plans."""
        return self.root / "plans"

    @property
    def report(self) -> Path:
        """The report's first page."""
        return self.root / "report" / "index.html"

    @property
    def mlflow(self) -> Path:
        """The embedded tracking store."""
        return self.root / "mlflow.db"
