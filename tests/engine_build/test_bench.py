import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.plan import BatchShape
from engine_build.bench.cases import INPUT_SETS, as_batch, inputs, runs_of, without_padding
from engine_build.bench.chart import draw
from engine_build.bench.measure import Cases, measure
from engine_build.bench.records import BenchRecord, ReferenceVectors, add_to
from engine_build.bench.table import tables
from engine_build.command import main
from tests.contract.samples import engine_spec, plan_spec
from tests.engine_build.encoders import encoder_of
from worker.runtime.layout import layout_of


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def record(system: str, ms: float, **changes: object) -> BenchRecord:
    fields: dict[str, object] = {
        "system": system,
        "model": "mill",
        "gpu": "NVIDIA T4",
        "version": "1",
        "batch": 32,
        "length": 512,
        "runs": 100,
        "ms": ms,
        "sequences_per_s": 32_000 / ms,
        "tokens_per_s": 32_000 / ms * 512,
        "tflops": 300.0,
        "chip_share": 0.5,
        "mse": 8.7e-6,
        "relative_mse": 8.7e-6,
        "min_cosine": 0.99999,
        "max_difference": 0.01,
    }
    return BenchRecord(**(fields | changes))  # type: ignore[arg-type]


def test_inputs_are_the_same_each_time_and_padded_by_one_token(tiny: EngineSpec) -> None:
    once, again = inputs(tiny, BatchShape(4, 16)), inputs(tiny, BatchShape(4, 16))
    assert len(once) == INPUT_SETS
    for first, second in zip(once, again, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
        assert first.attention_mask.sum(axis=1).tolist() == [16, 16, 16, 15]
        assert (first.input_ids[first.attention_mask == 1] != tiny.pad_id).all()
        assert first.input_ids[-1, -1] == tiny.pad_id
        assert first.input_ids.max() < 1000
    assert not np.array_equal(once[0].input_ids, once[1].input_ids)
    assert inputs(tiny, BatchShape(1, 16))[0].attention_mask.sum() == 16


def test_the_operations_are_those_that_pytorch_counts(tiny: EngineSpec, tiny_model: Path) -> None:
    model = encoder_of(tiny_model)
    model.set_attn_implementation("eager")  # whose matrix products are counted
    for length in (16, 100):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=torch.ones((1, length), dtype=torch.long))
        assert tiny.flops(length) == counter.get_total_flops()


def test_the_article_has_one_row_a_thousand_times() -> None:
    one, many = BatchShape(1, 512), BatchShape(32, 512)
    assert (runs_of(one, None), runs_of(many, None), runs_of(many, 7)) == (1000, 100, 7)


def test_token_level_output_is_compared_without_its_padding(tiny: EngineSpec) -> None:
    batch = inputs(tiny, BatchShape(2, 4))[0]
    output = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
    assert without_padding(engine_spec(pooling="tokens"), batch, output).tolist() == output.reshape(8, 2)[:7].tolist()
    assert without_padding(engine_spec(), batch, output[:, 0]).shape == (2, 2)


@pytest.mark.parametrize(
    ("plan", "tokens"),
    [
        ({"padded_profiles": ["1-32x1-512"]}, 5 * 104),  # rows are padded to a multiple of eight tokens
        ({"padded_profiles": ["1-32x257-512"]}, 5 * 257),
        ({"padded_profiles": ["32x512"]}, 32 * 512),
        ({"packed_profiles": ["8x1024"]}, 1024),
    ],
)
def test_any_shape_is_computed_as_a_plan_takes_it(plan: dict[str, object], tokens: int, tiny: EngineSpec) -> None:
    layout, batch = layout_of(tiny, plan_spec(**plan)), as_batch(tiny, inputs(tiny, BatchShape(5, 100))[0])
    (micro,) = layout.cut(batch.lengths)
    assert micro.tokens == tokens
    buffers = {name: np.zeros(layout.sizes()[0], np.int32) for name in layout.inputs}
    layout.fill(batch, micro, buffers)
    assert set(batch.tokens.ids) <= set(buffers["input_ids"])
    assert layout.vectors(micro) == 5


def test_the_reference_goes_from_one_python_to_the_other(tmp_path: Path) -> None:
    spec, file = engine_spec(), tmp_path / "deep" / "ref"
    ReferenceVectors(spec.fingerprint, {"1x8": np.ones((1, 3), np.float32)}, 700.5).save(file)
    read = ReferenceVectors.load(file, spec)
    assert read.vectors["1x8"].tolist() == [[1, 1, 1]]
    assert read.matrix_tflops == 700.5
    with pytest.raises(UserError, match="is of engine"):
        ReferenceVectors.load(file, engine_spec(weights_sha256="another"))
    with pytest.raises(UserError, match=r"no file.*bench --engine one --system torch-fp32 --reference"):
        ReferenceVectors.load(tmp_path / "none.npz", spec)


def test_what_cannot_be_timed_is_refused_before_anything_is(tmp_path: Path) -> None:
    spec = engine_spec(max_length=512)
    options: dict[str, Any] = {"step": lambda what: None}
    with pytest.raises(UserError, match="1x513 is longer than a row can be; engine one takes 512 tokens"):
        measure(spec, Cases(["tensorrt"], [BatchShape(1, 8), BatchShape(1, 513)], 1), reference_file=None, **options)
    with pytest.raises(UserError, match="no file"):
        measure(spec, Cases(["torch-fp16"], [BatchShape(1, 8)], 1), reference_file=tmp_path / "none.npz", **options)


def test_records_join_those_of_other_systems_and_replace_their_own(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "bench.json"
    add_to(file, [record("torch-fp32", 70), record("torch-fp16", 9)])
    every = add_to(file, [record("torch-fp16", 8), record("tensorrt", 9.8), record("tensorrt", 1, batch=1)])
    assert [(one.batch, one.system, one.ms) for one in every] == [
        (1, "tensorrt", 1),
        (32, "tensorrt", 9.8),
        (32, "torch-fp32", 70),
        (32, "torch-fp16", 8),
    ]
    assert [BenchRecord(**one) for one in json.loads(file.read_text())] == every


def test_every_figure_can_be_read_in_80_columns() -> None:
    records = [record("tensorrt", 9.812), record("torch-fp32", 71.27), record("torch-fp16-compiled", 7.6, mse=None)]
    console = Console(width=80, file=io.StringIO())
    for table in tables([*records, record("tensorrt", 2.0, model="other")]):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    for figure in ("32x512", "torch-fp16-compiled", "9.812", "7.26", "3,261", "300", "50%", "8.70e-06", "0.9999900"):
        assert figure in text
    assert text.count("mill on NVIDIA T4") == 2


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_chart_is_drawn(tmp_path: Path, suffix: str) -> None:
    records = [record("tensorrt", 9.8), record("torch-fp32", 71.2), record("tensorrt", 0.8, batch=1)]
    draw(records, tmp_path / f"chart{suffix}")
    drawn = (tmp_path / f"chart{suffix}").read_bytes()
    assert drawn.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")
    assert len(drawn) > 5_000


def test_a_chart_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.svg, \.png, \.pdf"):
        draw([record("tensorrt", 1)], tmp_path / "chart.docx")


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def test_without_a_gpu_the_commands_say_so(tiny: EngineSpec) -> None:
    assert run("bench")[0] == 1
    assert "this machine has no NVIDIA GPU" in run("bench")[1]
    assert "leave out --system tensorrt" in run("bench", "--system", "tensorrt")[1]
    status, said = run("plan", "--engine", "tiny")
    assert status == 1
    assert "a plan is built on the GPU that will run it" in said
    assert "python -m engine_build plan --engine mill" in run("--model", "m", "--name", "mill", "--plan")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "--profile", "8"), "expected ROWSxLENGTH"),
        (("plan", "--profile", "9-8x512"), "is an empty range"),
        (("plan", "--packed", "--profile", "1-8x512"), "expected ROWSxTOKENS"),
        (("bench", "--shape", "1-8x512"), "expected ROWSxLENGTH"),
        (("bench", "--system", "jax"), "'jax' is not one of"),
    ],
)
def test_arguments_are_checked(arguments: tuple[str, ...], says: str) -> None:
    status, said = run(*arguments)
    assert status == 2
    assert says in said
