"""Texts by ``encode()`` of each of sentence-transformers' classes, with the options that an engine and a job have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.engine import EngineSpec, OpenedBy
from contract.job import Job

Encoded = list[npt.NDArray[np.float32]]
"""Of each text ``[1, elements]``, or ``[tokens, elements]`` where a row has a vector for each token."""


def encoded(model: Any, spec: EngineSpec, job: Job, texts: Sequence[str]) -> Encoded:
    """Each text's vectors, the text truncated.

    Args:
        model: of the class ``spec.opened_by``.
        spec: the engine that was made from it.
        job: whose texts they are.
        texts: without the job's prefix, which may be left out of the pooling; computed together.
    """
    if spec.opened_by == "SentenceTransformer" and spec.per_token:
        return _hidden_states(model, spec, job, texts)
    return _ENCODERS[spec.opened_by](model, spec, job, texts)


def _dense(model: Any, spec: EngineSpec, job: Job, texts: Sequence[str]) -> Encoded:
    found = model.encode(
        texts,
        prompt=job.prefix,  # an empty one overrules the model's default
        truncate_dim=job.form.dimensions,
        normalize_embeddings=spec.normalize and (job.form.dimensions is not None or "normalize" in spec.chosen),
        show_progress_bar=False,
        batch_size=len(texts),
    )
    return [one[None].astype(np.float32) for one in found]


def _hidden_states(model: Any, spec: EngineSpec, job: Job, texts: Sequence[str]) -> Encoded:
    # Of rows that are padded on the left, encode() gives the padding's vectors too.
    alone = model.tokenizer.padding_side == "left"
    found = model.encode(
        texts,
        prompt=job.prefix,
        output_value="token_embeddings",
        show_progress_bar=False,
        batch_size=1 if alone else len(texts),
    )
    return [job.form.shortened(one.float().cpu().numpy(), normalize=spec.normalize) for one in found]


def _sparse(model: Any, spec: EngineSpec, job: Job, texts: Sequence[str]) -> Encoded:
    found = model.encode(
        texts, prompt=job.prefix, convert_to_sparse_tensor=False, show_progress_bar=False, batch_size=len(texts)
    )
    return [one[None].float().cpu().numpy() for one in found]


def _multi_vector(model: Any, spec: EngineSpec, job: Job, texts: Sequence[str]) -> Encoded:
    found = model.encode(
        texts,
        prompt=job.prefix,
        task="document",
        convert_to_numpy=True,
        show_progress_bar=False,
        batch_size=len(texts),
    )
    return [job.form.shortened(one.astype(np.float32), normalize=spec.normalize) for one in found]


_ENCODERS: Mapping[OpenedBy, Callable[[Any, EngineSpec, Job, Sequence[str]], Encoded]] = {
    "SentenceTransformer": _dense,
    "SparseEncoder": _sparse,
    "MultiVectorEncoder": _multi_vector,
}
