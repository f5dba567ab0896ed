"""Redis inside this process: Argilla only needs it to hand jobs to a worker, and there is none."""


def replace() -> None:
    """Make every later ``redis.from_url`` give one Redis that lives in memory."""
    import fakeredis
    import redis

    connection = fakeredis.FakeRedis()
    redis.from_url = lambda *_args, **_options: connection
