"""The reference: texts tokenized and computed by sentence-transformers in FP32.

It uses the model that the engine was made from, and nothing else: no data that passed through Redis, none of the
engine's files, and none of the code that made them.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding

from contract.engine import EngineSpec
from contract.errors import UserError, first_line
from contract.job import Job
from contract.weights import model_sha256, vocabulary_sha256
from verify.encoding import encoded
from verify.sample import SampledRow

_MOST_ROWS, _MOST_TOKENS = 32, 4096
"""A micro-batch's limits. Lengths come from the shards, where they may be wrong, so the rows have a limit of their own.
"""


@dataclass(frozen=True, eq=False)
class ExpectedRow:
    """What a row should be, by the reference."""

    row: SampledRow
    text: str | None
    """With its prefix; None where the dataset has none, or a blank one."""
    n_tokens: int
    """Before truncation, special tokens counted; 0 without a text."""
    vectors: npt.NDArray[np.float32]
    """``[1, elements]``; at token level ``[min(n_tokens, max_length), elements]``; ``[0, elements]`` without a text."""


@dataclass(frozen=True)
class Reference:
    """The model to compute a job's rows with."""

    spec: EngineSpec
    job: Job
    model: Any
    """Of sentence-transformers' class ``spec.opened_by``."""

    def recompute(self, rows: Iterable[SampledRow], texts: Mapping[int, str | None]) -> Iterator[ExpectedRow]:
        """Compute rows, in small batches of rows of about one length.

        Args:
            rows: the rows.
            texts: row id → text without the prefix; None where there is none.

        Yields:
            One result a row, shortest rows first.
        """
        batch: list[SampledRow] = []
        for row in sorted(rows, key=lambda row: (row.n_tokens, row.row_id)):
            length = row.n_tokens if self.job.windowed else min(row.n_tokens, self.spec.max_length)
            if batch and (len(batch) == _MOST_ROWS or (len(batch) + 1) * length > _MOST_TOKENS):
                yield from self._recompute(batch, texts)
                batch = []
            batch.append(row)
        if batch:
            yield from self._recompute(batch, texts)

    def _recompute(self, rows: Sequence[SampledRow], texts: Mapping[int, str | None]) -> Iterator[ExpectedRow]:
        with_text: list[tuple[SampledRow, str]] = []
        nothing = np.empty((0, self.job.form.elements(self.spec.hidden)), np.float32)
        for row in rows:
            text = texts[row.row_id]
            if text is None:
                yield ExpectedRow(row, None, 0, nothing)
            else:
                # Half of a surrogate pair, which UTF-8 cannot hold, becomes a question mark.
                with_text.append((row, text.encode("utf-8", "replace").decode("utf-8")))
        if not with_text:
            return
        plain = [text for _, text in with_text]
        whole = [self.job.prefix + text for text in plain]
        n_tokens = self._n_tokens(whole)
        vectors = self._windows(whole) if self.job.windowed else encoded(self.model, self.spec, self.job, plain)
        for (row, _), text, tokens, one in zip(with_text, whole, n_tokens, vectors, strict=True):
            # A text without a token of its own or a special one, which a static model may have, has no vector.
            yield ExpectedRow(row, text, tokens, one if tokens else nothing)

    def without_tokens(self, texts: Mapping[int, str | None]) -> set[int]:
        """The rows, of these row ids and texts, that have a text without any token, not even a special one: a static
        model may have such, and they have no vector."""
        present = {row_id: self.job.prefix + text for row_id, text in texts.items() if text is not None}
        encodable = [text.encode("utf-8", "replace").decode("utf-8") for text in present.values()]
        n_tokens = self._n_tokens(encodable) if present else []
        return {row_id for row_id, tokens in zip(present, n_tokens, strict=True) if not tokens}

    def _n_tokens(self, texts: list[str]) -> list[int]:
        """Before truncation."""
        tokenizer = self.model.tokenizer
        if isinstance(self.model[0], StaticEmbedding):
            tokenizer.no_truncation()
            found = [len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
            tokenizer.enable_truncation(self.spec.max_length)
            return found
        return [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]

    def _windows(self, texts: list[str]) -> list[npt.NDArray[np.float32]]:
        """Each text's vector, ``[1, elements]``: the mean of its windows' vectors, weighted by their tokens.

        ``encode()`` has nothing like it, so the model's modules are called with windows that its tokenizer made.
        """
        found, spec = [], self.spec
        for text in texts:
            tokens = self.model.tokenizer(
                text,
                truncation=True,
                max_length=spec.max_length,
                stride=self.job.overlap,
                return_overflowing_tokens=True,
                padding=True,
                return_tensors="pt",
                verbose=False,
            )
            del tokens["overflow_to_sample_mapping"]
            some = max(1, _MOST_TOKENS // tokens["input_ids"].shape[1])
            parts = [
                {name: values[start : start + some].to(self.model.device) for name, values in tokens.items()}
                for start in range(0, len(tokens["input_ids"]), some)
            ]
            with torch.inference_mode():
                windows = torch.cat([self.model(part)["sentence_embedding"] for part in parts])[:, : spec.hidden]
                if spec.normalize and "normalize" in spec.chosen:
                    windows = torch.nn.functional.normalize(windows, dim=-1)
            mean = np.average(windows.cpu().numpy(), axis=0, weights=tokens["attention_mask"].sum(dim=1).numpy())
            if spec.unit_norm:
                mean /= np.linalg.norm(mean)
            found.append(self.job.form.shortened(mean[None].astype(np.float32), normalize=spec.normalize))
        return found


def open_model(job: Job, spec: EngineSpec) -> Reference:
    """Open the model that a job's engine was made from, in FP32, on the GPU if there is one.

    Args:
        job: the job.
        spec: from ``contract.engines.engine_of``.

    Raises:
        UserError: the model is gone or was changed.
    """
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)  # the build has judged its warnings
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # 10 bits, which is no FP32
    try:
        model = getattr(sentence_transformers, spec.opened_by)(
            spec.model,
            revision=spec.revision,
            device="cpu",
            trust_remote_code=False,
            model_kwargs={"dtype": torch.float32},
        )
        model.eval().float()  # also modules that know no dtype
    except Exception as error:  # each library has exceptions of its own
        raise UserError(
            f"the model {spec.model} cannot be opened ({first_line(error)})",
            f"engine {spec.name} was made from it",
            _repair(spec),
        ) from None
    weights = _sha256(model)
    if weights != spec.weights_sha256:
        raise UserError(
            f"the model {spec.model} was changed (its weights hash to {weights[:16]})",
            f"engine {spec.name} was made from {spec.weights_sha256[:16]}",
            _repair(spec),
        )
    vocabulary = vocabulary_sha256(model.tokenizer.get_vocab())
    if vocabulary != spec.vocabulary_sha256:
        raise UserError(
            f"the tokenizer of the model {spec.model} was changed (its tokens and their ids hash to {vocabulary[:16]})",
            f"engine {spec.name} was made from {spec.vocabulary_sha256[:16]}",
            _repair(spec),
        )
    model = _as_chosen(model, spec)
    if isinstance(model[0], StaticEmbedding):
        model.tokenizer.enable_truncation(spec.max_length)  # it has no length of its own
    else:
        model.max_seq_length = spec.max_length
        model[0].document_length = None  # which is a multi-vector model's own length of documents
    return Reference(spec, job, model.to("cuda" if torch.cuda.is_available() else "cpu"))


def _repair(spec: EngineSpec) -> str:
    return f"bring that model back, or build a new engine: python -m engine_build --model {spec.model} --name NAME"


def _sha256(model: Any) -> str:
    every: list[Any] = list(model)
    first, *modules = every
    return model_sha256(
        {} if isinstance(first, StaticEmbedding) else first.auto_model.config.to_diff_dict(),
        [(type(module).__name__, module.get_config_dict()) for module in modules],
        {name: values.numpy() for name, values in model.state_dict().items()},
    )


def _as_chosen(model: Any, spec: EngineSpec) -> Any:
    """The model with another pooling or normalization where the user chose one."""
    if not spec.chosen:
        return model
    every: list[Any] = list(model)
    first, *after = every
    if spec.per_token:
        tail = [Normalize(module_input_name="token_embeddings")] if spec.normalize else []
        return SentenceTransformer(modules=[first, *tail], device="cpu")
    if "pooling" in spec.chosen:
        after[0] = Pooling(spec.encoder_width, spec.pooling, include_prompt=spec.include_prompt)
    if "normalize" in spec.chosen and not spec.normalize:
        while after and type(after[-1]).__name__ in ("Normalize", "Dropout"):
            after.pop()
    return SentenceTransformer(modules=[first, *after], device="cpu", truncate_dim=model.truncate_dim)
