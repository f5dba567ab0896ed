"""Run Argilla's background jobs in the server's process: webhooks, Hub import and export, changes of the distribution.

Argilla passes jobs through Redis to a worker process. Here Redis is emulated in memory and the worker is a thread.
"""

import threading


def use_in_memory_redis() -> None:
    """Patch ``redis.from_url`` to return one emulated Redis; must run before argilla_server is imported."""
    import fakeredis
    import redis  # type: ignore[import-not-found, unused-ignore]

    connection = fakeredis.FakeRedis()
    redis.from_url = lambda *_args, **_options: connection


def start_worker() -> None:
    """Run jobs in a daemon thread, which ends with the process."""
    from argilla_server.jobs import queues
    from rq import SimpleWorker  # type: ignore[import-not-found, unused-ignore]
    from rq.timeouts import TimerDeathPenalty  # type: ignore[import-not-found, unused-ignore]

    class ThreadWorker(SimpleWorker):  # type: ignore[misc, unused-ignore]  # mypy runs without rq
        """A worker that installs no signal handlers, which is possible only in the main thread."""

        death_penalty_class = TimerDeathPenalty  # the default interrupts jobs by a signal, too

        def _install_signal_handlers(self) -> None:
            """Do nothing."""

    _use_separate_database_engine()
    worker = ThreadWorker([queues.HIGH_QUEUE, queues.DEFAULT_QUEUE], connection=queues.REDIS_CONNECTION)
    # Without a scheduler, which would be a second process that survives when the server is killed.
    threading.Thread(target=worker.work, daemon=True, name="jobs").start()


def _use_separate_database_engine() -> None:
    """Give jobs a separate database engine: they run in another event loop, and a pool of connections has one loop."""
    from argilla_server.database import async_engine
    from argilla_server.jobs import dataset_jobs, hub_jobs, webhook_jobs
    from argilla_server.settings import settings
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(async_engine.url, poolclass=NullPool, **settings.database_engine_args)
    for module in (dataset_jobs, hub_jobs, webhook_jobs):
        module.AsyncSessionLocal = async_sessionmaker(autocommit=False, expire_on_commit=False, bind=engine)
