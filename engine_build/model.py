"""The PyTorch encoder in FP32: what is exported, and what every engine is measured against."""

import hashlib
from pathlib import Path

import torch
import transformers
from tokenizers.normalizers import Lowercase, Sequence as NormalizerSequence
from torch import Tensor

from contract.engine import Pooling
from contract.errors import UserError

ARCHITECTURES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""transformers' model types that can be exported: absolute position embeddings, one full bidirectional attention."""

_WHY_NOT = {
    "albert": "its layers share weights, which no test here covers",
    "deberta": "its attention depends on relative positions inside the softmax",
    "deberta-v2": "its attention depends on relative positions inside the softmax",
    "modernbert": "its attention alternates between local windows and rotary positions",
    "mpnet": "its attention has a relative position bias",
    "nomic_bert": "its attention has rotary positions",
    "xlnet": "it is no bidirectional encoder with absolute positions",
}

_DECISIVE = ("model_type", "num_attention_heads", "hidden_act", "activation", "layer_norm_eps", "pad_token_id")
"""What a configuration says that changes the vectors and does not show in the weights' shapes."""


def load_model(folder: Path, attention: str = "eager") -> transformers.PreTrainedModel:
    """The encoder in FP32, in evaluation mode, without the pooler that some checkpoints carry.

    Args:
        folder: a folder with ``config.json`` and weights.
        attention: name of the attention function, as transformers registers them.

    Raises:
        UserError: the folder's architecture is refused, or its weights do not fill the model.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"{folder} is no model ({_said(error)})", "expected a transformers model") from None
    if config.model_type not in ARCHITECTURES:
        reason = _WHY_NOT.get(config.model_type, "only encoders whose export is tested are taken")
        raise UserError(
            f"{folder} is a {config.model_type} model: {reason}", f"embedmill takes {', '.join(ARCHITECTURES)}"
        )
    if getattr(config, "is_decoder", False) or getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{folder} is a {config.model_type} decoder or has relative positions",
            "embedmill takes bidirectional encoders with absolute positions",
        )
    try:
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # has them listed below
        )
    except Exception as error:
        raise UserError(
            f"{folder} cannot be loaded ({_said(error)})", "expected weights that fit config.json"
        ) from None
    unfit = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    missing = sorted(name for name in unfit if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"{folder} has no fitting weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
            "expected every weight of the encoder: missing ones would be random",
        )
    model.pooler = None
    return model.eval()


def load_tokenizer(folder: Path, *, lowercase: bool = False) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer, without truncation or padding of its own.

    Args:
        folder: the model's folder.
        lowercase: lower-case the text first, as sentence-transformers does where the folder says ``do_lower_case``.

    Raises:
        UserError: there is no fast tokenizer.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"{folder} has no tokenizer ({_said(error)})", "expected a tokenizer.json") from None
    # Where there is no file at all, transformers makes a tokenizer that knows no word.
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((folder / file).is_file() for file in files):
        raise UserError(f"{folder} has no tokenizer", f"expected one of {', '.join(sorted(files))}")
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer in {folder} is {'slow' if not tokenizer.is_fast else 'without a padding token'}",
            "expected a fast tokenizer (tokenizer.json) with a padding token",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if lowercase:
        backend.normalizer = NormalizerSequence([step for step in (Lowercase(), backend.normalizer) if step])
    return tokenizer


def _said(error: Exception) -> str:
    """The first line of what a library says of a file that it cannot read. Each has exceptions of its own."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def longest(model: transformers.PreTrainedModel) -> int:
    """The most tokens that the model has positions for. RoBERTa's family starts counting behind the padding id."""
    config = model.config
    taken = config.pad_token_id + 1 if config.model_type in ("camembert", "roberta", "xlm-roberta") else 0
    return config.max_position_embeddings - taken


def linear_weights(model: transformers.PreTrainedModel) -> int:
    """The elements of the weight matrices that every token is multiplied with."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


def weights_sha256(model: transformers.PreTrainedModel) -> str:
    """A hash over what the encoder computes with, whatever kind of file it came from.

    That is every weight's name, shape and FP32 bytes, and what the configuration adds to the weights.
    """
    digest = hashlib.sha256(repr([getattr(model.config, name, None) for name in _DECISIVE]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def hidden_states(
    model: transformers.PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> Tensor:
    """The last hidden state, ``[rows, length, hidden]``.

    Args:
        model: from ``load_model``.
        input_ids: ``[rows, length]``, int32 or int64.
        attention_mask: ``[rows, length]``, or an additive one, ``[rows, 1, 1, length]``.
        token_type_ids: ``[rows, length]``; left out where the architecture has none.
    """
    types = {} if model.config.model_type == "distilbert" else {"token_type_ids": token_type_ids}
    return model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state


def pooled(hidden: Tensor, attention_mask: Tensor, pooling: Pooling, *, normalize: bool) -> Tensor:
    """Vectors from hidden states: ``[rows, hidden]``, or ``[rows, length, hidden]`` where pooling is ``tokens``.

    The formulas of sentence-transformers' Pooling and Normalize modules.

    Args:
        hidden: ``[rows, length, hidden]``.
        attention_mask: ``[rows, length]``; no row of it may be empty.
        pooling: ``mean`` over the real tokens, ``cls`` for the first one, ``tokens`` for all.
        normalize: scale each vector to Euclidean norm 1.
    """
    if pooling == "mean":
        weight = attention_mask.to(hidden.dtype)[:, :, None]
        vectors = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    else:
        vectors = hidden[:, 0] if pooling == "cls" else hidden
    return normalized(vectors) if normalize else vectors


def normalized(vectors: Tensor) -> Tensor:
    """Vectors of Euclidean norm 1."""
    # As nn.functional.normalize, which would leave the graph without a fixed width of its output.
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
