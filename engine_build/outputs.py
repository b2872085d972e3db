"""Models that give a row something else than one dense vector, taken apart: sparse and multi-vector ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Normalize, Transformer

from contract.errors import UserError
from contract.graph import Pooling
from engine_build.model import Parts, head_of, parts_of

_DOCUMENT = ("document", "passage", "corpus")
"""Names of the prompt that ``encode_document()`` puts before a text, the first that a model has."""


class SparseParts(Parts):
    """Of a ``SparseEncoder``."""

    def encode(self, texts: Sequence[str], prompt: str = "", batch_size: int = 8) -> list[npt.NDArray[np.float32]]:
        found = self.reference.encode(
            list(texts), prompt=prompt, batch_size=batch_size, show_progress_bar=False, convert_to_sparse_tensor=False
        )
        return [vector[None].float().cpu().numpy() for vector in found]


class MultiVectorParts(Parts):
    """Of a ``MultiVectorEncoder``, whose texts are documents."""

    def encode(self, texts: Sequence[str], prompt: str = "", batch_size: int = 8) -> list[npt.NDArray[np.float32]]:
        options = {"prompt": prompt, "task": "document", "show_progress_bar": False, "convert_to_numpy": True}
        return list(self.reference.encode(list(texts), batch_size=batch_size, **options))


def default_prompt(model: Any) -> str:
    """What is put before a text that is given without a prompt: by ``encode()``, or for a multi-vector model by
    ``encode_document()``."""
    names = _DOCUMENT if type(model).__name__ == "MultiVectorEncoder" else (model.default_prompt_name,)
    return next((model.prompts[name] or "" for name in names if name in model.prompts), "")


def document_length(model: Any) -> int | None:
    """After how many tokens ``encode_document()`` of a multi-vector model truncates a text; None where it has no number
    for that alone."""
    return getattr(model[0], "document_length", None) if type(model).__name__ == "MultiVectorEncoder" else None


def opened_parts(model: Any, pooling: Pooling | None, normalize: bool | None) -> Parts:
    """Take a model apart, of whichever of sentence-transformers' classes it is. Arguments as ``parts_of``.

    Raises:
        UserError: the model has no such choice, or a module that an engine cannot have.
    """
    return _PARTS[type(model).__name__](model, pooling, normalize)


def _sparse(model: Any, pooling: Pooling | None, normalize: bool | None) -> Parts:
    _no_choice("sparse", "a SparseEncoder", pooling, normalize)
    first = model[0]
    return SparseParts(
        encoder=first.auto_model if isinstance(first, Transformer) else None,
        pooling="sparse",
        head=None,
        unknown="gives sparse vectors",
        normalize=False,
        chosen=(),
        include_prompt=True,
        truncate_dim=None,
        reference=model,
    )


def _multi_vector(model: Any, pooling: Pooling | None, normalize: bool | None) -> Parts:
    _no_choice("tokens", "a MultiVectorEncoder", pooling, normalize)
    first, *after = list(model)
    masks = [module for module in after if isinstance(module, MultiVectorMask)]
    steps = [module for module in after if not isinstance(module, MultiVectorMask | Dropout)]
    for module in steps:
        sides = {getattr(module, side, None) for side in ("module_input_name", "module_output_name")}
        if type(module) not in (Dense, LayerNorm, Normalize) or sides - {"token_embeddings", None}:
            raise UserError(
                f"the model has the module {type(module).__name__}",
                "expected that Dense, LayerNorm, Normalize and MultiVectorMask alone follow its encoder",
                "choose another model",
            )
    if any(mask.keep_only_token_ids for mask in masks):
        raise UserError("the model keeps the vectors of an image's tokens alone", "expected one of texts")
    return MultiVectorParts(
        encoder=first.auto_model,
        pooling="tokens",
        head=head_of(steps, None, False),
        unknown="",
        normalize=bool(steps) and isinstance(steps[-1], Normalize),
        chosen=(),
        include_prompt=True,
        truncate_dim=None,
        reference=model,
        without_vector=tuple(sorted({token for mask in masks for token in _skipped(mask)})),
    )


def _skipped(mask: Any) -> list[int]:
    """Ids of the tokens of a document that have no vector."""
    skips = "document" in mask.skiplist_tasks and mask._skiplist_ids is not None
    return mask._skiplist_ids.tolist() if skips else []


def _no_choice(own: Pooling, named: str, pooling: Pooling | None, normalize: bool | None) -> None:
    if pooling not in (None, own) or normalize is not None:
        option = f"--pooling {pooling}" if pooling not in (None, own) else f"--{'' if normalize else 'no-'}normalize"
        raise UserError(option, f"the model is {named}, whose vectors are its own", f"leave out {option}")


_PARTS = {"SentenceTransformer": parts_of, "SparseEncoder": _sparse, "MultiVectorEncoder": _multi_vector}
