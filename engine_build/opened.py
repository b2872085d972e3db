"""A model opened by sentence-transformers, and whether an engine can give the vectors that it gives."""

from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer
from sentence_transformers.sparse_encoder.modules import MLMTransformer

from contract.engine import OpenedBy
from contract.errors import UserError, first_line
from contract.words import count
from engine_build.adapter import check_adapter, check_layers
from engine_build.quiet import quietly
from engine_build.source import adapter_of, encoder_folder, is_static, opened_by, refuse_code
from worker.runtime.modules import open_modules

_HARMLESS = (
    "Default prompt name is set",  # honoured, and shown
    "This model was created with Sentence Transformers version",  # what that brings about is compared after the export
    "Skiplist words",  # that are no tokens: encode() does not know them either
)
"""How warnings of sentence-transformers begin that say nothing of other vectors."""


def open_folder(folder: Path) -> Any:
    """The model in a folder, of the class ``source.opened_by``, in FP32 on the CPU, in evaluation mode.

    Raises:
        UserError: the model has code of its own, sentence-transformers refuses it or would compute with something else
            than what the folder says, or it has anything that an engine cannot honour.
    """
    refuse_code(folder)
    check_adapter(folder)
    encoder, kind = encoder_folder(folder), opened_by(folder)
    with quietly() as library_warnings:
        if not is_static(folder):  # whose config.json, if it has one, is not transformers'
            _check_config(folder, adapter_of(folder).get("base_model_name_or_path", encoder))
        try:
            model = open_modules(folder, kind)
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
        _check_first(folder, model, kind)
        if adapter_of(folder):
            check_layers(model[0].auto_model)
        _check_weights(folder, encoder, model)
    if isinstance(model[0], Transformer):
        if hasattr(model[0].auto_model, "pooler"):
            model[0].auto_model.pooler = None  # which some checkpoints carry, and no vector depends on
        _check_tokenizer(folder, encoder, model)
    width = getattr(model, "truncate_dim", None)
    if width is not None and not (isinstance(width, int) and width > 0):
        raise UserError(f"{folder} has a truncate_dim of {width!r}", "expected a number of elements")
    return model


def _check_config(folder: Path, encoder: str | Path) -> None:
    try:
        transformers.AutoConfig.from_pretrained(encoder, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder} is no model ({first_line(error)})", "expected a transformers model") from None


def _check_first(folder: Path, model: Any, kind: OpenedBy) -> None:
    """What makes token ids of texts: whatever computes the engine, rows come to it as one token id after the other."""
    first = model[0]
    if type(first) is StaticEmbedding:
        return
    if type(first) not in (Transformer, MLMTransformer):
        raise _unfit(folder, f"has {type(first).__name__} for its first module", "a Transformer or a StaticEmbedding")
    if not type(first.auto_model).__module__.startswith("transformers.models."):
        raise _unfit(folder, f"is opened as {type(first.auto_model).__name__}", "a model of transformers")
    output = (first.transformer_task, first.module_output_name, first.modality_config)
    if "message" in first.modality_config:
        raise _unfit(folder, "puts texts into a chat template", "plain texts, as models have that were saved for them")
    if output not in (_taken("feature-extraction", "last_hidden_state"), _taken("fill-mask", "logits")):
        raise _unfit(folder, f"takes {output} of its encoder", "the last hidden state of each token, or its logits")
    expansion = None if kind == "MultiVectorEncoder" else first.query_expansion  # of queries alone
    for name, found in (("query_expansion", expansion), ("processing_kwargs", first.processing_kwargs)):
        if found:
            raise _unfit(folder, f"asks for {name} {found}", "none: an engine's rows are plain texts")


def _taken(task: str, output: str) -> tuple[str, str, dict[str, dict[str, str]]]:
    """What a Transformer module says that takes this output of each of a text's tokens."""
    return task, "token_embeddings", {"text": {"method": "forward", "method_output_name": output}}


def _check_weights(folder: Path, encoder: Path, model: Any) -> None:
    """Weights that the files lack would be random: sentence-transformers says so only in a log."""
    if not isinstance(model[0], Transformer):
        return  # which loads strictly
    kind: Any = type(model[0].auto_model)  # of an encoder and a decoder, the encoder alone
    try:
        again, loading = kind.from_pretrained(
            encoder,
            config=model[0].auto_model.config,
            dtype=torch.float32,
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
    if tokenizer.truncation_side != "right":
        raise _unfit(folder, f"has a tokenizer whose truncation_side is {tokenizer.truncation_side}", "right")
    if tokenizer.padding_side != "right" and hasattr(model[0].auto_model, "embeddings"):
        positions = getattr(model[0].auto_model.embeddings, "position_embeddings", None)
        if isinstance(positions, torch.nn.Embedding) and not hasattr(model[0].auto_model.embeddings, "padding_idx"):
            raise _unfit(
                folder,
                f"has a tokenizer whose padding_side is {tokenizer.padding_side}, and a table of positions: "
                "encode() gives a text other vectors beside longer ones",
                "right",
            )
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
