"""The bytes of a file as text readers want them: uncompressed, without a byte order mark, with a progress bar."""

import bz2
import contextlib
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from contract.errors import UserError, reason
from producer.files import kind_of

_BUFFER = 1 << 19
"""Bytes. A read of more goes past the buffer, which saves a copy."""
_BOM = b"\xef\xbb\xbf"
_DECOMPRESSED: dict[str, Callable[[io.BufferedReader], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"),
}
"""Suffix → what gives the bytes that a file holds."""

_COMMANDS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Suffix → the program that reads it."""


class _Counted(io.RawIOBase):
    """A file whose reads move a progress bar."""

    def __init__(self, file: io.FileIO, bar: Any) -> None:
        self._file, self._bar = file, bar

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._bar.update(count)
        return count


@contextlib.contextmanager
def opened(path: Path, *, quiet: bool = False) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed as its suffix says, after a byte order mark if there is one.

    Raises:
        UserError: also from the ``with`` block: it is not compressed as its suffix says, or is in UTF-16.
    """
    compression = kind_of(path.name)[1]
    try:
        with (
            path.open("rb", buffering=0) as raw,
            tqdm(
                total=path.stat().st_size, unit="B", unit_scale=True, desc=f"Reading {path.name}", disable=quiet or None
            ) as bar,
        ):
            counted: io.BufferedReader = io.BufferedReader(_Counted(raw, bar), _BUFFER)
            stream: io.BufferedReader = (
                io.BufferedReader(_DECOMPRESSED[compression](counted), _BUFFER) if compression else counted
            )
            start = stream.peek(3)[:3]
            if start.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{path} is in UTF-16", "expected UTF-8", _converted(path, "UTF-16"))
            if start == _BOM:
                stream.read(3)
            yield stream
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise _not_compressed(path, compression, error) from None
    except OSError as error:
        if compression and error.errno is None:
            raise _not_compressed(path, compression, error) from None
        raise


def _not_compressed(path: Path, compression: str, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read ({reason(error)})",
        f"expected the whole of a file that is compressed as {compression} says",
        "give it the suffix that it has, or bring it again",
    )


def check_utf8(path: Path) -> None:
    """Find the first line that is no UTF-8.

    Raises:
        UserError: there is one.
    """
    with opened(path, quiet=True) as source:
        for number, line in enumerate(source, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise no_utf8(path, number, error) from None


def no_utf8(path: Path, line: int, error: UnicodeDecodeError) -> UserError:
    """Line ``line`` of a file is no UTF-8."""
    return UserError(
        f"{path}, line {line}: {error.object[error.start : error.start + 4]!r} is no UTF-8",
        "expected UTF-8",
        _converted(path, "WINDOWS-1252"),
    )


def _converted(path: Path, encoding: str) -> str:
    """The command that writes a file in UTF-8."""
    compression = kind_of(path.name)[1]
    source, target = shlex.quote(str(path)), shlex.quote(f"utf8-{path.name[: len(path.name) - len(compression)]}")
    if not compression:
        return f"iconv -f {encoding} -t UTF-8 {source} > {target}"
    return f"{_COMMANDS[compression]} -dc {source} | iconv -f {encoding} -t UTF-8 > {target}"
