"""The exported files against sentence-transformers' ``encode()``, on the way that rows really take."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from contract.compare import TOLERANCES, Comparison, compare
from contract.engine import INPUTS, OUTPUT
from contract.errors import UserError
from contract.words import count
from engine_build.model import Parts
from producer.batches import RowTokenizer, tokenize

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
    paths: Mapping[str, Path], parts: Parts, rows: RowTokenizer, prompts: Sequence[str]
) -> dict[str, Comparison]:
    """Compare ONNX files in ONNX Runtime with ``encode()``. The rows are made by the producer's tokenizer.

    Args:
        paths: precision → file.
        parts: what they were exported from.
        rows: the engine's tokenizer, as the producer opens it.
        prompts: those that rows may have, besides none. With them only FP32 is compared.

    Raises:
        UserError: a row of the FP32 file differs by more than its tolerance.
    """
    parts.reference.max_seq_length = rows.length
    sessions = {
        precision: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for precision, path in paths.items()
    }
    comparisons: dict[str, Comparison] = {}
    for prompt in dict.fromkeys(("", *prompts)):
        expected = _encoded(parts, prompt)
        for precision, session in sessions.items():
            if prompt and precision != "fp32":
                continue
            found = list(_computed(session, rows, prompt, per_token=parts.per_token))
            if precision == "fp32":
                for text, ours, theirs in zip(TEXTS, found, expected, strict=True):
                    _check_row(prompt + text, ours, theirs)
            if not prompt:
                comparisons[precision] = compare(np.concatenate(found), np.concatenate(expected))
    return comparisons


def _encoded(parts: Parts, prompt: str) -> list[npt.NDArray[np.float32]]:
    """Of each text ``[1, hidden]``, or ``[tokens, hidden]``."""
    found = parts.reference.encode(
        list(TEXTS), prompt=prompt, batch_size=_BATCH, show_progress_bar=False, **parts.encode_options
    )
    return [np.atleast_2d(np.asarray(vectors, np.float32)) for vectors in found]


def _computed(
    session: onnxruntime.InferenceSession, rows: RowTokenizer, prompt: str, *, per_token: bool
) -> Iterator[npt.NDArray[np.float32]]:
    ids, mask, _ = tokenize(TEXTS, rows, prompt)
    for start in range(0, len(ids), _BATCH):
        real = mask[start : start + _BATCH]
        width = int(real.sum(axis=1).max())
        real = real[:, :width]
        some = ids[start : start + _BATCH, :width]
        vectors = session.run([OUTPUT], dict(zip(INPUTS, (some, real, np.zeros_like(some)), strict=True)))[0]
        for vector, one in zip(vectors, real, strict=True):
            yield vector[one == 1] if per_token else vector[None]


def _check_row(text: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    hint = f"the export is wrong for this model, for example for the text {text[:40]!r}"
    if found.shape != expected.shape:
        raise UserError(
            f"ONNX Runtime gives {found.shape[0]} × {count(found.shape[1], 'element')}",
            f"encode() gives {expected.shape}",
            hint,
        )
    comparison, tolerance = compare(found, expected), TOLERANCES["fp32"]
    if not comparison.within(tolerance):
        raise UserError(
            f"ONNX Runtime differs from sentence-transformers' encode(): {comparison}",
            f"expected at least {tolerance.min_cosine} and at most {tolerance.max_relative_mse}",
            hint,
        )
