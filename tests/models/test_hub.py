"""Models on a Hub that cannot be reached: one request, one line; from the cache as ever."""

import socket
from functools import partial

import pytest
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import logging

from larf_curate.errors import ModelError, ProfileError
from larf_curate.models import hub
from larf_curate.models.adapters import weights_of
from larf_curate.models.hub import check_reachable
from larf_curate.models.source import ModelSource, load_causal_lm, load_config, load_tokenizer
from larf_curate.profile import SafetyProfile
from tests.fixtures.tiny import byte_model, byte_tokenizer, save

COMMIT = "a" * 40
SOURCE = ModelSource(model_id="org/nope")
LOADERS = {
    "config": lambda: load_config(SOURCE),
    "tokenizer": lambda: load_tokenizer(SOURCE),
    "model": lambda: load_causal_lm(SOURCE, "auto"),
    "adapter": lambda: weights_of("org/nope"),
    "profile": lambda: SafetyProfile.from_pretrained("org/nope"),
}


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A Hub whose port nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listen
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        yield


@pytest.mark.parametrize("loader", LOADERS)
def test_a_hub_that_cannot_be_reached_is_one_attempt_and_one_line(unreachable, monkeypatch, caplog, loader):
    attempts = []
    asked = hub.get_hf_file_metadata
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *a, **o: attempts.append(a) or asked(*a, **o))
    monkeypatch.setattr(logging.get_logger(), "propagate", True)
    with pytest.raises(
        (ModelError, ProfileError), match="no folder 'org/nope', and the Hub cannot be reached .*: check the"
    ):
        LOADERS[loader]()
    assert len(attempts) == 1
    assert "Retry" not in caplog.text


def test_what_is_in_the_cache_needs_no_hub(unreachable, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "models--org--nope"
    save(byte_model().eval(), byte_tokenizer(), folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    attempts = []
    asked = hub.get_hf_file_metadata
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *a, **o: attempts.append(a) or asked(*a, **o))
    monkeypatch.setattr(logging.get_logger(), "propagate", True)  # which reports requests that fail
    monkeypatch.setattr(hub, "_reached", {})
    in_cache = partial(try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(hub, "try_to_load_from_cache", in_cache)
    assert load_tokenizer(SOURCE).chat_template
    assert type(load_causal_lm(SOURCE, "auto")).__name__ == "LlamaForCausalLM"
    assert len(attempts) == 1
    assert not constants.HF_HUB_OFFLINE
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 1
    assert "what is in the cache is read" in lines[0]
    with pytest.raises(ModelError):
        check_reachable("org/nope", "other")
