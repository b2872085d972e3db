import numpy as np

from tests.verify.jobs import shard
from verify.throughput import rows_per_second


def test_a_shards_rows_count_evenly_over_its_time_and_those_of_two_workers_add_up() -> None:
    seconds, rates, pauses = rows_per_second([shard(0, 10), shard(0, 20, rows=300), shard(20, 10)], bins=3)
    np.testing.assert_allclose(seconds, [0, 10, 20, 30])
    np.testing.assert_allclose(rates, [10 + 15, 15, 10])
    assert not len(pauses)


def test_a_pause_of_days_is_left_out() -> None:
    day = 86400
    seconds, rates, pauses = rows_per_second([shard(3 * day, 10), shard(0, 10), shard(3 * day + 10.5, 10)], bins=2)
    np.testing.assert_allclose(seconds, [0, 15.25, 30.5])
    np.testing.assert_allclose(pauses, [10])
    np.testing.assert_allclose((rates * np.diff(seconds)).sum(), 300)


def test_without_shards_there_is_no_speed() -> None:
    assert [len(part) for part in rows_per_second([])] == [0, 0, 0]
    assert [len(part) for part in rows_per_second([shard(0, 0)])] == [0, 0, 0]
