"""The reference: texts taken from the dataset again, tokenized by transformers, computed by PyTorch in FP32.

Nothing of what travelled over Redis is used, nor the engine's files: only the model that the engine was made from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
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
from verify.shards import plain

_MOST_ROWS, _MOST_TOKENS = 32, 4096
"""A micro-batch's limits. Lengths come from the shards, whose word is not relied on, hence two."""


class Taken(NamedTuple):
    """What the dataset has of a row."""

    text: str | None
    """Without the prefix; None where there is none."""
    kept: list[Any]
    """The values of the columns that are carried into the shards."""


@dataclass(frozen=True)
class Reference:
    """A dataset and the model to compute it with."""

    spec: EngineSpec
    job: Job
    texts: TextDataset
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase

    def take(self, rows: Iterable[Row]) -> dict[int, Taken]:
        """What the dataset has of rows, by row id.

        They are read in the dataset's order: of one that is streamed, no part is fetched twice.
        """
        found = {}
        for row_id in sorted(row.row_id for row in rows):
            texts, kept = self.texts.read(range(row_id, row_id + 1))
            found[row_id] = Taken(texts[0], [plain(values, 0) for values in kept.values()])
        return found

    def recompute(self, rows: Iterable[Row]) -> Iterator[Recomputed]:
        """Compute rows in PyTorch, in small batches of rows of about one length.

        Yields:
            One result a row, shortest rows first.
        """
        rows = list(rows)
        taken = self.take(rows)
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: (row.n_tokens, row.row_id)):
            length = row.n_tokens if self.job.overlap is not None else min(row.n_tokens, self.spec.max_length)
            if batch and (len(batch) == _MOST_ROWS or (len(batch) + 1) * length > _MOST_TOKENS):
                yield from _recompute(self, batch, taken)
                batch = []
            batch.append(row)
        if batch:
            yield from _recompute(self, batch, taken)


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
    return Reference(spec, job, texts, model, tokenizer)


def _recompute(reference: Reference, rows: Sequence[Row], taken: Mapping[int, Taken]) -> Iterator[Recomputed]:
    job, spec = reference.job, reference.spec
    nothing = np.empty((0, job.form.dimensions or spec.hidden), np.float32)
    texts = []
    for row in rows:
        of_row = taken[row.row_id]
        if of_row.text is None:
            yield Recomputed(row, None, 0, nothing, of_row.kept)
        else:
            texts.append((row, job.prefix + of_row.text))
    if not texts:
        return
    plain = [text for _, text in texts]
    n_tokens = [len(ids) for ids in reference.tokenizer(plain, verbose=False)["input_ids"]]
    vectors = _windows_mean(reference, plain) if job.overlap is not None else _vectors(reference, plain)
    for (row, text), count, found in zip(texts, n_tokens, vectors, strict=True):
        shaped = job.form.shaped(found, normalize=spec.normalize)
        yield Recomputed(row, text, count, shaped, taken[row.row_id].kept)


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
    device = reference.model.device
    with torch.inference_mode():
        hidden = hidden_states(reference.model, ids.to(device), mask.to(device), types.to(device))
        vectors = pooled(hidden, mask.to(device), spec.pooling, normalize=spec.normalize).cpu()
    per_token = spec.pooling == "tokens"
    return [
        (vector[real.bool()] if per_token else vector[None]).numpy() for vector, real in zip(vectors, mask, strict=True)
    ]
