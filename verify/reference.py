"""The reference: texts taken from the dataset again, tokenized by transformers, computed by PyTorch in FP32.

Nothing of what travelled over Redis is used, nor the engine's files: only the model that the engine was made from.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
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
    prefix: str
    texts: TextDataset
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase

    def text_of(self, row: Row) -> str | None:
        """A row's text without the prefix; None where the dataset has none."""
        return self.texts.texts(range(row.row_id, row.row_id + 1))[0]

    def recompute(self, rows: Iterable[Row]) -> Iterator[Recomputed]:
        """Compute rows in PyTorch, in small batches of rows of about one length.

        Yields:
            One result a row, shortest rows first.
        """
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: (row.n_tokens, row.row_id)):
            length = min(row.n_tokens, self.spec.max_length)
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
    texts = open_dataset(job.dataset, config=job.config, split=job.split, column=job.column)
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
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False  # TF32 keeps 10 bits, which is no FP32
        model.to(torch.device("cuda"))  # type: ignore[arg-type]  # transformers' decorator hides the signature
    tokenizer = load_tokenizer(source.folder, lowercase=defaults_of(source.folder).lowercase)
    # A row is padded and truncated at its end, whatever the folder prefers.
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return Reference(spec, job.prefix, texts, model, tokenizer)


def _recompute(reference: Reference, rows: Sequence[Row]) -> Iterator[Recomputed]:
    nothing = np.empty((0, reference.spec.hidden), np.float32)
    texts = []
    for row in rows:
        text = reference.text_of(row)
        if text is None:
            yield Recomputed(row, None, 0, nothing)
        else:
            texts.append((row, reference.prefix + text))
    if not texts:
        return
    plain, spec = [text for _, text in texts], reference.spec
    n_tokens = [len(ids) for ids in reference.tokenizer(plain, verbose=False)["input_ids"]]
    tokens = reference.tokenizer(
        plain, truncation=True, max_length=spec.max_length, padding=True, return_tensors="pt", verbose=False
    )
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    types = tokens.get("token_type_ids", torch.zeros_like(ids))
    device = reference.model.device
    with torch.inference_mode():
        hidden = hidden_states(reference.model, ids.to(device), mask.to(device), types.to(device))
        vectors = pooled(hidden, mask.to(device), spec.pooling, normalize=spec.normalize).cpu()
    for place, (row, text) in enumerate(texts):
        of_row = vectors[place][mask[place].bool()] if spec.pooling == "tokens" else vectors[place : place + 1]
        yield Recomputed(row, text, n_tokens[place], of_row.numpy())
