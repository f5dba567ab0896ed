"""Score pieces on a Ray cluster, or on the cores and GPUs of this machine, by actors that each load the model once.

The unit of work is the shard, as in any other run: an actor that dies loses at most the shard that it was scoring, and
all machines write into one folder that they share.
"""

import logging
import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from platform import node
from types import ModuleType
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetInfo
from datasets.table import InMemoryTable

from larf_curate.data.sources import Piece, Source
from larf_curate.errors import InputError, LarfCurateError, ScoringError
from larf_curate.extras import require
from larf_curate.manifests import PLAN, ScoredManifest
from larf_curate.scoring.local import PROGRESS_SECONDS, score_in_workers
from larf_curate.scoring.run import run_with
from larf_curate.scoring.run_store import location, run_folder, store_of
from larf_curate.scoring.shard import Report, ShardScorer
from larf_curate.version import __version__

if TYPE_CHECKING:
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.scorer import LarfScorer

logger = logging.getLogger(__name__)
MOST_ERRORS = 3
"""Number of errors after which a piece is set aside."""
MOST_DEATHS = 10
"""Number of actors that die with a piece, after which it is set aside: clusters end actors for reasons of their own."""
CONNECT_SECONDS = 10
"""Time that a cluster has to accept a connection."""
START_SECONDS = 30.0
"""Time that actors have to start until a warning; later, each answers about every second."""
BACK_OFF_SECONDS = 1.0
"""Time before a piece is tried again; doubled each time."""


def score_with_ray(
    source: Source,
    scorer: "LarfScorer",
    out: str | Path,
    *,
    resume: bool = False,
    guard: "GuardScorer | None" = None,
    address: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
) -> ScoredManifest:
    """Score a dataset into a folder as `score_source` does, by actors of a Ray cluster.

    A piece that cannot be scored is tried again; one with which two actors have died, in a process of its own, in which
    rows that end it are set aside. One that fails `MOST_ERRORS` times, or whose actor dies `MOST_DEATHS` times, is left
    out and named at the end, when all others are complete.

    Args:
        source: The rows, which are sent to the actors.
        scorer: The scorer; the actors load its model by its name or path.
        out: Folder of the result, which all machines of the cluster share.
        resume: Whether to continue a run with the same settings that was started in this folder.
        guard: A guard model; see `score_source`.
        address: Address of a running cluster; default: ``$RAY_ADDRESS``, else one that is started on this machine. If
            Ray has been initialized in this process, that cluster is used.
        actors: Number of actors; default: as many as the GPUs allow, or one per core if there are none.
        gpus_per_actor: GPUs of each actor, such as 0.5; default: 1 if the cluster has any.

    Returns:
        The manifest.

    Raises:
        MissingExtraError: If Ray is not installed.
        InputError: If the cluster has fewer GPUs than one actor wants; see also `score_source`.
        ScoringError: If the cluster cannot be reached, this package is missing or has another version on a machine, or
            pieces could not be scored.
    """
    ray = require("ray", extra="ray")
    with _cluster(ray, address):
        options = _actor_options(ray.cluster_resources(), gpus_per_actor)
        count = actors or _actors_that_fit(ray.cluster_resources(), options)
        engine = partial(_score_on_actors, ray=ray, options=options, count=count)
        return run_with(engine, source, scorer, out, resume=resume, guard=guard)


@contextmanager
def _cluster(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, which ends with the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
    else:
        # Otherwise Ray writes a token into the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Otherwise actors have niceness 15, and wait for all other work of the machine, which `--num-proc` does not.
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        ray.init(**({"address": address} if address else {"address": "local", "include_dashboard": False}))
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ScoringError(
            f"cannot reach the Ray cluster at {address or 'this machine'}: {_first_line(error)}; check --address, or "
            "leave it out to use this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that something listens at an address, for which Ray would wait many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ScoringError(
            f"nothing answers at the Ray address {address} ({error}): check --address, or leave it out to use this "
            "machine alone"
        ) from error


def _actor_options(resources: Mapping[str, float], gpus: float | None) -> dict[str, Any]:
    """Resources of each actor."""
    present = resources.get("GPU", 0)
    wanted = gpus if gpus is not None else min(1, present)
    if wanted > present:
        raise InputError(f"wanted {wanted:g} GPUs per actor, the cluster has {present:g}: use a lower --gpus-per-actor")
    return {"num_cpus": 1, "num_gpus": wanted}


def _actors_that_fit(resources: Mapping[str, float], options: Mapping[str, Any]) -> int:
    fitting = int(resources["GPU"] / options["num_gpus"]) if options["num_gpus"] else int(resources.get("CPU", 1))
    return max(1, fitting)


@dataclass
class _Job:
    """A piece, and what became of it so far."""

    piece: Piece
    errors: int = 0
    deaths: int = 0
    reason: str = ""
    scored: int = 0

    @property
    def in_worker(self) -> bool:
        """Whether it is scored in a process of its own, since a row may have ended two actors."""
        return self.errors > 0 or self.deaths > 1

    @property
    def delay(self) -> float:
        """Seconds before it is tried again."""
        return BACK_OFF_SECONDS * 2 ** (self.errors - 1) if self.errors else 0.0


def _score_on_actors(
    source: Source,
    pieces: Sequence[Piece],
    shards: ShardScorer,
    report: Report,
    *,
    ray: ModuleType,
    options: Mapping[str, Any],
    count: int,
) -> None:
    """Score pieces on actors; each has one piece at a time, so that little of the rows is in memory.

    Raises:
        ScoringError: If pieces could not be scored; all others are.
    """
    jobs = deque(_Job(piece) for piece in pieces)
    failed: list[_Job] = []
    create = partial(ray.remote(**options)(_Actor).remote, _sent(shards))
    idle = [create() for _ in range(min(count, len(jobs)))]
    running: dict[Any, tuple[_Job, Any]] = {}
    while jobs or running:
        while jobs and idle:
            job, actor = jobs.popleft(), idle.pop()
            running[actor.score.remote(_in_memory(job.piece), job.in_worker, job.delay)] = job, actor
        ready, _ = ray.wait(list(running), timeout=START_SECONDS)
        if not ready:
            logger.warning("no actor has answered for %g s: the cluster is busy, or has no room for one", START_SECONDS)
            continue
        stream = ready[0]
        job, actor = running[stream]
        try:
            rows = ray.get(next(stream))
            job.scored += rows
            report(rows)
            continue
        except StopIteration:
            idle.append(actor)
            report(len(job.piece.rows) - job.scored)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            idle.append(create() if isinstance(error, ray.exceptions.RayActorError) else actor)
            report(-job.scored)
            _put(_next_try(job, error), jobs, failed)
        del running[stream]
    if failed:
        listed = "; ".join(f"{job.piece.name} ({job.reason})" for job in failed)
        raise ScoringError(f"tried several times and not scored: {listed}; all others are: continue with --resume")


def _next_try(job: _Job, error: Any) -> _Job:  # noqa: ANN401  an error of Ray
    """The same piece after an actor has died with it, or has raised an error.

    Raises:
        LarfCurateError: If no try can succeed: the actor did not start, or the settings are wrong.
    """
    if not hasattr(error, "cause"):
        _check_start(error)
        return replace(job, scored=0, deaths=job.deaths + 1, reason=f"its process died: {_first_line(error)}")
    if isinstance(error.cause, LarfCurateError) and not isinstance(error.cause, ScoringError):
        raise error.cause from error
    return replace(job, scored=0, errors=job.errors + 1, reason=_first_line(error.cause))


def _put(job: _Job, jobs: deque[_Job], failed: list[_Job]) -> None:
    """Put a piece at the end of the queue, or aside."""
    logger.warning("%s: try %d failed: %s", job.piece.name, job.errors + job.deaths, job.reason)
    (jobs if job.errors < MOST_ERRORS and job.deaths < MOST_DEATHS else failed).append(job)


def _check_start(error: Exception) -> None:
    """Raise an error if an actor did not even start, as any other would not."""
    if getattr(error, "actor_init_failed", False) or "The actor died because of an error raised in its" in str(error):
        reason = str(error).strip().splitlines()[-1]
        remedy = f"; install larf-curate {__version__} on all machines" if "No module named" in reason else ""
        raise ScoringError(f"an actor did not start: {reason}{remedy}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _sent(shards: ShardScorer) -> dict[str, Any]:
    """What an actor is made of; a pickled scorer would need the cache of this machine."""
    return {
        "version": __version__,
        "folder": location(shards.folder),
        "plan": shards.plan,
        "scorer": shards.scorer.arguments(),
        "guard": shards.guard,
    }


def _in_memory(piece: Piece) -> Piece:
    """The same piece without references to files of this machine."""
    table = piece.rows.with_format("arrow")[:]
    rows = Dataset(InMemoryTable(table), info=DatasetInfo(features=piece.rows.features))
    return replace(piece, rows=rows)


class _Actor:
    """Scores pieces in a process of the cluster."""

    def __init__(self, sent: Mapping[str, Any]) -> None:
        from larf_curate.scoring.scorer import LarfScorer

        if sent["version"] != __version__:
            raise ScoringError(f"wanted larf-curate {sent['version']} on all machines, got {__version__}: install it")
        folder = run_folder(sent["folder"])
        if store := store_of(folder):
            store.fetch(folder)
        if not (folder / PLAN).exists():
            raise ScoringError(f"{folder} is not there on {node()}: wanted a folder that all machines share")
        scorer = LarfScorer(**sent["scorer"])
        self.shards = ShardScorer(folder=folder, plan=sent["plan"], scorer=scorer, guard=sent["guard"])
        self.thread = ThreadPoolExecutor(1)  # one for all pieces: torch counts its threads per thread

    def score(self, piece: Piece, in_worker: bool, delay: float) -> Iterator[int]:
        """Score a piece after a number of seconds, in a process of its own if asked.

        Yields:
            The number of rows that were scored since the last time, about every second.
        """
        time.sleep(delay)
        scored = Counter[str]()
        job = self.thread.submit(self._score, piece, in_worker, lambda rows: scored.update(rows=rows))
        sent = 0
        while not job.done():
            wait([job], timeout=PROGRESS_SECONDS)
            newly = scored["rows"] - sent
            sent += newly
            yield newly
        job.result()

    def _score(self, piece: Piece, in_worker: bool, report: Report) -> None:
        if in_worker:
            source = Source(pieces=(piece,), description={})
            score_in_workers(source, [piece], self.shards, report, num_proc=1)
        else:
            self.shards.score(piece, report)
