import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.engine import EngineSpec
from contract.findings import Findings
from contract.job import Job
from contract.shard import own_columns
from tests.verify.jobs import TEXTS, plant, rewrite, scaled, with_column, with_element, with_value
from verify.sample import Sample, draw, edges, quotas
from verify.sampled_rows import rows_at
from verify.stats import VectorRules


def drawn(job: Job, rows: int, seed: int = 0, batches: tuple[int, ...] = (0, 1, 2)) -> Sample:
    return draw(job, batches, VectorRules(32, 512, unit_norm=False), rows=rows, seed=seed)


def test_edges_end_at_the_longest_row_that_is_not_truncated() -> None:
    assert edges(512) == [32, 64, 128, 256, 512]
    assert edges(100) == [32, 64, 100]
    assert edges(64) == [32, 64]
    assert edges(16) == [16]


@pytest.mark.parametrize(
    ("available", "wanted", "given"),
    [
        ([100, 100, 100, 100], 8, [2, 2, 2, 2]),
        ([100, 0, 3, 100], 20, [9, 0, 3, 8]),
        ([1, 100], 50, [1, 49]),
        ([2, 3], 100, [2, 3]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([0, 0], 5, [0, 0]),
    ],
)
def test_quotas(available: list[int], wanted: int, given: list[int]) -> None:
    assert quotas(available, wanted) == given


def test_quotas_always_take_what_there_is() -> None:
    chance = random.Random(5)
    for _ in range(500):
        available = [chance.choice([0, 1, 7, 1000]) for _ in range(6)]
        wanted = chance.randrange(1, 400)
        given = quotas(available, wanted)
        assert sum(given) == min(wanted, sum(available))
        assert all(0 <= one <= most for one, most in zip(given, available, strict=True))


def test_one_seed_gives_one_sample_whatever_the_order_of_the_shards(job: Job) -> None:
    sample = drawn(job, 12)
    assert sample == drawn(job, 12) == drawn(job, 12, batches=(2, 0, 1))
    others = [drawn(job, 12, seed=seed).rows for seed in range(1, 6)]
    assert any(other != sample.rows for other in others)


def test_the_lengths_and_footers_are_those_of_all_rows(job: Job) -> None:
    sample = drawn(job, 3)
    lengths = [length for batch in range(3) for length in pq.read_table(job.shard(batch))["n_tokens"].to_pylist()]
    assert sample.lengths == Counter(lengths)
    assert sample.lengths[0] == TEXTS.count(None)
    assert [info.batch for info in sample.shards] == [0, 1, 2]


def test_every_stratum_is_represented(job: Job) -> None:
    everything = drawn(job, 1000)
    there = {row.stratum for row in everything.rows}
    assert {"1-32", "over 512"} < there
    for seed in range(5):
        sample = drawn(job, 8, seed)
        assert len(sample.rows) == 8
        assert {row.stratum for row in sample.rows} == there


def test_strata_hold_the_lengths_that_they_name(job: Job) -> None:
    for row in drawn(job, 1000).rows:
        if row.stratum == "over 512":
            assert row.truncated
            assert row.n_tokens > 512
        else:
            low, high = map(int, row.stratum.split("-"))
            assert low <= row.n_tokens <= high


def test_all_rows_are_taken_if_there_are_no_more(job: Job) -> None:
    sample = drawn(job, 1000)
    with_text = {row for row, text in enumerate(TEXTS) if text is not None}
    assert sorted(row.row_id for row in sample.rows) == sorted(with_text)
    assert (sample.stats.rows, sample.stats.truncated, sample.stats.without_text) == (48, 2, 2)


def test_every_row_is_drawn_by_some_seed(job: Job) -> None:
    ids = {row.row_id for seed in range(40) for row in drawn(job, 16, seed).rows}
    assert len(ids) == 46


def test_rows_without_a_text_are_kept_apart(job: Job) -> None:
    sample = drawn(job, 1000)
    assert sorted(row.row_id for row in sample.without_text) == [40, 46]
    assert not sample.stats.wrong_nulls.count


def test_a_row_without_a_text_that_has_a_vector(job: Job, tiny: EngineSpec) -> None:
    rewrite(job, 2, with_value("embedding", 8, [0.5] * tiny.hidden))
    assert drawn(job, 1000).stats.wrong_nulls == Findings(1, (40,))


def test_a_row_with_a_text_that_has_no_vector(job: Job) -> None:
    rewrite(job, 0, with_value("embedding", 3, None))
    sample = drawn(job, 1000)
    assert sample.stats.wrong_nulls == Findings(1, (3,))
    assert 3 not in {row.row_id for row in sample.rows}


def test_a_value_that_is_not_finite_is_seen_without_sampling_the_row(job: Job) -> None:
    rewrite(job, 2, with_value("embedding", 9, [0.5] * 31 + [float("inf")]))
    sample = drawn(job, 1)
    assert sample.stats.non_finite == Findings(1, (41,))
    assert sample.at_fault == (2,)


def test_vectors_that_cannot_be_read_are_seen_without_sampling_their_rows(job: Job) -> None:
    """By the checksums of Parquet's pages."""
    with pq.ParquetFile(job.shard(1)) as file:
        group = file.metadata.row_group(0)
        (chunk,) = [group.column(n) for n in range(group.num_columns) if "embedding" in group.column(n).path_in_schema]
    damaged = bytearray(job.shard(1).read_bytes())
    damaged[chunk.data_page_offset + chunk.total_compressed_size - 5] ^= 1
    job.shard(1).write_bytes(damaged)
    sample = drawn(job, 1, batches=(0, 1))
    assert "CRC checksum verification failed" in str(sample.stats.unreadable)
    assert sample.at_fault == (1,)


def test_vectors_of_another_width_are_seen_without_sampling_their_rows(job: Job, tiny: EngineSpec) -> None:
    half = pa.list_(pa.float32(), 16)

    def halved(table: pa.Table) -> pa.Table:
        vectors = [vector and vector[:16] for vector in table["embedding"].to_pylist()]
        return table.set_column(1, "embedding", pa.array(vectors, half))

    rewrite(job, 1, halved)
    assert "vectors of 16 elements, expected 32" in str(drawn(job, 1, batches=(0, 1)).stats.unreadable)


def test_a_wrong_flag_and_wrong_sums_are_seen_without_sampling_the_row(job: Job) -> None:
    rewrite(job, 0, with_value("truncated", 3, True))
    rewrite(job, 1, lambda table: table, tokens=1)
    sample = drawn(job, 1)
    stats = sample.stats
    assert stats.wrong_flags == Findings(1, (3,))
    assert stats.wrong_sums == Findings(1, ("train-00001-of-00003.parquet",))
    assert sample.at_fault == (0, 1)


def test_a_change_of_any_column_is_seen_without_sampling_the_row(job: Job) -> None:
    tokens = pq.read_table(job.shard(0))["n_tokens"].to_pylist()
    for column, change in {
        "embedding": with_element(3, 5, 0.25),
        "n_tokens": with_value("n_tokens", 3, tokens[3] + 1),
        "truncated": with_value("truncated", 3, True),
        "error": with_value("error", 3, "why"),
        "row_id": with_value("row_id", 3, 99),
    }.items():
        whole = job.shard(0).read_bytes()
        plant(job, 0, change)
        sample = drawn(job, 1)
        assert sample.stats.changed == Findings(1, (f"train-00000-of-00003.parquet: {column}",))
        assert sample.at_fault == (0,)
        job.shard(0).write_bytes(whole)
    plant(job, 0, lambda table: table.append_column("more", table["row_id"]))
    plant(job, 1, lambda table: table, digests={})
    assert drawn(job, 1).stats.changed == Findings(
        2, ("train-00000-of-00003.parquet: more", f"train-00001-of-00003.parquet: {', '.join(own_columns('pooled'))}")
    )


def test_norms_are_looked_at_in_every_row(job: Job) -> None:
    def normalized(table: pa.Table) -> pa.Table:
        vectors = [
            vector and (np.array(vector) / np.linalg.norm(vector)).tolist() for vector in table["embedding"].to_pylist()
        ]
        return with_column(table, "embedding", pa.array(vectors, table.schema.field("embedding").type))

    def norms() -> Sample:
        return draw(job, range(3), VectorRules(32, 512, unit_norm=True), rows=1, seed=0)

    for batch in range(3):
        rewrite(job, batch, normalized)
    assert not norms().stats.has_faults
    rewrite(job, 1, scaled(3, 1.001))
    rewrite(job, 2, scaled(3, 0.0))
    stats = norms().stats
    assert (stats.wrong_norms, stats.zero) == (Findings(1, (19,)), Findings(1, (35,)))
    rewrite(job, 1, scaled(3, 1 / 1.001), precision="fp16")
    assert not norms().stats.wrong_norms.count
    assert drawn(job, 1).stats.zero == Findings(1, (35,))  # whether the engine normalizes or not


def test_a_shard_that_cannot_be_read_any_further_is_named(job: Job) -> None:
    rewrite(job, 0, with_value("n_tokens", 3, None))
    sample = drawn(job, 1000)
    assert "15 values of n_tokens" in str(sample.stats.unreadable.first[0])
    assert {row.batch for row in sample.rows} == {1, 2}


def test_rows_of_other_slices_are_never_sampled(job: Job) -> None:
    rewrite(job, 0, with_value("row_id", 3, 10**9))
    assert 10**9 not in {row.row_id for row in drawn(job, 1000).rows}


def test_vectors_of_the_sample_do_not_keep_their_shards_in_memory(job: Job) -> None:
    for row in drawn(job, 5).rows:
        (found,) = rows_at(job, row.batch, [row.index])
        assert found.vectors.shape == (1, 32)
        assert found.vectors.flags.owndata
