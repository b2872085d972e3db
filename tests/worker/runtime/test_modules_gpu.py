"""A model's own modules on a real GPU, against themselves in FP32 on a CPU."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.compare import TOLERANCES, compare
from contract.engine import EngineSpec, engine_folder
from contract.engines import load_engine
from contract.settings import settings
from tests.worker.runtime.failing import failing_at, output_after_a_cuda_error
from tests.worker.runtime.test_torch_gpu import batch, compile_engine, jargon
from worker.runtime.choose import open_engine
from worker.runtime.interface import Engine
from worker.runtime.modules import ModulesEngine, modules_engine

pytestmark = [pytest.mark.gpu_torch, pytest.mark.timeout(600)]

FAMILIES = ("mpnet", "deberta-v2", "t5", "SPLADE", "StaticEmbedding")


@pytest.fixture(scope="session", autouse=True)
def built(session_engines: Path) -> None:
    """An engine of each family."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(session_engines))
        settings.cache_clear()
        for family in FAMILIES:
            if not engine_folder(f"own-{family}").exists():
                from bench.families import save_family
                from tests.conftest import build_engine

                build_engine(save_family(family, session_engines.parent / f"own-{family}"), f"own-{family}")
    settings.cache_clear()


@pytest.fixture(autouse=True)
def modules_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_RUNTIME", "modules")
    settings.cache_clear()


def vectors(engine: Engine, spec: EngineSpec, rows: Sequence[str | None]) -> Any:
    """``[vectors, hidden]``, sparse ones with their zeros."""
    return np.concatenate(list(engine.infer(batch(spec, list(rows))).rows.split(spec.hidden)))


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_fp32_in_row_order(family: str, caplog: pytest.LogCaptureFixture) -> None:
    spec = load_engine(f"own-{family}")
    rows = [None, *jargon(300), None, "", "one", "a[UNK]b [PAD] c"]
    with modules_engine(spec, 4) as fp32:
        expected = vectors(fp32, spec, rows)
    with caplog.at_level(logging.INFO), open_engine(spec, threads=1) as engine:
        assert isinstance(engine, ModulesEngine)
        assert engine.precision == (spec.torch_precision or "fp32")
        found, again = vectors(engine, spec, rows), vectors(engine, spec, rows)
    assert any(f"modules on a GPU in {engine.precision.upper()}" in line for line in caplog.messages)
    told = any("its layers are compiled in" in line or "its layers stay as" in line for line in caplog.messages)
    assert told == (family != "StaticEmbedding"), caplog.messages
    comparison = compare(found, expected)
    assert comparison.within(TOLERANCES[engine.precision]), comparison
    assert np.array_equal(found, again)


def test_batches_of_any_size_and_length_are_computed_by_the_same_graphs() -> None:
    spec, random, texts = load_engine("own-mpnet"), np.random.default_rng(3), jargon(40)
    with open_engine(spec, threads=1) as engine, modules_engine(spec, 2) as fp32:
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for number in (1, 2, 31, 33, 200, 2000):
            rows: list[str | None] = [texts[random.integers(40)][: random.integers(1, 4000)] for _ in range(number)]
            comparison = compare(vectors(engine, spec, rows), vectors(fp32, spec, rows))
            assert comparison.within(TOLERANCES[engine.precision]), (number, comparison)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
        nothing = engine.infer(batch(spec, [None]))
    assert nothing.vectors.shape == (0, spec.hidden)


def test_after_an_error_the_next_batch_has_its_own_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle of a batch leaves micro-batches on the GPU, whose vectors are nobody's."""
    monkeypatch.setattr("worker.runtime.modules._GPU_BUDGETS", (2048, 1 << 25))  # several of them
    spec = load_engine("own-mpnet")
    with open_engine(spec, threads=1) as engine:
        expected = vectors(engine, spec, jargon(700)[600:])
        with monkeypatch.context() as patch:
            patch.setattr(ModulesEngine, "_features", failing_at(3, ModulesEngine._features))
            with pytest.raises(ValueError, match="micro-batch 3"):
                vectors(engine, spec, jargon(600))
        assert np.array_equal(vectors(engine, spec, jargon(700)[600:]), expected)


def test_a_cuda_error_is_told_as_the_end_of_the_process() -> None:
    assert "dead: GPU 0 failed" in output_after_a_cuda_error("own-mpnet", "modules", "modules_engine(spec, 1, 0)")


def test_what_was_compiled_is_loaded_and_gives_the_same_vectors(caplog: pytest.LogCaptureFixture) -> None:
    spec, rows = compile_engine("own-mpnet"), jargon(30)
    with open_engine(spec.model_copy(update={"compiled": ()}), threads=1) as engine:
        expected = vectors(engine, spec, rows)
    caplog.clear()
    with caplog.at_level(logging.INFO), open_engine(spec, threads=1) as engine:
        np.testing.assert_array_equal(vectors(engine, spec, rows), expected)
    assert not any("compiling takes a minute" in line for line in caplog.messages)
