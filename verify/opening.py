"""Opening a dataset's files, compressed or not."""

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import zstandard


@contextmanager
def open_text(file: Path) -> Iterator[IO[str]]:
    """A file's text, its line ends as they are."""
    with open_bytes(file) as opened, io.TextIOWrapper(opened, encoding="utf-8", newline="") as text:
        yield text


@contextmanager
def open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed by its suffix, without a byte order mark at their start."""
    with _OPEN.get(file.suffix.lower(), Path.open)(file, "rb") as opened:
        if opened.peek(3).startswith(codecs.BOM_UTF8):
            opened.read(len(codecs.BOM_UTF8))
        yield cast(IO[bytes], opened)


def _open_zstandard(file: Path, mode: str) -> IO[bytes]:
    return io.BufferedReader(zstandard.open(file, mode))


_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstandard}
