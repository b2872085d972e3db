"""Texts to token ids: pure functions over the ``tokenizers`` library, padded by hand into one int32 array."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
    return RowTokenizer(tokenizer, length, pad_id, suffix)


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
    present = [place for place, text in enumerate(texts) if text is not None]
    encodings = rows.tokenizer.encode_batch_fast([_encodable(prefix + str(texts[place])) for place in present])
    input_ids = np.full((len(texts), rows.length), rows.pad_id, np.int32)
    n_tokens = np.zeros(len(texts), np.int32)
    for place, encoding in zip(present, encodings, strict=True):
        ids = encoding.ids
        n_tokens[place] = len(ids)
        if len(ids) > rows.length:
            ids = ids[: rows.length - rows.suffix] + ids[len(ids) - rows.suffix :]
        input_ids[place, : len(ids)] = ids
    attention_mask = (np.arange(rows.length) < n_tokens[:, None]).astype(np.int32)
    return input_ids, attention_mask, n_tokens


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which a Python string can hold and UTF-8 cannot, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def batch_of(job: Job, number: int, texts: Sequence[str | None], rows: RowTokenizer) -> Batch:
    """One batch of a job from the texts of ``job.row_range(number)``."""
    input_ids, attention_mask, n_tokens = tokenize(texts, rows, job.prefix)
    wanted = job.row_range(number)
    return Batch(
        job=job.id,
        number=number,
        engine=job.fingerprint,
        row_id=np.arange(wanted.start, wanted.stop, dtype=np.int64),
        input_ids=input_ids,
        attention_mask=attention_mask,
        # The second segment is for pairs of texts; a row is one text.
        token_type_ids=np.zeros_like(input_ids),
        n_tokens=n_tokens,
    )
