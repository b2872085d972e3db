"""``python -m bench.packed_loop``: plain PyTorch over packed rows, compiled, in FP16: what an engine must beat.

transformers' own model, attention by ``varlen_attn``, the whole model one graph, rows end to end in the order of the
batches, the rest of each run padding. Nothing of embedmill's runtimes: no merged products, no GELU within a product, no
profiles. Mean pooling and normalization are in FP32. The inputs are cut, and pinned, before the clock runs.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from contract.batch import Batch

_DESCRIPTION = """Compute the batches in FOLDER, the bytes of each in a file, over and over. Prints one line of JSON:
rows, tokens (padding not counted), seconds, runtime."""

_RUN, _ROWS = 33_792, 1_056
"""Tokens and rows of a run."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, ends: Tensor, longest: int, **_: object
) -> tuple[Tensor, None]:
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    made: Any = varlen_attn(query, key, value, ends, ends, longest, longest)
    return made[None], None


class _Encoder(nn.Module):
    def __init__(self, folder: str, longest: int) -> None:
        super().__init__()
        self._longest = longest
        transformers.AttentionInterface.register("bench_packed", _attention)
        transformers.AttentionMaskInterface.register("bench_packed", lambda *_, **__: None)
        self.model = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float16, attn_implementation="bench_packed"
        )

    def forward(self, ids: Tensor, positions: Tensor, ends: Tensor, row_of_token: Tensor, lengths: Tensor) -> Tensor:
        rows = {"ends": ends, "longest": self._longest}
        hidden = self.model(input_ids=ids[None], position_ids=positions[None], **rows).last_hidden_state[0].float()
        sums = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device).index_add_(0, row_of_token, hidden)
        return nn.functional.normalize(sums / lengths[:, None])


class _Run(NamedTuple):
    rows: int
    tokens: int
    """Of them, padding not counted."""
    inputs: dict[str, Tensor]
    """Pinned."""


def _runs(folder: Path) -> list[_Run]:
    rows = [
        row.clone()
        for batch in (Batch.from_bytes(file.read_bytes()) for file in sorted(folder.iterdir()))
        for row in torch.from_numpy(batch.tokens.ids).split(batch.lengths.tolist())
        if len(row)
    ]
    runs: list[list[Tensor]] = [[]]
    size = 0
    for row in rows:
        if size + len(row) > _RUN or len(runs[-1]) == _ROWS:
            runs.append([])
            size = 0
        runs[-1].append(row)
        size += len(row)
    return [_Run(len(run), sum(map(len, run)), _inputs(run)) for run in runs]


def _inputs(rows: list[Tensor]) -> dict[str, Tensor]:
    missing = _RUN - sum(map(len, rows))
    padding = [torch.zeros(min(512, missing - start), dtype=torch.int32) for start in range(0, missing, 512)]
    every = rows + padding
    lengths = torch.zeros(_ROWS + _RUN // 512 + 1, dtype=torch.int32)
    lengths[: len(every)] = torch.tensor([len(row) for row in every])
    made = {
        "ids": torch.cat(every),
        "positions": torch.cat([torch.arange(len(row), dtype=torch.int32) for row in every]),
        "ends": nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        "row_of_token": torch.arange(len(lengths)).repeat_interleave(lengths),
        "lengths": lengths.clamp_min(1),
    }
    return {name: values.pin_memory() for name, values in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.packed_loop", description=_DESCRIPTION)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True, help="a transformers folder whose attention is not causal")
    parser.add_argument("--seconds", type=float, default=20.0, help="at least this long [default: 20]")
    arguments = parser.parse_args()
    runs = _runs(arguments.folder)
    # The kernel computes no more of a row than this. Padding comes in rows of up to 512.
    longest = max(512, *(int(run.inputs["lengths"].max()) for run in runs))
    encoder = _Encoder(arguments.model, longest).eval().cuda()
    encoder.compile(dynamic=False)
    received = torch.empty((len(runs[0].inputs["lengths"]), encoder.model.config.hidden_size), pin_memory=True)

    def compute() -> None:
        for run in runs:
            on_gpu = {name: values.cuda(non_blocking=True) for name, values in run.inputs.items()}
            received.copy_(encoder(**on_gpu), non_blocking=True)
        torch.cuda.synchronize()

    with torch.inference_mode():
        compute()
        rounds, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < arguments.seconds or not rounds:
            compute()
            rounds += 1
    rows, tokens = rounds * sum(run.rows for run in runs), rounds * sum(run.tokens for run in runs)
    told = {"rows": rows, "tokens": tokens, "seconds": spent, "runtime": f"torch {torch.__version__}, fp16"}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
