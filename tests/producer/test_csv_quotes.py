"""The verdict on a file's quotes does not depend on how its bytes are cut into chunks, and a plain automaton's is the
same."""

import io
import random
from collections.abc import Callable

import pytest

from producer.csv_quotes import BrokenQuotes, QuoteChecker

CHUNK = 1 << 20


class Cut(io.RawIOBase):
    """Gives a few bytes at a time."""

    def __init__(self, content: bytes, sizes: random.Random) -> None:
        self._left, self._sizes = content, sizes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        cut = self._sizes.randint(1, 5)
        part, self._left = self._left[:cut], self._left[cut:]
        return part

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        part = self.read()
        room[: len(part)] = part
        return len(part)


def verdict(read: Callable[[QuoteChecker], object], source: object) -> str:
    try:
        read(QuoteChecker(source, ","))  # type: ignore[arg-type]
    except BrokenQuotes as error:
        return str(error)
    return ""


def read_on(checker: QuoteChecker) -> None:
    while checker.read(7):
        pass


def read_all(checker: QuoteChecker) -> None:
    checker.read_all(lambda: True)


def is_broken(content: str) -> bool:
    """By an automaton that looks at one character after the other. A quote in the middle of an unquoted field is a
    character like any other, unless a backslash is before it."""
    state, ends = "begin", set()
    for place, character in enumerate(content):
        following = content[place + 1 : place + 2]
        if state == "quoted":
            if character == '"':
                state = "closed"
            continue
        if character == '"':
            if state in ("begin", "closed"):
                state = "quoted"
            elif content[place - 1] == "\\":
                return True
            continue
        if state == "closed" and character not in ",\r\n":
            return True
        if character == "\n" and content[place - 1 : place] != "\r":
            ends.add("\n")
        elif character == "\r":
            ends.add("\r\n" if following == "\n" else "\r")
        state = "begin" if character in ",\r\n" else "field"
    return state == "quoted" or len(ends) > 1


@pytest.mark.parametrize("seed", range(4))
def test_it_does_not_depend_on_how_the_bytes_are_cut(seed: int) -> None:
    draw = random.Random(seed)
    found = set()
    for _ in range(700):
        weights = [draw.random() ** 3 for _ in '",\n\r\\a']
        content = "".join(draw.choices('",\n\r\\a', weights, k=draw.randint(0, 24)))
        whole = verdict(read_all, io.BytesIO(content.encode()))
        assert bool(whole) == is_broken(content), content
        for read in (read_all, read_on):  # which fault is found first may differ
            assert bool(verdict(read, Cut(content.encode(), draw))) == bool(whole), content
        found.add(whole[:12])
    assert len(found) > 4


@pytest.mark.parametrize("place", range(CHUNK - 4, CHUNK + 4))
@pytest.mark.parametrize(
    ("field", "broken"), [('"a""b",', False), ('"a"b",', True), ('"\r\n",', False), ("a\r\n", True), ('a\\"', True)]
)
def test_what_lies_across_two_chunks_is_seen(place: int, field: str, broken: bool) -> None:
    content = ("x" * (place - 1)) + "," + field + "d\n" + "e,f\n" * 3
    assert content.index(field) == place
    assert bool(verdict(read_all, io.BytesIO(content.encode()))) == broken
    assert bool(verdict(read_on_in_large_pieces, io.BytesIO(content.encode()))) == broken


def read_on_in_large_pieces(checker: QuoteChecker) -> None:
    while checker.read(3 * CHUNK // 2):
        pass
