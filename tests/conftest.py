"""Fixtures for the whole suite: real servers, small models, and what lets several workers share a machine.

Tests that need an Argilla server or the real chat model are marked by the fixtures that they ask for. What answers in
about a minute: ``pytest -m "not server and not browser and not slow" -n 2 --dist loadfile``.
"""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the cores
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # before datasets is imported: it tells the Hub of every file
settings.register_profile("larf-curate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("larf-curate")

pytest_plugins = ["tests.fixtures.models", "tests.fixtures.hub", "tests.fixtures.argilla", "tests.fixtures.stores"]
MARKS = {"argilla_server": "server", "smol": "slow"}
"""The marker that a fixture brings to the tests that use it."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARKS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKS[fixture])
    long = Counter(item.path for item in items for mark in ("slow", "server") if item.get_closest_marker(mark))
    items.sort(key=lambda item: -long[item.path])  # so that workers end together, with --no-loadscope-reorder
