"""A model opened by sentence-transformers, and whether an engine can give the vectors that it gives."""

from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)

from contract.errors import UserError, first_line
from contract.words import count
from engine_build.quiet import quietly
from engine_build.source import encoder_folder, refuse_code

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

_AFTER = (Dense, Dropout, LayerNorm, Normalize)
"""The modules that may follow the pooling."""

_HARMLESS = (
    "Default prompt name is set",  # honoured, and shown
    "This model was created with Sentence Transformers version",  # what that brings about is compared after the export
)
"""How warnings of sentence-transformers begin that say nothing of other vectors."""


def open_folder(folder: Path) -> SentenceTransformer:
    """The model in a folder, in FP32 on the CPU, in evaluation mode.

    Raises:
        UserError: the model has code of its own, sentence-transformers refuses it or would compute with something else
            than what the folder says, or it has anything that an engine cannot honour.
    """
    refuse_code(folder)
    encoder = encoder_folder(folder)
    with quietly() as library_warnings:
        _check_config(folder, encoder)
        try:
            model: Any = SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": torch.float32},
            ).eval()
        except Exception as error:
            raise UserError(
                f"{folder} cannot be loaded ({first_line(error)})", "expected a model that sentence-transformers opens"
            ) from None
        doubts = [line for line in library_warnings if not line.startswith(_HARMLESS)]
        if doubts:
            raise UserError(
                f"{folder} cannot be taken as it is: sentence-transformers says {' '.join(doubts[0].split())}",
                "expected a model of which nothing is left out or replaced",
            )
        _check_modules(folder, model)
        _check_weights(folder, encoder, model)
    model[0].auto_model.pooler = None  # which some checkpoints carry, and no vector depends on
    _check_tokenizer(folder, encoder, model)
    if model.truncate_dim is not None and not (isinstance(model.truncate_dim, int) and model.truncate_dim > 0):
        raise UserError(f"{folder} has a truncate_dim of {model.truncate_dim!r}", "expected a number of elements")
    opened: SentenceTransformer = model
    return opened


def _check_config(folder: Path, encoder: Path) -> None:
    try:
        config = transformers.AutoConfig.from_pretrained(encoder, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder} is no model ({first_line(error)})", "expected a transformers model") from None
    if config.model_type not in ARCHITECTURES:
        reason = _WHY_NOT.get(config.model_type, "only encoders whose export is tested are taken")
        raise UserError(
            f"{folder} is a {config.model_type} model: {reason}", f"embedmill takes {', '.join(ARCHITECTURES)}"
        )


def _check_modules(folder: Path, model: SentenceTransformer) -> None:
    modules: list[Any] = list(model)
    first, *others = modules
    if type(first) is not Transformer:
        raise _unfit(folder, f"has {type(first).__name__} for its first module", "a Transformer module")
    config = first.auto_model.config
    kind = type(first.auto_model)
    if not kind.__module__.startswith("transformers.models.") or config.model_type not in ARCHITECTURES:
        raise _unfit(folder, f"is opened as {kind.__name__}", f"an encoder of {', '.join(ARCHITECTURES)}")
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False) or not absolute:
        raise _unfit(
            folder,
            f"is a {config.model_type} decoder or has relative positions",
            "a bidirectional encoder with absolute positions",
        )
    plain = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    output = (first.transformer_task, first.module_output_name, first.modality_config)
    if output != ("feature-extraction", "token_embeddings", plain):
        raise _unfit(folder, f"takes {output} of its encoder", "the last hidden state of each token")
    for name in ("query_expansion", "processing_kwargs"):
        if found := getattr(first, name):
            raise _unfit(folder, f"asks for {name} {found}", "none: an engine's rows are plain texts")
    if not others or type(others[0]) is not Pooling:
        named = type(others[0]).__name__ if others else "nothing"
        raise _unfit(folder, f"has the sentence-transformers module {named} after its encoder", "a Pooling module")
    modes = others[0].pooling_mode
    if modes not in ("mean", "cls"):
        named = " and ".join([modes] if isinstance(modes, str) else modes)
        raise _unfit(folder, f"pools by {named}", "one of mean, cls")
    for module in others[1:]:
        if type(module) not in _AFTER:
            honoured = ", ".join(kind.__name__ for kind in _AFTER)
            raise _unfit(
                folder, f"has the sentence-transformers module {type(module).__name__}", f"{honoured} after one Pooling"
            )
        for side in ("module_input_name", "module_output_name"):
            if (found := getattr(module, side, "sentence_embedding")) != "sentence_embedding":
                raise _unfit(folder, f"has a {type(module).__name__} module of {found}", "one of a row's vector")


def _check_weights(folder: Path, encoder: Path, model: Any) -> None:
    """Weights that the files lack would be random: sentence-transformers says so only in a log."""
    try:
        again, loading = transformers.AutoModel.from_pretrained(
            encoder,
            config=model[0].auto_model.config,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(
            f"{folder} cannot be loaded ({first_line(error)})", "expected weights that fit config.json"
        ) from None
    unfit = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    theirs = model[0].auto_model.state_dict()
    if not unfit and again.state_dict().keys() == theirs.keys():
        unfit = {name for name, values in again.state_dict().items() if not torch.equal(values, theirs[name])}
    missing = sorted(name for name in unfit if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"{folder} has no fitting weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
            "expected every weight of the encoder: missing ones would be random",
        )
    for name, values in model.state_dict().items():
        if ".pooler." not in name and not torch.isfinite(values).all():
            raise _unfit(folder, f"has values that are no numbers in {name}", "finite weights")


def _check_tokenizer(folder: Path, encoder: Path, model: Any) -> None:
    tokenizer: Any = model.tokenizer
    # Where there is no file at all, transformers makes a tokenizer that knows no word.
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((encoder / file).is_file() for file in files):
        raise UserError(f"{folder} has no tokenizer", f"expected one of {', '.join(sorted(files))}")
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer in {folder} is {'slow' if not tokenizer.is_fast else 'without a padding token'}",
            "expected a fast tokenizer (tokenizer.json) with a padding token",
        )
    for side in ("truncation_side", "padding_side"):
        if getattr(tokenizer, side) != "right":
            raise _unfit(folder, f"has a tokenizer whose {side} is {getattr(tokenizer, side)}", "right")
    rows = model[0].auto_model.get_input_embeddings().num_embeddings
    last = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values())
    if last >= rows:
        raise UserError(
            f"the tokenizer in {folder} has ids up to {last}, and the model's embedding {count(rows, 'row')}",
            "expected a row for each token",
            "take the tokenizer that the model was trained with, or resize the model's embedding and save it",
        )


def _unfit(folder: Path, found: str, expected: str) -> UserError:
    return UserError(f"{folder} {found}", f"expected {expected}", "choose another model")
