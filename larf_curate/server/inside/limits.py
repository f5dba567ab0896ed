"""Numbers beyond 64 bits, which SQLite cannot take, are errors of the request and not of the server."""

from typing import Any


def apply() -> None:
    """Make argilla-server answer 422 where such a number reaches the database, for example as ``offset``."""
    from argilla_server.api.routes import api_v1
    from fastapi.responses import JSONResponse  # type: ignore[import-not-found, unused-ignore]

    async def unprocessable(_request: Any, _error: Exception) -> Any:  # noqa: ANN401  Request, Response
        return JSONResponse({"detail": "A number is too large: it must fit into 64 bits."}, 422)

    api_v1.add_exception_handler(OverflowError, unprocessable)
