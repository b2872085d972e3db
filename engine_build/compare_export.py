"""The exported engine against sentence-transformers' ``encode()``, on the way that rows really take."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.compare import TOLERANCES, Comparison, compare
from contract.errors import UserError
from contract.words import count
from engine_build.model import Parts
from producer.batches import RowTokenizer, tokenize
from worker.runtime.interface import Engine

_BATCH = 8
"""Rows that are computed together."""

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


def check_export(
    engines: Mapping[str, Engine], parts: Parts, rows: RowTokenizer, prompts: Sequence[str]
) -> dict[str, Comparison]:
    """Compare engines with ``encode()``. The rows are made by the producer's tokenizer.

    Args:
        engines: what each computes with, for people, such as ``ONNX FP32`` → the engine.
        parts: what they were made from.
        rows: the engine's tokenizer, as the producer opens it.
        prompts: those that rows may have, besides none. With them only engines in FP32 are compared.

    Returns:
        How far each is from ``encode()`` without a prompt.

    Raises:
        UserError: a row of an engine in FP32 differs by more than its tolerance.
    """
    parts.reference.max_seq_length = rows.length
    comparisons: dict[str, Comparison] = {}
    for prompt in dict.fromkeys(("", *prompts)):
        expected = _encoded(parts, prompt)
        for name, engine in engines.items():
            if prompt and engine.precision != "fp32":
                continue
            found = _computed(engine, rows, prompt)
            if engine.precision == "fp32":
                for text, ours, theirs in zip(TEXTS, found, expected, strict=True):
                    _check_row(name, prompt + text, ours, theirs)
            if not prompt:
                comparisons[name] = compare(np.concatenate(found), np.concatenate(expected))
    return comparisons


def _encoded(parts: Parts, prompt: str) -> list[npt.NDArray[np.float32]]:
    """Of each text ``[1, hidden]``, or ``[tokens, hidden]``."""
    found = parts.reference.encode(
        list(TEXTS), prompt=prompt, batch_size=_BATCH, show_progress_bar=False, **parts.encode_options
    )
    return [np.atleast_2d(np.asarray(vectors, np.float32)) for vectors in found]


def _computed(engine: Engine, rows: RowTokenizer, prompt: str) -> list[npt.NDArray[np.float32]]:
    """As ``_encoded``."""
    ids, mask, n_tokens = tokenize(TEXTS, rows, prompt)
    batch = Batch("check", 0, engine.spec.fingerprint, np.arange(len(ids)), ids, mask, np.zeros_like(ids), n_tokens)
    counts = batch.lengths if engine.spec.per_token else np.ones(len(ids), np.int32)
    return np.split(engine.infer(batch).vectors, np.cumsum(counts)[:-1])


def _check_row(name: str, text: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    advice = f"the export is wrong for this model, for example for the text {text[:40]!r}"
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
