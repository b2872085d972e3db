import json
import resource
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.batch import Batch
from contract.digest import digests_of
from contract.form import Quantized
from contract.job import Job
from contract.shard import commit, info_of, own_columns, read_info, table_of
from contract.store import location
from contract.tokens import TokenRows
from contract.vector_columns import embedding_type, vector_types
from contract.vectors import RowVectors
from tests.contract.samples import a_batch, a_job, info_for

VECTORS = np.array([[1.5, -2.0], [0.25, 1e-30]], np.float32)
SPARSE = np.array([[0, 0.5, 0, 2.0], [0.25, 0, 1.5, 0]], np.float32)
TOKEN_VECTORS = np.arange(14, dtype=np.float32).reshape(7, 2)
POOLED = pa.schema(
    [
        ("row_id", pa.int64()),
        ("embedding", pa.list_(pa.float32(), 2)),
        ("n_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("error", pa.string()),
        ("text_hash", pa.binary()),
    ]
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = a_job(tmp_path / "output")
    job.save()
    return job


@pytest.fixture
def pooled() -> pa.Table:
    return table_of(a_batch(), RowVectors.pooled(VECTORS), info_for(a_batch()))


@pytest.fixture
def per_token() -> pa.Table:
    return table_of(a_batch(), RowVectors.of_tokens(TOKEN_VECTORS, np.array([3, 4])), info_for(a_batch()))


def test_a_row_has_its_vector_and_a_row_without_a_text_has_null(pooled: pa.Table) -> None:
    assert pooled.schema.remove_metadata() == POOLED
    assert pooled.to_pydict() == {
        "row_id": [14, 15, 16],
        "embedding": [[1.5, -2.0], [0.25, pytest.approx(1e-30)], None],
        "n_tokens": [3, 9, 0],
        "truncated": [False, True, False],
        "error": [None, None, None],
        "text_hash": [None, None, None],
    }


def test_a_row_has_a_vector_for_each_of_its_real_tokens(per_token: pa.Table) -> None:
    assert per_token.schema.field("embedding").type == pa.list_(pa.list_(pa.float32(), 2))
    assert per_token.column("embedding").to_pylist() == [
        TOKEN_VECTORS[:3].tolist(),
        TOKEN_VECTORS[3:].tolist(),
        None,
    ]


def test_a_table_whose_rows_are_all_without_a_text_has_only_nulls() -> None:
    nothing = np.zeros(2, np.int32)
    batch = Batch("j", 0, "e", np.arange(2), TokenRows(nothing[:0], nothing), nothing)
    none = np.empty((0, 2), np.float32)
    for vectors in (RowVectors.pooled(none), RowVectors.of_tokens(none, np.empty(0, int)), RowVectors.sparse(none)):
        table = table_of(batch, vectors, info_for(batch))
        table.validate(full=True)
        for name in vector_types(vectors.layout, pa.float32(), 2):
            assert table.column(name).to_pylist() == [None, None]


@pytest.fixture
def sparse() -> pa.Table:
    return table_of(a_batch(), RowVectors.sparse(SPARSE), info_for(a_batch()))


def test_a_sparse_row_has_its_elements_that_are_not_zero(sparse: pa.Table) -> None:
    assert sparse.schema.names == list(own_columns("sparse"))
    assert sparse.schema.field("indices").type == pa.list_(pa.int32())
    assert sparse.schema.field("weights").type == pa.list_(pa.float32())
    assert sparse["indices"].to_pylist() == [[1, 3], [0, 2], None]
    assert sparse["weights"].to_pylist() == [[0.5, 2.0], [0.25, 1.5], None]


@pytest.mark.parametrize("layout", ["pooled", "per_token", "sparse"])
def test_a_shard_is_byte_stream_split_and_zstd(layout: str, job: Job, request: pytest.FixtureRequest) -> None:
    commit(request.getfixturevalue(layout), job.shard(0), job.staging)
    group = pq.ParquetFile(job.shard(0)).metadata.row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    assert not any(column.has_dictionary_page for column in columns)
    split = {column.path_in_schema for column in columns if "BYTE_STREAM_SPLIT" in column.encodings}
    assert split == {
        column.path_in_schema for column in columns if column.path_in_schema.startswith(("embedding", "weights"))
    }
    assert len(split) == 1


def test_a_shard_says_what_made_it(job: Job, pooled: pa.Table) -> None:
    commit(pooled, job.shard(0), job.staging)
    info = read_info(job.shard(0))
    assert info == info_for(a_batch(), digests=digests_of(pooled))
    assert (info.rows, info.tokens, info.truncated, info.without_text) == (3, 7, 1, 1)


@pytest.mark.parametrize(
    "wrong", [{"finished": "2026-01-02T03:04:05"}, {"seconds": -1.0}, {"seconds": float("nan")}, {"seconds": 1e300}]
)
def test_a_time_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"finished|seconds"):
        info_for(a_batch(), **wrong)


def test_other_parquet_files_are_no_shards(tmp_path: Path, pooled: pa.Table) -> None:
    pq.write_table(pooled.replace_schema_metadata(None), tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match="not a shard"):
        read_info(location(tmp_path / "plain.parquet"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="Parquet"):
        read_info(location(tmp_path / "torn.parquet"))
    with pytest.raises(ValueError, match="job"):
        info_of({b"embedmill": b"{}"})


def test_the_first_writer_of_a_shard_wins(job: Job, pooled: pa.Table) -> None:
    assert commit(pooled, job.shard(0), job.staging)
    other = table_of(a_batch(), RowVectors.pooled(-VECTORS), info_for(a_batch()))
    assert not commit(other, job.shard(0), job.staging)
    assert pq.read_table(job.shard(0)).equals(pooled)
    assert list(job.data.iterdir()) == [job.shard(0)]
    assert not list(job.staging.iterdir())


def test_of_many_writers_at_once_one_wins_and_its_file_is_whole(job: Job) -> None:
    won: list[int] = []
    together = threading.Barrier(8)

    def write(writer: int) -> None:
        info = info_for(a_batch(), runtime=str(writer))
        table = table_of(a_batch(), RowVectors.pooled(VECTORS * writer), info)
        together.wait()
        if commit(table, job.shard(0), job.staging):
            won.append(writer)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read_info(job.shard(0)).runtime == str(won[0])
    found = pq.read_table(job.shard(0)).column("embedding").combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(found, (VECTORS * won[0]).reshape(-1))
    assert not list(job.staging.iterdir())


def test_a_shard_that_cannot_be_written_leaves_nothing(job: Job) -> None:
    rows = 2_000
    two = np.full(rows, 2, np.int32)
    batch = Batch("j", 0, "e", np.arange(rows), TokenRows(np.ones(2 * rows, np.int32), two), two)
    vectors = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    table = table_of(batch, RowVectors.pooled(vectors), info_for(batch))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as a full disk: the write itself fails half-way
    try:
        with pytest.raises(OSError, match="too large"):
            commit(table, job.shard(0), job.staging)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(job.data.iterdir())
    assert not list(job.staging.iterdir())
    assert commit(table, job.shard(0), job.staging)


def test_a_shard_without_a_folder_to_go_to_leaves_nothing(job: Job, pooled: pa.Table) -> None:
    with pytest.raises(FileNotFoundError):
        commit(pooled, job.folder / "gone" / "x.parquet", job.staging)
    assert not list(job.staging.iterdir())


def test_a_file_system_without_hard_links_gets_its_shard_too(
    job: Job, pooled: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert commit(pooled, job.shard(0), job.staging)
    assert pq.read_table(job.shard(0)).equals(pooled)
    assert not list(job.staging.iterdir())


ROWS, PER_SHARD, WIDTH = 11, 4, 3


@pytest.fixture
def finished(tmp_path: Path) -> Job:
    """A verified job of three shards; row 5 has no text."""
    job = a_job(tmp_path / "output", rows=ROWS, batch_rows=PER_SHARD)
    job.save()
    for number in (2, 0, 1):  # shards come in any order
        row_id = np.array(job.row_range(number))
        n_tokens = np.where(row_id == 5, 0, row_id % 3 + 2).astype(np.int32)
        lengths = np.minimum(n_tokens, 3)
        tokens = TokenRows(np.ones(lengths.sum(), np.int32), lengths)
        batch = Batch(job.id, number, job.fingerprint, row_id, tokens, n_tokens)
        vectors = np.array([_vector(row) for row in row_id if row != 5], np.float32)
        commit(table_of(batch, RowVectors.pooled(vectors), info_for(batch)), job.shard(number), job.staging)
    (job.folder / "verify.json").write_text(json.dumps({"passed": True}))
    return job


def _vector(row: int) -> list[float]:
    return [row + 0.5, -row / 3, 0.1]


def _by_pyarrow(job: Job) -> list[dict[str, object]]:
    return pq.read_table(job.data).to_pylist()


def _by_pandas(job: Job) -> list[dict[str, object]]:
    return [row._asdict() for row in pd.read_parquet(job.data).itertuples(index=False)]


def _by_polars(job: Job) -> list[dict[str, object]]:
    return pl.read_parquet(str(job.data)).to_dicts()


def _by_lazy_polars(job: Job) -> list[dict[str, object]]:
    return pl.scan_parquet(f"{job.data}/*.parquet").collect().to_dicts()


def _by_duckdb(job: Job) -> list[dict[str, object]]:
    found = duckdb.execute(f"select * from '{job.data}/*.parquet'")
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _by_datasets(job: Job) -> list[dict[str, object]]:
    cache = job.folder.parent / "cache"
    loaded = datasets.load_dataset(str(job.folder), cache_dir=str(cache))
    assert list(loaded) == ["train"]
    return list(loaded["train"])


@pytest.mark.parametrize("read", [_by_pyarrow, _by_pandas, _by_polars, _by_lazy_polars, _by_duckdb, _by_datasets])
def test_a_jobs_shards_read_back_in_dataset_order(
    read: Callable[[Job], list[dict[str, object]]], finished: Job
) -> None:
    rows = read(finished)
    assert [row["row_id"] for row in rows] == list(range(ROWS))
    for row_id, row in enumerate(rows):
        n_tokens = 0 if row_id == 5 else row_id % 3 + 2
        assert (row["n_tokens"], row["truncated"]) == (n_tokens, n_tokens > 3)
        if row_id == 5:
            assert row["embedding"] is None
        else:
            np.testing.assert_array_equal(np.array(row["embedding"], np.float32), np.array(_vector(row_id), np.float32))


@pytest.mark.parametrize("read", [_by_pyarrow, _by_pandas, _by_polars, _by_lazy_polars, _by_duckdb, _by_datasets])
def test_token_vectors_read_back(
    read: Callable[[Job], list[dict[str, object]]], tmp_path: Path, per_token: pa.Table
) -> None:
    job = a_job(tmp_path / "output", rows=3)
    job.save()
    commit(per_token, job.shard(0), job.staging)
    first, second, third = (row["embedding"] for row in read(job))
    for found, expected in ((first, TOKEN_VECTORS[:3]), (second, TOKEN_VECTORS[3:])):
        assert isinstance(found, list | tuple | np.ndarray)
        np.testing.assert_array_equal(np.array([list(vector) for vector in found], np.float32), expected)
    assert third is None


def test_a_row_with_an_error_says_why_in_place_of_its_vector() -> None:
    of_tokens = RowVectors.of_tokens(TOKEN_VECTORS[:3], np.array([3]))
    for vectors, due in ((RowVectors.pooled(VECTORS[:1]), VECTORS[0]), (of_tokens, TOKEN_VECTORS[:3])):
        table = table_of(a_batch(), vectors, info_for(a_batch()), errors={1: "it burns"})
        assert table["error"].to_pylist() == [None, "it burns", None]
        assert table["embedding"].to_pylist() == [due.tolist(), None, None]


FORMS: dict[str, Quantized] = {
    "float32": np.array([[1.5, -2.0, 1e-30], [0.25, 3.0, -0.0]], np.float32),
    "float16": np.array([[1.5, -2.0, 6e-8], [0.25, 3.0, -0.0]], np.float16),
    "int8": np.array([[127, -128, 0], [1, -1, 5]], np.int8),
}
"""Vectors of two rows as a shard stores them. Binary ones are int8, too."""


def _stored(dtype: str, tmp_path: Path, *, null: bool, per_token: bool = False) -> tuple[Job, list[Quantized | None]]:
    """A job of one shard with two rows with a vector, and maybe a null between them."""
    job = a_job(tmp_path / "output", rows=3 if null else 2)
    job.save()
    n_tokens = np.array([1, 0, 1] if null else [1, 1], np.int32)
    tokens = TokenRows(n_tokens[n_tokens > 0], n_tokens)
    batch = Batch(job.id, 0, job.fingerprint, np.arange(len(tokens)), tokens, n_tokens)
    stored = RowVectors.of_tokens(FORMS[dtype], np.array([1, 1])) if per_token else RowVectors.pooled(FORMS[dtype])
    commit(table_of(batch, stored, info_for(batch)), job.shard(0), job.staging)
    vectors: list[Quantized | None] = [vector[None] if per_token else vector for vector in FORMS[dtype]]
    return job, [vectors[0], None, vectors[1]] if null else vectors


def _assert_same(found: Iterable[object], expected: list[Quantized | None], dtype: str | None = None) -> None:
    """Equal to the bit, and of the dtype where the reader gives arrays."""
    for one, due in zip(found, expected, strict=True):
        if due is None:
            assert one is None
            continue
        assert isinstance(one, np.ndarray if dtype else list)
        if dtype:
            one = np.stack(list(one)) if one.dtype == object else one  # of each token an array
            assert one.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(np.array(one, due.dtype), due)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("dtype", FORMS)
def test_each_reader_gives_the_stored_values_in_their_dtype(
    dtype: str, null: bool, per_token: bool, tmp_path: Path
) -> None:
    job, vectors = _stored(dtype, tmp_path, null=null, per_token=per_token)
    arrow = pq.read_table(job.data)["embedding"].combine_chunks()
    _assert_same(arrow.to_pylist(), vectors)
    assert arrow.type == embedding_type(pa.from_numpy_dtype(np.dtype(dtype)), 3, per_token=per_token)

    _assert_same(pd.read_parquet(job.data)["embedding"], vectors, dtype)

    series = pl.read_parquet(str(job.data))["embedding"]
    _assert_same(series.to_list(), vectors)
    inner: Any = series.dtype
    while inner.is_nested():
        inner = inner.inner
    assert inner == {"float32": pl.Float32, "float16": pl.Float16, "int8": pl.Int8}[dtype]

    loaded = datasets.load_dataset(str(job.folder), cache_dir=str(tmp_path / "cache"), split="train")
    _assert_same(loaded[:]["embedding"], vectors)
    _assert_same(loaded.to_pandas()["embedding"], vectors, dtype)
    _assert_same([row["embedding"] for row in loaded.with_format("numpy", dtype=np.dtype(dtype))], vectors, dtype)


@pytest.mark.parametrize("null", [False, True])
def test_vectors_of_integers_become_one_array(null: bool, tmp_path: Path) -> None:
    """As docs/options.md says for each reader."""
    job, vectors = _stored("int8", tmp_path, null=null)
    expected = np.stack([vector for vector in vectors if vector is not None])
    embedding = pq.read_table(job.data)["embedding"].combine_chunks().drop_null()
    series = pl.read_parquet(str(job.data))["embedding"].drop_nulls()
    for found in (
        embedding.flatten().to_numpy().reshape(len(embedding), -1),
        np.stack(list(pd.read_parquet(job.data)["embedding"].dropna())),
        series.list.to_array(3).to_numpy(),
    ):
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, expected)
