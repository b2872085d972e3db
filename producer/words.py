"""Texts to token ids by way of their words: each is tokenized once, and looked up from then on.

BERT's tokenizers part a text at white space before anything else, and nothing that they do to a word depends on its
neighbours. So a text's tokens are its words' tokens, one word's after the other's. Most of a text are words that were
seen before, and looking one up costs a tenth of tokenizing it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

ID_BYTES = 4
"""Of a token id, int32."""

_MOST = 1 << 17
"""Words that are kept, about 30 MB of them. Once there are more, all are forgotten: frequent ones are soon back."""
_LONGEST = 64
"""Characters of a word that is kept: what is longer is hardly a word, and hardly comes twice."""
_NO_SPACE = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
"""Where ``str.split`` parts a text, and BERT's normalizer, which drops control characters, joins it."""
_TOGETHER = 256
"""New words that are tokenized in one text: a text of its own costs a word five times as much."""


def words_of(tokenizer: Tokenizer) -> "Words | None":
    """What finds a text's tokens word by word; None where that is not how this tokenizer is made."""
    added = tokenizer.get_added_tokens_decoder()
    by_words = (
        isinstance(tokenizer.normalizer, BertNormalizer)
        and tokenizer.normalizer.clean_text
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and isinstance(tokenizer.model, WordPiece)
        # An added token is looked for in the text as it is.
        and all(token.content.split() == [token.content] for token in added.values())
    )
    if by_words:
        for number, token in added.items():
            found = tokenizer.encode(f"a {token.content} a", add_special_tokens=False).ids.count(number)
            # Nothing else may give its id: no other spelling, no unknown word.
            if found == 1 and not token.normalized and token.content != tokenizer.model.unk_token:
                return Words(tokenizer, token.content, number)
    return None


class Words:
    """The words that a tokenizer has met.

    Args:
        tokenizer: one for which a text's tokens are its words' tokens.
        mark: a special token of it, which no word is but itself.
        mark_id: the token's id.
    """

    def __init__(self, tokenizer: Tokenizer, mark: str, mark_id: int) -> None:
        self._tokenizer, self._mark, self._mark_id = tokenizer, mark, mark_id
        self.met: dict[str, bytes] = {}
        """Of the words that it has met. Another process that gets it knows them too, and meets further ones itself."""

    def ids(self, texts: Sequence[str]) -> Iterator[bytes]:
        """Each text's token ids, without special tokens: the bytes of int32."""
        parted = [[text] if any(mark in text for mark in _NO_SPACE) else text.split() for text in texts]
        new = list(set().union(*parted) - self.met.keys())
        self._meet(new)
        for words in parted:
            yield b"".join(map(self.met.__getitem__, words))
        for word in new:
            if len(word) > _LONGEST:
                del self.met[word]
        if len(self.met) > _MOST:
            self.met.clear()

    def _meet(self, words: Sequence[str]) -> None:
        """Tokenize words, many in one text, with the mark between them."""
        plain = [word for word in words if self._mark not in word]
        runs = [plain[start : start + _TOGETHER] for start in range(0, len(plain), _TOGETHER)]
        runs += [[word] for word in words if self._mark in word]
        texts = [f" {self._mark} ".join(run) for run in runs]
        for run, encoding in zip(runs, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            ids = np.array(encoding.ids, np.int32)
            ends = np.flatnonzero(ids == self._mark_id) if len(run) > 1 else np.array([], int)
            found, start = ids.tobytes(), 0
            for word, end in zip(run, [*ends.tolist(), len(ids)], strict=True):
                self.met[word] = found[ID_BYTES * start : ID_BYTES * end]
                start = end + 1
