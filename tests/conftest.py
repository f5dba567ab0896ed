"""Fixtures for the whole suite: real servers, small models, and what lets several workers share a machine."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the cores
settings.register_profile("larf-curate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("larf-curate")

pytest_plugins = ["tests.fixtures.models", "tests.fixtures.hub", "tests.fixtures.argilla"]
