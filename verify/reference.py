"""The reference: texts taken from the dataset again, tokenized by transformers, computed by PyTorch in FP32.

Nothing of what travelled over Redis is used, nor the engine's files: only the model that the engine was made from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from contract.engine import EngineSpec, load_engine
from contract.errors import UserError
from contract.job import Job
from engine_build.model import hidden_states, load_model, load_tokenizer, pooled, weights_sha256
from engine_build.source import defaults_of, fetch
from producer.dataset import TextDataset, open_dataset
from verify.compared import Recomputed
from verify.sample import Row

_MOST_ROWS, _MOST_TOKENS = 32, 4096
"""A micro-batch's limits. Lengths come from the shards, whose word is not relied on, hence two."""


@dataclass(frozen=True)
class Reference:
    """A dataset and the model to compute it with."""

    spec: EngineSpec
    job: Job
    texts: TextDataset
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase

    def text_of(self, row: Row) -> str | None:
        """A row's text without the prefix; None where the dataset has none."""
        return self.texts.texts(range(row.row_id, row.row_id + 1))[0]

    def kept_of(self, row: Row) -> list[Any]:
        """A row's values of the columns that are carried into the shards."""
        columns = self.texts.kept(range(row.row_id, row.row_id + 1))
        return [values[0].as_py() for values in columns.values()]

    def recompute(self, rows: Iterable[Row]) -> Iterator[Recomputed]:
        """Compute rows in PyTorch, in small batches of rows of about one length.

        Yields:
            One result a row, shortest rows first.
        """
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: (row.n_tokens, row.row_id)):
            length = row.n_tokens if self.job.overlap is not None else min(row.n_tokens, self.spec.max_length)
            if batch and (len(batch) == _MOST_ROWS or (len(batch) + 1) * length > _MOST_TOKENS):
                yield from _recompute(self, batch)
                batch = []
            batch.append(row)
        if batch:
            yield from _recompute(self, batch)


def engine_of(job: Job) -> EngineSpec:
    """The job's engine.

    Raises:
        UserError: it is gone, or is another one by now.
    """
    spec = load_engine(job.engine)
    if spec.fingerprint != job.fingerprint:
        raise UserError(
            f"engine {spec.name} has fingerprint {spec.fingerprint}",
            f"job {job.id} was made with fingerprint {job.fingerprint}",
            "point EMBEDMILL_ENGINES to the folder that holds that engine, or run the producer again for a new job",
        )
    return spec


def dataset_of(job: Job) -> TextDataset:
    """The job's dataset.

    Raises:
        UserError: it is gone, or holds something else by now.
    """
    texts = open_dataset(job.dataset, config=job.config, split=job.split, column=job.column, columns=job.columns)
    if texts.revision != job.revision:
        raise UserError(
            f"{job.dataset} was changed (its revision is {texts.revision[:16]})",
            f"job {job.id} embedded revision {job.revision[:16]}",
            "bring that one back, or run the producer again for a new job",
        )
    if min(job.limit or texts.rows, texts.rows) != job.rows:
        raise UserError(
            f"{job.dataset} has {texts.rows:,} rows",
            f"job {job.id} has {job.rows:,} of them" + (f" with the limit {job.limit:,}" if job.limit else ""),
            "run the producer again for a new job",
        )
    return texts


def open_reference(job: Job, spec: EngineSpec, texts: TextDataset) -> Reference:
    """Open the model that a job's engine was made from.

    Args:
        job: the job.
        spec: from ``engine_of``.
        texts: from ``dataset_of``.

    Raises:
        UserError: the model is gone or was changed.
    """
    source = fetch(spec.model, spec.revision)
    model = load_model(source.folder, "sdpa")
    weights = weights_sha256(model)
    if weights != spec.weights_sha256:
        raise UserError(
            f"the model {spec.model} was changed (its weights hash to {weights[:16]})",
            f"engine {spec.name} was made from {spec.weights_sha256[:16]}",
            f"bring that model back, or build a new engine: python -m engine_build --model {spec.model} --name NAME",
        )
    tokenizer = load_tokenizer(source.folder, lowercase=defaults_of(source.folder).lowercase)
    # A row is padded and truncated at its end, whatever the folder prefers.
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return Reference(spec, job, texts, model, tokenizer)


def _recompute(reference: Reference, rows: Sequence[Row]) -> Iterator[Recomputed]:
    job, spec = reference.job, reference.spec
    nothing = np.empty((0, job.form.dimensions or spec.hidden), np.float32)
    texts = []
    for row in rows:
        text = reference.text_of(row)
        if text is None:
            yield Recomputed(row, None, 0, nothing, reference.kept_of(row))
        else:
            texts.append((row, job.prefix + text))
    if not texts:
        return
    plain = [text for _, text in texts]
    n_tokens = [len(ids) for ids in reference.tokenizer(plain, verbose=False)["input_ids"]]
    vectors = _windows_mean(reference, plain) if job.overlap is not None else _vectors(reference, plain)
    for (row, text), count, found in zip(texts, n_tokens, vectors, strict=True):
        shaped = job.form.shaped(found, normalize=spec.normalize)
        yield Recomputed(row, text, count, shaped, reference.kept_of(row))


def _vectors(reference: Reference, texts: list[str]) -> list[npt.NDArray[np.float32]]:
    """Each text's vectors, the text truncated."""
    tokens = reference.tokenizer(
        texts,
        truncation=True,
        max_length=reference.spec.max_length,
        padding=True,
        return_tensors="pt",
        verbose=False,
    )
    return _of_tokens(reference, tokens)


def _windows_mean(reference: Reference, texts: list[str]) -> list[npt.NDArray[np.float32]]:
    """Each text's vector, ``[1, hidden]``: the mean of its windows' vectors, weighted by their tokens."""
    found, spec = [], reference.spec
    for text in texts:
        tokens = reference.tokenizer(
            text,
            truncation=True,
            max_length=spec.max_length,
            stride=reference.job.overlap,
            return_overflowing_tokens=True,
            padding=True,
            return_tensors="pt",
            verbose=False,
        )
        del tokens["overflow_to_sample_mapping"]
        some = max(1, _MOST_TOKENS // tokens["input_ids"].shape[1])
        parts = [
            {name: values[start : start + some] for name, values in tokens.items()}
            for start in range(0, len(tokens["input_ids"]), some)
        ]
        windows = np.concatenate([vector for part in parts for vector in _of_tokens(reference, part)])
        mean = np.average(windows, axis=0, weights=tokens["attention_mask"].sum(dim=1).numpy())
        if spec.normalize:
            mean /= np.linalg.norm(mean)
        found.append(mean[None].astype(np.float32))
    return found


def _of_tokens(reference: Reference, tokens: Mapping[str, torch.Tensor]) -> list[npt.NDArray[np.float32]]:
    """The vectors of each tokenized row: ``[1, hidden]``, or ``[tokens, hidden]`` at token level."""
    ids, mask, spec = tokens["input_ids"], tokens["attention_mask"], reference.spec
    types = tokens.get("token_type_ids", torch.zeros_like(ids))
    with torch.inference_mode():
        hidden = hidden_states(reference.model, ids, mask, types)
        vectors = pooled(hidden, mask, spec.pooling, normalize=spec.normalize)
    per_token = spec.pooling == "tokens"
    return [
        (vector[real.bool()] if per_token else vector[None]).numpy() for vector, real in zip(vectors, mask, strict=True)
    ]
