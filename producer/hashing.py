"""What local files hold, as one hash: computed by several threads while the files are read."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from contract.errors import UserError

_PIECE = 16 << 20
"""Bytes that are hashed by themselves: 500 MB keep 30 threads busy."""
_CHUNK = 1 << 20
_MOST_THREADS = 16


@contextlib.contextmanager
def hashing(root: Path, files: Sequence[Path]) -> Iterator[Callable[[], str]]:
    """Hash files while the ``with`` block reads them.

    Args:
        root: what their names are relative to.
        files: in order.

    Yields:
        Waits for the hash, which is over each file's name, its size, and the SHA-256 of each piece of 16 MiB. It raises
        a ``UserError`` if a file has changed since the block began, and an ``OSError`` if one cannot be read.
    """
    before = {file: _state(file) for file in files}
    threads = min(max(len(os.sched_getaffinity(0)) // 2, 1), _MOST_THREADS)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="hash")
    try:
        pieces = {
            file: [
                pool.submit(_piece, file, start, min(_PIECE, size - start)) for start in range(0, max(size, 1), _PIECE)
            ]
            for file, (size, _) in before.items()
        }

        def revision() -> str:
            digest = hashlib.sha256()
            for file, found in pieces.items():
                digest.update(f"{file.relative_to(root)}\0{before[file][0]}\0".encode())
                digest.update(b"".join(map(Future.result, found)))
            for file, state in before.items():
                if _state(file) != state:
                    raise UserError(
                        f"{file} was changed while it was read",
                        "expected a file that stays",
                        "run the same command again",
                    )
            return digest.hexdigest()

        yield revision
    finally:
        pool.shutdown(cancel_futures=True)


def hash_of(root: Path, files: Sequence[Path]) -> str:
    """The hash of ``hashing``, waited for."""
    with hashing(root, files) as revision:
        return revision()


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _piece(file: Path, start: int, size: int) -> bytes:
    digest, left, room = hashlib.sha256(), size, memoryview(bytearray(min(_CHUNK, size)))
    with file.open("rb", buffering=0) as source:
        source.seek(start)
        while count := source.readinto(room[:left]):
            digest.update(room[:count])
            left -= count
    return digest.digest()
