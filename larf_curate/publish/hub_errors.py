"""What went wrong at the Hub: whether it may pass by itself, and what to tell the person."""

from json import JSONDecodeError

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from larf_curate.errors import PublishError

PASSING = (408, 425, 429, 500, 502, 503, 504)
STALE_PARENT = 412
LONGEST_WAIT = 60.0
LONGEST_MESSAGE = 300

ADVICE = {
    401: "the Hub does not know the token: run `hf auth login`, or set HF_TOKEN to a token with write access",
    402: "the Hub asks for payment: free private storage of the namespace, or publish with --public",
    403: "the token may not write to {repo}: use a token with write access to {namespace}, or --create-pr",
    404: "{repo} is not there, or the token may not see it: check the name, and the token's access to {namespace}",
    409: "{repo} is being changed by something else: run the command again",
    412: "{repo} kept changing while this was published: run the command again",
    413: "the Hub takes no upload of this size: publish fewer rows",
    422: "the Hub got other bytes than were announced: run the command again",
}


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, looked for along its causes; None if the Hub never answered."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return int(error.response.status_code)
        error = error.__cause__
    return None


def lost_connection(error: BaseException | None) -> bool:
    """Whether the connection failed, or what answered was not the Hub."""
    while error is not None:
        if isinstance(error, JSONDecodeError | OfflineModeIsEnabled):
            return isinstance(error, JSONDecodeError)
        if isinstance(error, TransportError | ConnectionError) and not isinstance(error, HfHubHTTPError):
            return True
        error = error.__cause__
    return False


def waits_for(error: BaseException, wait: float) -> float | None:
    """Seconds after which to try again; None if that would not help."""
    status = status_of(error)
    if status == STALE_PARENT:
        return 0.0
    if status in PASSING:
        return max(wait, min(_asked_wait(error), LONGEST_WAIT))
    return wait if status is None and lost_connection(error) else None


def explain(error: Exception, repo: str, *, token: str) -> Exception:
    """The error to raise instead: one line with the remedy, without the token; itself if it is no refusal."""
    status = status_of(error)
    reason = _cleaned(_server_message(error), token)
    if isinstance(error, RevisionNotFoundError):
        return PublishError(f"the branch is not in {repo}: create it first, or publish to main by leaving it out")
    if status in ADVICE:
        told = ADVICE[status].format(repo=repo, namespace=repo.split("/")[0])
        return PublishError(f"{told} (HTTP {status}{': ' + reason if reason else ''})")
    if status in PASSING:
        return PublishError(f"the Hub is not able to answer now (HTTP {status}): run the same command again later")
    if status is not None:
        return PublishError(f"the Hub refused to publish to {repo} (HTTP {status}): {reason or 'it gave no reason'}")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in (error, error.__cause__)):
        return PublishError("offline mode is set: unset HF_HUB_OFFLINE, or publish to a folder")
    if lost_connection(error):
        return PublishError(
            "the Hub cannot be reached: check the network and HF_ENDPOINT, then run the same command again"
        )
    if isinstance(error, OSError):
        return PublishError(f"cannot publish to {repo}: {_cleaned(str(error), token)}")
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        return PublishError(f"the Hub refuses the card's metadata: repair README.md ({_cleaned(str(error), token)})")
    return error


def check_repo_id(repo: str) -> None:
    """Refuse what cannot be ``org/name``.

    Args:
        repo: The id that was given.

    Raises:
        PublishError: If it is not.
    """
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise PublishError(f"wanted org/name, or a folder beginning with ./ or /, got {_cleaned(repo, '')!r}")


def _asked_wait(error: BaseException | None) -> float:
    """Seconds that the Hub asked to wait, 0 if it did not."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            asked = error.response.headers.get("Retry-After", "")
            return float(asked) if asked.isdigit() else 0.0
        error = error.__cause__
    return 0.0


def _server_message(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.server_message or ""
        error = error.__cause__
    return ""


def _cleaned(text: str, token: str) -> str:
    """One printable line without the token."""
    text = " ".join(text.replace(token, "(token)").split() if token else text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:LONGEST_MESSAGE]
