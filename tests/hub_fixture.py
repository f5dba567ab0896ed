"""The ``hub`` fixture: a local Hub for this process, and the environment that points another process at it."""

import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from tests.hub_server import HubServer

ISOLATED = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT")


UPLOAD_WARNING = "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"  # huggingface_hub 2.4 on httpx2


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", UPLOAD_WARNING)


class LocalHub(HubServer):
    """A Hub with a home folder of its own, so that no test reads the caches or the token of whoever runs it."""

    home: Path

    def env(self, *, token: str | None = None) -> dict[str, str]:
        """The environment for a fresh process: this Hub, a cache of its own, and a token if one is given."""
        kept = {name: value for name, value in os.environ.items() if name not in ISOLATED}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(self.home)}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**kept, **own, **quiet, **({"HF_TOKEN": token} if token else {})}


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A local Hub. ``HF_ENDPOINT`` is read when the libraries are imported, so their copies of it are replaced here."""
    with LocalHub() as server:
        server.home = tmp_path_factory.mktemp("hf-home")
        constants = huggingface_hub.constants
        for name in ISOLATED:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(server.home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(server.home / "token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", server.home / "datasets")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
