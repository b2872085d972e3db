"""A table of PostgreSQL with pgvector and an HNSW index."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import make_conninfo

from contract.errors import UserError, first_line
from embedmill.export.column_types import column_of
from embedmill.export.source import Floats, Rows, Source
from embedmill.export.target import check_owner, ordered, owner, padded

_VECTOR_MOST, _HALFVEC_MOST = 2000, 4000
"""Elements that pgvector's HNSW takes of the type vector, and of halfvec."""

_MEMORY_MOST = 2**20
"""KiB that the server is asked to build the index in, at most; more if it is set to more."""

_GRAPH_BYTES = 500
"""Of a row in HNSW's graph, beside its vector: 48 neighbours and their overhead."""

_NAME_MOST = 63
"""Bytes of a name in PostgreSQL, which cuts off the rest."""


class PostgresTarget:
    """See ``Target``. Each shard is one COPY in one transaction.

    Args:
        connection: with autocommit, to a database that has pgvector.
        table: its name, with or without a schema.
        source: the job.
    """

    setting = "hnsw.ef_search"
    settings: Sequence[int] = (40, 80, 160, 320, 640)

    def __init__(self, connection: psycopg.Connection[Any], table: str, source: Source) -> None:
        self._connection, self._source, self._name = connection, source, table
        self._table = sql.Identifier(*table.split("."))
        self._columns = [column_of(field) for field in source.columns]
        self._kind = "vector" if source.elements <= _VECTOR_MOST else "halfvec"
        self._vector: type[Vector] | type[HalfVector] = Vector if self._kind == "vector" else HalfVector

    def __str__(self) -> str:
        info = self._connection.info
        return f"table {self._name} of {info.dbname} on {info.host}"

    def open(self) -> None:
        """Make the table, if it is not there.

        Raises:
            UserError: it is another's.
        """
        quoted = self._table.as_string(self._connection)
        with self._connection.transaction():
            query = "SELECT to_regclass(%s) IS NOT NULL, obj_description(to_regclass(%s), 'pg_class')"
            ((there, comment),) = self._all(query, (quoted, quoted))
            if there:
                found = re.fullmatch(r"embedmill: (.+)", comment or "")
                check_owner(str(self), found[1] if found else None, self._source)
                return
            self._run(
                "CREATE TABLE {table} (row_id int8 PRIMARY KEY, embedding {kind}({width}) NOT NULL{columns})",
                kind=sql.SQL(self._kind),
                width=sql.Literal(self._source.elements),
                columns=sql.SQL("").join(
                    sql.SQL(", {} {}").format(sql.Identifier(column.name), sql.SQL(column.kind))
                    for column in self._columns
                ),
            )
            self._run("COMMENT ON TABLE {table} IS {owner}", owner=sql.Literal(f"embedmill: {owner(self._source)}"))

    def present(self) -> Mapping[int, int]:
        query = "SELECT row_id / {size}, count(*) FROM {table} GROUP BY 1"
        return dict(self._all(self._sql(query, size=sql.Literal(self._source.job.batch_rows))))

    def add(self, rows: Rows) -> None:
        kept = [column.values(rows.kept[column.name]) for column in self._columns]
        statement = self._sql(
            "COPY {table} ({names}) FROM STDIN (FORMAT BINARY)",
            names=sql.SQL(", ").join(sql.Identifier(name) for name in self._names),
        )
        with (
            self._connection.transaction(),
            self._connection.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            copy.set_types(["int8", self._kind, *(column.kind for column in self._columns)])
            for row in zip(rows.ids.tolist(), map(self._vector, rows.vectors), *kept, strict=True):
                copy.write_row(row)

    def build_index(self, say: Callable[[str], None]) -> str:
        made = """
            SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
            WHERE indrelid = to_regclass(%s) AND amname = 'hnsw' AND indisvalid
        """
        with self._watched(say), self._connection.transaction():  # a client that dies leaves nothing half made
            self._run("LOCK TABLE {table} IN SHARE MODE")
            if not self._all(made, (self._table.as_string(self._connection),)):
                self._run("SET LOCAL maintenance_work_mem = {memory}", memory=sql.Literal(f"{self._memory()}kB"))
                operators = sql.SQL(f"{self._kind}_cosine_ops")
                self._run("CREATE INDEX ON {table} USING hnsw (embedding {operators})", operators=operators)
        self._run("ANALYZE {table}")
        return f"HNSW, {self._kind}_cosine_ops"

    @contextlib.contextmanager
    def _watched(self, say: Callable[[str], None]) -> Iterator[None]:
        """In the ``with`` block, say how far the server is with an index."""
        info, ended = self._connection.info, threading.Event()
        address = make_conninfo(info.dsn, password=info.password or None)
        query = "SELECT blocks_done, blocks_total FROM pg_stat_progress_create_index WHERE pid = %s"

        def watch() -> None:
            with (
                contextlib.suppress(psycopg.Error),  # without it the index is made all the same
                psycopg.connect(address, autocommit=True) as other,
            ):
                while not ended.wait(1):
                    row = other.execute(query, (info.backend_pid,)).fetchone()
                    if row and row[1]:
                        say(f"{row[0] / row[1]:.0%} of the table read")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def stored(self, vectors: Floats) -> Floats:
        return vectors if self._kind == "vector" else vectors.astype(np.float16).astype(np.float32)

    def vectors(self, ids: npt.NDArray[np.int64]) -> Floats:
        wanted = np.unique(ids).tolist()
        rows = self._all(self._sql("SELECT row_id, embedding FROM {table} WHERE row_id = ANY(%s)"), (wanted,))
        found = np.array([row for row, _ in rows], np.int64)
        vectors = np.array([vector.to_numpy() for _, vector in rows], np.float32)
        return ordered(ids, found, vectors.reshape(len(rows), self._source.elements))

    def nearest(self, queries: Floats, most: int, setting: int) -> npt.NDArray[np.int64]:
        self._run("SET hnsw.ef_search = {setting}", setting=sql.Literal(setting))
        self._run("SET enable_seqscan = off")  # of a small table PostgreSQL would read all rows
        query = self._sql("SELECT row_id FROM {table} ORDER BY embedding <=> %s LIMIT %s")
        found = [self._all(query, (self._vector(vector), most)) for vector in queries]
        return padded([[row for (row,) in rows] for rows in found], most)

    @property
    def usage(self) -> str:
        return f"SELECT row_id FROM {self._name} ORDER BY embedding <=> $1 LIMIT 10"

    @property
    def _names(self) -> list[str]:
        return ["row_id", "embedding", *(column.name for column in self._columns)]

    def _memory(self) -> int:
        """KiB in which the index is built: what it needs, within bounds, or what the server is set to."""
        ((there,),) = self._all("SELECT setting::int8 FROM pg_settings WHERE name = 'maintenance_work_mem'")
        needed = self._source.total * (self._source.elements * 4 + _GRAPH_BYTES) // 1024
        return max(int(there), min(needed, _MEMORY_MOST))

    def _sql(self, query: str, **parts: sql.Composable) -> sql.Composed:
        return sql.SQL(query).format(table=self._table, **parts)

    def _run(self, query: str, **parts: sql.Composable) -> None:
        self._connection.execute(self._sql(query, **parts))

    def _all(self, query: str | sql.Composed, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(query, values).fetchall()


@contextlib.contextmanager
def postgresql(uri: str, table: str | None, source: Source) -> Iterator[PostgresTarget]:
    """A table of a database, made if it is not there.

    Args:
        uri: of the database.
        table: its name; None for the job's id, with _ for what is no letter or digit.
        source: what is exported.

    Raises:
        UserError: the database cannot be reached or refuses, it lacks pgvector, or the table is another's.
    """
    name = table or _table_of(source.job.id)
    if any(not 0 < len(part.encode()) <= _NAME_MOST for part in name.split(".")):
        raise UserError(f"--table {name}", f"a name in PostgreSQL has 1 to {_NAME_MOST} bytes", "give a shorter one")
    if source.elements > _HALFVEC_MOST:
        raise UserError(
            f"the vectors of {source.job.id} have {source.elements:,} elements",
            f"pgvector's index takes at most {_HALFVEC_MOST:,}",
            f"embed again with --dimensions {_HALFVEC_MOST}, or export to lance: or faiss:",
        )
    try:
        with psycopg.connect(uri, autocommit=True, connect_timeout=10) as connection:
            _need_pgvector(connection)
            target = PostgresTarget(connection, name, source)
            target.open()
            yield target
    except (psycopg.DataError, ValueError) as error:
        raise UserError(
            f"PostgreSQL does not take a value of a kept column ({first_line(error)})",
            hint="name the columns that go along with --columns, and leave that one out",
        ) from None
    except psycopg.OperationalError as error:
        raise UserError(
            f"PostgreSQL does not answer or refuses ({first_line(error)})",
            hint="mend that, and run the same command again: it goes on where it was",
        ) from None
    except psycopg.Error as error:
        raise UserError(f"PostgreSQL refuses ({first_line(error)})") from None


def _need_pgvector(connection: psycopg.Connection[Any]) -> None:
    try:
        connection.execute("SET client_min_messages = warning")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.Error as error:
        raise UserError(
            f"the database {connection.info.dbname} has no pgvector ({first_line(error)})",
            hint="install pgvector on the server, and have its administrator run: CREATE EXTENSION vector",
        ) from None
    register_vector(connection)


def _table_of(job: str) -> str:
    """A job's id as a table's name: where that is too long, without the end of what comes before its hash."""
    name = re.sub(r"\W", "_", job, flags=re.ASCII)
    return name if len(name) <= _NAME_MOST else f"{name[: _NAME_MOST - 11]}_{name[-10:]}"
