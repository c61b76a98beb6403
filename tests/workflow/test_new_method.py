"""A method is added by one file: it is listed, planned, trained and held to the contract."""

from __future__ import annotations

import json
import sys

import pytest

from tests.workflow.conftest import ROOT, run

METHOD = '''"""A method in a folder of its own."""

from __future__ import annotations

from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Paper, Progress, Settings, hp
from kdpipe.nn.logits import cross_entropy, full


class MyMethod(Method):
    """Squared distance of the logits, beside the labels.

    Loss: `CE(z_s, y) + alpha mean((z_s - z_t)^2)`, as the terms `ce` and `mse`.

    Taps: the logits of both (B x C).

    Deviations: none.

    Reference: Ba and Caruana 2014.
    """

    name = "my_method"
    paper = Paper(
        "Do deep nets really need to be deep?", "Ba and Caruana", "NeurIPS", 2014, "https://arxiv.org/abs/1312.6184"
    )

    class Config(Settings):
        """Weights."""

        alpha: float = hp(0.1, gt=0, doc="weight of the distance", source="this test")

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        distance = (full(s.logits) - full(t.logits).detach()).square().mean()
        return {"ce": cross_entropy(s.logits, batch.labels), "mse": self.config.alpha * distance}
'''


@pytest.fixture
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "methods").mkdir()
    (folder / "methods" / "my_method.py").write_text(METHOD)
    return {"KDPIPE_PLUGINS": str(folder)}


def test_listed_and_planned(project, plugins):
    listed = project.kdpipe("list", "methods", "--json", env=plugins)
    assert "my_method" in json.loads(listed.stdout)["methods"]
    project.study(methods=["scratch", "kd", "my_method"], settings={})
    planned = project.planned(env=plugins)
    assert "distil student_digits_resnet14_resnet8_my_method_standard_s0" in planned
    shown = project.kdpipe("show", "my_method", env=plugins)
    assert "alpha = 0.1" in shown.stdout


@pytest.mark.slow
def test_held_to_the_contract(plugins):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/contract/test_objectives.py",
    ]
    done = run([*command, "-k", "my_method"], plugins, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 10


@pytest.mark.slow
def test_trained(project, plugins):
    project.study(methods=["my_method"], settings={}, curves=[])
    done = project.snakemake(env=plugins)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_method" in (project.root / "results/studies/tiny/table.csv").read_text()
