"""Linear layers of one input as one product; no GPU, and nothing compiled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
import transformers
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters

from worker.runtime.merging import merge_linear, merging_backend


def merged(module: nn.Module, *inputs: Any, **options: Any) -> tuple[Any, int]:
    """What the module gives when its graph is computed with merged products, and how many are left out."""
    left_out = 0

    def backend(graph: fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        nonlocal left_out
        left_out += merge_linear(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.inference_mode():
        return torch.compile(module, backend=backend, dynamic=False)(*inputs, **options), left_out


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        (transformers.BertConfig(num_attention_heads=4), 2),  # query, key and value
        (transformers.Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=16), 3),  # gate and up too
        (transformers.ModernBertConfig(num_attention_heads=4, vocab_size=100, pad_token_id=0), 0),  # they are one
    ],
)
def test_a_models_vectors_stay_and_products_are_left_out(config: Any, left_out: int) -> None:
    config.update({"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1})
    config.layer_types = ["full_attention"]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    ids = torch.randint(5, 99, (1, 20))
    with torch.inference_mode():
        expected = model(input_ids=ids).last_hidden_state
    found, count = merged(model, input_ids=ids)
    assert count == left_out
    torch.testing.assert_close(found.last_hidden_state, expected, atol=2e-6, rtol=0)


class Mixed(nn.Module):
    """Two layers of one input with biases, two without, and one of another input."""

    def __init__(self) -> None:
        super().__init__()
        self.biased = nn.ModuleList([nn.Linear(8, width) for width in (3, 5)])
        self.plain = nn.ModuleList([nn.Linear(8, width, bias=False) for width in (2, 4)])
        self.other = nn.Linear(8, 6)

    def forward(self, hidden: Tensor) -> Tensor:
        layers = [*self.biased, *self.plain]
        return torch.cat([*(layer(hidden) for layer in layers), self.other(hidden.neg())], -1)


def test_only_layers_of_the_same_input_and_kind_are_merged() -> None:
    torch.manual_seed(0)
    model, hidden = Mixed(), torch.randn(7, 8)
    found, left_out = merged(model, hidden)
    assert left_out == 2
    torch.testing.assert_close(found, model(hidden).detach())


def test_a_weight_that_is_computed_is_left_alone() -> None:
    """It may not be there yet where the merged product would be."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, hidden: Tensor) -> Tensor:
            made = self.first(hidden)
            return made + nn.functional.linear(hidden, self.first.weight * made.mean())

    model, hidden = Tied(), torch.randn(3, 4)
    found, left_out = merged(model, hidden)
    assert left_out == 0
    torch.testing.assert_close(found, model(hidden).detach())


def test_what_is_compiled_of_a_merged_graph_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else a worker traces anew at each start what ``engine_build compile`` has kept."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    counters["aot_autograd"].clear()
    # By PyTorch's own kernels: that of each operation a C++ compiler makes one takes ten times the time of all else.
    monkeypatch.setattr(torch._inductor.config, "fallback_by_default", True)
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # and no processes that wait to compile some
    model = transformers.BertModel(
        transformers.BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=100)
    ).eval()
    layer = model.encoder.layer[0]
    layer.compile(dynamic=False, backend=merging_backend)
    with torch.inference_mode():
        layer(torch.ones(1, 4, 32))
    assert dict(counters["aot_autograd"]) == {"total": 1, "autograd_cache_miss": 1, "autograd_cache_saved": 1, "ok": 1}
