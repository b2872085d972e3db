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
In the mode fp16-packed sentence-transformers lays rows end to end itself, as it does with FlashAttention."""

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
    options = {"attn_implementation": _flash_attention()} if arguments.mode == "fp16-packed" else {}
    dtype = torch.float32 if arguments.mode == "fp32" else torch.float16
    model = SentenceTransformer(arguments.model, device=device, model_kwargs=options | {"dtype": dtype})
    model.max_seq_length = arguments.max_length
    if arguments.mode != "fp32":
        model.half()
    if arguments.mode == "fp16-compiled":
        encoder: Any = model[0].auto_model
        encoder.compile(dynamic=True)
    seconds: dict[str, float] = {}
    for size in map(int, arguments.batch_sizes.split(",")):
        # Rows of all lengths, as encode() sorts them: what is compiled or chosen for a shape is before the clock runs.
        by_length = sorted(texts, key=len)
        warm = by_length[:: max(1, len(texts) // (4 * size))]
        model.encode(warm, batch_size=size, show_progress_bar=False)
        model.encode(by_length[-size:], batch_size=size, show_progress_bar=False)
        began = time.perf_counter()
        model.encode(texts, batch_size=size, show_progress_bar=False)
        seconds[str(size)] = round(time.perf_counter() - began, 3)
        print(f"{arguments.mode}, batch {size}: {len(texts) / seconds[str(size)]:,.1f} rows/s", file=sys.stderr)
    print(json.dumps(seconds))


def _flash_attention() -> str:
    """The newest that is installed, as transformers names it."""
    installed = importlib.util.find_spec("flash_attn")
    if installed is None:
        sys.exit("Error: flash-attn is not installed, with which sentence-transformers packs rows")
    return "flash_attention_4" if importlib.util.find_spec("flash_attn.cute") else "flash_attention_2"


if __name__ == "__main__":
    main()
