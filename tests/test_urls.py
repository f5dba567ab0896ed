"""Addresses in messages: without what may be credentials."""

import pytest

from larf_curate.cli import CommandError
from larf_curate.errors import InputError
from larf_curate.urls import without_credentials

TOKEN = "hf_" + "aB3" * 10


@pytest.mark.parametrize(
    "address",
    [
        f"https://user:{TOKEN}@host.example/rows.jsonl",
        f"https://{TOKEN}@host.example/rows.jsonl",
        "https://user:p@ss:w0rd@host.example/rows.jsonl",
        f"https://host.example/rows.jsonl?token={TOKEN}",
        "https://host.example/rows.jsonl?a=1&X-Amz-Signature=w0rd",
        f"hf://{TOKEN}",
    ],
)
def test_no_credentials_are_in_the_message_of_a_command(address):
    message = CommandError(InputError(f"no files match '{address}': give a file")).message
    assert not any(secret in message for secret in (TOKEN, "w0rd", "p@ss"))
    assert message.startswith("no files match '")
    assert message.endswith("': give a file")
    assert TOKEN in address or "host.example/rows.jsonl" in message


@pytest.mark.parametrize(
    "text",
    ["write to a@b.example", "columns a=b, wanted c=d", "see https://host.example/a?b#c", "what? a=b", "https://h/x@y"],
)
def test_other_text_stays(text):
    assert without_credentials(text) == text
