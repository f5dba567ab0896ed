"""A log without row text: what a reviewer reads or writes, and what a request carries, never reaches it.

Argilla logs whole rejected records, and the text of most exceptions repeats their input. So an exception is written
as its type and the places in the code it went through, and an address without its query.
"""

import logging
import sys
import traceback
from types import TracebackType

_TRUSTED = ("uvicorn.error", "inside")


class SafeFormatter(logging.Formatter):
    """Formats records without anything that could hold row text or a key."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the frames of the exception if there is one."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {_message(record)}"
        error = _error(record)
        return line if error is None else f"{line}\n{_frames(error)}"


def install() -> None:
    """Send all logging through the safe formatter; later ``basicConfig`` calls then change nothing."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.INFO)
    sys.excepthook = _log_uncaught


def _message(record: logging.LogRecord) -> str:
    if (error := _error(record)) is not None:
        return type(error).__name__
    if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        return f'{client} "{method} {str(path).split("?")[0]} HTTP/{version}" {status}'
    # what another library says may hold anything: tell only where it was said
    return record.getMessage() if record.name in _TRUSTED else f"at {record.pathname}:{record.lineno}"


def _error(record: logging.LogRecord) -> BaseException | None:
    if isinstance(record.msg, BaseException):
        return record.msg
    return record.exc_info[1] if record.exc_info else None


def _frames(error: BaseException) -> str:
    """Types and frames of an exception and what caused it, outermost last, without their messages."""
    below = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    own = "".join(traceback.format_tb(error.__traceback__)) + f"  {type(error).__module__}.{type(error).__qualname__}"
    return own if below is None else f"{_frames(below)}\n  then\n{own}"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("inside").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))
