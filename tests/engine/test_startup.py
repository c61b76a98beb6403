"""A training imports what it needs and nothing else."""

from __future__ import annotations

import subprocess
import sys

from kdpipe.engine.prepare import prepare
from tests.engine.tiny import PLAIN, SPEC, make_run

HEAVY = {"torchvision", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "torchmetrics", "snakemake"}
FIRST_STEP = f"""
import os, sys
from kdpipe import cli

def stop(self, number):
    heavy = {HEAVY!r} & set(sys.modules) | {{"torch._dynamo", "torch._inductor"}} & set(sys.modules)
    print("first step:", *sorted(heavy), flush=True)
    os._exit(0)

from kdpipe.engine.profile import Profile
Profile.next = lambda self: stop(self, 1)
cli.main()
"""


def test_until_the_end_of_its_first_step_nothing_heavy_is_imported(tmp_path):
    prepare(SPEC, None, tmp_path / "data")
    run = make_run("recipe", "standard", **PLAIN).model_dump_json()
    options = ["--run", run, "--out", tmp_path / "run", "--data", tmp_path / "data", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STEP, "train", *options], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["first step:"], done.stdout + done.stderr
