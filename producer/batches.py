"""Texts to token ids: pure functions over the ``tokenizers`` library, padded by hand into one int32 array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.job import Job


@dataclass(frozen=True)
class RowTokenizer:
    """An engine's tokenizer, ready to truncate and pad."""

    tokenizer: Tokenizer
    length: int
    """Tokens of a row, padding included."""
    pad_id: int
    suffix: int
    """How many special tokens end a row, and so are kept when its text is truncated."""
    start: int
    """How many special tokens begin a row."""

    def pieces(self, ids: list[int], overlap: int | None) -> list[list[int]]:
        """A row's tokens, none of the results longer than ``length``: truncated, or in windows that share ``overlap``
        tokens. Each begins and ends with the row's special tokens."""
        if len(ids) <= self.length:
            return [ids]
        end = len(ids) - self.suffix
        if overlap is None:
            return [ids[: self.length - self.suffix] + ids[end:]]
        first, text, last = ids[: self.start], ids[self.start : end], ids[end:]
        size = self.window
        steps = range(0, len(text) - overlap, size - overlap)
        return [first + text[begin : begin + size] + last for begin in steps]

    @property
    def window(self) -> int:
        """How many of a text's own tokens fit into a row."""
        return self.length - self.start - self.suffix


def open_tokenizer(spec: EngineSpec) -> RowTokenizer:
    """The engine's tokenizer, once its hash has been compared with the recorded one.

    Raises:
        UserError: the file was changed.
    """
    return tokenizer_from(
        spec.check_file("tokenizer/tokenizer.json", spec.tokenizer_sha256), spec.max_length, spec.pad_id
    )


def tokenizer_from(file: Path, length: int, pad_id: int) -> RowTokenizer:
    """A tokenizer from a ``tokenizer.json``, whatever truncation or padding the file asks for."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = tokenizer.encode("a").special_tokens_mask
    suffix = next((count for count, flag in enumerate(reversed(special)) if not flag), 0)
    start = next((count for count, flag in enumerate(special) if not flag), 0)
    return RowTokenizer(tokenizer, length, pad_id, suffix, start)


def tokenize(
    texts: Sequence[str | None], rows: RowTokenizer, prefix: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokenize, truncate and pad.

    Args:
        texts: ``n`` of them; None for a row without a text.
        rows: the tokenizer.
        prefix: put before every text.

    Returns:
        ``input_ids`` and ``attention_mask``, int32 ``[n, length]``, and ``n_tokens``, int32 ``[n]``: the tokens before
        truncation, special tokens counted. A row without a text is all padding and has 0 tokens.
    """
    return tokenize_windows(texts, rows, prefix, None)[1:]


def tokenize_windows(
    texts: Sequence[str | None], rows: RowTokenizer, prefix: str, overlap: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As ``tokenize``, with one more row for each further window of a long text.

    Args:
        texts: None for a row without a text.
        rows: the tokenizer.
        prefix: put before every text, and so into a long one's first window.
        overlap: tokens that a window shares with the next one; None to truncate long texts.

    Returns:
        The place of each row's text, int64 ``[n]``, and what ``tokenize`` returns, ``n_tokens`` of the whole text.
    """
    present = [place for place, text in enumerate(texts) if text is not None]
    encodings = rows.tokenizer.encode_batch_fast([_encodable(prefix + str(texts[place])) for place in present])
    n_tokens = np.zeros(len(texts), np.int32)
    pieces: list[list[list[int]]] = [[[]] for _ in texts]
    for place, encoding in zip(present, encodings, strict=True):
        ids = encoding.ids
        n_tokens[place], pieces[place] = len(ids), rows.pieces(ids, overlap)
    owners = np.repeat(np.arange(len(texts)), [len(windows) for windows in pieces])
    flat = [ids for windows in pieces for ids in windows]
    input_ids = np.full((len(flat), rows.length), rows.pad_id, np.int32)
    for row, ids in zip(input_ids, flat, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(ids) for ids in flat])
    attention_mask = (np.arange(rows.length) < lengths[:, None]).astype(np.int32)
    return owners, input_ids, attention_mask, n_tokens[owners]


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which a Python string can hold and UTF-8 cannot, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def batch_of(
    job: Job,
    number: int,
    texts: Sequence[str | None],
    rows: RowTokenizer,
    kept: Mapping[str, pa.Array] | None = None,
) -> Batch:
    """One batch of a job from the texts, and the columns to keep, of ``job.row_range(number)``.

    Raises:
        ValueError: there are not as many texts as rows.
    """
    wanted = job.row_range(number)
    if len(texts) != len(wanted):
        raise ValueError(f"found {len(texts)} texts for {len(wanted)} rows")
    owners, input_ids, attention_mask, n_tokens = tokenize_windows(texts, rows, job.prefix, job.overlap)
    # A text's further windows have nulls there: once is enough for what may be long.
    first = np.diff(owners, prepend=-1) != 0
    places = pa.array(np.where(first, owners, 0), mask=~first)
    return Batch(
        job=job.id,
        number=number,
        engine=job.fingerprint,
        row_id=np.arange(wanted.start, wanted.stop, dtype=np.int64)[owners],
        input_ids=input_ids,
        attention_mask=attention_mask,
        # The second segment is for pairs of texts; a row is one text.
        token_type_ids=np.zeros_like(input_ids),
        n_tokens=n_tokens,
        kept={name: values.take(places) for name, values in (kept or {}).items()},
    )
