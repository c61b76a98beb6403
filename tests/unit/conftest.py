"""Studies written for a test beside the real protocols."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdpipe.plan.config import Config

STUDY = {
    "title": "t",
    "dataset": "cifar100",
    "protocol": "crd240",
    "seeds": [0, 1, 2],
    "pairs": [
        {"teacher": "resnet32x4", "student": "resnet8x4"},
        {"teacher": "resnet56", "student": "resnet20"},
    ],
    "recipes": ["standard", "soteacher"],
    "methods": ["scratch", "kd", "dkd"],
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes studies beside the real protocols; gives a Config for them."""
    real = Path("config").resolve()
    (tmp_path / "studies").mkdir()
    (tmp_path / "protocols").symlink_to(real / "protocols")
    (tmp_path / "scales.yaml").symlink_to(real / "scales.yaml")

    def make(settings=None, scale=None, **studies):
        for name, changes in studies.items():
            (tmp_path / "studies" / f"{name}.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
        return Config(
            studies=tuple(studies),
            folder=str(tmp_path),
            results=str(tmp_path / "results"),
            settings=settings or {},
            scale=scale,
        )

    return make
