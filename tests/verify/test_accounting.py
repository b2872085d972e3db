from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.findings import Findings
from contract.job import Job
from tests.verify.jobs import rewrite, with_value
from verify.accounting import account


def test_a_finished_job_is_accounted_for(job: Job) -> None:
    accounting = account(job)
    assert accounting.passed
    assert (accounting.counts.shards, accounting.counts.expected_shards) == (3, 3)
    assert (accounting.counts.rows, accounting.counts.expected_rows) == (48, 48)
    assert accounting.readable == (0, 1, 2)


def test_the_last_shard_may_be_shorter(job: Job) -> None:
    rewrite(job, 2, lambda table: table.slice(0, 10))
    assert account(job.model_copy(update={"rows": 42})).passed


def test_a_missing_shard(job: Job) -> None:
    job.shard(1).unlink()
    accounting = account(job)
    assert not accounting.passed
    assert accounting.counts.missing_shards == Findings(1, ("train-00001-of-00003.parquet",))
    assert accounting.counts.missing_rows == Findings(16, tuple(range(16, 32)))
    assert not accounting.at_fault
    assert accounting.readable == (0, 2)


def test_no_shard_at_all(job: Job) -> None:
    for batch in range(3):
        job.shard(batch).unlink()
    job.data.rmdir()
    accounting = account(job)
    assert not accounting.passed
    assert accounting.counts.missing_shards.count == 3
    assert accounting.counts.missing_rows == Findings(48, tuple(range(20)))  # all counted, the first twenty named


def test_a_missing_row(job: Job) -> None:
    rewrite(job, 1, lambda table: pa.concat_tables([table.slice(0, 4), table.slice(5)]))
    accounting = account(job)
    assert not accounting.passed
    assert accounting.counts.missing_rows == Findings(1, (20,))
    assert (accounting.counts.rows, accounting.counts.rows_twice, accounting.counts.foreign_rows) == (
        47,
        Findings(),
        Findings(),
    )
    assert accounting.at_fault == (1,)


def test_a_row_twice(job: Job) -> None:
    rewrite(job, 0, lambda table: pa.concat_tables([table.slice(0, 8), table.slice(7)]))
    accounting = account(job)
    assert not accounting.passed
    assert accounting.counts.rows_twice == Findings(1, (7,))
    assert (accounting.counts.rows, accounting.counts.missing_rows, accounting.counts.disordered) == (
        49,
        Findings(),
        Findings(),
    )


def test_a_row_twice_in_place_of_another_keeps_the_number_of_rows(job: Job) -> None:
    rewrite(job, 0, with_value("row_id", 3, 4))
    accounting = account(job)
    assert not accounting.passed
    assert accounting.counts.rows == accounting.counts.expected_rows
    assert (accounting.counts.rows_twice.first, accounting.counts.missing_rows.first) == ((4,), (3,))


@pytest.mark.parametrize("foreign", [17, 4711, -1, 2**62])
def test_a_row_that_belongs_elsewhere_or_nowhere(job: Job, foreign: int) -> None:
    rewrite(job, 0, with_value("row_id", 5, foreign))
    accounting = account(job)
    assert not accounting.passed
    assert (accounting.counts.foreign_rows.first, accounting.counts.missing_rows.first) == ((foreign,), (5,))


def test_rows_out_of_order(job: Job) -> None:
    rewrite(job, 2, lambda table: table.take(np.arange(len(table))[::-1]))
    accounting = account(job)
    assert not accounting.passed
    assert accounting.counts.disordered == Findings(1, ("train-00002-of-00003.parquet",))
    assert not accounting.counts.missing_rows.count


def test_files_that_do_not_belong_in_data(job: Job) -> None:
    (job.data / "_SUCCESS").touch()
    job.shard(0).with_name("train-00003-of-00003.parquet").write_bytes(job.shard(0).read_bytes())
    job.shard(0).with_name("train-000001-of-00003.parquet").write_bytes(job.shard(1).read_bytes())
    accounting = account(job)
    assert not accounting.passed
    assert accounting.counts.unexpected_files.first == (
        "_SUCCESS",
        "train-000001-of-00003.parquet",
        "train-00003-of-00003.parquet",
    )
    assert accounting.counts.rows == 48


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_file(job: Job, keep: int) -> None:
    file = job.shard(1)
    file.write_bytes(file.read_bytes()[:keep])
    accounting = account(job)
    assert not accounting.passed
    assert str(accounting.counts.unreadable.first[0]).startswith("train-00001-of-00003.parquet: ")
    assert (accounting.counts.missing_rows.count, accounting.readable) == (16, (0, 2))


def test_row_ids_that_are_damaged(job: Job) -> None:
    file = job.shard(1)
    column = pq.read_metadata(file).row_group(0).column(0)
    damaged = bytearray(file.read_bytes())
    start = column.data_page_offset
    damaged[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(damaged)
    assert account(job).counts.unreadable.count == 1


def test_a_folder_in_a_shards_place(job: Job) -> None:
    job.shard(1).unlink()
    job.shard(1).mkdir()
    assert account(job).counts.unreadable.count == 1


def test_parquet_that_is_not_embedmills(job: Job) -> None:
    pq.write_table(pa.table({"row_id": np.arange(16)}), job.shard(0))
    rewrite(job, 1, lambda table: table.drop_columns(["n_tokens"]))
    rewrite(job, 2, lambda table: table.set_column(0, "row_id", pa.array(map(str, range(32, 48)))))
    unreadable = account(job).counts.unreadable
    assert unreadable.count == 3
    for found, why in zip(unreadable.first, ("no embedmill", "no column n_tokens", "no column row_id"), strict=True):
        assert why in str(found)


def test_row_ids_that_are_null(job: Job) -> None:
    rewrite(job, 0, with_value("row_id", 2, None))
    assert "15 values of row_id for 16 rows" in str(account(job).counts.unreadable.first[0])


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("job", "other-train-0123456789", "made for job other-train-0123456789"),
        ("batch", 0, "made for batch 0"),
        ("engine", "0" * 16, "made by engine 0000000000000000"),
        ("precision", "int8", "made in precision int8"),
    ],
)
def test_a_shard_that_was_made_for_something_else(job: Job, field: str, value: object, why: str) -> None:
    rewrite(job, 1, lambda table: table, **{field: value})
    accounting = account(job)
    assert not accounting.passed
    assert why in str(accounting.counts.foreign_shards.first[0])
    assert (accounting.counts.rows, accounting.counts.missing_rows.count, accounting.readable) == (32, 16, (0, 2))


def test_a_job_whose_folder_was_renamed_keeps_its_shards(job: Job, tmp_path: Path) -> None:
    moved = job.folder.rename(tmp_path / "moved")
    assert account(job.model_copy(update={"folder": moved})).passed
