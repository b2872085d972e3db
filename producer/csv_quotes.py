"""Quotes and line ends in csv files, checked as the bytes go by: pyarrow takes what it should refuse."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np

_CHUNK = 1 << 20
"""Bytes that are judged in one go."""
_HELD = 2
"""Bytes of the last chunk that are kept: the last one that was judged, and the one behind it, which was not."""


class BrokenQuotes(ValueError):
    """Quotes or line ends where none may be."""


class QuoteChecker(io.RawIOBase):
    """Passes bytes on as long as quotes are where they belong: pyarrow takes what follows a closing quote, and a quote
    that is never closed, for text. A quote in the middle of an unquoted field is a character like any other.
    """

    def __init__(self, source: io.BufferedReader, separator: str) -> None:
        self._source, self._separator = source, separator.encode()
        self._is_end = np.isin(np.arange(256), list(f"{separator}\n\r".encode()))
        """Of each byte whether it ends a field."""
        self._bytes = bytearray(_HELD * self._separator) + bytearray(_CHUNK)
        """What is held, at first as if an empty field were before the file, and a chunk. Reused, and so is the mask: to
        look at bytes takes less time than new memory does."""
        self._values, self._mask = np.frombuffer(self._bytes, np.uint8), np.empty(_CHUNK + 8, np.bool_)
        self._inside = self._closed = False
        """Whether what is judged ends inside quotes, and whether it ends with a closing quote."""
        self._line_end = ""
        """What ends the rows, once it is known."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes, after a look at them.

        Raises:
            BrokenQuotes: text follows a closing quote, a quote is not closed, or rows end in several ways.
        """
        chunk = self._source.read(size)
        for start in range(0, len(chunk), _CHUNK):
            part = memoryview(chunk)[start : start + _CHUNK]
            self._bytes[_HELD : _HELD + len(part)] = part
            self._judge(len(part))
        if not chunk:
            self._judge_end()
        return chunk

    def read_all(self, wanted: Callable[[], bool]) -> None:
        """Look at all bytes that are left, as long as that is wanted.

        Raises:
            BrokenQuotes: see ``read``.
        """
        with memoryview(self._bytes)[_HELD:] as room:
            while wanted():
                if not (count := self._source.readinto(room)):
                    return self._judge_end()
                self._judge(count)

    def _judge_end(self) -> None:
        self._bytes[_HELD] = ord(self._separator)  # the end of the file ends a field too
        self._judge(1)
        if self._inside:
            raise BrokenQuotes("a quote is not closed")

    def _judge(self, count: int) -> None:
        """Judge the byte that was not, and ``count`` bytes behind it but for the last one."""
        end = _HELD + count
        data, inside = self._values[:end], self._inside
        quotes = delimiting = self._positions(data, 34)
        if len(quotes):
            delimiting = self._field_quotes(data, quotes)
        else:
            self._closed = False
        if self._line_end != "\n" or self._bytes.find(b"\r", 0, end) >= 0:
            self._judge_lines(data, lambda positions: (np.searchsorted(delimiting, positions) + inside) % 2 == 0)
        self._bytes[:_HELD] = self._bytes[count:end]

    def _positions(self, data: Any, code: int) -> Any:
        """Where ``code`` is in ``data``, but for its first and last byte.

        Most groups of eight bytes have none, so groups are looked at first: two thirds of ``np.flatnonzero``'s time.
        """
        size = len(data) - 2
        np.equal(data[1:-1], code, out=self._mask[:size])
        self._mask[size : size + 8] = False
        groups = self._mask[: -(-size // 8) * 8].reshape(-1, 8)
        some = np.flatnonzero(groups.view(np.uint64) != 0)
        found = np.flatnonzero(groups[some])
        return 8 * some[found // 8] + found % 8 + 1

    def _judge_lines(self, data: Any, unquoted: Callable[[Any], Any]) -> None:
        """See that all rows end alike: a line end inside a text without quotes is most often of another kind."""
        feeds, returns = (self._positions(data, code) for code in (10, 13))
        feeds, returns = feeds[unquoted(feeds)], returns[unquoted(returns)]
        ends = {
            "\n": (data[feeds - 1] != 13).any(),
            "\r\n": (data[returns + 1] == 10).any(),
            "\r": (data[returns + 1] != 10).any(),
        }
        for end in (end for end, there in ends.items() if there):
            if self._line_end not in ("", end):
                raise BrokenQuotes(f"rows end with {self._line_end!r}, and one with {end!r}")
            self._line_end = end

    def _field_quotes(self, data: Any, quotes: Any) -> Any:
        """The positions of the quotes that begin and end quoted fields, as far as they are where they belong."""
        before, after = data[quotes - 1], data[quotes + 1]
        begins, ends = self._is_end[before], self._is_end[after] | (after == 34)
        opening = (np.arange(len(quotes)) + self._inside) % 2 == 0
        stray = quotes[0] == 1 and before[0] == 34 and not self._closed and not self._inside
        if not stray and (begins | (before == 34) | ~opening).all() and (ends | opening).all():
            self._inside, self._closed = bool(opening[-1]), not opening[-1] and quotes[-1] == len(data) - 2
            return quotes
        delimiting, closed = [], 0 if self._closed else -1
        for position, begin, end in zip(quotes.tolist(), begins.tolist(), ends.tolist(), strict=True):
            if self._inside:
                if not end:
                    raise BrokenQuotes("a closing quote is followed by text")
                self._inside, closed = False, position
            elif begin or closed == position - 1:
                self._inside = True
            elif data[position - 1] == 92:
                raise BrokenQuotes("a backslash escapes a quote")
            else:
                continue  # in the middle of an unquoted field
            delimiting.append(position)
        self._closed = closed == len(data) - 2
        return np.array(delimiting, np.intp)
