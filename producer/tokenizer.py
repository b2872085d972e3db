"""Texts to token ids: pure functions over the ``tokenizers`` library.

Until all are joined, a row's ids are the bytes of int32: joining and cutting small arrays instead cost a tenth of the
speed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from contract.engine import EngineSpec
from contract.tokens import TokenRows
from producer.words import ID_BYTES, Words, words_of


@dataclass(frozen=True)
class RowTokenizer:
    """An engine's tokenizer, ready to truncate and pad. Token ids are the bytes of int32."""

    tokenizer: Tokenizer
    length: int
    """Most tokens of a row."""
    pad_id: int
    first: bytes
    """Ids of the special tokens that begin a row."""
    last: bytes
    """Ids of those that end it, and so are kept when its text is truncated."""
    words: Words | None
    """What finds a text's tokens word by word; None where that is not the tokenizer's way."""
    pools_prompt: bool = True
    """Whether a prompt's tokens are pooled with the text's."""

    def ids(self, texts: Sequence[str]) -> Iterator[bytes]:
        """Each text's token ids, without special tokens."""
        if self.words:
            return self.words.ids(texts)
        start, suffix = len(self.first) // ID_BYTES, len(self.last) // ID_BYTES
        encodings = self.tokenizer.encode_batch_fast(texts)
        return (np.array(each.ids[start : len(each.ids) - suffix], np.int32).tobytes() for each in encodings)

    def pieces(self, ids: bytes, overlap: int | None) -> list[bytes]:
        """A text's rows with their special tokens: truncated to one, or in windows that share ``overlap`` tokens.

        Example: 10 tokens, of which 4 fit into a row, with an overlap of 1 are the windows 0 to 3, 3 to 6 and 6 to 9.
        """
        size = ID_BYTES * self.window
        if len(ids) <= size or overlap is None:
            return [self.first + ids[:size] + self.last]
        shared = ID_BYTES * overlap
        starts = range(0, len(ids) - shared, size - shared)
        return [self.first + ids[start : start + size] + self.last for start in starts]

    def prompt_tokens(self, prompt: str) -> int:
        """How many tokens at each row's beginning are a prompt's, as sentence-transformers counts them: a special token
        at its end is not."""
        if not prompt:
            return 0
        (ids,) = self.ids([_encodable(prompt)])
        (row,) = self.pieces(ids, None)
        special = {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        numbers = np.frombuffer(row, np.int32)
        return len(numbers) - bool(numbers[-1] in special)

    @property
    def special(self) -> int:
        """How many special tokens a row has."""
        return (len(self.first) + len(self.last)) // ID_BYTES

    @property
    def window(self) -> int:
        """How many of a text's own tokens fit into a row."""
        return self.length - self.special


def open_tokenizer(spec: EngineSpec) -> RowTokenizer:
    """The engine's tokenizer, once its hash has been compared with the recorded one.

    Raises:
        UserError: the file was changed.
    """
    file = spec.check_file("tokenizer/tokenizer.json", spec.tokenizer_sha256)
    return replace(tokenizer_from(file, spec.max_length, spec.pad_id), pools_prompt=spec.include_prompt)


def tokenizer_from(file: Path, length: int, pad_id: int) -> RowTokenizer:
    """A tokenizer from a ``tokenizer.json``, whatever truncation or padding the file asks for."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    row = tokenizer.encode("a")
    ids, special = np.array(row.ids, np.int32), row.special_tokens_mask
    start, end = special.index(0), len(special) - special[::-1].index(0)
    return RowTokenizer(tokenizer, length, pad_id, ids[:start].tobytes(), ids[end:].tobytes(), words_of(tokenizer))


def tokenize(
    texts: Sequence[str | None], rows: RowTokenizer, prefix: str = ""
) -> tuple[TokenRows, npt.NDArray[np.int32]]:
    """Tokenize and truncate.

    Args:
        texts: ``n`` of them; None for a row without a text.
        rows: the tokenizer.
        prefix: put before every text.

    Returns:
        ``n`` rows, and ``n_tokens``, int32 ``[n]``: the tokens before truncation, special tokens counted. A row without
        a text has 0 tokens.
    """
    return tokenize_windows(texts, rows, prefix, None)[1:]


def tokenize_windows(
    texts: Sequence[str | None], rows: RowTokenizer, prefix: str, overlap: int | None
) -> tuple[npt.NDArray[np.int64], TokenRows, npt.NDArray[np.int32]]:
    """As ``tokenize``, with one more row for each further window of a long text.

    Args:
        texts: None for a row without a text.
        rows: the tokenizer.
        prefix: put before every text, and so into a long one's first window.
        overlap: tokens that a window shares with the next one; None to truncate long texts.

    Returns:
        The index of each row's text, int64 ``[n]``, and what ``tokenize`` returns, ``n_tokens`` of the whole text.
    """
    present = [index for index, text in enumerate(texts) if text is not None]
    found = rows.ids([_encodable(prefix + str(texts[index])) for index in present])
    n_tokens = np.zeros(len(texts), np.int32)
    pieces = [[b""] for _ in texts]
    for index, ids in zip(present, found, strict=True):
        n_tokens[index], pieces[index] = len(ids) // ID_BYTES + rows.special, rows.pieces(ids, overlap)
    owners = np.repeat(np.arange(len(texts)), [len(windows) for windows in pieces])
    flat = [ids for windows in pieces for ids in windows]
    lengths = np.array([len(ids) // ID_BYTES for ids in flat], np.int32)
    return owners, TokenRows(np.frombuffer(b"".join(flat), np.int32), lengths), n_tokens[owners]


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which a Python string can hold and UTF-8 cannot, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
