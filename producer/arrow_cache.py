"""The needed columns of local files, written once to an Arrow file in the cache and memory-mapped from then on."""

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from producer.library import cache_folder
from producer.readers import Reader

_log = logging.getLogger("embedmill.producer")


class ArrowTable:
    """Rows in an Arrow file that is memory-mapped where they are asked for; pickled it is the file's name."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, rows: slice) -> pa.Table:
        start, stop, _ = rows.indices(len(self))
        return self._table.slice(start, stop - start)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowTable, (self._file,)

    @functools.cached_property
    def _table(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self._file))).read_all()


def cached(reader: Reader, files: Sequence[Path], schema: pa.Schema, revision: Callable[[], str]) -> ArrowTable:
    """The rows of these files, read now or taken from the cache.

    Args:
        reader: what reads them.
        files: in the rows' order.
        schema: the columns that are needed, by name or dotted path, with their types.
        revision: waits for the hash of what the files hold. It is waited for first only where a dataset of these names
            was read before: otherwise the files are read meanwhile.

    Raises:
        UserError: a file cannot be read, or was changed meanwhile.
    """
    root = os.path.commonpath([file.parent for file in files])
    dialect = reader.dialect and reader.dialect.model_dump()
    key = json.dumps([[os.path.relpath(file, root) for file in files], schema.to_string(), dialect])
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    folder = cache_folder() / "embedmill"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{name}.lock", files):
        known = any(folder.glob(f"*/{name}.arrow"))
        if known and (there := folder / revision() / f"{name}.arrow").exists():
            return ArrowTable(there)
        staged = folder / f"{name}.{os.getpid()}"
        try:
            _write(staged, reader, files, schema)
            target = folder / revision() / f"{name}.arrow"
            target.parent.mkdir(exist_ok=True)
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)
        return ArrowTable(target)


@contextlib.contextmanager
def _alone(lock: Path, files: Sequence[Path]) -> Iterator[None]:
    """Of several producers that read the same files on one machine, one does, and the others take what it has read."""
    from filelock import FileLock, Timeout

    one = FileLock(lock)
    try:
        one.acquire(timeout=0)
    except Timeout:
        _log.info("%s: another process reads it; waiting for that", files[0])
        one.acquire()
    try:
        yield
    finally:
        one.release()


def _write(target: Path, reader: Reader, files: Sequence[Path], schema: pa.Schema) -> None:
    """Write the files' rows, each batch while the next one is read."""
    with (
        pa.OSFile(str(target), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="write") as pool,
    ):
        written: Future[None] = Future()
        written.set_result(None)
        for file in files:
            rows = 0
            for batch in filter(len, reader.batches(file, schema)):
                rows += len(batch)
                written.result()
                written = pool.submit(writer.write_batch, batch)
            if not rows:
                _log.warning("%s has no rows", file)
        written.result()
