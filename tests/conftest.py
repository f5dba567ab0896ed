"""Fixtures that start real servers for the whole suite."""

pytest_plugins = ["tests.models_fixture", "tests.hub_fixture", "tests.argilla_fixture"]
