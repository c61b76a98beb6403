"""The tiny data set, prepared and registered."""

import pytest

from kdpipe.core import registry
from kdpipe.engine.prepare import load, prepare
from tests.engine.tiny import SPEC


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / SPEC.folder
    prepare(SPEC, None, folder)
    return load(folder)


@pytest.fixture(autouse=True, scope="module")
def _corners():
    """Register the data set for the engine's look-ups, and for these tests alone."""
    registry.datasets.names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.datasets._found, "corners", SPEC)
        patch.setitem(registry.datasets._files, "corners", registry.Path(__file__))
        yield
