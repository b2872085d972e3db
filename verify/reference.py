"""The reference: texts taken from the dataset again, tokenized by transformers, computed by PyTorch in FP32.

Nothing of what travelled over Redis is used, nor the engine's files: only the model that the engine was made from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import Job
from engine_build.model import hidden_states, load_model, load_tokenizer, pooled, weights_sha256
from engine_build.source import defaults_of, fetch
from producer.dataset import TextDataset
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

    def texts_of(self, rows: Iterable[Row]) -> dict[int, str | None]:
        """The rows' texts without the prefix, by row id; None where the dataset has none.

        They are read in the dataset's order: of one that is streamed, no part is fetched twice.
        """
        ids = sorted(row.row_id for row in rows)
        return {row_id: self.texts.texts(range(row_id, row_id + 1))[0] for row_id in ids}

    def recompute(self, rows: Iterable[Row]) -> Iterator[Recomputed]:
        """Compute rows in PyTorch, in small batches of rows of about one length.

        Yields:
            One result a row, shortest rows first.
        """
        rows = list(rows)
        texts = self.texts_of(rows)
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: (row.n_tokens, row.row_id)):
            length = min(row.n_tokens, self.spec.max_length)
            if batch and (len(batch) == _MOST_ROWS or (len(batch) + 1) * length > _MOST_TOKENS):
                yield from _recompute(self, batch, texts)
                batch = []
            batch.append(row)
        if batch:
            yield from _recompute(self, batch, texts)


def open_reference(job: Job, spec: EngineSpec, texts: TextDataset) -> Reference:
    """Open the model that a job's engine was made from.

    Args:
        job: the job.
        spec: from ``contract.job.engine_of``.
        texts: from ``producer.dataset.dataset_of``.

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


def _recompute(reference: Reference, rows: Sequence[Row], texts_of: Mapping[int, str | None]) -> Iterator[Recomputed]:
    nothing = np.empty((0, reference.spec.hidden), np.float32)
    texts = []
    for row in rows:
        text = texts_of[row.row_id]
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
