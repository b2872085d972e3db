"""A model's own modules in the precisions that a GPU computes in, and with compiled layers; on a CPU."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from bench.families import FAMILIES, WIDTH, save_family
from contract.batch import Batch
from contract.compare import compare
from contract.tokens import TokenRows
from tests.contract.samples import engine_spec
from worker.runtime.modules import ModulesEngine, open_modules
from worker.runtime.packed_model import HALF
from worker.runtime.trials import seconds

VOCABULARY = 400


def opened(name: str, folder: Path, precision: str = "fp32") -> ModulesEngine:
    """Of a family's tiny model."""
    output = FAMILIES[name].output
    model = open_modules(folder, output, precision)
    sparse = output == "SparseEncoder"
    hidden = model[0].auto_model.get_input_embeddings().num_embeddings if sparse else WIDTH
    spec = engine_spec(
        **{"opened_by": output, "pooling": "sparse" if sparse else "mean", "hidden": hidden, "max_length": 64},
        pad_id=model.tokenizer.pad_token_id,
    )
    return ModulesEngine(spec, model, precision)


def batch(lengths: Sequence[int]) -> Batch:
    """Rows of random tokens."""
    each = np.array(lengths, np.int32)
    ids = np.random.default_rng(len(each)).integers(5, VOCABULARY, each.sum(), dtype=np.int32)
    return Batch("job", 0, "", np.arange(len(each)), TokenRows(ids, each), each)


def vectors(engine: ModulesEngine, *batches: Batch) -> Any:
    """``[vectors, hidden]``."""
    return engine.vectors_of(list(batches))


@pytest.mark.parametrize(("name", "precision"), [("mpnet", "fp16"), ("SPLADE", "bf16")])
def test_an_encoder_computes_in_another_precision_and_what_follows_it_in_fp32(
    name: str, precision: str, tmp_path: Path
) -> None:
    some, folder = batch([64, 40, 7, 7, 2, 1]), save_family(name, tmp_path)
    engine = opened(name, folder, precision)
    encoder, *others = open_modules(folder, FAMILIES[name].output, precision)
    assert {weights.dtype for weights in encoder.parameters()} == {HALF[precision]}
    assert {weights.dtype for one in others for weights in one.parameters()} <= {torch.float32}
    found = vectors(engine, some)
    assert found.dtype == np.float32
    comparison = compare(found, vectors(opened(name, folder), some))
    # Random weights round worse than real ones; whether a model's vectors are near enough is for the build to find.
    assert 0.99 < comparison.min_cosine < 1, comparison


def test_what_an_encoder_has_beside_its_weights_keeps_its_digits(tmp_path: Path) -> None:
    """The frequencies of rotary positions: rounded to BF16 they would turn a late token by another angle."""
    exact, reduced = (open_modules(save_family("qwen3", tmp_path / precision), "SentenceTransformer", precision)
                      for precision in ("fp32", "bf16"))  # fmt: skip
    buffers = dict(exact[0].named_buffers())
    assert buffers
    assert all(torch.equal(values, buffers[name]) for name, values in reduced[0].named_buffers())


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2"])
def test_compiled_layers_serve_rows_of_any_number_and_length(name: str, tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter  # here: it imports half a second of PyTorch's compiler

    torch.compiler.reset()
    some = [batch(lengths) for lengths in ([64] * 3, [64, 33, 32, 9], [17], [2, 2], [20] * 20, [50, *[20] * 30])]
    folder, counter = save_family(name, tmp_path), CompileCounter()
    plain, engine = opened(name, folder), opened(name, folder)
    engine.compile(counter, lambda compute: 1.0)
    graphs = counter.frame_count
    assert graphs
    np.testing.assert_allclose(vectors(engine, *some), vectors(plain, *some), atol=2e-6)
    assert counter.frame_count == graphs


def failing(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    raise RuntimeError("no such instruction")


def other(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Computes the layer with some of its values lost."""
    return lambda *values: tuple(made.clamp(max=0.1) for made in graph.forward(*values))


@pytest.mark.parametrize(
    ("backend", "told"), [(failing, r"no such instruction"), (other, r"other vectors: lowest cosine 0\.")]
)
def test_layers_that_cannot_be_compiled_or_compute_something_else_stay_as_they_are(
    backend: Callable[..., Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.compiler.reset()
    some, engine = batch([30, 20]), opened("mpnet", save_family("mpnet", tmp_path))
    expected = vectors(engine, some)
    with caplog.at_level(logging.WARNING):
        engine.compile(backend)
    (line,) = caplog.messages
    assert line.startswith("engine one is slower than it could be: no compiled layers (")
    assert told.replace("\\", "") in line
    np.testing.assert_array_equal(vectors(engine, some), expected)


def test_layers_that_take_longer_once_they_are_compiled_stay_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.compiler.reset()
    some, engine = batch([30, 20]), opened("mpnet", save_family("mpnet", tmp_path))
    calls: list[str] = []

    def computed(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        def forward(*values: Tensor) -> Any:
            calls.append("compiled")
            return graph.forward(*values)

        return forward

    measured = iter([1.0, 1.25])
    with caplog.at_level(logging.INFO):
        engine.compile(computed, lambda compute: next(measured))
    assert caplog.messages == ["engine one: its layers stay as they are: compiled they take 1.25 times as long"]
    assert calls
    calls.clear()
    vectors(engine, some)
    assert not calls


def test_a_call_is_measured_after_a_first_one() -> None:
    calls: list[float] = []

    def compute() -> None:
        calls.append(0.001 if calls else 0.5)
        time.sleep(calls[-1])

    assert 0.001 <= seconds(compute) < 0.5
    assert len(calls) == 4
