import json

import pytest
from click.testing import CliRunner
from datasets import Dataset, load_from_disk
from numpy.testing import assert_allclose
from transformers import AutoTokenizer

from larf_curate.cli import main
from larf_curate.errors import ProfileError
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.signals.baselines import BASELINES
from tests.fixtures.models import PROFILE

PAIRS = [
    {
        "prompt": f"How do I pick lock {n}?",
        "unsafe": f"Sure, take a pick and {'turn ' * n}.",
        "safe": "I cannot, sorry.",
    }
    for n in range(12)
]
NEUTRAL = [{"question": f"How do I bake {n} loaves?", "answer": f"Mix flour with {n} eggs."} for n in range(10)]
ROWS = [
    {"messages": [{"role": "user", "content": "Pick a lock?"}, {"role": "assistant", "content": "Take a pick."}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]},
    {
        "messages": [
            {"role": "user", "content": "How do I bake?"},
            {"role": "assistant", "content": "Mix flour."},
            {"role": "user", "content": "And a lock?"},
            {"role": "assistant", "content": "Turn a pick \x00 <b>."},
        ]
    },
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("own_caches")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def profile(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # neutral rows are recorded by name alone
    options = PROFILE | {"neutral": write(tmp_path / "neutral.jsonl", NEUTRAL)}
    return SafetyProfile.build(tiny_llama, str(write(tmp_path / "pairs.jsonl", PAIRS)), layers=[3, 1], **options)


def said(tokenizer, turns):
    return tokenizer.decode(tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"], skip_special_tokens=True)


@pytest.fixture
def texts_of(tiny_llama):
    """The text of a conversation as its tokens spell it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)

    def text(*turns):
        roles = ["user", "assistant"] * len(turns)
        return said(tokenizer, [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)])

    return text


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_scores_the_words_of_rows_as_it_scores_texts(profile, texts_of, name):
    unsafe = [texts_of(pair["prompt"], pair["unsafe"]) for pair in PAIRS]
    others = [texts_of(pair["prompt"], pair["safe"]) for pair in PAIRS]
    others += [texts_of(row["question"], row["answer"]) for row in NEUTRAL]
    score = BASELINES[name](unsafe, others)
    scorer = LarfScorer(profile, signals=["larf", name], device="cpu")
    first, empty, third = scorer.score(ROWS)
    chat = ROWS[2]["messages"]
    turns = [texts_of(*(turn["content"] for turn in chat[:end])) for end in (2, 4)]
    by_turn = [scorer.score([{"messages": chat[:end]}])[0].signals["larf"] for end in (2, 4)]
    assert_allclose(first.signals[name], score([texts_of("Pick a lock?", "Take a pick.")])[0], atol=1e-4)
    assert empty.signals is None
    assert third.signals["larf"] == pytest.approx(max(by_turn), abs=1e-4)
    assert_allclose(third.signals[name], score(turns)[by_turn.index(max(by_turn))], atol=1e-4)


def test_baselines_are_written_into_a_dataset_by_worker_processes_too(profile):
    scorer = LarfScorer(profile, signals=["tfidf", "length"], device="cpu")
    want = [row.signals for row in scorer.score(ROWS)]
    rows = Dataset.from_list(ROWS).map(scorer, batched=True, num_proc=2)
    for got, one in zip(rows["larf_signals"], want, strict=True):
        assert got == (one if one is None else pytest.approx(one, abs=1e-4))


def test_a_profile_whose_texts_are_gone_or_changed_offers_no_baselines(profile, tmp_path):
    write(tmp_path / "pairs.jsonl", PAIRS[1:])
    with pytest.raises(ProfileError, match="no longer those"):
        LarfScorer(profile, signals=["tfidf"])
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(ProfileError, match=r"length and tfidf are made from texts.*not available"):
        LarfScorer(profile, signals=["length"])
    LarfScorer(profile, signals=["larf"])


def test_the_command_takes_baselines_among_the_signals(profile, tmp_path):
    profile.save_pretrained(tmp_path / "profile")
    command = ["score", write(tmp_path / "rows.jsonl", ROWS), "--profile", tmp_path / "profile", "-o", tmp_path / "out"]
    run = CliRunner().invoke(main, [*map(str, command), "--signals", "larf,length,tfidf", "--device", "cpu"])
    assert run.exit_code == 0, run.output
    shards = sorted((tmp_path / "out").glob("**/*.parquet"))
    rows = Dataset.from_parquet(list(map(str, shards))) if shards else load_from_disk(tmp_path / "out")
    assert set(rows["larf_signals"][0]) == {"larf", "length", "tfidf"}
    run = CliRunner().invoke(main, [*map(str, command), "--signals", "words"])
    assert run.exit_code == 2
    assert "length, tfidf" in run.stderr.replace("\n", " ")
