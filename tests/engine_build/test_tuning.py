"""``engine_build tune`` and ``compile`` as far as a machine without a GPU goes."""

import numpy as np
import pytest
from click.testing import CliRunner

from contract.engine import EngineSpec
from engine_build.command import main
from engine_build.tuning import batches


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(arguments))
    return done.exit_code, f"{done.output}{done.exception or ''}"


def test_tune_times_both_runtimes_on_a_cpu_and_keeps_nothing(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = (tiny.folder / "engine.json").read_bytes()
    code, output = run("tune", "--engine", "tiny", "--seconds", "0")
    assert code == 0, output
    table = [line for line in output.splitlines() if "1.0000000" in line]
    assert [line.split()[1] for line in table] == ["onnxruntime", "torch"], output
    assert all("yes" in line for line in table)
    assert "Not kept" in output
    assert (tiny.folder / "engine.json").read_bytes() == before


def test_the_rows_that_are_timed_are_seeded_and_of_three_kinds(tiny: EngineSpec) -> None:
    some, again = batches(tiny, 100_000), batches(tiny, 100_000)
    means = {kind: batch.lengths.mean() for kind, batch in some.items()}
    assert means == pytest.approx({"short": 36, "mixed": 280, "long": 512}, rel=0.1)
    for kind, batch in some.items():
        assert 80_000 < batch.lengths.sum() < 120_000
        assert np.array_equal(batch.tokens.ids, again[kind].tokens.ids)
        assert not (batch.tokens.ids == tiny.pad_id).any()


def test_compiling_without_a_gpu_says_what_it_takes(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, output = run("compile", "--engine", "tiny")
    assert code == 1
    assert "this machine has no NVIDIA GPU" in output
    assert "embedmill[torch]" in output
