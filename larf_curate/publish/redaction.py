"""Take out of records what is nobody's business: where files lay, who reviewed, and anything like a key."""

import re
from collections.abc import Mapping
from typing import Any

SECRET_KEYS = {
    *("token", "hf_token", "api_token", "access_token", "api_key", "apikey", "secret", "password", "authorization"),
    *("api_url", "server", "server_url", "workspace", "host", "hostname", "user", "username", "users", "email"),
}
PEOPLE_KEYS = {"annotators", "reviewers"}
MERGE_KEY = "merge"  # its value may be "arbiter:NAME"
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_WHOLE_PATH = re.compile(r"(?:file:|~|/|\\\\|[A-Za-z]:[\\/]).*[\\/](?P<name>[^\\/]+)[\\/]*", re.DOTALL)
_PATH_WITHIN = re.compile(r"(?<![\w/.:~-])~?(?:/[^\s/\"',;|]+)+/(?P<name>[^\s/\"',;|]+)")


def without_private(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """A JSON value without secrets; absolute paths become the names of their files, lists of people their number."""
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if str(key).lower() not in SECRET_KEYS}
        return {_text(str(key)): _people(key, item) for key, item in kept.items()}
    if isinstance(value, list):
        return [without_private(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _people(key: str, value: Any) -> Any:  # noqa: ANN401  any JSON value
    if key.lower() in PEOPLE_KEYS and isinstance(value, list | dict):
        return len(value)
    if key == MERGE_KEY and isinstance(value, str):
        return _text(value.partition(":")[0])
    return without_private(value)


def _text(text: str) -> str:
    text = _TOKEN.sub("(removed)", text)
    if whole := _WHOLE_PATH.fullmatch(text):
        return whole["name"]
    return _PATH_WITHIN.sub(lambda match: match["name"], text)
