"""Quotes and line ends in csv files, checked as the bytes go by: pyarrow takes what it should refuse."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np


class BrokenQuotes(ValueError):
    """Quotes or line ends where none may be."""


class QuoteChecker(io.RawIOBase):
    """Passes bytes on as long as quotes are where they belong: pyarrow takes what follows a closing quote, and a quote
    that is never closed, for text. A quote in the middle of an unquoted field is a character like any other.
    """

    def __init__(self, source: io.BufferedReader, separator: str) -> None:
        self._source, self._ends = source, np.frombuffer(f"{separator}\n\r".encode(), np.uint8)
        self._held = b"\n"
        """The byte before, and one that is not judged yet."""
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
        data = self._held + (chunk or bytes(self._ends[:1]))
        self._judge(np.frombuffer(data, np.uint8), b"\r" in data)
        self._held = data[-2:]
        if not chunk and self._inside:
            raise BrokenQuotes("a quote is not closed")
        return chunk

    def _judge(self, data: Any, returns: bool) -> None:
        quotes, inside = np.flatnonzero(data[1:-1] == 34) + 1, self._inside
        delimiting = self._field_quotes(data, quotes) if len(quotes) else quotes
        self._closed = self._closed and len(data) < 3 if not len(quotes) else self._closed
        if self._line_end != "\n" or returns:
            self._judge_lines(data, lambda positions: (np.searchsorted(delimiting, positions) + inside) % 2 == 0)

    def _judge_lines(self, data: Any, unquoted: Callable[[Any], Any]) -> None:
        """See that all rows end alike: a line end inside a text without quotes is most often of another kind."""
        feeds, returns = (np.flatnonzero(data[1:-1] == code) + 1 for code in (10, 13))
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
        begins, ends = np.isin(before, self._ends), np.isin(after, self._ends) | (after == 34)
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
