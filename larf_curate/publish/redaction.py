"""Redaction of the manifests that are published: local paths, names of reviewers, and anything like a credential."""

import re
from collections.abc import Mapping
from typing import Any

PRIVATE_KEYS = {
    "token",
    "hf_token",
    "api_token",
    "access_token",
    "api_key",
    "apikey",
    "secret",
    "password",
    "authorization",
    "api_url",
    "server",
    "server_url",
    "workspace",
    "host",
    "hostname",
    "user",
    "username",
    "users",
    "email",
}
"""Lower-case keys that are removed with their values: credentials, addresses of servers, and names of people."""
PEOPLE_KEYS = {"annotators", "reviewers"}
"""Lower-case keys of people, who are counted instead of named."""
MERGE_KEY = "merge"
"""Key of the merge rule, whose value may be ``arbiter:NAME``."""
_CREDENTIALS = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"(?:hf|api_org)_[a-z0-9]{16,}", "(removed)"),  # without a word boundary: a token may follow any character
        (r"(authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)[^\s\"',;]+", r"\1(removed)"),
        (r"(\bbearer\s+)[^\s\"',;]+", r"\1(removed)"),
        (r"([?&][\w.-]*(?:token|key|secret|signature|password)=)[^\s&#\"']+", r"\1(removed)"),
        (r"(://)[^\s/@]+@", r"\1(removed)@"),
    )
]
"""Patterns of credentials within a text, and what replaces them."""
_ABSOLUTE_PATH = re.compile(r"(?:file:|~|/|\\\\|[A-Za-z]:[\\/]).*[\\/](?P<name>[^\\/]+)[\\/]*", re.DOTALL)
# Hub ids have one slash and URLs have ://, so that these are paths relative to a folder of this machine.
_RELATIVE_PATH = re.compile(
    r"(?!\w+://)(?:\.{1,2}/.*|[^\s/]+(?:/[^\s/]+){2,}|.*/[^/]*\.(?:jsonl?|ndjson|csv|tsv|parquet)(?:\.\w+)?)/?",
    re.DOTALL,
)
# The lookbehind excludes URLs, Hub ids such as org/name, and expressions such as and/or.
_EMBEDDED_PATH = re.compile(r"(?<![\w/.:~-])~?(?:/[^\s/\"',;|]+)+/(?P<name>[^\s/\"',;|]+)")


def redact(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Remove private values from a JSON value.

    At any depth, in values and in keys:

    - a key in `PRIVATE_KEYS`, in upper or lower case, is removed with its value;
    - a list or mapping under a key in `PEOPLE_KEYS` becomes its length;
    - a merge rule ``arbiter:NAME`` becomes ``arbiter``;
    - an absolute path, also within a text, and a text that is a relative path become their last part;
    - a Hub token (``hf_`` and at least 16 letters or digits, whatever precedes them), the value of an ``Authorization``
      header, and credentials in a URL become ``(removed)``, also within a text.

    Other credentials are recognised by their key only.
    """
    if isinstance(value, Mapping):
        public = {key: item for key, item in value.items() if str(key).lower() not in PRIVATE_KEYS}
        return {_redact_text(str(key)): _redact_item(key, item) for key, item in public.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    return _redact_text(value) if isinstance(value, str) else value


def _redact_item(key: str, value: Any) -> Any:  # noqa: ANN401  any JSON value
    if key.lower() in PEOPLE_KEYS and isinstance(value, list | dict):
        return len(value)
    if key == MERGE_KEY and isinstance(value, str):
        return _redact_text(value.partition(":")[0])
    return redact(value)


def _redact_text(text: str) -> str:
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    if path := _ABSOLUTE_PATH.fullmatch(text):
        return path["name"]
    if _RELATIVE_PATH.fullmatch(text):
        return text.rstrip("/").rsplit("/", 1)[-1]
    return _EMBEDDED_PATH.sub(lambda match: match["name"], text)
