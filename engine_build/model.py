"""A model taken apart: its encoder, one pooling, and what comes after that, as far as an engine knows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling as PoolingModule,
    Transformer,
)

from contract.engine import Choice, OpenedBy
from contract.errors import UserError
from contract.graph import Pooling
from contract.weights import model_sha256
from worker.runtime.head import Head

_AFTER = (Dense, Dropout, LayerNorm, Normalize)
"""The modules after the pooling that ``Head`` has."""
NO_LIMIT = 32_768
"""Of a row, where the model itself has no limit."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A model in its parts, and what the user chose of them."""

    encoder: transformers.PreTrainedModel | None
    """None where the first module is no transformer."""
    pooling: Pooling
    head: Head | None
    """None where the model has other modules than a pooling and those of ``Head``."""
    unknown: str
    """Which others, in words; empty if none."""
    normalize: bool
    chosen: tuple[Choice, ...]
    include_prompt: bool
    truncate_dim: int | None
    reference: Any
    """Of one of sentence-transformers' classes; ``encode`` asks it for the vectors that the engine must give."""
    without_vector: tuple[int, ...] = ()
    """See ``EngineSpec.without_vector``."""

    @property
    def per_token(self) -> bool:
        """Whether a row has a vector for each of its tokens instead of one."""
        return self.pooling == "tokens"

    def encode(self, texts: Sequence[str], prompt: str = "", batch_size: int = 8) -> list[npt.NDArray[np.float32]]:
        """Of each text the vectors that the engine must give, ``[1, hidden]``, or ``[tokens, hidden]``.

        Args:
            texts: in any order.
            prompt: put before each.
            batch_size: texts that are computed together.
        """
        options: dict[str, Any] = {"normalize_embeddings": "normalize" in self.chosen and self.normalize}
        if self.per_token:
            options = {"output_value": "token_embeddings"}
            # Of rows that are padded on the left, encode() gives the padding's vectors too.
            batch_size = 1 if getattr(self.reference.tokenizer, "padding_side", "right") == "left" else batch_size
        found = self.reference.encode(
            list(texts), prompt=prompt, batch_size=batch_size, show_progress_bar=False, **options
        )
        return [np.atleast_2d(np.asarray(vectors, np.float32)) for vectors in found]

    @property
    def opened_by(self) -> OpenedBy:
        """The reference's class."""
        name: Any = type(self.reference).__name__
        return name

    @property
    def architecture(self) -> str:
        """transformers' model type, or the name of the first module where that is no transformer."""
        return self.encoder.config.model_type if self.encoder is not None else type(self.reference[0]).__name__

    @property
    def encoder_width(self) -> int:
        """Of a token's vector."""
        first: Any = self.reference[0]
        return first.get_embedding_dimension()

    @property
    def hidden(self) -> int:
        """Width of a vector as it comes out."""
        (vectors,) = self.encode(["a"])
        return int(vectors.shape[-1])


def parts_of(model: SentenceTransformer, pooling: Pooling | None, normalize: bool | None) -> Parts:
    """Take a model apart.

    Args:
        model: from ``engine_build.opened.open_folder``.
        pooling: the user's choice; None for the model's own. With ``tokens`` nothing of what the model does after its
            encoder is left.
        normalize: the user's choice; None for the model's own.

    Raises:
        UserError: the model has no such choice.
    """
    own = _modules_of(model)
    mode = pooling or own.mode
    if mode != own.mode:
        _check_choice(own, mode)
    left = own.with_token_vectors() if mode == "tokens" else own
    norm = _norm(left.steps, normalize, left.truncate_dim)
    chosen: dict[Choice, bool] = {"pooling": mode != own.mode, "normalize": norm.chosen}
    kept = [left.first, *_pooling_modules(left, mode, norm.wanted), *norm.steps]
    return Parts(
        encoder=left.first.auto_model if isinstance(left.first, Transformer) else None,
        pooling=mode,
        head=None if left.unknown else head_of(norm.steps, left.truncate_dim, norm.chosen and norm.wanted),
        unknown=left.unknown,
        normalize=norm.wanted,
        chosen=tuple(name for name, by_user in chosen.items() if by_user),
        include_prompt=left.pooling is None or left.pooling.include_prompt,
        truncate_dim=left.truncate_dim,
        reference=SentenceTransformer(modules=kept, device="cpu", truncate_dim=left.truncate_dim),
    )


class _Modules(NamedTuple):
    """A model's modules."""

    first: Any
    pooling: Any | None
    """The ``Pooling`` that follows the first one; None where another module does."""
    after: list[Any]
    """Those behind these."""
    unknown: str
    """Which of them ``Parts.pooling`` and ``Head`` do not have, in words; empty if none."""
    truncate_dim: int | None

    @property
    def mode(self) -> Pooling:
        """The model's own pooling."""
        if self.pooling is None:
            return "own"
        modes = self.pooling.pooling_mode
        return modes if isinstance(modes, str) else "+".join(modes)

    @property
    def steps(self) -> list[Any]:
        """Those of ``after`` that change a vector."""
        return [module for module in self.after if not isinstance(module, Dropout)]  # which does nothing here

    def with_token_vectors(self) -> "_Modules":
        """The model of which nothing is left behind its encoder."""
        return self._replace(pooling=None, after=[], unknown="", truncate_dim=None)


def _modules_of(model: SentenceTransformer) -> _Modules:
    modules: list[Any] = list(model)
    first, *others = modules
    pooling = others[0] if others and type(others[0]) is PoolingModule else None
    after = others[1:] if pooling else others
    return _Modules(first, pooling, after, _unknown(first, pooling, after), model.truncate_dim)


def _check_choice(own: _Modules, pooling: Pooling) -> None:
    """See whether a model can have another pooling than its own.

    Raises:
        UserError: it cannot.
    """
    if not isinstance(own.first, Transformer) or (own.pooling is None and pooling != "tokens"):
        raise UserError(f"--pooling {pooling}", f"the model has no Pooling module to change: it {own.unknown}")
    if pooling == "tokens" and any(map(_changes_tokens, own.after)):
        raise UserError(
            "--pooling tokens",
            f"the model {own.unknown}, which would be left out",
            "save it as a MultiVectorEncoder, whose token vectors are taken as they are",
        )


class _Norm(NamedTuple):
    """Whether vectors are scaled to norm 1, and the modules after the pooling that are left with that."""

    wanted: bool
    chosen: bool
    """By the user, against the model's own."""
    steps: list[Any]


def _norm(steps: list[Any], normalize: bool | None, width: int | None) -> _Norm:
    own = bool(steps) and isinstance(steps[-1], Normalize)
    wanted = own if normalize is None else normalize
    # What truncate_dim leaves of a vector has not norm 1 any more: who asks for that by name gets it.
    chosen = wanted != own or (bool(normalize) and width is not None)
    left = list(steps)
    while not wanted and left and isinstance(left[-1], Normalize):
        left.pop()
    return _Norm(wanted, chosen, left)


def _changes_tokens(module: Any) -> bool:
    """Whether a module, such as ColBERT's Dense, changes each token's vector, but for its norm."""
    return getattr(module, "module_input_name", "") == "token_embeddings" and not isinstance(module, Normalize)


def _pooling_modules(left: _Modules, mode: Pooling, normalize: bool) -> list[Any]:
    """The modules between the encoder and what follows the pooling, for this pooling."""
    if mode == "tokens":
        return [Normalize(module_input_name="token_embeddings")] if normalize else []
    if left.pooling is None or mode == left.mode:
        return [left.pooling] if left.pooling else []
    return [PoolingModule(left.pooling.embedding_dimension, mode, include_prompt=left.pooling.include_prompt)]


def _unknown(first: Any, pooling: Any, after: Sequence[Any]) -> str:
    """What of the modules ``Parts.pooling`` and ``Head`` do not have; empty if nothing."""
    if not isinstance(first, Transformer):
        return f"is a {type(first).__name__}"
    if pooling is None:
        named = type(after[0]).__name__ if after else "nothing"
        return f"has the sentence-transformers module {named} after its encoder"
    for module in after:
        if type(module) not in _AFTER:
            return f"has the sentence-transformers module {type(module).__name__} after its pooling"
        for side in ("module_input_name", "module_output_name"):
            if (found := getattr(module, side, "sentence_embedding")) != "sentence_embedding":
                return f"has a {type(module).__name__} module of {found}"
    return ""


def head_of(modules: Sequence[Any], truncate_dim: int | None, normalize: bool) -> Head:
    """A head of sentence-transformers' modules, with copies of their weights."""
    head = Head([(type(module).__name__, module.get_config_dict()) for module in modules], truncate_dim, normalize)
    for step, module in zip(head.steps, modules, strict=True):
        step.load_state_dict(module.state_dict())
    return head.eval()


def longest(encoder: transformers.PreTrainedModel | None) -> int:
    """The most tokens that a row may have: as many as the encoder has positions for."""
    limit = getattr(encoder and encoder.config, "max_position_embeddings", None)
    if encoder is None or limit is None or limit <= 0:
        return NO_LIMIT
    padding = position_pad_id(encoder)
    return limit - (0 if padding is None else padding + 1)


def position_pad_id(encoder: transformers.PreTrainedModel | None) -> int | None:
    """See ``EngineSpec.position_pad_id``."""
    for module in encoder.modules() if encoder is not None else ():
        padding = getattr(module, "padding_idx", None)
        # RoBERTa's family alone has both: positions that count from the padding id on, and a table of them.
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return padding
    return None


def layers(encoder: transformers.PreTrainedModel | None) -> int:
    """How many it has; 0 without an encoder."""
    return encoder.config.num_hidden_layers if encoder is not None else 0


def linear_weights(model: Any) -> int:
    """The elements of the weight matrices that every token is multiplied with."""
    return sum(module.weight.numel() for module in model[0].modules() if isinstance(module, torch.nn.Linear))


def weights_sha256(model: Any) -> str:
    """``contract.weights.model_sha256`` of a model as it was opened."""
    every: list[Any] = list(model)
    first, *modules = every
    described = [(type(module).__name__, module.get_config_dict()) for module in modules]
    # Of what is not in the configuration, such as a static model's, the weights' names tell.
    settings = first.auto_model.config.to_diff_dict() if isinstance(first, Transformer) else {}
    return model_sha256(settings, described, {name: values.numpy() for name, values in model.state_dict().items()})
