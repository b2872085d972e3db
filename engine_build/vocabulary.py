"""The token ids of an engine."""

import json

from contract.engine import EngineSpec


def vocabulary_size(spec: EngineSpec) -> int:
    """Token ids of the engine's tokenizer, counted from 0, without those that were added to it."""
    tokenizer = json.loads((spec.folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    return len(tokenizer["model"]["vocab"])
