import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from multiprocessing import reduction

import multiprocess
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, List, Value, load_from_disk
from datasets.fingerprint import Hasher
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from larf_curate.errors import ConversationError, InputError, ProfileError
from larf_curate.models.hidden_states import StateReader
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.scorer import LarfScorer
from tests.fixtures.long import at_length
from tests.fixtures.models import PROFILE, six_pairs

LAYERS = (1, 3)
PLAIN = [
    {"question": f"Question {i}: how do I {'bake' * i} bread?", "answer": f"Sure, answer {i * 7} is {'here ' * i}."}
    for i in range(12)
]
ODD = [
    {"messages": None},
    {"messages": [{"role": "system", "content": "Be kind."}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "wizard", "content": "Hello"}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello \x00 there"}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "word " * 2000}]},
]
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def refs():
    return six_pairs()


@pytest.fixture(scope="module")
def profile(tiny_llama, refs):
    return SafetyProfile.build(tiny_llama, refs, layers=LAYERS, **PROFILE)


@pytest.fixture
def scorer(profile):
    return LarfScorer(profile, device="cpu")


@lru_cache(maxsize=1)
def full_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def naive_state(folder, messages, layers):
    """Last-token states of one conversation from the whole model, in float64; shape (layers, d)."""
    model, tokenizer = full_model(folder)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    with torch.inference_mode():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return np.stack([hidden[layer + 1][0, -1].double().numpy() for layer in layers])


def naive_scores(folder, conversations, refs, layers, top_k=None):
    """The score as the paper's code computes it: one row at a time, one cosine at a time; shape (rows, layers)."""
    sides = [
        [
            naive_state(
                folder,
                [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}],
                layers,
            )
            for r in side
        ]
        for side in (refs.unsafe, refs.safe)
    ]
    scores = []
    for messages in conversations:
        row = naive_state(folder, messages, layers)
        by_layer = []
        for layer in range(len(layers)):
            pairs = [cosine(row[layer], u[layer]) - cosine(row[layer], s[layer]) for u, s in zip(*sides, strict=True)]
            by_layer.append(np.mean(sorted(pairs)[-(top_k or len(pairs)) :]))
        scores.append(by_layer)
    return np.array(scores)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def chat(row):
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def two_turns(first, second):
    return [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": second},
    ]


@pytest.mark.parametrize("top_k", [None, 6, 4, 1])
def test_scores_equal_a_naive_loop_over_the_full_model(tiny_llama, refs, profile, top_k):
    want = naive_scores(tiny_llama, [chat(row) for row in PLAIN], refs, LAYERS, top_k)
    got = Dataset.from_list(PLAIN).map(LarfScorer(replace(profile, top_k=top_k), device="cpu"), batched=True)
    assert_allclose(got["larf_layer_scores"], want, atol=1e-4)
    assert_allclose(got["larf_score"], want.mean(axis=1), atol=1e-4)
    assert spearmanr(got["larf_score"], want.mean(axis=1)).statistic >= 0.9999
    assert set(got["larf_status"]) == {"ok"}


def test_scores_of_a_real_chat_model_equal_a_naive_loop(smol, refs):
    few = replace(refs, unsafe=refs.unsafe[:3], safe=refs.safe[:3], labels=refs.labels[:3])
    profile = SafetyProfile.build(smol, few, layers=[9, 14], **PROFILE)
    want = naive_scores(smol, [chat(row) for row in PLAIN[:5]], few, (9, 14))
    got = Dataset.from_list(PLAIN[:5]).map(LarfScorer(profile, device="cpu"), batched=True)
    assert_allclose(got["larf_layer_scores"], want, atol=1e-4)


def test_a_rows_score_is_that_of_its_highest_turn(tiny_llama, refs, scorer):
    answers = ["Sure, here is how.", "I cannot help with that.", "Bread needs time. " * 3]
    conversations = [two_turns(a, b) for a in answers for b in answers]
    prefixes = [[c[:2], c] for c in conversations]
    want = np.array([naive_scores(tiny_llama, pair, refs, LAYERS) for pair in prefixes])
    highest = want.mean(axis=2).argmax(axis=1)
    assert set(highest) == {0, 1}, "both turns win somewhere"
    got = Dataset.from_list([{"messages": c} for c in conversations]).map(scorer, batched=True)
    assert_allclose(got["larf_layer_scores"], want[np.arange(len(want)), highest], atol=1e-4)
    assert list(got["larf_turn"]) == [f"{turn + 1}/2" for turn in highest]
    alone = Dataset.from_list([{"messages": c[:2]} for c in conversations]).map(scorer, batched=True)
    assert set(alone["larf_turn"]) == {None}


def scores_of(dataset):
    return [dataset[name] for name in ("larf_score", "larf_layer_scores", "larf_status")]


def assert_same_scores(got, want):
    for left, right in zip(scores_of(got), scores_of(want), strict=True):
        if isinstance(right[0], str):
            assert list(left) == list(right)
        else:
            assert_allclose(np.array(left, np.float64), np.array(right, np.float64), atol=1e-5)


def test_single_rows_score_as_batches_do(scorer):
    dataset = Dataset.from_list(PLAIN)
    assert_same_scores(dataset.map(scorer), dataset.map(scorer, batched=True, batch_size=5))


def test_a_dataset_dict_is_scored_split_by_split(scorer):
    dataset = Dataset.from_list(PLAIN)
    splits = DatasetDict(train=dataset.select(range(8)), test=dataset.select(range(8, 12)))
    features = scorer.features(dataset.features)
    scored = splits.map(scorer, batched=True, features=features)
    want = dataset.map(scorer, batched=True)
    assert_same_scores(scored["train"], want.select(range(8)))
    assert_same_scores(scored["test"], want.select(range(8, 12)))
    assert scored["train"].features == scored["test"].features == features


@pytest.mark.parametrize("batched", [True, False])
def test_a_streamed_dataset_is_scored_as_one_on_disk(scorer, batched):
    dataset = Dataset.from_list(PLAIN)
    streamed = dataset.to_iterable_dataset().map(scorer, batched=batched, features=scorer.features(dataset.features))
    assert streamed.features["larf_score"] == Value("float32")
    assert_same_scores(Dataset.from_list(list(streamed)), dataset.map(scorer, batched=True))


CONVERSATIONS = {
    "list of dicts": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    "dict of lists": {"role": ["user", "assistant"], "content": ["Hi", "Hello."]},
    "dict of lists, ShareGPT": {"from": ["human", "gpt"], "value": ["Hi", "Hello."]},
    "list of dicts, ShareGPT": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_plain_streams_of_chats_are_told_from_single_rows(scorer, name, batched):
    rows = [{"conversations": CONVERSATIONS[name], "id": i} for i in range(3)]
    scored = list(IterableDataset.from_generator(lambda: iter(rows)).map(scorer, batched=batched, batch_size=2))
    want = scorer.score([{"question": "Hi", "answer": "Hello."}])[0].score
    assert [row["larf_status"] for row in scored] == ["ok"] * 3
    assert_allclose([row["larf_score"] for row in scored], want, atol=1e-5)


@pytest.mark.parametrize("batched", [True, False])
def test_numpy_and_torch_formats_are_scored_as_plain_rows(scorer, batched):
    rows = [{"messages": two_turns("Sure.", "No.")}, {"messages": two_turns("No.", "Bread.")}]
    dataset = Dataset.from_list(rows)
    want = dataset.map(scorer, batched=True)
    for kind in ("numpy", "torch"):
        got = dataset.with_format(kind).map(scorer, batched=batched).with_format(None)
        assert_same_scores(got, want)
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in rows[0]["messages"]]
    nested = Dataset.from_dict({"prompt": [parts[:1]] * 2, "completion": [parts[1:]] * 2})  # arrays within arrays
    got = nested.with_format("numpy").map(scorer, batched=batched).with_format(None)
    assert_same_scores(got, nested.map(scorer, batched=True))
    assert got["larf_status"] == ["ok"] * 2
    plain = Dataset.from_list(PLAIN)
    got = plain.with_format("numpy").map(scorer, batched=batched).with_format(None)
    assert_same_scores(got, plain.map(scorer, batched=True))


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_table_formats_are_refused_with_the_remedy(scorer, kind):
    with pytest.raises(InputError, match=r"with_format\(None\)"):
        Dataset.from_list(PLAIN).with_format(kind).map(scorer, batched=True)


def test_types_are_those_of_features_without_asking_for_them(scorer):
    scored = Dataset.from_list(PLAIN).map(scorer, batched=True)
    assert scored.features["larf_score"] == Value("float32")
    assert scored.features["larf_layer_scores"].feature == Value("float32")
    assert scored.features["larf_signals"] == {"larf": Value("float32")}
    assert scored.features["larf_status"] == Value("string")


def test_features_list_every_column_that_is_written(profile, refs):
    index = ExemplarIndex.build(profile, refs)
    scorer = LarfScorer(profile, exemplars=index, neighbors=2, keep_states=True, device="cpu")
    dataset = Dataset.from_list(PLAIN)
    features = scorer.features(dataset.features)
    scored = dataset.map(scorer, batched=True, features=features)
    assert scored.features == features
    assert features["larf_layer_scores"] == List(Value("float32"), length=2)
    assert features["larf_state"] == List(Value("float16"), length=32)
    assert set(features) - set(dataset.features) == set(scorer(PLAIN[0]))


def test_kept_states_and_neighbors_are_those_of_the_highest_turn_at_the_first_layer(tiny_llama, profile, refs):
    index = ExemplarIndex.build(profile, refs)
    scorer = LarfScorer(profile, exemplars=index, neighbors=2, keep_states=True, device="cpu")
    scored = Dataset.from_list(PLAIN).map(scorer, batched=True)
    want = np.stack([naive_state(tiny_llama, chat(row), LAYERS)[0] for row in PLAIN])
    assert_allclose(scored["larf_state"], want, rtol=2e-3, atol=2e-3)
    usual = profile.states["neutral"]["last"][:, 0].mean(axis=0)
    rows, known = want - usual, profile.states["unsafe"]["last"][:, 0] - usual
    rows, known = (states / np.linalg.norm(states, axis=1, keepdims=True) for states in (rows, known))
    cosines = rows @ known.T
    for row, near in zip(cosines, scored["larf_neighbors"], strict=True):
        best = np.argsort(-row)[:2]
        assert [n["id"] for n in near] == [f"reference-{i}" for i in best]
        assert [n["label"] for n in near] == [refs.labels[i] for i in best]
        assert_allclose([n["cosine"] for n in near], row[best], atol=1e-4)


def test_rows_that_cannot_be_scored_keep_their_place_with_null_and_a_status(scorer):
    rows = [*ODD, {"messages": chat(PLAIN[0])}]
    scored = Dataset.from_list(rows).map(scorer, batched=True, batch_size=4)
    assert list(scored["larf_status"]) == ["empty", "empty", "malformed", "ok", "truncated", "ok"]
    assert [score is None for score in scored["larf_score"]] == [True, True, True, False, False, False]
    assert [score is None for score in scored["larf_layer_scores"]] == [True, True, True, False, False, False]
    assert list(scored["messages"]) == list(Dataset.from_list(rows)["messages"])


def test_a_first_batch_without_scores_does_not_spoil_the_types(profile, refs):
    index = ExemplarIndex.build(profile, refs)
    scorer = LarfScorer(profile, exemplars=index, keep_states=True, device="cpu")
    rows = [{"question": None, "answer": None}] * 2 + PLAIN[:2]
    scored = Dataset.from_list(rows).map(scorer, batched=True, batch_size=2)
    assert list(scored["larf_status"]) == ["empty", "empty", "ok", "ok"]
    assert scored.features["larf_state"].feature == Value("float16")
    assert scored.features["larf_score"] == Value("float32")
    assert scored["larf_signals"][0] is None or scored["larf_signals"][0] == {"larf": None}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_shard_without_scores_fits_the_others(profile, refs, batched, first):
    scorer = LarfScorer(profile, exemplars=ExemplarIndex.build(profile, refs), keep_states=True, device="cpu")
    empty, fine = [{"question": None, "answer": None}] * 2, PLAIN[:2]
    rows = Dataset.from_list([*empty, *fine] if first else [*fine, *empty])
    scored = rows.map(scorer, batched=batched, num_proc=2)
    assert sorted(scored["larf_status"]) == ["empty", "empty", "ok", "ok"]
    assert scored.features["larf_signals"] == {"larf": Value("float32")}
    assert scored.features["larf_layer_scores"].feature == Value("float32")
    assert scored.features["larf_state"].feature == Value("float16")
    assert [score is None for score in scored["larf_score"]] == [row["question"] is None for row in rows]


def test_a_last_conversation_turn_of_the_user_longer_than_the_model_does_not_shift_other_rows(scorer):
    tail = {"role": "user", "content": "and then " * 500}
    rows = [
        {"messages": chat(PLAIN[1])},
        {"messages": [*chat(PLAIN[2]), tail]},
        {"messages": chat(PLAIN[3])},
    ]
    got = [item.score for item in scorer.score(rows)]
    assert_allclose(got, [scorer.score([row])[0].score for row in PLAIN[1:4]], atol=1e-5)


def test_a_hundred_thousand_tokens_are_cut_to_the_models_positions(scorer):
    answer = "".join(chr(ord("a") + i % 26) for i in range(100_000))
    (item,) = scorer.score([{"question": "Go", "answer": answer}])
    assert item.status == "truncated"
    assert np.isfinite(item.score)


def test_overflowing_states_are_a_status_and_not_a_score(profile, monkeypatch):
    scorer = LarfScorer(profile, keep_states=True, device="cpu")
    scorer.score(PLAIN[:1])
    read = StateReader.__call__

    def overflow(self, *arguments):
        states = read(self, *arguments)
        states["last"][1, 1, 3], states["last"][2, 0, 0] = np.inf, np.nan
        return states

    want = [item.score for item in scorer.score(PLAIN[:4])]
    monkeypatch.setattr(StateReader, "__call__", overflow)
    scored = Dataset.from_list(PLAIN[:4]).map(scorer, batched=True)
    assert list(scored["larf_status"]) == ["ok", "non_finite", "non_finite", "ok"]
    assert list(scored["larf_score"])[1:3] == [None, None]
    assert list(scored["larf_state"])[1:3] == [None, None]
    assert_allclose([scored["larf_score"][i] for i in (0, 3)], [want[0], want[3]])


def test_a_float16_model_that_overflows_gives_the_status(tiny_llama, tmp_path, refs):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    with torch.no_grad():  # the largest float16 as the embedding of @, so that what the first block adds overflows
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("@")] = 65504.0
        model.model.layers[0].mlp.down_proj.weight.mul_(100)
    model.save_pretrained(tmp_path / "big")
    tokenizer.save_pretrained(tmp_path / "big")
    rows = [{"question": "a", "answer": "b"}, {"question": "a", "answer": "@@@"}, {"question": "c", "answer": "d"}]
    for dtype, status in (("float16", "non_finite"), ("bfloat16", "ok")):
        profile = SafetyProfile.build(tmp_path / "big", refs, layers=[1], **PROFILE | {"dtype": dtype})
        assert [item.status for item in LarfScorer(profile, device="cpu").score(rows)] == ["ok", status, "ok"]


def test_pickled_scorers_hash_alike_unless_a_result_can_change(profile, refs, tiny_qwen2):
    index = ExemplarIndex.build(profile, refs)
    base = Hasher.hash(LarfScorer(profile))
    same = [
        LarfScorer(profile, device="cpu"),
        LarfScorer(profile, model=profile.source.model_id),
        LarfScorer(profile, batch_tokens=77),
        LarfScorer(profile, signals=["larf"]),
        LarfScorer(replace(profile)),
    ]
    assert {Hasher.hash(scorer) for scorer in same} == {base}
    shorter = replace(refs, unsafe=refs.unsafe[:5], safe=refs.safe[:5], labels=refs.labels[:5])
    build = {"layers": LAYERS, **PROFILE}
    other = [
        LarfScorer(profile, keep_states=True),
        LarfScorer(profile, columns={"user": "question", "assistant": "answer"}),
        LarfScorer(profile, columns={"user": "answer", "assistant": "question"}),
        LarfScorer(profile, exemplars=index),
        LarfScorer(profile, exemplars=index, neighbors=1),
        LarfScorer(profile, exemplars=replace(index, labels=("x",) * 6)),
        LarfScorer(replace(profile, top_k=2)),
        LarfScorer(replace(profile, max_length=64)),
        LarfScorer(replace(profile, source=replace(profile.source, dtype="bfloat16"))),
        LarfScorer(SafetyProfile.build(profile.source.model_id, refs, **build | {"layers": (3, 1)})),
        LarfScorer(SafetyProfile.build(profile.source.model_id, shorter, **build)),
        LarfScorer(SafetyProfile.build(tiny_qwen2, refs, **build)),
    ]
    hashes = [Hasher.hash(scorer) for scorer in other]
    assert len({base, *hashes}) == len(other) + 1


def test_a_scorer_that_has_run_hashes_as_a_fresh_one(profile, refs):
    index = ExemplarIndex.build(profile, refs)
    used = LarfScorer(profile, exemplars=index, device="cpu")
    used.score(PLAIN[:2])
    assert Hasher.hash(used) == Hasher.hash(LarfScorer(profile, exemplars=index))


SCRIPT = """
import json, sys
import torch
from datasets import load_from_disk
from larf_curate import ExemplarIndex, LarfScorer, SafetyProfile

def main():
    data, profile, options = sys.argv[1], SafetyProfile.from_pretrained(sys.argv[2]), json.loads(sys.argv[3])
    dataset = load_from_disk(data)
    exemplars = ExemplarIndex.load(options["exemplars"]) if "exemplars" in options else None
    scorer = LarfScorer(profile, exemplars=exemplars, keep_states=options.get("keep_states", False), device="cpu")
    if options.get("warm"):
        torch.randn(800, 800) @ torch.randn(800, 800)
        scorer.score([dataset[i] for i in range(len(dataset))])
    calls, columns_of = [], LarfScorer.columns_of
    LarfScorer.columns_of = lambda self, rows, *rest: (calls.append(len(rows)), columns_of(self, rows, *rest))[1]
    scored = dataset.map(scorer, batched=True, batch_size=4, num_proc=options.get("num_proc"))
    print(json.dumps({"rows": sum(calls), "scores": scored["larf_score"][:], "status": scored["larf_status"][:]}))

if __name__ == "__main__":
    main()
"""


def run(own_caches, profile, *, timeout=150, threads="1", **options):
    """Score the dataset ``data`` in a process of its own."""
    paths = [own_caches.parent / name for name in ("data", "profile", "script.py")]
    profile.save_pretrained(paths[1])
    paths[2].write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": threads, "HF_DATASETS_CACHE": str(own_caches.parent / "datasets")}
    command = [sys.executable, str(paths[2]), str(paths[0]), str(paths[1]), json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_second_process_takes_the_scores_from_the_cache(own_caches, profile):
    Dataset.from_list(PLAIN).save_to_disk(own_caches.parent / "data")
    first = load_from_disk(own_caches.parent / "data").map(
        LarfScorer(profile, device="cpu"), batched=True, batch_size=4
    )
    second = run(own_caches, profile)
    assert second["rows"] == 0, "nothing was scored again"
    assert second["scores"] == first["larf_score"][:]
    assert run(own_caches, profile, keep_states=True)["rows"] == len(PLAIN), "another setting is scored anew"


def test_a_changed_setting_misses_the_cache(own_caches, profile, monkeypatch):
    Dataset.from_list(PLAIN).save_to_disk(own_caches.parent / "data")
    calls = []
    columns_of = LarfScorer.columns_of
    monkeypatch.setattr(
        LarfScorer, "columns_of", lambda self, rows, *rest: (calls.append(1), columns_of(self, rows, *rest))[1]
    )
    for options, want in (({}, 1), ({}, 0), ({"batch_tokens": 50}, 0), ({"keep_states": True}, 1)):
        calls.clear()
        load_from_disk(own_caches.parent / "data").map(LarfScorer(profile, device="cpu", **options), batched=True)
        assert len(calls) == want


@pytest.mark.slow
def test_forked_workers_score_after_their_parent_has_used_torch_and_searched_faiss(own_caches, profile, refs):
    ExemplarIndex.build(profile, refs).save(own_caches.parent / "index")
    Dataset.from_list(PLAIN).save_to_disk(own_caches.parent / "data")
    index = str(own_caches.parent / "index")
    got = run(own_caches, profile, exemplars=index, warm=True, num_proc=2, threads="2")
    assert_allclose(got["scores"], [item.score for item in LarfScorer(profile, device="cpu").score(PLAIN)], atol=1e-5)


def sent(scorer, pickler=reduction.ForkingPickler):
    """The scorer as a worker process receives it."""
    return pickle.loads(pickler.dumps(scorer))


RUNTIME = """
import json, sys, time
from pathlib import Path
from datasets import Dataset
from larf_curate import LarfScorer, SafetyProfile
from larf_curate.data.sources import Piece, Source
from larf_curate.scoring.run import score_source

def main():
    here, model, tokens, how = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    rows = Dataset.from_list([{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(8)])
    trust = how == "trusting"
    profile = SafetyProfile.from_pretrained(here / "profile", trust_remote_code=trust)
    scorer = LarfScorer(profile, model=model, device="cpu", batch_tokens=tokens)
    (here / f"ready-{tokens}").touch()
    while not all((here / f"ready-{other}").exists() for other in (64, 65)):
        time.sleep(0.01)
    name = Path(model).name
    if how == "score":
        pieces = tuple(Piece(name=str(i), rows=rows.shard(2, i)) for i in range(2))
        score_source(Source(pieces=pieces, description={}), scorer, here / f"out-{name}", num_proc=2)
        return
    settings = rows.map(report, fn_kwargs={"scorer": scorer}, num_proc=2)["settings"][:]
    (here / f"{name}.json").write_text(json.dumps(settings))

def report(row, scorer):
    runtime = scorer._runtime | {"trust": scorer.profile.source.trust_remote_code}
    return {"settings": json.dumps(runtime)}

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("how", ["map", pytest.param("score", marks=at_length)])
def test_two_runs_at_once_with_one_profile_keep_their_own_settings(own_caches, profile, tiny_llama, how):
    here = own_caches.parent
    profile.save_pretrained(here / "profile")
    (here / "script.py").write_text(RUNTIME)
    models = {64: here / "one", 65: here / "two"}
    shutil.copytree(tiny_llama, models[64])  # the other one is missing, so that its run must fail where it scores
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(here / "datasets")}
    running = []
    for tokens, model in models.items():
        kind = "trusting" if how == "map" and tokens == 65 else how
        command = [sys.executable, str(here / "script.py"), str(here), str(model), str(tokens), kind]
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=200)[1] for process in running]
    if how == "score":
        assert [process.returncode for process in running] == [0, 1], errors
        assert str(models[65]) in errors[1]
        return
    for tokens, model in models.items():
        got = [json.loads(text) for text in json.loads((here / f"{model.name}.json").read_text())]
        assert got == [{"model": str(model), "device": "cpu", "batch_tokens": tokens, "trust": tokens == 65}] * 8


def test_a_scorer_made_again_in_a_worker_keeps_its_runtime_settings(profile, refs):
    scorer = LarfScorer(profile, exemplars=ExemplarIndex.build(profile, refs), device="cpu", batch_tokens=321)
    LarfScorer(profile, exemplars=ExemplarIndex.build(profile, refs), device="meta", batch_tokens=1)  # of another run
    again = sent(scorer)
    assert again._load(None)[0].batch_tokens == 321
    assert_array_equal([item.score for item in again.score(PLAIN)], [item.score for item in scorer.score(PLAIN)])
    assert again.key == scorer.key


def test_trust_in_remote_code_reaches_workers_and_is_never_read_from_a_profile(profile, tmp_path):
    trusting = replace(profile, source=replace(profile.source, trust_remote_code=True))
    trusting.save_pretrained(tmp_path / "profile")
    assert not SafetyProfile.from_pretrained(tmp_path / "profile").source.trust_remote_code
    for pickler in (reduction.ForkingPickler, multiprocess.reduction.ForkingPickler):
        assert sent(LarfScorer(trusting), pickler).profile.source.trust_remote_code
        assert not sent(LarfScorer(profile), pickler).profile.source.trust_remote_code
    assert not pickle.loads(pickle.dumps(LarfScorer(trusting))).profile.source.trust_remote_code


def test_unknown_columns_and_roles_are_refused(profile):
    for columns, word in (({"assistant": "nope"}, "nope"), ({"user": "question"}, "assistant"), ({"x": "y"}, "x")):
        with pytest.raises(ConversationError, match=word):
            Dataset.from_list(PLAIN).map(LarfScorer(profile, columns=columns, device="cpu"), batched=True)


def test_a_dataset_without_conversation_is_refused(scorer):
    with pytest.raises(ConversationError, match="no known conversation format"):
        Dataset.from_dict({"a": [1, 2]}).map(scorer, batched=True)


def test_columns_may_be_named(profile, scorer):
    renamed = Dataset.from_list([{"q": row["question"], "a": row["answer"], "text": "-"} for row in PLAIN])
    named = LarfScorer(profile, columns={"user": "q", "assistant": "a"}, device="cpu")
    assert_same_scores(renamed.map(named, batched=True), Dataset.from_list(PLAIN).map(scorer, batched=True))
    assert_same_scores(renamed.map(named), Dataset.from_list(PLAIN).map(scorer, batched=True))


def test_settings_out_of_range_are_refused(profile, refs, tiny_qwen2):
    with pytest.raises(ProfileError, match="magic"):
        LarfScorer(profile, signals=["magic"])
    with pytest.raises(InputError, match="neighbors"):
        LarfScorer(profile, neighbors=0)
    index = ExemplarIndex.build(profile, refs)
    with pytest.raises(InputError, match="first layer"):
        LarfScorer(profile, exemplars=replace(index, layer=3))


def test_scored_columns_survive_arrow_and_disk(scorer, tmp_path):
    scored = Dataset.from_list([*PLAIN, {"question": None, "answer": None}]).map(scorer, batched=True)
    scored.save_to_disk(tmp_path / "scored")
    again = load_from_disk(tmp_path / "scored")
    assert again.features == scored.features
    assert pa.types.is_float32(again.data.schema.field("larf_score").type)
    assert again["larf_score"][-1] is None
