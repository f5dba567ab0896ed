"""The real Argilla server as a session fixture; its environment is installed once and kept between runs."""

from collections.abc import Iterator

import pytest

from larf_curate.review.server import EmbeddedServer


@pytest.fixture(scope="session")
def argilla_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A started server on a free port with an empty home: ``.url``, ``.api_key``, ``.add_user(name)``."""
    with EmbeddedServer(tmp_path_factory.mktemp("argilla"), port=0) as server:
        yield server
