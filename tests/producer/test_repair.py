"""What is damaged is set aside, whatever the damage is and however many producers find it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from contract.job import Job
from producer.repair import set_faulty_aside
from tests.contract.samples import commit_by_hand
from tests.producer.by_hand import batch, committed_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return committed_job(tmp_path / "output")


def test_a_shard_with_any_byte_changed_is_set_aside_unless_its_rows_are_the_same(job: Job) -> None:
    shard = Path(str(job.shard(2)))
    good, rows, moved = shard.read_bytes(), pq.read_table(shard), 0
    for place in range(4, len(good), 17):  # the first four say that it is Parquet, which no reader looks at
        data = bytearray(good)
        data[place] ^= 0xFF
        shard.write_bytes(data)
        set_faulty_aside(job, whole=True)
        if shard.exists():
            assert pq.read_table(shard).equals(rows), place
        else:
            moved += 1
        assert job.committed() >= {0, 1, 3, 4}
    assert moved > 50
    shard.write_bytes(good)
    set_faulty_aside(job, whole=True)
    assert shard.exists()


def test_several_producers_that_find_the_same_damage_move_it_once(job: Job) -> None:
    for turn in range(1, 11):
        for number in (1, 3):
            commit_by_hand(job, batch(job, number))
            Path(str(job.shard(number))).write_bytes(b"PAR1")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: set_faulty_aside(job), range(4)))
        assert job.committed() == {0, 2, 4}
        assert len(list(Path(str(job.folder / "aside")).iterdir())) == 2 * turn
