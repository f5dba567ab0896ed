"""Map errors of the Hub to retry delays and to messages with a remedy."""

import re
from json import JSONDecodeError

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from larf_curate.errors import InputError, PublishError

TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
STALE_PARENT = 412  # the branch moved since it was read
MAX_RETRY_AFTER = 60.0  # seconds
MAX_MESSAGE_LENGTH = 300
_REF_NAME = re.compile(r"(?!refs/|[/.-])(?!.*(?:\.\.|//|@\{|/\.))[^\x00-\x20\x7f~^:?*\[\\]{1,200}")

MESSAGES = {
    401: "the Hub rejects the token: run `hf auth login`, or set HF_TOKEN to a token with write access",
    402: "the Hub requires payment: free up private storage of {namespace}, or publish with --public",
    403: "the token may not write to {repo}: use a token with write access to {namespace}, or --create-pr",
    404: "{repo} does not exist or the token cannot see it: check the name and the token's access to {namespace}",
    409: "{repo} is being changed by another process: run the command again",
    412: "{repo} kept changing during publication: run the command again",
    413: "the Hub does not accept uploads of this size: publish fewer rows",
    422: "the uploaded files were damaged or changed during the upload: run the command again",
}


def status_of(error: BaseException | None) -> int | None:
    """HTTP status of an error or of one of its causes; None if there was no response from the Hub."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return int(error.response.status_code)
        error = error.__cause__
    return None


def is_connection_error(error: BaseException | None) -> bool:
    """Whether the connection failed, or the response did not come from the Hub (it is not JSON)."""
    while error is not None:
        # OfflineModeIsEnabled is a ConnectionError, but trying again would not help.
        if isinstance(error, JSONDecodeError | OfflineModeIsEnabled):
            return isinstance(error, JSONDecodeError)
        if isinstance(error, TransportError | ConnectionError) and not isinstance(error, HfHubHTTPError):
            return True
        error = error.__cause__
    return False


def retry_delay(error: BaseException, wait: float) -> float | None:
    """Return the seconds to wait before a retry; None if a retry would not help.

    Args:
        error: What an attempt raised.
        wait: Seconds to wait unless the Hub asks for more with ``Retry-After``.
    """
    status = status_of(error)
    if status == STALE_PARENT:
        return 0.0  # nothing to wait for: reading the new head is enough
    if status in TRANSIENT_STATUSES:
        return max(wait, min(_retry_after(error), MAX_RETRY_AFTER))
    return wait if status is None and is_connection_error(error) else None


def to_publish_error(error: Exception, repo: str, *, token: str) -> Exception:
    """Convert an error to a `PublishError` with a remedy; returns ``error`` itself if it is of no known kind.

    The message is one line. It quotes the Hub's own message, from which the token is removed.
    """
    status = status_of(error)
    reason = _sanitize(_server_message(error), token)
    if isinstance(error, RevisionNotFoundError):
        return PublishError(f"{repo} has no such branch: create it first, or omit it to publish to main")
    if status in MESSAGES:
        message = MESSAGES[status].format(repo=repo, namespace=repo.split("/")[0])
        return PublishError(f"{message} (HTTP {status}{': ' + reason if reason else ''})")
    if status in TRANSIENT_STATUSES:
        return PublishError(
            f"the Hub is not able to answer at the moment (HTTP {status}): run the same command again later"
        )
    if status is not None:
        return PublishError(f"the Hub refused to publish to {repo} (HTTP {status}): {reason or 'no reason given'}")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in (error, error.__cause__)):
        return PublishError("offline mode is set: unset HF_HUB_OFFLINE, or publish to a folder")
    if is_connection_error(error):
        return PublishError(
            "the Hub cannot be reached: check the network and HF_ENDPOINT, then run the same command again"
        )
    if isinstance(error, OSError):
        return PublishError(f"cannot publish to {repo}: {_sanitize(str(error), token)}")
    # Before a commit the client lets the Hub validate the card, and reports errors as a plain ValueError.
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        return PublishError(f"the Hub rejects the card's metadata: repair README.md ({_sanitize(str(error), token)})")
    return error


def check_repo_id(repo: str) -> None:
    """Check that a repository id has the form ``org/name``.

    Args:
        repo: The id to check.

    Raises:
        PublishError: If it is invalid or has no namespace.
    """
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise PublishError(f"wanted org/name, or a folder beginning with ./ or /, got {_sanitize(repo, '')!r}")


def check_ref_name(name: str) -> None:
    """Check that a branch or tag can have a name, by the rules of git and of the Hub.

    Raises:
        InputError: If it cannot.
    """
    if not _REF_NAME.fullmatch(name) or name.endswith((".lock", ".", "/")):
        raise InputError(f"wanted a name of a branch or tag, such as v1.0 or run/2, got {ascii(name)[:60]}")


def _retry_after(error: BaseException | None) -> float:
    """Seconds of the ``Retry-After`` header of an error or of one of its causes; 0 if there is none."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            seconds = error.response.headers.get("Retry-After", "")
            return float(seconds) if seconds.isdigit() else 0.0
        error = error.__cause__
    return 0.0


def _server_message(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.server_message or ""
        error = error.__cause__
    return ""


def _sanitize(text: str, token: str) -> str:
    """Make a text one printable line of at most ``MAX_MESSAGE_LENGTH`` characters, without the token."""
    text = " ".join(text.replace(token, "(token)").split() if token else text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:MAX_MESSAGE_LENGTH]
