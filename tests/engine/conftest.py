"""The tiny data set, prepared and registered."""

import json
import sys

import pytest
import torch

from kdpipe.core import registry
from kdpipe.engine.prepare import load, prepare
from tests.engine import tiny
from tests.engine.tiny import SPEC


def pytest_addoption(parser):
    parser.addoption(
        "--protocol",
        type=json.loads,
        default={},
        help="settings of the trainings, where a test says nothing: '{\"compile\": true}'",
    )


def pytest_configure(config):
    tiny.LEVERS.update(config.getoption("--protocol", default={}))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / SPEC.folder
    prepare(SPEC, None, folder)
    return load(folder)


@pytest.fixture(autouse=True)
def _compiled_anew():
    """A training has a process of its own; so many in one would reach what PyTorch compiles of a function."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def _corners():
    """Register the data set for the engine's look-ups, and for these tests alone."""
    registry.datasets.names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.datasets._found, "corners", SPEC)
        patch.setitem(registry.datasets._files, "corners", registry.Path(__file__))
        yield
