import random
import re
import sys

import pytest

from contract.blank import unless_blank


def test_a_text_of_nothing_but_white_space_is_none() -> None:
    for letter in map(chr, range(sys.maxunicode + 1)):
        white = re.fullmatch(r"\s", letter) is not None
        assert unless_blank(letter) == (None if white else letter)


@pytest.mark.parametrize("text", ["a", " a ", "\u3000a\n", "\u200b", " \ufeff ", "\0", "\ud800"])
def test_any_other_text_stays_as_it_is(text: str) -> None:
    assert unless_blank(text) == text


def test_white_space_of_any_length() -> None:
    chance = random.Random(3)
    white = [chr(code) for code in range(sys.maxunicode + 1) if re.fullmatch(r"\s", chr(code))]
    assert unless_blank(None) is None
    assert unless_blank("") is None
    for _ in range(300):
        blank = "".join(chance.choices(white, k=chance.randrange(1, 50)))
        assert unless_blank(blank) is None
        assert unless_blank(blank + "." + blank) == blank + "." + blank
