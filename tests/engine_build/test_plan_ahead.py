"""Every graph through a real parser and builder: TensorRT-RTX, which needs no GPU to build and is of TensorRT 11's
kind."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.tiny_model import save_tiny_model
from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.errors import UserError
from contract.files import sha256_of
from contract.graph import Pooling
from contract.plan import PackedProfile, PaddedProfile
from contract.settings import settings
from engine_build import plan_command
from engine_build.command import main
from engine_build.export import onnx_from_torch
from engine_build.model import Head
from engine_build.packed import packed_onnx_from_torch
from engine_build.profiles import PlanOptions, packed_shapes, padded_shapes
from tests.conftest import JARGON
from tests.engine_build.encoders import FAMILY, OTHERS, encoder_of
from worker.runtime.gpus import tensorrt_package

ROOT = JARGON.parent.parent
OPTIONS = PlanOptions(workspace=2**30)
PROFILES = [padded_shapes(PaddedProfile.parse(text)) for text in ("1-8x1-64", "4x65-512")]

pytestmark = pytest.mark.skipif(
    tensorrt_package() != "tensorrt_rtx", reason="TensorRT-RTX is not what TensorRT is taken from here"
)


def model_of(architecture: str, folder: Path) -> Path:
    """A tiny model of one layer. BERT's attention heads are 64 wide, so that it can be packed too."""
    wide = {"hidden_size": 128, "num_attention_heads": 2} if architecture == "bert" else {}
    layers = "n_layers" if architecture == "distilbert" else "num_hidden_layers"
    return save_tiny_model(folder / architecture, architecture, **{layers: 1}, **wide)


@pytest.fixture
def engine(tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    """A copy of the tiny engine, to which a plan may be added."""
    shutil.copytree(tiny.folder, tmp_path / "engines" / "tiny")
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    settings.cache_clear()
    return load_engine("tiny")


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["plan", *arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        *itertools.product(FAMILY, ("mean", "cls", "tokens")),
        *itertools.product(OTHERS, ("mean",)),
    ],
)
def test_every_padded_graph_is_parsed_and_built(architecture: str, pooling: Pooling, tmp_path: Path) -> None:
    from engine_build.onnx_to_plan import plan_from_onnx

    file = tmp_path / "model.fp16.onnx"
    steps: list[tuple[str, int, int]] = []
    encoder = encoder_of(model_of(architecture, tmp_path)).half()
    onnx_from_torch(encoder, pooling, Head([], None, pooling != "tokens"), file)
    plan = plan_from_onnx(
        file,
        PROFILES,
        OPTIONS,
        sm=80,
        cache=tmp_path / "cache",
        step=lambda what, done, total: steps.append((what, done, total)),
    )
    assert plan.nbytes > file.stat().st_size / 2
    done, (total,) = [done for _, done, _ in steps], {total for _, _, total in steps}
    assert done == list(range(len(done)))
    assert 1 < len(done) <= total + 1
    assert not (tmp_path / "cache").exists()


def test_the_packed_graph_needs_a_plugin_that_only_tensorrt_has(tmp_path: Path) -> None:
    from engine_build.onnx_to_plan import has_attention_plugin, plan_from_onnx

    assert not has_attention_plugin()
    file = tmp_path / "model.packed.onnx"
    packed_onnx_from_torch(encoder_of(model_of("bert", tmp_path)).half(), "mean", Head([], None, True), file)
    shapes = [packed_shapes(PackedProfile(24, 1536), 512, "mean")]
    with pytest.raises(UserError, match=r"TensorRT RTX [\d.]+ cannot read .*CustomQKVToContextPluginDynamic"):
        plan_from_onnx(file, shapes, OPTIONS, sm=80, cache=tmp_path / "cache", step=lambda what, done, total: None)


def test_a_file_that_is_no_graph_gives_the_parsers_reason(tmp_path: Path) -> None:
    from engine_build.onnx_to_plan import plan_from_onnx

    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"TensorRT RTX [\d.]+ cannot read .*model\.onnx \(.+\)"):
        plan_from_onnx(file, PROFILES, OPTIONS, sm=80, cache=tmp_path / "c", step=lambda what, done, total: None)


def test_a_plan_built_ahead_is_recorded_for_its_library_and_gpus_alone(engine: EngineSpec) -> None:
    from worker.runtime.trt import VERSION, trt

    command = ("--engine", "tiny", "--profile", "1-4x512")
    status, output = run(*command, "--compute-capability", "8.6")
    assert status == 0, output
    assert f"TensorRT {VERSION}, SM 86" in output
    assert "no GPU" in output
    plan = load_engine("tiny").plan_for(VERSION, 86)
    assert (plan.gpu, plan.sm, plan.tensorrt, plan.packed) == (None, 86, f"RTX {trt.__version__}", False)
    assert [str(profile) for profile in plan.profiles] == ["1-4x512"]
    assert sha256_of(engine.folder / plan.file) == plan.sha256
    for version, sm in ((trt.__version__, 86), (VERSION, 89)):
        with pytest.raises(UserError, match=rf"has plans for TensorRT RTX .* on SM 86; this machine has .* SM {sm}"):
            load_engine("tiny").plan_for(version, sm)
    assert run(*command, "--compute-capability", "12.0")[0] == 0
    assert run(*command, "--compute-capability", "8.6", "--level", "1")[0] == 0
    plans = load_engine("tiny").plans
    assert [(one.sm, one.optimization_level) for one in plans] == [(120, 3), (86, 1)]
    assert {f"plans/{file.name}" for file in (engine.folder / "plans").iterdir()} == {one.file for one in plans}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ("--compute-capability", "9.0"),
            r"builds no plan for .* 9\.0; it supports 7\.5, .* use TensorRT on",
        ),
        (("--compute-capability", "8.6", "--packed"), r"rows of engine tiny cannot be packed by TensorRT RTX"),
        (("--compute-capability", "86"), r"'86': expected a compute capability, such as 8\.6"),
        (("--compute-capability", "8.6", "--gpu", "0"), r"give one of them"),
    ],
)
def test_what_cannot_be_built_ahead_is_refused(arguments: tuple[str, ...], error: str, engine: EngineSpec) -> None:
    status, output = run("--engine", "tiny", *arguments)
    assert status != 0
    assert re.search(error, " ".join(output.split()))
    assert load_engine("tiny").plans == ()


def test_without_tensorrt_rtx_the_extra_is_named(engine: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_command, "tensorrt_package", lambda: "")
    status, output = run("--engine", "tiny", "--compute-capability", "8.6")
    assert status == 1
    assert "install it: pip install 'embedmill[rtx]'" in output


def test_tensorrt_itself_does_not_build_ahead(engine: EngineSpec, tmp_path: Path) -> None:
    """It is taken where both are installed. Here the package of its name holds the other one's library."""
    package = tmp_path / "site" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n")
    done = subprocess.run(
        [sys.executable, "-m", "engine_build", "plan", "--engine", "tiny", "--compute-capability", "8.6"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "builds a plan only on the GPU that will run it" in done.stderr
    assert "leave out --compute-capability" in done.stderr
