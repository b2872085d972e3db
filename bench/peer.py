"""``python -m bench.peer``: sentence-transformers on the rows of a file, in a process of its own.

Imports nothing of embedmill: it runs in a Python that has torch and sentence-transformers and nothing else.
"""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer

_DESCRIPTION = """Time encode() over the texts of ROWS, a file of JSON strings, one a line, for each batch size, and
print one line of JSON: seconds by batch size. The model is loaded, and compiled, and warm before the clock runs.
In the mode fp16-packed sentence-transformers lays rows end to end itself, as it does with FlashAttention: with each
version of it that is installed, and the seconds are by batch size and version."""

_MODULES = {
    "flash_attention_2": "flash_attn.flash_attn_interface",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
"""Versions of FlashAttention, as transformers names them, and the modules that they are in."""

_MODES = ("fp32", "fp16", "fp16-compiled", "fp16-packed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peer", description=_DESCRIPTION)
    parser.add_argument("rows", type=Path, help="a file with one JSON string a line")
    parser.add_argument("--model", required=True, help="a sentence-transformers or transformers folder")
    parser.add_argument("--max-length", type=int, required=True, help="tokens of a row")
    parser.add_argument("--mode", choices=_MODES, default="fp32", help="how it computes")
    parser.add_argument("--batch-sizes", default="32", help="with commas")
    arguments = parser.parse_args()
    texts = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    transformers.utils.logging.disable_progress_bar()
    seconds: dict[str, float] = {}
    for attention in _flash_attentions() if arguments.mode == "fp16-packed" else [""]:
        try:
            model = _model(arguments, device, attention)
        except (ImportError, ValueError) as error:  # it is installed, but not for this GPU, or it lacks a library
            print(f"Not measured: {attention}: {error}", file=sys.stderr)
            continue
        for size in map(int, arguments.batch_sizes.split(",")):
            shown = f"{size}, {attention}" if attention else str(size)
            seconds[shown] = round(_seconds(model, texts, size), 3)
            print(f"{arguments.mode}, batch {shown}: {len(texts) / seconds[shown]:,.1f} rows/s", file=sys.stderr)
    if not seconds:
        sys.exit("Error: nothing could be measured")
    print(json.dumps(seconds))


def _model(arguments: argparse.Namespace, device: str, attention: str) -> SentenceTransformer:
    options = {"attn_implementation": attention} if attention else {}
    dtype = torch.float32 if arguments.mode == "fp32" else torch.float16
    model = SentenceTransformer(arguments.model, device=device, model_kwargs=options | {"dtype": dtype})
    model.max_seq_length = arguments.max_length
    if arguments.mode != "fp32":
        model.half()
    if arguments.mode == "fp16-compiled":
        encoder: Any = model[0].auto_model
        encoder.compile(dynamic=True)
    return model


def _seconds(model: SentenceTransformer, texts: list[str], size: int) -> float:
    # Rows of all lengths, as encode() sorts them: what is compiled or chosen for a shape is before the clock runs.
    by_length = sorted(texts, key=len)
    warm = by_length[:: max(1, len(texts) // (4 * size))]
    model.encode(warm, batch_size=size, show_progress_bar=False)
    model.encode(by_length[-size:], batch_size=size, show_progress_bar=False)
    began = time.perf_counter()
    model.encode(texts, batch_size=size, show_progress_bar=False)
    return time.perf_counter() - began


def _flash_attentions() -> list[str]:
    """Those that are installed."""
    found = [name for name, module in _MODULES.items() if _is_there(module)]
    if not found:
        sys.exit("Error: no flash-attn is installed, with which sentence-transformers packs rows")
    return found


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
