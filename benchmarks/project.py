"""A project made up for a benchmark: studies at kdpipe's own protocols, in a folder of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import ROOT, Took, call, python

START = "from snakemake.cli import main; main()"


@dataclass(frozen=True)
class Project:
    """A folder with settings, and with results once something has run there.

    Attributes:
        root: the folder.
    """

    root: Path

    def write(self, studies: Mapping[str, Mapping[str, Any]], **settings: Any) -> None:
        """Write the studies and the settings, which are to run all of them; what is JSON is YAML."""
        config = self.root / "config"
        (config / "studies").mkdir(parents=True)
        shutil.copytree(ROOT / "config" / "protocols", config / "protocols")
        shutil.copy(ROOT / "config" / "scales.yaml", config)
        (config / "config.yaml").write_text(json.dumps({"studies": list(studies), **settings}))
        for name, study in studies.items():
            (config / "studies" / f"{name}.yaml").write_text(json.dumps(study))

    def kdpipe(self, *arguments: str | Path) -> Took:
        """Call kdpipe."""
        return call(python("-m", "kdpipe", *arguments), self.root)

    def snakemake(self, profile: str, *arguments: str, start: str = START, cores: int = 2) -> Took:
        """Call Snakemake with one of the shipped profiles."""
        place = "-s", ROOT / "Snakefile", "--directory", self.root, "--cores", str(cores)
        shipped = "--workflow-profile", ROOT / "workflow" / "profiles" / profile
        return call(python("-c", start, *place, *shipped, *arguments), self.root)
