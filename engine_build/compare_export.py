"""What computes an engine against sentence-transformers' ``encode()``, on the way that rows really take."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from contract.batch import Batch
from contract.compare import TOLERANCES, Comparison, compare
from contract.errors import UserError
from contract.words import count
from engine_build.model import Parts
from producer.tokenizer import RowTokenizer, tokenize
from worker.runtime.interface import Engine

_BATCH = 8
"""Rows that are computed together."""
_LONG, _LONGEST = 512, 4096
"""Tokens: rows that may be longer than the first are compared with one of as many as they may have, up to the second.
"""

TEXTS = (
    "",
    "   \t\n ",
    "Mill.",
    "mill.",
    "MILL",
    "The miller's stone turns slowly, and the flour falls through the sieve.",
    "  leading and trailing white space \n",
    "Ünïcödé façade, composed",
    "U\u0308ni\u0308co\u0308de\u0301 fac\u0327ade, decomposed",
    "日本語のテキスト、中文文本 and 한국어",
    "نص عربي مع أرقام ١٢٣",
    "emoji 🙂👩‍👩‍👧 and numbers 3.14159",
    "control \x07\x1b[0m characters \u200b\ufeff and a\x00NUL",
    "[MASK]",
    "</s>",
    "<mask> <s> <pad> <unk>",
    "[CLS] a [SEP]",
    "a[UNK]b [PAD]",
    "don't e-mail: http://example.org/?q=1&r=2#x",
    "a" * 300,
    "A text dataset is cut into batches; each batch waits in a queue until a worker takes it. " * 6,
    "Every row is accounted for exactly once, even when machines fail. " * 60,
)
"""Of many lengths and scripts; the last is longer than most models take. The blank ones have no vector in a job, but
other texts may have no token of their own either, such as a zero-width space."""


class Expected:
    """What ``encode()`` gives.

    Args:
        parts: the model.
        rows: the engine's tokenizer, as the producer opens it.
        prompts: those that rows may have, besides none.
    """

    def __init__(self, parts: Parts, rows: RowTokenizer, prompts: Sequence[str]) -> None:
        truncate_at(parts.reference, rows.length)
        self.rows, self.prompts = rows, tuple(dict.fromkeys(("", *prompts)))
        # Of a model that takes long texts, what may change with the position is seen in a long one alone.
        self.texts = (*TEXTS, *([long_text(rows)] if rows.length > _LONG else []))
        self._encoded = {prompt: _encoded(parts, self.texts, prompt) for prompt in self.prompts}

    def of(self, prompt: str) -> list[npt.NDArray[np.float32]]:
        """Of each of ``texts`` ``[1, hidden]``, or ``[tokens, hidden]``."""
        return self._encoded[prompt]


def long_text(rows: RowTokenizer) -> str:
    """Of as many tokens as a row may have, or more; where it may have more than ``_LONGEST``, of at most that, as the
    memory of an exported graph's attention grows by the square."""
    _, (each,) = tokenize(TEXTS[-1:], rows)
    times = _LONGEST // each if rows.length > _LONGEST else -(-rows.length // each)
    return TEXTS[-1] * max(1, times)


def truncate_at(model: Any, length: int) -> None:
    """Have a model of sentence-transformers truncate texts at so many tokens."""
    if isinstance(model[0], StaticEmbedding):
        model[0].tokenizer.enable_truncation(length)  # it has no length of its own
    else:
        model.max_seq_length = length
        model[0].document_length = None  # which is a multi-vector model's own length of documents


def check_export(engines: Mapping[str, Engine], expected: Expected) -> dict[str, Comparison]:
    """Compare engines with ``encode()``. The rows are made by the producer's tokenizer.

    Args:
        engines: what each computes with, for people, such as ``ONNX FP32`` → the engine.
        expected: what they must give. With prompts only engines in FP32 are compared.

    Returns:
        How far each is from ``encode()`` without a prompt.

    Raises:
        UserError: a row of an engine in FP32 differs by more than its tolerance.
    """
    comparisons: dict[str, Comparison] = {}
    for prompt in expected.prompts:
        for name, engine in engines.items():
            if prompt and engine.precision != "fp32":
                continue
            found = _computed(engine, expected, prompt)
            pairs = [
                (text, ours, theirs)
                for text, ours, theirs in zip(expected.texts, found, expected.of(prompt), strict=True)
                if len(ours) and (ours.any() or theirs.any())  # a text without a token has no vector, of zeros an error
            ]
            if engine.precision == "fp32":
                for text, ours, theirs in pairs:
                    _check_row(name, prompt + text, ours, theirs)
            if not prompt:
                ours, theirs = (np.concatenate([pair[side] for pair in pairs]) for side in (1, 2))
                comparisons[name] = compare(ours, theirs)
    return comparisons


def _encoded(parts: Parts, texts: Sequence[str], prompt: str) -> list[npt.NDArray[np.float32]]:
    """Of each text ``[1, hidden]``, or ``[tokens, hidden]``."""
    several, long = texts[: len(TEXTS)], texts[len(TEXTS) :]
    return [*parts.encode(several, prompt, _BATCH), *(parts.encode(long, prompt, 1) if long else [])]


def _computed(engine: Engine, expected: Expected, prompt: str) -> list[npt.NDArray[np.float32]]:
    """As ``_encoded``; ``[0, hidden]`` of a text without a token."""
    rows = expected.rows
    tokens, n_tokens = tokenize(expected.texts, rows, prompt)
    batch = Batch(
        *("check", 0, engine.spec.fingerprint, np.arange(len(tokens)), tokens, n_tokens),
        prompt_tokens=0 if engine.spec.include_prompt else rows.prompt_tokens(prompt),
    )
    found = engine.infer(batch).rows.split(engine.spec.hidden)
    return [next(found) if length else np.empty((0, engine.spec.hidden), np.float32) for length in batch.lengths]


def _check_row(name: str, text: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    advice = f"for example for the text {text[:40]!r}"
    if found.shape != expected.shape:
        raise UserError(
            f"{name} gives {found.shape[0]} × {count(found.shape[1], 'element')}",
            f"encode() gives {expected.shape}",
            advice,
        )
    comparison, tolerance = compare(found, expected), TOLERANCES["fp32"]
    if not comparison.within(tolerance):
        raise UserError(
            f"{name} differs from sentence-transformers' encode(): {comparison}",
            f"expected at least {tolerance.min_cosine} and at most {tolerance.max_relative_mse}",
            advice,
        )
