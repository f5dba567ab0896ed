"""A chat model behind an OpenAI-compatible endpoint, asked for one short text at a time."""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from larf_curate.errors import InputError, TrainingError
from larf_curate.urls import public_url

logger = logging.getLogger(__name__)
API_KEY = "OPENAI_API_KEY"
"""Environment variable with the key; it is neither stored nor logged."""
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 60.0
"""Attempts at a request, and seconds to wait between them, doubled each time."""
MAX_FAILURES = 3
"""Requests in a row that fail with all attempts before the rest is left out."""
RETRIED = frozenset((408, 409, 429, 500, 502, 503, 504))
"""Status codes after which the same request may succeed."""
REMEDIES = {
    400: "check the model's name and that it takes chat messages",
    401: f"set the environment variable {API_KEY}",
    403: f"check the key in the environment variable {API_KEY}",
    404: "check the model's name, and that the address ends where /chat/completions is appended, often in /v1",
}


@dataclass(frozen=True)
class Endpoint:
    """Asks a model over HTTP, with retries and back-off.

    Args:
        url: Address to which ``/chat/completions`` is appended.
        model: Name of the model there.
        timeout: Seconds to wait for an answer.
        sleep: Waits a number of seconds.
    """

    url: str
    model: str
    timeout: float = 60.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __call__(self, chats: Sequence[list[dict[str, str]]]) -> list[str | None]:
        """Ask for a text for each chat.

        Returns:
            The texts; None where the endpoint gave none, of which a warning tells the number.

        Raises:
            InputError: If the endpoint rejects the request: no such path or model, or a missing key.
            TrainingError: If it cannot be reached at all.
        """
        texts: list[str | None] = []
        failures = 0
        with httpx.Client(timeout=self.timeout) as client:
            for chat in chats:
                if failures >= MAX_FAILURES:
                    break
                response = self._post(client, chat)
                if isinstance(response, str) and not any(text is not None for text in texts):
                    raise self._unreachable(response)
                failures = failures + 1 if isinstance(response, str) else 0
                texts.append(None if isinstance(response, str) else _text_of(response))
        texts += [None] * (len(chats) - len(texts))
        if missing := sum(text is None for text in texts):
            logger.warning("%d of %d answers are not judged: the endpoint gave no text", missing, len(texts))
        return texts

    def check(self) -> None:
        """Ask for one word, before long work whose result is to be judged.

        Raises:
            InputError, TrainingError: As in a call.
        """
        with httpx.Client(timeout=self.timeout) as client:
            if isinstance(reason := self._post(client, [{"role": "user", "content": "Reply with one word."}]), str):
                raise self._unreachable(reason)

    def _unreachable(self, reason: str) -> TrainingError:
        return TrainingError(f"the endpoint {public_url(self.url)} gives no answer ({reason}): start it, or try later")

    def _post(self, client: httpx.Client, chat: list[dict[str, str]]) -> httpx.Response | str:
        """The response to a request, or why all attempts failed."""
        key = os.environ.get(API_KEY)
        body = {"model": self.model, "messages": chat, "temperature": 0, "max_tokens": 16}
        reason = ""
        for attempt in range(ATTEMPTS):
            wait = FIRST_WAIT * 2**attempt
            try:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                response = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                shown = public_url(self.url)
                raise InputError(f"wanted an address such as http://localhost:8000/v1, got {shown!r}") from error
            except httpx.RequestError as error:
                reason = type(error).__name__
            else:
                if response.status_code not in RETRIED:
                    return self._checked(response, key)
                reason, wait = f"status {response.status_code}", _retry_after(response, wait)
            if attempt < ATTEMPTS - 1:
                self.sleep(min(wait, LONGEST_WAIT))
        return reason

    def _checked(self, response: httpx.Response, key: str | None) -> httpx.Response:
        if response.is_success:
            return response
        said = response.text.replace(key, "***") if key else response.text  # some servers repeat the key
        remedy = REMEDIES.get(response.status_code, "see its words")
        shown, status = public_url(self.url), response.status_code
        raise InputError(f"the endpoint {shown} answers {status} ({said.strip()[:200]}): {remedy}")


def _retry_after(response: httpx.Response, default: float) -> float:
    """Seconds of the header Retry-After, which is a number or a date; at least 0."""
    value = response.headers.get("retry-after", "")
    try:
        if math.isfinite(seconds := float(value)):
            return max(seconds, 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return default


def _text_of(response: httpx.Response) -> str | None:
    """The text of a completion; None if the body is no completion."""
    try:
        content: Any = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return content if isinstance(content, str) else None
