"""Argilla's background jobs in this process: webhooks, import from and export to the Hub, a changed distribution.

Argilla hands jobs to a worker through Redis. Here Redis lives in memory and the worker is a thread.
"""

import threading


def keep_redis_in_memory() -> None:
    """Make every later ``redis.from_url`` give one Redis that lives in this process."""
    import fakeredis
    import redis  # type: ignore[import-not-found, unused-ignore]

    connection = fakeredis.FakeRedis()
    redis.from_url = lambda *_args, **_options: connection


def start_worker() -> None:
    """Run jobs in a thread that ends with the process."""
    from argilla_server.jobs import queues
    from rq import SimpleWorker  # type: ignore[import-not-found, unused-ignore]
    from rq.timeouts import TimerDeathPenalty  # type: ignore[import-not-found, unused-ignore]

    class ThreadWorker(SimpleWorker):  # type: ignore[misc, unused-ignore]  # rq is not there for mypy
        """A worker that leaves the process's signals alone."""

        death_penalty_class = TimerDeathPenalty

        def _install_signal_handlers(self) -> None:
            """Signals belong to the main thread."""

    _give_jobs_connections_of_their_own()
    worker = ThreadWorker([queues.HIGH_QUEUE, queues.DEFAULT_QUEUE], connection=queues.REDIS_CONNECTION)
    # no scheduler: it would be a second process, which outlives a killed server
    threading.Thread(target=worker.work, daemon=True, name="jobs").start()


def _give_jobs_connections_of_their_own() -> None:
    """Jobs run in another event loop than requests, and a pool of connections belongs to one loop."""
    from argilla_server.database import async_engine
    from argilla_server.jobs import dataset_jobs, hub_jobs, webhook_jobs
    from argilla_server.settings import settings
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(async_engine.url, poolclass=NullPool, **settings.database_engine_args)
    for module in (dataset_jobs, hub_jobs, webhook_jobs):
        module.AsyncSessionLocal = async_sessionmaker(autocommit=False, expire_on_commit=False, bind=engine)
