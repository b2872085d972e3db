"""A private Redis and a Celery worker: the parts of ``embedmill.processes`` that the demo, the benchmarks and the tests
take from here."""

from embedmill.processes import celery_worker, die_with_parent, free_port, process, redis_server

__all__ = ["celery_worker", "die_with_parent", "free_port", "process", "redis_server"]
