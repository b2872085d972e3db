import pickle
import random
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from producer import words
from producer.words import Words, words_of
from tests.conftest import JARGON, MINILM

ALPHABET = (
    [chr(code) for code in range(0x180)]
    + list("ΣσςİıßﬁǅÅ중文字かがガ語ไทยहिन्दी한글🙂👩🏽‍🔬")
    + [
        "\u0301",
        "\u0327",
        "\u200b",
        "\u200d",
        "\u00ad",
        "\ufeff",
        "\ufffd",
        "\u2028",
        "\u3000",
        "\u00a0",
        "\u180e",
        "\u202e",
    ]
    + [chr(code) for code in range(0x110000) if chr(code).isspace()]
    + ["[SEP]", "[sep]", "[SE", "P]", "[PAD] ", "##s", "a" * 101, "the ", "mill ", " "]
)
"""What a tokenizer may treat in a way of its own: white space, controls, accents, letters without white space."""


@pytest.fixture
def tokenizer() -> Tokenizer:
    return bert()


def bert(**options: bool) -> Tokenizer:
    found = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    found.normalizer = BertNormalizer(**options)
    return found


def looked_up(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [np.frombuffer(ids, np.int32).tolist() for ids in met(tokenizer).ids(texts)]


def met(tokenizer: Tokenizer) -> Words:
    found = words_of(tokenizer)
    assert found is not None
    return found


def whole(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_words_give_the_tokens_that_the_text_gives(lowercase: bool, strip_accents: bool, chinese: bool) -> None:
    tokenizer = bert(lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese)
    chance = random.Random(0)
    texts = ["".join(chance.choices(ALPHABET, k=chance.randrange(60))) for _ in range(3000)]
    assert looked_up(tokenizer, texts) == whole(tokenizer, texts)


def test_every_character_is_treated_alike_inside_a_word_and_at_its_ends(tokenizer: Tokenizer) -> None:
    codes = [chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000]
    texts = [f"{char}ab{char}cd{char} {char} x" for char in codes]
    assert looked_up(tokenizer, texts) == whole(tokenizer, texts)
    assert sum(unicodedata.category(char) == "Cc" for char in codes) == 65


def test_a_text_gives_the_same_tokens_again_once_its_words_are_known(tokenizer: Tokenizer) -> None:
    texts = [text for text in JARGON.read_text(encoding="utf-8").splitlines() for _ in range(2)]
    found = met(tokenizer)
    first = list(found.ids(texts))
    assert list(found.ids(texts)) == first
    assert all(left == right for (left, right), (a, b) in zip(pairwise(first), pairwise(texts), strict=True) if a == b)
    assert [np.frombuffer(ids, np.int32).tolist() for ids in first[::200]] == whole(tokenizer, texts[::200])


def test_another_process_knows_the_words_that_were_met(tokenizer: Tokenizer) -> None:
    known = words_of(tokenizer)
    assert known
    expected = list(known.ids(["the mill grinds", "the miller"]))
    there: Words = pickle.loads(pickle.dumps(known))
    assert there.met == known.met
    assert list(there.ids(["the mill grinds", "the miller"])) == expected


def test_words_are_bounded_and_forgetting_them_changes_nothing(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MOST", 20)
    found, texts = met(tokenizer), ["the mill " + "x" * 70, *(f"word{number} the mill" for number in range(100))]
    for text in texts:
        (ids,) = found.ids([text])
        assert np.frombuffer(ids, np.int32).tolist() == whole(tokenizer, [text])[0]
        assert len(found.met) <= 20
        assert "x" * 70 not in found.met


def test_other_tokenizers_are_not_taken_word_by_word(tokenizer: Tokenizer, tmp_path: Path) -> None:
    met(tokenizer)
    for change in (
        lambda it: setattr(it, "normalizer", Lowercase()),
        lambda it: setattr(it, "normalizer", None),
        lambda it: setattr(it, "normalizer", BertNormalizer(clean_text=False)),
        lambda it: setattr(it, "pre_tokenizer", ByteLevel()),
        lambda it: setattr(it, "model", BPE()),
        lambda it: it.add_tokens([AddedToken("the mill")]),
        lambda it: setattr(it, "encode_special_tokens", True),
    ):
        other = bert()
        assert isinstance(other.pre_tokenizer, BertPreTokenizer)
        change(other)
        assert words_of(other) is None
    tokenizer.add_tokens([AddedToken("mill", single_word=True), AddedToken("[x", lstrip=True, rstrip=True)])
    texts = ["the mill", "themill mills", "a [x b[x", " [x"]
    assert looked_up(tokenizer, texts) == whole(tokenizer, texts)
