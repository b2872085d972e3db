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

_MOST = 1 << 17
"""Words that are kept, about 30 MB of them. Once there are more, all are forgotten: frequent ones are soon back."""
_LONGEST = 64
"""Characters of a word that is kept: what is longer is hardly a word, and hardly comes twice."""
_NO_SPACE = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
"""Where ``str.split`` parts a text, and BERT's normalizer, which drops control characters, joins it."""


def by_words(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens are its words' tokens, in whatever text, as this tokenizer is made."""
    return (
        isinstance(tokenizer.normalizer, BertNormalizer)
        and tokenizer.normalizer.clean_text
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and isinstance(tokenizer.model, WordPiece)
        # An added token is looked for in the text as it is.
        and all(token.content.split() == [token.content] for token in tokenizer.get_added_tokens_decoder().values())
    )


class Words:
    """The words that a tokenizer has met.

    Args:
        tokenizer: one for which ``by_words`` holds.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[type["Words"], tuple[Tokenizer]]:
        return Words, (self._tokenizer,)  # another process meets words of its own

    def ids(self, texts: Sequence[str]) -> Iterator[bytes]:
        """Each text's token ids, without special tokens: int32, 4 bytes each."""
        parted = [[text] if any(mark in text for mark in _NO_SPACE) else text.split() for text in texts]
        new = list(set().union(*parted) - self._ids.keys())
        for word, encoding in zip(new, self._tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self._ids[word] = np.array(encoding.ids, np.int32).tobytes()
        for words in parted:
            yield b"".join(map(self._ids.__getitem__, words))
        for word in new:
            if len(word) > _LONGEST:
                del self._ids[word]
        if len(self._ids) > _MOST:
            self._ids.clear()
