"""Scored folders: equal to the scorer, whole after any interruption, and clear about what went wrong."""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from tqdm import tqdm

from larf_curate.data import sources
from larf_curate.data.references import ReferenceSet
from larf_curate.data.sources import open_source
from larf_curate.errors import ConversationError, InputError, ScoringError
from larf_curate.models import devices
from larf_curate.profile import SafetyProfile
from larf_curate.profile.rendering import profile_renderer
from larf_curate.scoring import run, shard
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.explanation import explain
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.plan import start_run
from larf_curate.scoring.reasons import first_reasons
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.shard import ShardScorer
from larf_curate.verification import without_verification
from tests.fixtures.fresh_process import CONTEXT, start
from tests.fixtures.long import at_length
from tests.fixtures.models import PROFILE, save_tiny
from tests.fixtures.tiny import CHATML

LAYERS = (1, 3)
PER_PIECE = 40
ROWS = [
    {"question": f"Question {i}: how do I {'bake ' * (i % 7)}?", "answer": f"Sure, answer {i}."} for i in range(300)
]
WHOLE = ReferenceSet.load("builtin")
REFERENCES = ReferenceSet(unsafe=WHOLE.unsafe[:6], safe=WHOLE.safe[:6], labels=WHOLE.labels[:6], source="six")
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def profile(tiny_llama):
    return SafetyProfile.build(tiny_llama, REFERENCES, layers=LAYERS, signal="larf", dtype="float32", device="cpu")


@pytest.fixture
def scorer(profile):
    return LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True, device="cpu")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A file of 300 rows that makes eight pieces."""
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", PER_PIECE)
    return write(tmp_path / "data.jsonl", ROWS)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check_whole(out: Path, rows=ROWS):
    """Every row once and in order, every file whole and as the manifest says, nothing else in the folder."""
    manifest = json.loads((out / "manifest.json").read_text())
    shards = manifest["shards"]
    assert {path.name for path in out.iterdir()} == {"plan.json", "manifest.json", *(s["file"] for s in shards)}
    tables = [pq.read_table(out / shard["file"]) for shard in shards]
    assert [len(table) for table in tables] == [shard["rows"] for shard in shards]
    assert [(out / shard["file"]).stat().st_size for shard in shards] == [shard["bytes"] for shard in shards]
    assert [hashlib.sha256((out / s["file"]).read_bytes()).hexdigest() for s in shards] == [s["sha256"] for s in shards]
    read = [row for table in tables for row in table.select(list(rows[0])).to_pylist()]
    assert read == rows
    status = Counter(status for table in tables for status in table["larf_status"].to_pylist())
    assert manifest["status"] == dict(sorted(status.items()))
    assert manifest["rows"] == len(rows) == sum(status.values())
    return np.concatenate([table["larf_score"].to_numpy() for table in tables])


def test_a_scored_folder_holds_what_the_scorer_gives(data, scorer, tmp_path):
    manifest = score_source(open_source(str(data)), scorer, tmp_path / "out")
    check_whole(tmp_path / "out")
    rows = Scored.load(tmp_path / "out").rows
    want = Dataset.from_list(ROWS).map(scorer, batched=True, features=scorer.features(Dataset.from_list(ROWS).features))
    for name in ("larf_score", "larf_layer_scores", "larf_state"):
        np.testing.assert_allclose(np.array(rows[name][:]), np.array(want[name][:]), rtol=2e-3, atol=1e-5)
    assert rows["larf_neighbors"][:][0][0]["id"] == want["larf_neighbors"][:][0][0]["id"]
    assert manifest["profile"]["layers"] == [1, 3]
    assert manifest["source"]["dataset"] == "data.jsonl"
    assert len(manifest["shards"]) == 8
    assert str(tmp_path) not in json.dumps(manifest)


def test_the_new_columns_have_the_documented_types(data, scorer, tmp_path):
    score_source(open_source(str(data), limit=50), scorer, tmp_path / "out")
    neighbor = {"id": Value("string"), "label": Value("string"), "cosine": Value("float32")}
    assert Scored.load(tmp_path / "out").rows.features == Features(
        {
            "question": Value("string"),
            "answer": Value("string"),
            "larf_score": Value("float32"),
            "larf_layer_scores": List(Value("float32"), length=2),
            "larf_signals": {"larf": Value("float32")},
            "larf_status": Value("string"),
            "larf_turn": Value("string"),
            "larf_neighbors": List(neighbor),
            "larf_state": List(Value("float16"), length=32),
        }
    )


def test_the_rows_own_columns_come_back_as_they_were(scorer, tmp_path):
    features = Features(
        {
            "messages": List({"role": Value("string"), "content": Value("large_string")}),
            "kind": ClassLabel(names=["good", "bad"]),
            "picture": Image(),
            "vector": List(Value("float64"), length=2),
            "when": Value("timestamp[us]"),
            "raw": Value("binary"),
            "nothing": Value("null"),
            "larf_score": Value("string"),
        }
    )
    rows = [
        {
            "messages": [{"role": "user", "content": "Hi \x00"}, {"role": "assistant", "content": f"Hello {i} 你"}],
            "kind": i % 2,
            "picture": {"bytes": b"no picture that can be decoded", "path": None},
            "vector": [float(i), 0.1],
            "when": None,
            "raw": b"\xff\x00",
            "nothing": None,
            "larf_score": "of an earlier run",
        }
        for i in range(5)
    ]
    Dataset.from_list(rows, features=features).with_format("numpy").save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    score_source(source, scorer, tmp_path / "out")
    back = Scored.load(tmp_path / "out").rows
    own = [name for name in features if name != "larf_score"]
    assert {name: back.features[name] for name in own} == {name: features[name] for name in own}
    assert back.features["larf_score"] == Value("float32")
    before = source.pieces[0].rows.with_format("arrow").select_columns(own)[:]
    assert back.with_format("arrow").select_columns(own)[:].equals(before)


def test_columns_of_mixed_json_survive(scorer, tmp_path):
    rows = [{"question": "Q?", "answer": "A.", "extra": extra} for extra in (1, {"b": 2}, [3], None)]
    score_source(open_source(str(write(tmp_path / "a.jsonl", rows))), scorer, tmp_path / "out")
    back = Scored.load(tmp_path / "out").rows
    assert back["extra"][:] == [1, {"b": 2}, [3], None]


def test_row_order_is_that_of_the_source_whatever_the_files_are_called(scorer, tmp_path):
    for name_of_folder, name in (("a", "z"), ("b", "y"), ("c", "x")):
        (tmp_path / "data" / name_of_folder).mkdir(parents=True)
        write(tmp_path / "data" / name_of_folder / f"{name}.jsonl", [{"question": "Q?", "answer": f"{name}."}])
    score_source(open_source(str(tmp_path / "data")), scorer, tmp_path / "out [1]")
    assert Scored.load(tmp_path / "out [1]").rows["answer"][:] == ["z.", "y.", "x."]


def test_a_second_run_is_refused_unless_it_resumes_and_other_settings_always(data, scorer, profile, tmp_path):
    out = tmp_path / "out"
    first = score_source(open_source(str(data)), scorer, out)
    with pytest.raises(InputError, match="--resume"):
        score_source(open_source(str(data)), scorer, out)
    with pytest.raises(InputError, match="is finished: continue with larf-curate select"):
        score_source(open_source(str(data)), scorer, out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert score_source(open_source(str(data)), scorer, out, resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == times
    plain = LarfScorer(profile, device="cpu")
    for source, other, said in (
        (open_source(str(data)), plain, "keep_states"),
        (open_source(str(data), limit=100), scorer, "limit"),
        (open_source(str(write(data, ROWS[::-1]))), scorer, "sha256"),
    ):
        with pytest.raises(InputError, match=said):
            score_source(source, other, out, resume=True)


def test_a_file_that_was_changed_is_found_when_asked_and_scored_again_when_resuming(data, scorer, tmp_path):
    out = tmp_path / "out"
    score_source(open_source(str(data)), scorer, out)
    wanted = Scored.load(out, verify=True).rows["larf_score"][:]
    shard = out / "data-00003-of-00008.parquet"
    table = pq.read_table(shard)
    zeros = pa.array([0.0] * len(table), pa.float32())
    place = table.column_names.index("larf_score")
    pq.write_table(table.set_column(place, table.schema.field(place), zeros), shard)
    assert Scored.load(out, verify=False).rows["larf_score"][:] != wanted
    with pytest.raises(InputError, match="data-00003-of-00008.parquet was changed after it was written"):
        Scored.load(out)
    others = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet") if path != shard}
    score_source(open_source(str(data)), scorer, out, resume=True)
    assert Scored.load(out, verify=True).rows["larf_score"][:] == wanted
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_a_folder_with_something_else_is_left_alone(data, scorer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        score_source(open_source(str(data)), scorer, tmp_path / "out", resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_after_a_run_that_scored_nothing_other_settings_may_be_tried(data, profile, tmp_path):
    rows = write(tmp_path / "odd.jsonl", [{"frage": row["question"], "antwort": row["answer"]} for row in ROWS[:3]])
    with pytest.raises(ConversationError, match="--columns"):
        score_source(open_source(str(rows)), LarfScorer(profile, device="cpu"), tmp_path / "out")
    told = LarfScorer(profile, columns={"user": "frage", "assistant": "antwort"}, device="cpu")
    assert score_source(open_source(str(rows)), told, tmp_path / "out")["rows"] == 3


def test_a_folder_that_is_not_whole_cannot_be_read(data, scorer, tmp_path, monkeypatch):
    out = tmp_path / "out"
    score_source(open_source(str(data)), scorer, out)
    shard = out / "data-00003-of-00008.parquet"
    content = shard.read_bytes()
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(content)

    def link():
        shard.unlink()
        shard.symlink_to(copy)

    for damage in (lambda: shard.write_bytes(content[:-9]), shard.unlink, link):
        damage()
        with pytest.raises(InputError, match="--resume"):
            Scored.load(out)
        score_source(open_source(str(data)), scorer, out, resume=True)
        check_whole(out)
    (out / "manifest.json").unlink()
    with pytest.raises(InputError, match="--resume"):
        Scored.load(out)
    with pytest.raises(InputError, match="unfinished run of score: finish it with --resume first"):
        open_source(str(out))


def test_the_shards_and_manifest_of_a_run_with_other_settings_are_not_taken_for_those_of_the_plan(
    data, scorer, profile, tmp_path
):
    """As if another result had been copied over this one, without its plan."""
    out, other = tmp_path / "out", tmp_path / "other"
    score_source(open_source(str(data)), scorer, out)
    wanted = check_whole(out)
    for foreign in (LarfScorer(profile, signals=["harmful"], device="cpu"), build_other(profile)):
        score_source(open_source(str(data)), foreign, other)
        for path in (*other.glob("*.parquet"), other / "manifest.json"):
            path.rename(out / path.name)
        shutil.rmtree(other)
        manifest = score_source(open_source(str(data)), scorer, out, resume=True)
        np.testing.assert_array_equal(check_whole(out), wanted)
        assert manifest["profile"] == profile.summary()
        assert "larf_state" in Scored.load(out).rows.column_names


def build_other(profile: SafetyProfile) -> LarfScorer:
    """A scorer of the same model, by another block."""
    model = profile.source.model_id
    return LarfScorer(SafetyProfile.build(model, REFERENCES, layers=(2,), dtype="float32", device="cpu"), device="cpu")


def test_a_damaged_shard_that_was_not_to_be_verified_is_named(data, scorer, tmp_path):
    out = tmp_path / "out"
    score_source(open_source(str(data)), scorer, out)
    path = out / "data-00003-of-00008.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with (
        without_verification(),
        pytest.raises(ScoringError, match="cannot read .*data-00003.* with --resume"),
    ):
        score_source(open_source(str(data)), scorer, out, resume=True)


class BarThatKills(tqdm):
    """A progress bar that kills a worker process once, after the first rows."""

    has_killed = False

    @classmethod
    def of(cls, *, label, unit, total, done):
        return cls(desc=label, unit=unit, total=total, initial=done)

    def update(self, n=1):
        if n and not self.has_killed:
            self.has_killed = True
            multiprocessing.active_children()[0].kill()
        super().update(n)


@pytest.mark.slow
def test_a_run_survives_a_worker_that_is_killed(data, scorer, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(run, "progress", BarThatKills.of)
        patched.setattr(multiprocessing, "get_context", lambda _: CONTEXT)  # starts sooner than the real one
        score_source(open_source(str(data)), scorer, tmp_path / "out", num_proc=2)
    assert multiprocessing.active_children() == []
    score_source(open_source(str(data)), scorer, tmp_path / "one")
    np.testing.assert_array_equal(check_whole(tmp_path / "out"), check_whole(tmp_path / "one"))


@pytest.mark.slow
def test_workers_end_with_their_parent_and_what_they_wrote_is_what_one_process_writes(data, scorer, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(score_file, data, scorer, out, 2, log=log)
    wait_until(lambda: list(out.glob("*.parquet")), process, log)
    orphans = workers(process.pid)
    process.kill()
    process.join()
    assert len(orphans) == 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
    score_source(open_source(str(data)), scorer, out, resume=True)
    score_source(open_source(str(data)), scorer, tmp_path / "one")
    np.testing.assert_array_equal(check_whole(out), check_whole(tmp_path / "one"))


def workers(pid: int) -> list[int]:
    """The worker processes of a process."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def wait_until(condition, process=None, log=None, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.is_alive(), log.read_text()
        time.sleep(0.002)


def score_file(data, scorer, out, num_proc=1, limit=None):
    """What runs in a process of its own: score a file, or go on with it; ``limit`` bounds the size of any file."""
    sources.ROWS_PER_PIECE = PER_PIECE
    source = open_source(str(data))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    score_source(source, scorer, out, resume=True, num_proc=num_proc)


@at_length
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_after_kills_at_random_moments_every_row_is_there_once(how, data, scorer, tmp_path):
    out, log, chance = tmp_path / "out", tmp_path / "log", random.Random(how)
    halves = []

    def is_writing(after):
        return len(list(out.glob("*.parquet"))) >= after and list(out.glob(".*.tmp"))

    for _ in range(7):
        process = start(score_file, data, scorer, out, log=log)
        goal = len(list(out.glob("*.parquet"))) + chance.choice((0, 1))
        wait_until(partial(is_writing, goal), process, log)
        time.sleep(chance.random() * 0.05)
        os.kill(process.pid, how)
        process.join()
        assert process.exitcode == -how, log.read_text()
        halves += out.glob(".*.tmp")
        assert not (out / "manifest.json").exists()
        for path in out.glob("*.parquet"):
            assert pq.read_table(path)["larf_status"].null_count == 0
    assert halves  # at least one of the kills came while a file was half written
    process = start(score_file, data, scorer, out, log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    scores = check_whole(out)
    score_source(open_source(str(data)), scorer, tmp_path / "one")
    np.testing.assert_array_equal(scores, check_whole(tmp_path / "one"))


def test_the_next_rows_are_tokenized_while_the_model_runs(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "BATCH_ROWS", 20)
    started, waited = [threading.Event() for _ in range(4)], []
    scorer = LarfScorer(profile, device="cpu")
    render, columns_of = scorer.render, scorer.columns_of

    def seen_render(*arguments):
        next(event for event in started if not event.is_set()).set()
        return render(*arguments)

    def patient_columns(*arguments):
        if len(waited) < 3:
            waited.append(started[len(waited) + 1].wait(60))
        return columns_of(*arguments)

    monkeypatch.setattr(scorer, "render", seen_render)
    monkeypatch.setattr(scorer, "columns_of", patient_columns)
    score_source(open_source(str(write(tmp_path / "rows.jsonl", ROWS[:75]))), scorer, tmp_path / "out")
    assert waited == [True] * 3
    monkeypatch.undo()
    score_source(open_source(str(tmp_path / "rows.jsonl")), LarfScorer(profile, device="cpu"), tmp_path / "one")
    np.testing.assert_allclose(
        check_whole(tmp_path / "out", ROWS[:75]), check_whole(tmp_path / "one", ROWS[:75]), atol=1e-5
    )


def test_a_full_disk_leaves_nothing_half_written_and_resuming_completes(data, scorer, tmp_path, monkeypatch):
    written = []

    def write_table(self, table, *arguments, original=pq.ParquetWriter.write_table, **options):
        written.append(table)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        original(self, table, *arguments, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(ScoringError, match="No space left on device; free disk space") as error:
        score_source(open_source(str(data)), scorer, out)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in out.iterdir()) == [
        ".journal",
        "data-00000-of-00008.parquet",
        "data-00001-of-00008.parquet",
        "plan.json",
    ]
    score_source(open_source(str(data)), scorer, out, resume=True)
    check_whole(out)


@pytest.mark.slow
def test_a_limit_of_the_system_on_file_sizes_is_a_scoring_error(data, scorer, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(score_file, data, scorer, out, 1, 6000, log=log)
    process.join()
    assert process.exitcode == 1
    assert log.read_text().splitlines()[-1].startswith("larf_curate.errors.ScoringError: cannot write ")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["plan.json"]
    score_source(open_source(str(data)), scorer, out, resume=True)
    check_whole(out)


def test_warnings_are_printed_above_the_progress_bar(profile, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "Q", "answer": "A", "images": ["x"]}) + "\n")
    score_source(open_source(str(rows)), LarfScorer(profile, device="cpu"), tmp_path / "scored")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert [line.startswith("images: looks like part") for line in lines if "images" in line] == [True]


def test_a_row_that_cannot_be_scored_keeps_its_place_and_its_reason_is_told(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", 2)
    chats = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [{"role": "user", "content": "Hi"}, {"role": "wizard", "content": "Hello"}],
        None,
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello again"}],
        [{"role": "user", "content": "Anybody?"}],
    ]
    source = open_source(str(write(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats])))
    scorer = LarfScorer(profile, keep_states=True, device="cpu")
    manifest = score_source(source, scorer, tmp_path / "out")
    rows = Scored.load(tmp_path / "out").rows
    assert rows["larf_status"][:] == ["ok", "malformed", "empty", "ok", "empty"]
    assert [score is None for score in rows["larf_score"]] == [False, True, True, False, True]
    assert [state is None for state in rows["larf_state"]] == [False, True, True, False, True]
    assert manifest["status"] == {"empty": 2, "malformed": 1, "ok": 2}
    reasons = first_reasons(source, tmp_path / "out", scorer)
    assert [index for index, _ in reasons] == [1, 2, 4]
    assert "wizard" in reasons[0][1]
    assert "assistant turn" in reasons[2][1]
    assert first_reasons(source, tmp_path / "out", scorer, most=1) == reasons[:1]


def test_reasons_have_the_words_of_the_template_even_if_no_model_is_loaded(tmp_path, monkeypatch):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system prompts!') }}{% endif %}" + CHATML
    model = save_tiny("Llama", tmp_path / "model", template=refusing)
    profile = SafetyProfile.build(model, layers=[1], **PROFILE)
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    chats = [
        [{"role": "system", "content": "Be kind"}, {"role": "assistant", "content": "Yes"}],
        [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "A cat"}]}],
        [{"role": "user", "content": "Hi"}],
    ]
    lines = [{"messages": json.dumps(chat)} for chat in chats]
    source = open_source(str(write(tmp_path / "a.jsonl", lines)))
    scorer = LarfScorer(profile, device="cpu")
    manifest = score_source(source, scorer, tmp_path / "out")
    assert manifest["status"] == {"empty": 1, "malformed": 1, "unsupported": 1}
    monkeypatch.setattr(SafetyProfile, "reader", None)
    reasons = dict(first_reasons(source, tmp_path / "out", LarfScorer(profile, device="cpu")))
    assert "No system prompts!" in reasons[0]
    assert "image" in reasons[1]
    assert "assistant turn" in reasons[2]


def test_pictures_that_cannot_be_decoded_are_no_matter_even_in_rows_without_a_score(profile, tmp_path):
    broken = {"bytes": b"no picture that can be decoded", "path": None}
    columns = {"question": Value("string"), "answer": Value("string"), "one": Image(), "several": List(Image())}
    rows = [{"question": "Q?", "answer": answer, "one": broken, "several": [broken]} for answer in ("A.", "")]
    Dataset.from_list(rows, features=Features(columns)).save_to_disk(tmp_path / "saved")
    source, scorer = open_source(str(tmp_path / "saved")), LarfScorer(profile, device="cpu")
    score_source(source, scorer, tmp_path / "out")
    assert Scored.load(tmp_path / "out").rows["larf_status"][:] == ["ok", "empty"]
    assert [index for index, _ in first_reasons(source, tmp_path / "out", scorer)] == [1]


def test_two_processes_never_score_into_one_folder(data, scorer, tmp_path):
    with run._locked(tmp_path / "out"), pytest.raises(InputError, match="another process is scoring"):
        score_source(open_source(str(data)), scorer, tmp_path / "out")
    score_source(open_source(str(data)), scorer, tmp_path / "out")
    check_whole(tmp_path / "out")


def test_the_separator_of_a_profile_is_that_of_every_command_and_a_run_with_another_one_is_refused(
    tiny_llama, profile, tmp_path
):
    refs = [{"instruction": f"{row['prompt']}", "input": "I", "output": row["response"]} for row in REFERENCES.unsafe]
    refs = ReferenceSet(unsafe=tuple(refs), safe=REFERENCES.safe, labels=REFERENCES.labels, source="mine")
    chats = [[_user(f"{row['prompt']}\n\nI"), _answer(row["response"])] for row in REFERENCES.unsafe]
    as_chats = replace(refs, unsafe=tuple({"messages": chat} for chat in chats))
    options = {"layers": LAYERS, "signal": "larf", "dtype": "float32", "device": "cpu", "match_lengths": True}
    built = SafetyProfile.build(tiny_llama, refs, input_separator="\n\n", **options)
    built.save_pretrained(tmp_path / "profile")
    built, truth = (
        SafetyProfile.from_pretrained(tmp_path / "profile"),
        SafetyProfile.build(tiny_llama, as_chats, **options),
    )
    rows = [{"instruction": f"Add {i}", "input": f"{i} and 2", "output": f"{i + 2}"} for i in range(6)]
    trained = [[_user(f"Add {i}\n\n{i} and 2"), _answer(f"{i + 2}")] for i in range(6)]
    want = [score.score for score in LarfScorer(truth, device="cpu").score([{"messages": chat} for chat in trained])]
    scorer = LarfScorer(built, device="cpu")
    alone = LarfScorer(replace(built, source=replace(built.source, input_separator=None)), device="cpu")
    source = open_source(str(write(tmp_path / "data.jsonl", rows)))
    score_source(source, scorer, tmp_path / "out")
    scored = Scored.load(tmp_path / "out")
    assert scored.separator == "\n\n"
    assert scored.rows["larf_score"][:] == pytest.approx(want, abs=1e-6)
    assert Dataset.from_list(rows).map(scorer, batched=True)["larf_score"][:] == pytest.approx(want, abs=1e-6)
    ids = [item.tokens.ids for item in truth.reader(device="cpu").renderer()([{"messages": chat} for chat in trained])]
    for columns in (None, scored.manifest["source"]["columns"]):
        assert [item.tokens.ids for item in profile_renderer(built, columns=columns)(rows)] == ids
        found = explain(built, rows, columns=columns, device="cpu")
        assert [each.score for each in found] == pytest.approx(want, abs=1e-6)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(InputError, match="columns .*input_separator.* now null, profile"):
        score_source(source, alone, tmp_path / "out", resume=True)
    with pytest.raises(ConversationError, match="wanted the input separator of the profile"):
        LarfScorer(profile, columns={"input_separator": " "})


def _user(text):
    return {"role": "user", "content": text}


def _answer(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(("size", "wanted"), [(10, 250), (2_000_000, 67)])
def test_large_rows_are_scored_in_smaller_batches(size, wanted, scorer, tmp_path):
    rows = Dataset.from_dict({"text": ["x" * size] * 10})
    shards = ShardScorer(folder=tmp_path, plan="", scorer=scorer)
    assert shards._batch_rows(rows) == wanted
    assert shards._batch_rows(rows.select(range(0))) >= 1


def test_rows_are_reported_after_each_forward_pass_and_equal_ones_or_empty_ones_at_the_end(profile, data, tmp_path):
    rows = [*ROWS[:12], *ROWS[:3], {"question": "q", "answer": ""}]
    shards = ShardScorer(
        folder=tmp_path / "out",
        plan=start_run(tmp_path / "out", {"source": {}, "scorer": {}, "rows": 16}, resume=False),
        scorer=LarfScorer(profile, device="cpu", batch_tokens=1),  # one conversation at a time
    )
    reported = []
    shards.score(open_source(str(write(tmp_path / "rows.jsonl", rows))).pieces[0], reported.append)
    assert reported == [1] * 12 + [4]


def test_rows_that_take_a_model_long_are_scored_in_smaller_batches(scorer, monkeypatch):
    per_token = 2 * 12 * 4 * 32**2  # two operations per weight of the four blocks up to the deepest
    assert (max(scorer.profile.layers), scorer.profile.width) == (3, 32)
    monkeypatch.setitem(devices.BATCH_FLOP, "cpu", per_token * 1000)
    assert [scorer.batch_rows(tokens) for tokens in (1, 10, 300, 5000)] == [1000, 100, 3, 1]
