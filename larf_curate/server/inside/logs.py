"""Logging without row texts: no text of records, responses or requests is written to the log.

Argilla logs complete rejected records, and messages of most exceptions quote their input. So exceptions are logged with
their type and stack frames but without their message, and URLs without their query string.
"""

import logging
import sys
import traceback
from types import TracebackType

_TRUSTED = ("uvicorn.error", "inside")


class SafeFormatter(logging.Formatter):
    """Formats log records without anything that may contain row texts or keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record as one line, followed by the stack frames of its exception, if any."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {_message(record)}"
        error = _error(record)
        return line if error is None else f"{line}\n{_frames(error)}"


def install() -> None:
    """Log everything with the safe formatter; later calls of ``logging.basicConfig`` have no effect."""
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
    # Messages of other libraries may contain anything: log only where they come from.
    return record.getMessage() if record.name in _TRUSTED else f"at {record.pathname}:{record.lineno}"


def _error(record: logging.LogRecord) -> BaseException | None:
    if isinstance(record.msg, BaseException):
        return record.msg
    return record.exc_info[1] if record.exc_info else None


def _frames(error: BaseException) -> str:
    """Types and stack frames of an exception and of its causes, innermost cause first, without their messages."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    frames = (
        "".join(traceback.format_tb(error.__traceback__)) + f"  {type(error).__module__}.{type(error).__qualname__}"
    )
    return frames if cause is None else f"{_frames(cause)}\n  then\n{frames}"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("inside").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))
