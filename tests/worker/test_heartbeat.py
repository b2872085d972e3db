"""What a worker says of the batch that it computes."""

from contract.job import JobKey
from contract.redis.connection import client
from contract.redis.heartbeat import key_of, read
from tests.commands import wait_until
from worker.heartbeat import HeartbeatSender


def test_the_computed_share_of_the_batch_goes_with_the_beat(redis_url: str) -> None:
    sender = HeartbeatSender("host:1:2/0")
    sender.set_state("computing", job=JobKey("job"), batch=3)
    sender.begin_rows(8)
    sender.add_computed(2)
    sender.start()
    try:
        assert share("host:1:2/0") == 0.25
        sender.add_computed(6)
        sender.set_fields(engine="tiny")
        wait_until(lambda: share("host:1:2/0") == 1.0)
        sender.set_state("idle")
        wait_until(lambda: share("host:1:2/0") == 0.0)
    finally:
        sender.close()


def share(worker: str) -> float:
    redis = client()
    wait_until(lambda: redis.exists(key_of(worker)))
    record = redis.get(key_of(worker))
    assert isinstance(record, bytes)
    found = read(record)
    assert found is not None
    return found.computed
