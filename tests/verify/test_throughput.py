import numpy as np

from contract.shard import ShardInfo
from tests.verify.jobs import shard
from verify.throughput import Throughput, throughput_of


def throughput(shards: list[ShardInfo], bins: int) -> Throughput:
    found = throughput_of(shards, bins)
    assert found is not None
    return found


def test_a_shards_rows_count_evenly_over_its_time_and_those_of_two_workers_add_up() -> None:
    found = throughput([shard(0, 10), shard(0, 20, rows=300), shard(20, 10)], bins=3)
    np.testing.assert_allclose(found.edges, [0, 10, 20, 30])
    np.testing.assert_allclose(found.rates, [10 + 15, 15, 10])
    assert not len(found.pauses)


def test_a_pause_of_days_is_left_out() -> None:
    day = 86400
    found = throughput([shard(3 * day, 10), shard(0, 10), shard(3 * day + 10.5, 10)], bins=2)
    np.testing.assert_allclose(found.edges, [0, 15.25, 30.5])
    np.testing.assert_allclose(found.pauses, [10])
    np.testing.assert_allclose((found.rates * np.diff(found.edges)).sum(), 300)


def test_without_shards_there_is_no_throughput() -> None:
    assert throughput_of([]) is None
    assert throughput_of([shard(0, 0)]) is None
