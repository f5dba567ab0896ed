"""Runs on Ray: equal to a plain run, whatever happens to an actor; without Ray, a message."""

import json
import os
import socket
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from tqdm import tqdm

from larf_curate import distributed
from larf_curate.data import sources
from larf_curate.data.sources import open_source
from larf_curate.distributed import score_with_ray
from larf_curate.errors import ConversationError, InputError, MissingExtraError, ScoringError
from larf_curate.profile import SafetyProfile
from larf_curate.scoring import run
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from tests.fixtures.deadly import DeadlyGuard
from tests.fixtures.long import at_length
from tests.fixtures.models import six_pairs

ROWS = [{"question": f"How {'very ' * (i % 7)}{i}?", "answer": f"Sure, answer {i}."} for i in range(90)]
pytestmark = pytest.mark.usefixtures("own_caches")
needs_ray = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def on_ray(test):
    for mark in needs_ray:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def profile(tiny_llama):
    references = six_pairs()
    return SafetyProfile.build(tiny_llama, references, layers=(1, 3), signal="larf", dtype="float32", device="cpu")


@pytest.fixture
def scorer(profile):
    return LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True, device="cpu")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A file of 90 rows that makes six pieces."""
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", 15)
    monkeypatch.setattr(distributed, "BACK_OFF_SECONDS", 0.01)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


TOKEN = "of this test"
"""Ray reads it once in a process, so that all clusters that tests start have it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two cores, whose processes have another cache, as on another machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_AUTH_TOKEN", TOKEN)
        patched.setenv("RAY_worker_niceness", "0")  # 15 would wait long on a busy machine
        patched.setenv("LARF_CURATE_HOME", str(tmp_path_factory.mktemp("other")))
        ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize(("theirs", "niceness"), [(None, "0"), ("7", "7")])
def test_a_cluster_of_this_machine_has_the_priority_of_the_command(monkeypatch, theirs, niceness):
    seen = []
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: seen.append(os.environ.get("RAY_worker_niceness")),
        shutdown=lambda: None,
    )
    for name in ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "RAY_AUTH_TOKEN", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    if theirs:
        monkeypatch.setenv("RAY_worker_niceness", theirs)
    with distributed._cluster(ray, None):
        pass
    assert seen == [niceness]


def check_equal(out, plain, *, but=()):
    """Both folders have the same rows with the same values, but for some rows."""
    got, want = (Scored.load(folder, verify=True) for folder in (out, plain))
    assert got.rows.features == want.rows.features
    keep = [row for row in range(len(ROWS)) if row not in but]
    for name in ("question", "answer", "larf_status"):
        assert got.rows.select(keep)[name][:] == want.rows.select(keep)[name][:]
    for name in ("larf_score", "larf_layer_scores", "larf_state"):
        values = [np.array(scored.rows.select(keep)[name][:]) for scored in (got, want)]
        # States are float16: a row that is not in its batch changes the last digit of others.
        np.testing.assert_allclose(*values, rtol=2e-3 if name == "larf_state" else 1e-4, atol=1e-5)
    assert [shard["file"] for shard in got.manifest["shards"]] == [shard["file"] for shard in want.manifest["shards"]]
    assert got.rows["question"][:] == [row["question"] for row in ROWS]


def actors():
    """Processes of actors of this process's cluster."""
    processes = psutil.Process().children(recursive=True)
    return [each for each in processes if "ray::_Actor" in "".join(each.cmdline())]


class BarThatKills(tqdm):
    """A progress bar that kills an actor once, after the first rows."""

    has_killed = False

    @classmethod
    def of(cls, *, label, unit, total, done):
        return cls(desc=label, unit=unit, total=total, initial=done)

    def update(self, n=1):
        if n and not self.has_killed:
            self.has_killed = True
            actors()[0].kill()
        super().update(n)


@on_ray
def test_a_run_on_ray_of_which_an_actor_is_killed_is_a_plain_run(data, scorer, tmp_path, cluster, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr(distributed, "START_SECONDS", 0.1)
        patched.setattr(run, "progress", BarThatKills.of)
        score_with_ray(open_source(str(data)), scorer, tmp_path / "out", actors=2)
    assert "no actor has answered for 0.1 s" in caplog.text  # while they start
    score_source(open_source(str(data)), scorer, tmp_path / "plain")
    check_equal(tmp_path / "out", tmp_path / "plain")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "plain").iterdir()
    }


@at_length
@on_ray
def test_a_row_that_ends_its_actor_is_set_aside(data, scorer, tmp_path, cluster):
    guard = DeadlyGuard("answer 33.")
    manifest = score_with_ray(open_source(str(data)), scorer, tmp_path / "out", guard=guard, actors=1)
    assert manifest["status"] == {"crashed": 1, "ok": len(ROWS) - 1}
    score_source(open_source(str(data)), scorer, tmp_path / "plain", guard=DeadlyGuard("nothing"))
    check_equal(tmp_path / "out", tmp_path / "plain", but={33})


class FailingGuard(DeadlyGuard):
    """Raises an error where `DeadlyGuard` ends the process."""

    def __call__(self, batch):
        if any(self.word in answer for answer in batch["answer"]):
            raise RuntimeError("no answer of the guard")
        return super().__call__({"answer": []}) | DeadlyGuard("nothing")(batch)


@at_length
@on_ray
def test_a_piece_that_always_fails_is_named_and_all_others_are_complete(data, scorer, tmp_path, cluster):
    source, out = open_source(str(data)), tmp_path / "out"
    wanted = r"tried several times and not scored: data-00002-of-00006 \(no answer of the guard\); all others are"
    with pytest.raises(ScoringError, match=wanted):
        score_with_ray(source, scorer, out, guard=FailingGuard("answer 33."), actors=2)
    assert len(list(out.glob("*.parquet"))) == 5
    assert not (out / "manifest.json").exists()
    manifest = score_with_ray(source, scorer, out, guard=FailingGuard("nothing"), actors=1, resume=True)
    assert manifest["status"] == {"ok": len(ROWS)}


@on_ray
def test_errors_of_the_settings_are_those_of_a_plain_run(data, profile, tmp_path, cluster, monkeypatch):
    (tmp_path / "odd.csv").write_text("frage,antwort\nWas?,Das.\n")
    scorer = LarfScorer(profile, device="cpu")
    with pytest.raises(ConversationError, match="--columns"):
        score_with_ray(open_source(str(tmp_path / "odd.csv")), scorer, tmp_path / "out")
    with pytest.raises(InputError, match="wanted 2 GPUs per actor, the cluster has 0: use a lower --gpus-per-actor"):
        score_with_ray(open_source(str(data)), scorer, tmp_path / "out", gpus_per_actor=2)
    monkeypatch.setattr(distributed, "__version__", "9.9")
    with pytest.raises(ScoringError, match=r"an actor did not start: .*wanted larf-curate 9.9 on all machines, got "):
        score_with_ray(open_source(str(data)), scorer, tmp_path / "out")


def test_a_machine_without_the_package_is_named_with_what_to_do():
    error = RuntimeError(
        "The actor died because of an error raised in its creation task\nNo module named 'larf_curate'"
    )
    with pytest.raises(ScoringError, match=r"No module named 'larf_curate'; install larf-curate .* on all machines"):
        distributed._check_start(error)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_an_address_at_which_nothing_answers_is_one_line_at_once(form):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listen
        address = form.format(taken.getsockname()[1])
        with pytest.raises(ScoringError, match=r"nothing answers at the Ray address .*: check --address"):
            distributed._check_address(address)
    for wrong in ("127.0.0.1:99999", "nohost.invalid:1"):
        with pytest.raises(ScoringError, match="nothing answers at"):
            distributed._check_address(wrong)
    with socket.create_server(("127.0.0.1", 0)) as server:
        distributed._check_address(f"127.0.0.1:{server.getsockname()[1]}")
    distributed._check_address("auto")


def test_without_ray_the_message_says_how_to_install_it(data, scorer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "larf-curate\[ray\]"'):
        score_with_ray(open_source(str(data)), scorer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_arguments_of_a_scorer_construct_its_like(scorer):
    like = LarfScorer(**scorer.arguments())
    assert like.key == scorer.key
    assert like._runtime == scorer._runtime


@at_length
@on_ray
def test_actors_put_their_shards_into_a_store(data, scorer, tmp_path, s3, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    ray.shutdown()  # of actors that do not know the server
    score_with_ray(open_source(str(data)), scorer, "s3://bucket/out", actors=2)
    score_source(open_source(str(data)), scorer, tmp_path / "plain")
    (tmp_path / "out").mkdir()
    s3.get("bucket/out/", f"{tmp_path / 'out'}/", recursive=True)
    check_equal(tmp_path / "out", tmp_path / "plain")
