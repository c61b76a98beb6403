"""A user's mistake is one clear message, before any job or at the job that meets it, without a traceback."""

from __future__ import annotations

import os

import pytest
import yaml

from kdpipe.core.errors import UserError
from kdpipe.plan.config import read_config
from kdpipe.plan.resolve import resolve
from tests.workflow.conftest import STUDY


def message_of(done):
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    assert "completed successfully" not in text, text  # what Snakemake says of a job that failed in a pipe
    return text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"methods": ["scratch", "kdd"], "curves": []},
            ["no method 'kdd'", "tiny.yaml", "mean 'kd'"],
        ),
        ({"recipes": ["sotaecher"]}, ["no recipe 'sotaecher'", "did you mean 'soteacher'"]),
        ({"pairs": [{"teacher": "resnet15", "student": "resnet8"}]}, ["no model 'resnet15'", "key 'pairs'"]),
        ({"dataset": "digit"}, ["no dataset 'digit'", "did you mean 'digits'"]),
        ({"protocol": "tinny"}, ["no protocol 'tinny'", "did you mean 'tiny'"]),
        ({"metrics": ["top2"]}, ["no measure 'top2'"]),
        ({"scale": "smok"}, ["no scale 'smok'", "did you mean 'smoke'"]),
        ({"metods": []}, ["unknown key 'metods'", "did you mean 'methods'"]),
        ({"settings": {"dkd": {"betta": 1}}}, ["unknown key 'betta'", "did you mean 'beta'", "tiny.yaml"]),
        ({"settings": {"dkd": {"beta": "many"}}}, ["valid number", "'many'", "dkd"]),
        ({"settings": {"dkkd": {}}}, ["'dkkd'", "did you mean 'dkd'"]),
        ({"curves": [{"method": "kd", "epochs": [9]}]}, ["teacher epoch 9", "the protocol has 2"]),
    ],
)
def test_a_wrong_study(project, monkeypatch, changes, words):
    project.study(**changes)
    monkeypatch.chdir(project.root)
    with pytest.raises(UserError) as caught:
        resolve(read_config(project.root / "config" / "config.yaml"))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_command_line_and_snakemake_give_the_same_message(project):
    project.study(methods=["scratch", "kdd"], curves=[])
    done = project.kdpipe("plan")
    assert done.returncode == 2
    assert message_of(done).count("error") == 1
    for call in (done, project.snakemake("-n")):
        assert call.returncode != 0
        assert "no method 'kdd'" in message_of(call)


def test_a_missing_key(project):
    study = {k: v for k, v in STUDY.items() if k != "dataset"}
    (project.root / "config/studies/tiny.yaml").write_text(yaml.safe_dump(study))
    done = project.kdpipe("plan")
    assert done.returncode == 2
    assert "the key 'dataset' is missing" in message_of(done)


def test_a_missing_config_file(project):
    done = project.kdpipe("plan", "--config", "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml" in message_of(done)


def test_a_missing_data_folder(project):
    project.study(dataset="cifar100", pairs=[{"teacher": "resnet8", "student": "resnet8"}])
    done = project.snakemake(env={"KDPIPE_DATA": str(project.root / "nothing")})
    assert done.returncode != 0
    text = message_of(done)
    assert "cifar100" in text
    assert "fix:" in text
    assert not (project.root / "results" / "runs").exists()


def test_a_gpu_that_is_not_there(project):
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    done = project.snakemake("--until", "train_teacher", config=["device=cuda"])
    assert done.returncode != 0
    assert "a GPU was asked for and none was found" in message_of(done)


def test_results_that_cannot_be_written(project):
    (project.root / "results").write_text("a file where a folder should be")
    done = project.kdpipe("plan")
    assert done.returncode != 0
    assert "cannot write" in message_of(done)


@pytest.mark.slow
def test_a_corrupt_teacher_fails_its_students_only(finished, tmp_path):
    import shutil

    shutil.copytree(finished.root, tmp_path / "p")
    project = type(finished)(tmp_path / "p")
    (weights,) = project.root.glob("results/runs/teacher_*/model.safetensors")
    content = weights.read_bytes()
    os.utime(weights)
    weights.write_bytes(content[: len(content) // 2])
    project.study(settings={"dkd": {"beta": 5.0}}, methods=["scratch", "kd", "dkd"])
    done = project.snakemake("--rerun-triggers", "params")
    assert done.returncode != 0
    text = message_of(done)
    assert "weights are damaged" in text
    assert str(weights.name) in text
    found = project.kdpipe("verify")
    assert found.returncode == 2
    assert "model.safetensors has changed" in found.stdout
