"""The real Argilla server as a session fixture; its environment is installed once and kept between runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from larf_curate.review import ReviewQueue
from larf_curate.review.server import EmbeddedServer


@pytest.fixture(scope="session")
def argilla_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A started server on a free port with an empty home: ``.url``, ``.api_key``, ``.add_user(name)``."""
    with EmbeddedServer(tmp_path_factory.mktemp("argilla"), port=0) as server:
        yield server


@pytest.fixture
def make_queue(argilla_server: EmbeddedServer) -> Iterator[Callable[..., ReviewQueue]]:
    """Makes queues on the server and closes them."""
    with ExitStack() as stack:
        yield lambda name, **given: stack.enter_context(
            ReviewQueue(name, url=argilla_server.url, api_key=argilla_server.api_key, **given)
        )


@pytest.fixture
def queue(make_queue: Callable[..., ReviewQueue], request: pytest.FixtureRequest) -> ReviewQueue:
    """A queue of its own for each test."""
    return make_queue(request.node.name)
