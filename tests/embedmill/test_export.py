import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import faiss
import lance
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from bench.clustered import clustered_job
from contract.errors import UserError
from contract.form import VectorForm
from contract.job import Job
from contract.shard import commit, table_of
from contract.vectors import Layout, RowVectors
from embedmill.command import main
from embedmill.export.check import check
from embedmill.export.column_types import column_of
from embedmill.export.opener import opener
from embedmill.export.source import Rows, Source, source_of
from embedmill.export.target import Target, ordered, partitions
from embedmill.processes import die_with_parent
from tests.contract.samples import a_batch, a_job, info_for
from tests.verify.jobs import rewrite, with_element

pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # nor does the database's start need it

ROWS, BATCHES = 1000, 10

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
PGVECTOR = [
    file
    for binary in BINARIES
    for file in Path("/usr/share/postgresql", binary.parent.name, "extension").glob("vector.control")
]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """An own PostgreSQL with pgvector, as the address of a database."""
    if not PGVECTOR:
        pytest.skip("no PostgreSQL with pgvector here")
    user = "postgres" if os.getuid() == 0 else None  # it does not run as root
    folder = Path(tempfile.mkdtemp(prefix="embedmill-pg-"))
    try:
        if user:
            shutil.chown(folder, user)
        data, binaries = folder / "data", BINARIES[0]
        made = [
            str(binaries / "initdb"),
            "--no-sync",
            "--auth",
            "trust",
            "--username",
            "me",
            "--encoding",
            "UTF8",
            str(data),
        ]
        subprocess.run(made, check=True, capture_output=True, user=user, cwd=folder)
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            user=user,
            cwd=folder,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        address = f"postgresql://me:secret@/postgres?host={folder}"
        try:
            _wait_for(address)
            yield address
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str) -> None:
    until = time.monotonic() + 60
    while True:
        with suppress(psycopg.OperationalError), psycopg.connect(address):
            return
        assert time.monotonic() < until
        time.sleep(0.05)


class Place(NamedTuple):
    """A target that is not there yet."""

    to: str
    table: str | None = None

    @property
    def options(self) -> list[str]:
        return ["--to", self.to, *(["--table", self.table] if self.table else [])]


@pytest.fixture(params=["lance", "faiss", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "postgresql":
        return Place(request.getfixturevalue("database"), f"t{time.monotonic_ns()}")
    return Place(f"{request.param}:{tmp_path / 'target'}")


@pytest.fixture
def table(database: str) -> Place:
    return Place(database, f"t{time.monotonic_ns()}")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return clustered_job(tmp_path_factory.mktemp("jobs"), ROWS, width=16, batch_rows=100)


@pytest.fixture
def source(job: Job) -> Source:
    return source_of(job, None, unverified=True)


def export(job: Job, place: Place, *options: str, expect: int = 0) -> str:
    """What the command says, its lines joined."""
    words = ["export", str(job.folder), *place.options, "--unverified", *options]
    told = CliRunner().invoke(main, words, catch_exceptions=False)
    assert told.exit_code == expect, told.output
    return told.output


def opened(place: Place, source: Source) -> AbstractContextManager[Target]:
    return opener(place.to, place.table)(source)


def contents(place: Place) -> pa.Table:
    """All that a target has, read without embedmill: row_id, embedding, title, stars, by row_id."""
    kind, _, path = place.to.partition(":")
    if kind == "lance":
        return lance.dataset(path).to_table().sort_by("row_id")
    if kind == "faiss":
        index = faiss.read_index(f"{path}/index.faiss", faiss.IO_FLAG_ONDISK_SAME_DIR)
        kept = pq.read_table(f"{path}/columns").sort_by("row_id")
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
        vectors = [index.reconstruct(row).tolist() for row in kept["row_id"].to_pylist()]
        assert index.ntotal == len(vectors)
        return kept.add_column(1, "embedding", [vectors])
    with psycopg.connect(place.to) as connection:
        rows = connection.execute(f"SELECT row_id, embedding::real[], title, stars FROM {place.table} ORDER BY 1")
        names = ("row_id", "embedding", "title", "stars")
        return pa.table(dict(zip(names, map(list, zip(*rows.fetchall(), strict=True)), strict=True)))


def test_a_job_is_in_the_target_with_its_ids_vectors_and_columns(job: Job, place: Place) -> None:
    told = export(job, place)
    for line in ("990 of 990", "10, left out", "200 vectors, 0 different", "Checked: 990 rows there"):
        assert line in told
    assert "secret" not in told
    there = contents(place)
    rows = pa.concat_tables([pq.read_table(job.shard(batch)) for batch in range(BATCHES)])
    rows = rows.filter(rows["embedding"].is_valid())
    assert there["row_id"].to_pylist() == rows["row_id"].to_pylist()
    np.testing.assert_allclose(there["embedding"].to_pylist(), rows["embedding"].to_pylist(), atol=1e-7)
    assert there["title"].to_pylist() == rows["title"].to_pylist()
    assert there["stars"].to_pylist() == rows["stars"].to_pylist()


def test_an_interrupted_export_goes_on_and_doubles_nothing(
    job: Job, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = Source.read, []

    def counted(source: Source, batch: int) -> Rows:
        seen.append(batch)
        if len(seen) > 40:
            raise KeyboardInterrupt
        return read(source, batch)

    monkeypatch.setattr(Source, "read", counted)
    with monkeypatch.context() as patch:
        patch.setattr("embedmill.export.command.check", lambda *_: pytest.fail("it was interrupted"))
        seen[:] = range(37 if not place.to.startswith("faiss") else 40 - BATCHES - 3)
        assert "run the same command again to go on" in export(job, place, expect=130)
    seen.clear()
    assert "297 were there" in export(job, place)
    assert contents(place)["row_id"].to_pylist() == [row for row in range(ROWS) if row % 97 != 96]
    monkeypatch.undo()
    assert "copy: 990 of 990 rows, 990 were there" in export(job, place)


def test_a_shard_is_in_the_target_whole_or_not_at_all(source: Source, place: Place) -> None:
    with opened(place, source) as target:
        target.add(source.read(0))
        broken = source.read(1)
        with suppress(ValueError, pa.ArrowException):
            target.add(replace(broken, kept=broken.kept.slice(0, 50)))
            pytest.fail("it took fewer titles than vectors")
    with opened(place, source) as target:
        assert dict(target.present()) == {0: source.expected[0]}


def test_another_jobs_target_is_left_alone(job: Job, place: Place, tmp_path: Path) -> None:
    export(job, place)
    other = clustered_job(tmp_path, ROWS, width=16, batch_rows=100, seed=7)
    told = export(other, place, expect=1)
    assert re.search(rf"is an export of {job.id} \(\w+\) with title, stars; this is one of {other.id} ", told)
    assert "this is one of" in export(job, place, "--columns", "title", expect=1)


def test_a_job_of_which_a_shard_was_made_again_is_another_one(place: Place, tmp_path: Path) -> None:
    job = clustered_job(tmp_path / "jobs", 40, width=16, batch_rows=20)
    export(job, place)
    rewrite(job, 1, with_element(3, 5, 0.25))
    assert "this is one of" in export(job, place, expect=1)


def test_what_no_export_made_is_left_alone(job: Job, tmp_path: Path, table: Place) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for kind in ("lance", "faiss"):
        assert "choose another" in export(job, Place(f"{kind}:{tmp_path / 'mine'}"), expect=1)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with psycopg.connect(table.to) as connection:
        connection.execute(f"CREATE TABLE {table.table} (id int)")
    assert "no export of embedmill" in export(job, table, expect=1)


def test_other_vectors_and_rows_are_found(source: Source, place: Place, tmp_path: Path) -> None:
    """The check has two sides: here the job's is another one."""
    other = source_of(clustered_job(tmp_path, ROWS, width=16, batch_rows=100, seed=7), None, unverified=True)
    with opened(place, source) as target:
        for batch in range(BATCHES - 1):
            target.add(source.read(batch))
        target.build_index(print)
        found = check(target, other)
        assert found.wrong_batches == (9,)
        assert (found.rows, found.expected, found.compared) == (891, 990, 200)
        assert len(found.differing) == 200
        assert found.recall is not None
        assert found.recall < 0.5
        assert not found.passed


def test_two_exports_at_once_double_no_row_unseen(source: Source, place: Place) -> None:
    with opened(place, source) as one, opened(place, source) as other:
        for batch in range(BATCHES):
            one.add(source.read(batch))
        if place.table:
            with pytest.raises(psycopg.errors.UniqueViolation):
                other.add(source.read(0))
        else:
            other.add(source.read(0))
    with opened(place, source) as target:
        target.build_index(print)
        assert check(target, source).passed == (not place.to.startswith("lance"))


def test_a_row_that_is_gone_is_told(job: Job, table: Place) -> None:
    export(job, table)
    with psycopg.connect(table.to) as connection:
        connection.execute(f"DELETE FROM {table.table} WHERE row_id = 321")
    told = export(job, table, expect=1)
    assert "has 98 rows of batch 3" in told
    assert "remove the target" in told


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_a_job_of_few_rows(rows: int, place: Place, tmp_path: Path) -> None:
    told = export(clustered_job(tmp_path, rows, width=16, batch_rows=20), place)
    assert f"{rows} of {rows}" in told


@pytest.mark.parametrize("dtype", ["float16", "binary"])
def test_other_forms_are_exported_as_float32_and_said(dtype: Literal["float16", "binary"], tmp_path: Path) -> None:
    job = clustered_job(tmp_path / "jobs", 50, width=16, batch_rows=20, form=VectorForm(dtype=dtype, dimensions=16))
    place = Place(f"lance:{tmp_path / 'target'}")
    assert f"The job's {dtype} vectors are exported as float32" in export(job, place)
    vectors = np.array(contents(place)["embedding"].to_pylist())
    assert vectors.shape == (50, 16)
    assert (set(np.unique(vectors)) == {-1, 1}) == (dtype == "binary")


def test_vectors_too_wide_for_an_index_of_vector_are_halfvec(table: Place, tmp_path: Path) -> None:
    job = clustered_job(tmp_path, 40, width=2048, batch_rows=20)
    assert "halfvec_cosine_ops" in export(job, table)
    wide = clustered_job(tmp_path, 4, width=4001, batch_rows=20)
    assert "takes at most 4,000" in export(wide, table, expect=1)


def test_columns_of_every_type_come_back_from_postgresql(database: str) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    columns = {
        "bool": (pa.array([True, None]), [True, None]),
        "int8": (pa.array([-(2**63), 1]), [-(2**63), 1]),
        "numeric": (pa.array([2**64 - 1, 0], pa.uint64()), [2**64 - 1, 0]),
        "float8": (pa.array([0.5, float("inf")]), [0.5, float("inf")]),
        "text": (pa.array(["\t\\N\n", ""]), ["\t\\N\n", ""]),
        "bytea": (pa.array([b"\0", b""]), [b"\0", b""]),
        "date": (pa.array([when.date(), None]), [when.date(), None]),
        "timestamptz": (pa.array([when, None], pa.timestamp("ns", "UTC")), [when, None]),
        "timestamp": (pa.array([when.replace(tzinfo=None), None]), [when.replace(tzinfo=None), None]),
        "jsonb": (pa.array([[{"a": when.date()}], None]), [[{"a": "2026-01-02"}], None]),
    }
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        for kind, (values, expected) in columns.items():
            column = column_of(pa.field("any", values.type))
            assert column.kind == kind
            cursor.execute(f"CREATE TEMPORARY TABLE one_{kind} (n int8, value {kind})")
            with cursor.copy(f"COPY one_{kind} FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["int8", kind])
                for row in enumerate(column.values(pa.chunked_array([values]))):
                    copy.write_row(row)
            found = cursor.execute(f"SELECT value FROM one_{kind} ORDER BY n").fetchall()
            assert [value for (value,) in found] == expected, kind


def test_what_postgresql_does_not_take_is_one_line(job: Job, source: Source, table: Place) -> None:
    rows = source.read(0)
    kept = rows.kept.set_column(0, "title", [["\0"] * len(rows.ids)])
    with pytest.raises(UserError, match=r"0x00.*--columns"), opened(table, source) as target:
        target.add(replace(rows, kept=kept))
    assert "does not answer" in export(job, Place("postgresql://me@127.0.0.1:1/x"), expect=1)
    assert "1 to 63 bytes" in export(job, Place(table.to, "t" * 64), expect=1)


def test_a_database_without_pgvector_is_told(database: str, job: Job) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
        connection.execute("CREATE DATABASE bare")
    bare = database.replace("me:secret@/postgres", "guest:secret@/bare")
    told = export(job, Place(bare), expect=1)
    assert "the database bare has no pgvector (permission denied" in told
    assert "CREATE EXTENSION vector" in told
    assert "secret" not in told


def test_what_cannot_be_exported_is_one_line(job: Job, tmp_path: Path) -> None:
    place = Place(f"lance:{tmp_path / 'target'}")
    told = CliRunner().invoke(main, ["export", str(job.folder), *place.options])
    assert "not been verified" in told.output
    assert "--unverified" in told.output
    assert "no kept column colour; it has title, stars" in export(job, place, "--columns", "colour", expect=1)
    assert "expected lance:FOLDER, faiss:FOLDER or postgresql://" in export(job, Place("milvus:x"), expect=1)
    assert "secret" not in export(job, Place("postgresql+psycopg://me:secret@host/shop"), expect=1)
    assert "--table is for postgresql" in export(job, Place("lance:x", "t"), expect=1)
    part = clustered_job(tmp_path / "jobs", 30, width=4, batch_rows=10)
    part.shard(1).unlink()
    assert "1 shard of" in export(part, place, expect=1)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("layout", ["sparse", "tokens"])
def test_sparse_and_token_vectors_are_refused(layout: Layout, tmp_path: Path) -> None:
    job = a_job(tmp_path, rows=3, batch_rows=3)
    job.save()
    batch = replace(a_batch(), job=job.id, number=0, row_id=np.arange(3))
    values = np.ones((3, 4), np.float32)
    vectors = RowVectors.of_tokens(values, np.array([1, 2])) if layout == "tokens" else RowVectors.sparse(values[:2])
    commit(table_of(batch, vectors, info_for(batch)), job.shard(0), job.staging)
    told = export(job, Place(f"faiss:{tmp_path / 'target'}"), expect=1)
    assert "an export needs one dense vector for each row" in told


def test_a_client_that_is_not_installed_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedmill.export.lance_dataset", None)
    assert "pip install 'embedmill[lance]'" in export(job, Place("lance:x"), expect=1)


def test_stored_vectors_in_the_order_that_was_asked_for() -> None:
    found, vectors = np.array([5, 2]), np.array([[5.0], [2.0]], np.float32)
    assert ordered(np.array([2, 5, 9, 2]), found, vectors).tolist() == [[2], [5], [0], [2]]
    assert ordered(np.array([1]), found[:0], vectors[:0]).tolist() == [[0]]


def test_partitions_have_the_rows_that_k_means_asks_for() -> None:
    assert [partitions(rows) for rows in (1, 39, 1000, 100_000, 10**8)] == [1, 1, 25, 316, 10_000]
