"""A teacher that another project trained, from its file to a table that uses it."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from kdpipe.core import registry
from kdpipe.core.files import sha256
from kdpipe.core.paths import Results

NETWORK = "resnet14"


@pytest.fixture
def checkpoint(project):
    """A file as RepDistiller writes it, of a network with random weights, beside the project."""
    torch.manual_seed(0)
    model = registry.models.get(NETWORK).build(10, 1)
    file = project.root / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": model.state_dict(), "accuracy": torch.tensor(10.0)}, file)
    return file


def study(project, file, **changes):
    entry = {"name": "imported", "label": "theirs", "settings": {"files": {NETWORK: sha256(file)}}}
    changes = {"recipes": [entry], "curves": [], "seeds": [0, 1], "methods": ["scratch", "kd"], **changes}
    project.study(**changes)


def bring(project, file, *options):
    return project.kdpipe("import-teacher", file, "--model", NETWORK, "--dataset", "digits", *options)


def test_a_study_says_which_command_is_missing(project, checkpoint):
    study(project, checkpoint)
    for done in (project.kdpipe("plan"), project.snakemake("-n")):
        text = done.stdout + done.stderr
        assert done.returncode != 0
        assert "Traceback" not in text
        assert f"the teacher {NETWORK} has not been imported yet" in text
        assert f"kdpipe import-teacher FILE --model {NETWORK} --dataset digits" in text
        assert sha256(checkpoint) in text


def test_a_file_for_each_network(project, checkpoint):
    study(project, checkpoint, pairs=[{"teacher": "resnet20", "student": "resnet8"}])
    done = project.kdpipe("plan")
    assert done.returncode == 2
    assert "'files' names no checkpoint of resnet20" in done.stderr
    assert "tiny.yaml" in done.stderr


@pytest.mark.parametrize("files", ["abc", {NETWORK: "abc"}])
def test_a_hash_that_is_none(project, checkpoint, files):
    study(project, checkpoint, recipes=[{"name": "imported", "settings": {"files": files}}])
    done = project.kdpipe("plan")
    assert done.returncode == 2
    assert done.stderr.count("error") == 1
    assert "key 'files" in done.stderr


def test_another_network_is_one_message(project, checkpoint):
    done = project.kdpipe("import-teacher", checkpoint, "--model", "resnet20", "--dataset", "digits")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the checkpoint is another network")
    assert "Traceback" not in done.stderr
    assert not (project.root / "results").exists()


@pytest.mark.parametrize("file", ["nowhere.pth", "config", "config/config.yaml"])
def test_no_checkpoint_is_one_message(project, file):
    done = bring(project, file)
    assert done.returncode == 2
    assert done.stderr.count("error") == 1
    assert file in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.root / "results").exists()


def test_what_is_printed_makes_a_plan_that_trains_no_teacher(project, checkpoint):
    done = bring(project, checkpoint, "--label", "theirs")
    assert done.returncode == 0, done.stderr
    assert "measured when digits is prepared" in done.stdout
    printed = yaml.safe_load(done.stdout[done.stdout.index("recipes:") :])["recipes"]
    study(project, checkpoint, recipes=printed, curves=[{"method": "kd", "epochs": [1, 2]}])
    planned = project.planned()
    assert [job for job in planned if job.startswith("adopt")] == [f"adopt imported_digits_{NETWORK}"]
    assert not [job for job in planned if job.startswith(("train", "sample"))]
    assert len([job for job in planned if job.startswith("distil")]) == 4  # scratch and kd, two seeds
    assert "an imported teacher has no earlier epochs" in project.kdpipe("plan").stdout


@pytest.mark.slow
def test_from_the_file_to_the_table(project, checkpoint):
    assert bring(project, checkpoint).returncode == 0
    study(project, checkpoint, seeds=[0], methods=["kd"])
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (project.root / "results" / "runs").glob("imported_*")
    paths = Results(project.root / "results").run(folder.name)
    origin = json.loads(paths.provenance.read_text())["origin"]
    assert (origin["file"], origin["sha256"]) == (checkpoint.name, sha256(checkpoint))
    (student,) = folder.parent.glob("student_*_kd_imported_s0-*")
    assert "agreement" in json.loads((student / "metrics.json").read_text())["values"]
    assert "theirs" in (project.root / "results" / "studies" / "tiny" / "table.md").read_text()

    again = bring(project, checkpoint)  # now that there are data, it is measured at once
    assert again.returncode == 0, again.stderr
    top1 = json.loads(paths.metrics.read_text())["values"]["top1"]
    assert f"test accuracy: {top1:.2f} %" in again.stdout
    assert not [job for job in project.planned() if job.startswith(("adopt", "train"))]
