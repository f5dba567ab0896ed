"""Fixtures of all tests that publish."""

import pytest

from tests.fixtures.decisions_folder import write_decisions


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr("larf_curate.publish.hub.RETRY_WAITS", (0.0,) * 4)


@pytest.fixture
def decisions(tmp_path):
    return write_decisions(tmp_path / "decisions")
