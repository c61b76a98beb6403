"""The order of all tests."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long ones first: at the end no worker is left alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
