"""What is made into an engine: the model as it was opened, with what the user chose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from contract.errors import UserError
from contract.graph import Pooling
from contract.words import count
from engine_build.adapter import merge_adapter
from engine_build.model import NO_LIMIT, Parts, longest, weights_sha256
from engine_build.opened import open_folder
from engine_build.outputs import default_prompt, document_length, opened_parts
from engine_build.source import Source, adapter_of, fetch
from worker.runtime.interface import LONG_ROW

DEFAULT_LENGTH = 512

Say = Callable[[str], None]
"""Takes a line that the user should read."""


@dataclass(frozen=True)
class EngineOptions:
    """What a user asks of an engine."""

    name: str | None = None
    """None for one made from the model's."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    pooling: Pooling | None = None
    """None for the model's own, as of ``normalize``."""
    normalize: bool | None = None
    max_length: int | Literal["model"] | None = None
    """In tokens; ``model`` for where sentence-transformers truncates; None for 512, or as many as the model has
    positions for where those are fewer."""
    gpu: bool = True
    """Make also what GPUs compute with. For a CPU alone an ONNX file in FP32 is enough, and takes half of the time."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model as it was opened, with what the user chose."""

    source: Source
    parts: Parts
    weights_sha256: str
    tokenizer: Any
    prompts: dict[str, str]
    """Those that are not empty."""
    prefix: str
    """The default prompt; empty for none."""
    max_length: int
    """Tokens after which the engine truncates a row."""
    model_length: int
    """Tokens after which sentence-transformers does."""
    onnx_alone: bool
    """Whether an ONNX file in FP32 is all that is needed of a model that can be exported: for a CPU alone, and where no
    row is so long that a CPU computes it with PyTorch, whose attention takes less memory."""


def prepare(model: str, options: EngineOptions, say: Say) -> Prepared:
    """Open a model, and settle what the options leave open.

    Args:
        model: Hub id or local folder.
        options: what the user asks for.
        say: takes lines on what differs from what the user may expect.

    Raises:
        UserError: there is no such model, or it cannot be taken, or not with these options.
    """
    source = fetch(model, options.revision)
    opened = open_folder(source.folder)
    weights = weights_sha256(opened)
    prompts = {key: text for key, text in opened.prompts.items() if text}
    prefix = default_prompt(opened)
    parts = opened_parts(opened, options.pooling, options.normalize)
    if adapter := adapter_of(source.folder):
        merge_adapter(parts)
        say(f"peft merged the {adapter.get('peft_type', 'LORA')} adapter into {adapter['base_model_name_or_path']}.")
    limit = longest(parts.encoder)
    model_length = int(min(document_length(opened) or opened.max_seq_length or limit, limit))
    max_length = _length(options.max_length, model_length, limit, say)
    if prompts and not prefix:
        named = ", ".join(f"{key} {text!r}" for key, text in prompts.items())
        say(f"The model offers prompts ({named}) and no default one; python -m producer --prompt NAME sets one.")
    return Prepared(
        *(source, parts, weights, opened.tokenizer, prompts, prefix, max_length, model_length),
        onnx_alone=not options.gpu and max_length <= LONG_ROW,
    )


def _length(asked: int | Literal["model"] | None, theirs: int, limit: int, say: Say) -> int:
    wanted = theirs if asked == "model" else asked
    if wanted is not None and not 3 <= wanted <= limit:
        raise UserError(f"--max-length {wanted}", f"the model has positions for 3 to {count(limit, 'token')}")
    length = wanted or min(DEFAULT_LENGTH, limit)
    if asked is None and length < DEFAULT_LENGTH:
        say(f"The model has positions for {count(limit, 'token')} only: rows are truncated there instead of at 512.")
    if asked is None and theirs > length and theirs == limit == NO_LIMIT:
        say(
            f"sentence-transformers truncates none of this model's texts; this engine does at {count(length, 'token')}."
        )
    elif asked is None and theirs != length:
        say(
            f"sentence-transformers truncates this model's texts at {count(theirs, 'token')}; "
            f"this engine does at {length}. --max-length model gives theirs."
        )
    return length
