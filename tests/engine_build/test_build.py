import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer

from bench.families import save_family
from bench.tiny_model import save_tiny_model
from contract.compare import TOLERANCES, Comparison, Tolerance
from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.errors import UserError
from contract.files import sha256_of
from contract.graph import Pooling
from contract.settings import settings
from engine_build import tiers
from engine_build.build import build
from engine_build.command import main
from engine_build.compare_export import Expected, check_export
from engine_build.model import parts_of, weights_sha256
from engine_build.opened import open_folder
from engine_build.prepare import EngineOptions
from engine_build.tiers import EXPORTED
from producer.tokenizer import open_tokenizer
from tests.commands import called, run
from tests.conftest import build_engine
from worker.runtime.choose import open_engine
from worker.runtime.interface import Engine
from worker.runtime.onnx import onnx_engine
from worker.runtime.torch_cpu import torch_cpu_engine


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engines folder of this test's own."""
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    settings.cache_clear()
    return tmp_path / "engines"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "my model"))


def left_in(engines: Path) -> list[str]:
    return sorted(path.name for path in engines.iterdir()) if engines.exists() else []


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_engine_directory_holds_what_its_record_says(engines: Path, model: Path) -> None:
    spec = build_engine(model, "mill")
    assert load_engine() == load_engine("mill") == spec
    assert left_in(engines) == ["mill"]
    assert sorted(path.name for path in spec.folder.iterdir()) == [
        "engine.json",
        "model.fp16.onnx",
        "model.onnx",
        "model.safetensors",
        "tokenizer",
    ]
    assert len({path.stat().st_mode for path in spec.folder.iterdir() if path.is_file()}) == 1  # as the umask says
    assert spec.onnx_sha256 == sha256_of(spec.folder / "model.onnx")
    assert spec.onnx_fp16_sha256 == sha256_of(spec.folder / "model.fp16.onnx")
    assert spec.torch_sha256 == sha256_of(spec.folder / "model.safetensors")
    assert spec.tokenizer_sha256 == sha256_of(spec.folder / "tokenizer" / "tokenizer.json")
    assert (spec.model, spec.revision, spec.architecture) == (str(model), None, "bert")
    assert (spec.pooling, spec.normalize, spec.hidden, spec.max_length, spec.pad_id) == ("mean", False, 32, 512, 0)


@pytest.mark.parametrize(("scale", "precision"), [(1.0, "fp16"), (1e7, "bf16")])
def test_a_model_whose_values_are_too_large_for_fp16_is_computed_in_bf16_on_a_gpu(
    scale: float, precision: str, engines: Path, model: Path, tmp_path: Path
) -> None:
    """Between a layer's two products values are larger by ``scale``: 65,504 is the largest of FP16."""
    encoder = transformers.AutoModel.from_pretrained(model)
    with torch.no_grad():
        for layer in encoder.encoder.layer:
            layer.intermediate.dense.weight.mul_(scale)
            layer.intermediate.dense.bias.mul_(scale)
            layer.output.dense.weight.div_(scale)
    shutil.copytree(model, tmp_path / "scaled")
    encoder.save_pretrained(tmp_path / "scaled")
    assert build_engine(tmp_path / "scaled", "scaled").torch_precision == precision


@pytest.mark.parametrize(
    ("scale", "precision", "why"), [(1.0, "fp16", ""), (1e7, "bf16", " (FP16 is too far from encode(): lowest cosine ")]
)
def test_a_models_own_modules_are_computed_on_a_gpu_in_what_is_near_enough(
    scale: float, precision: str, why: str, engines: Path, tmp_path: Path
) -> None:
    """As above, of a T5; where it says so, why not in FP16 too."""
    folder = save_family("t5", tmp_path / "t5")
    model: Any = SentenceTransformer(str(folder), device="cpu")
    with torch.no_grad():
        for block in model[0].auto_model.encoder.block:
            block.layer[1].DenseReluDense.wi.weight.mul_(scale)
            block.layer[1].DenseReluDense.wo.weight.div_(scale)
    model.save_pretrained(str(folder), create_model_card=False)
    spec, comparisons = build(
        str(folder), EngineOptions("t5", max_length=64), say=lambda line: None, step=lambda text: None
    )
    assert (spec.tiers, spec.torch_precision) == (("modules",), precision)
    assert load_engine("t5").precision_on_gpu.startswith(f"{precision.upper()}{why}")
    assert comparisons["modules FP32"].within(TOLERANCES["fp32"])
    assert comparisons[f"modules {precision.upper()}"].within(TOLERANCES[precision])


def test_modules_that_are_near_enough_in_fp32_alone_are_computed_in_that_on_a_gpu(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for precision in ("fp16", "bf16"):
        monkeypatch.setitem(TOLERANCES, precision, Tolerance(1.0, 0.0))
    spec = build_engine(save_family("t5", tmp_path / "t5"), "exact", max_length=64)
    assert (spec.tiers, spec.torch_precision, [*spec.unused_precisions]) == (("modules",), None, ["fp16", "bf16"])
    assert spec.precision_on_gpu.startswith("FP32 (FP16 is too far from encode(): lowest cosine ")
    assert "; BF16 is too far from encode(): " in spec.precision_on_gpu


def test_modules_that_cannot_be_computed_in_fp16_are_in_another_precision() -> None:
    def opened(precision: str) -> Engine:
        raise RuntimeError("mat1 and mat2 must have the same dtype")

    expected: Any = None
    fields, comparisons = tiers.half_precision("modules", opened, expected, lambda text: None)
    assert comparisons == {}
    assert fields["torch_precision"] is None
    assert fields["unused_precisions"]["bf16"] == "cannot be computed (mat1 and mat2 must have the same dtype)"


@pytest.mark.parametrize("architecture", EXPORTED)
def test_every_architecture_becomes_an_engine(architecture: str, engines: Path, tmp_path: Path) -> None:
    spec = build_engine(save_tiny_model(tmp_path / "model", architecture), architecture, max_length=32)
    assert (spec.architecture, spec.hidden, spec.max_length) == (architecture, 32, 32)


def test_a_models_own_limit_is_the_length_where_it_is_below_512(engines: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = save_tiny_model(tmp_path / "short", "roberta", max_position_embeddings=66, pad_token_id=1)
    spec, _ = build(str(folder), EngineOptions(), say=said.append, step=lambda text: None)
    assert spec.max_length == 64  # RoBERTa's positions begin behind the padding id
    assert spec.name == "short"
    (line,) = said
    assert "64 tokens" in line


@pytest.mark.parametrize("length", [-1, 0, 2, 513])
def test_a_length_that_the_model_has_no_positions_for_is_refused(length: int, engines: Path, model: Path) -> None:
    with pytest.raises(UserError, match=f"--max-length {length}.*3 to 512"):
        build_engine(model, "mill", max_length=length)
    assert left_in(engines) == []


@pytest.mark.parametrize("length", [3, 512])
def test_the_shortest_and_the_longest_length_are_taken(length: int, engines: Path, model: Path) -> None:
    assert build_engine(model, "mill", max_length=length).max_length == length


def test_building_again_changes_nothing(engines: Path, model: Path, tmp_path: Path) -> None:
    first = build_engine(model, "mill", max_length=16)
    before = {file: file.stat().st_mtime_ns for file in first.folder.rglob("*")}
    moved, steps = model.rename(tmp_path / "elsewhere"), list[str]()
    again = build(str(moved), EngineOptions("mill", max_length=16), say=lambda line: None, step=steps.append)
    assert again == (first, {})
    assert steps == ["reading the model"]  # nothing is exported
    assert {file: file.stat().st_mtime_ns for file in first.folder.rglob("*")} == before
    assert left_in(engines) == ["mill"]


def test_another_engine_under_the_same_name_is_refused(engines: Path, model: Path) -> None:
    first = build_engine(model, "mill", max_length=16)
    with pytest.raises(UserError, match=r"other: pooling, max_length") as caught:
        build_engine(model, "mill", pooling="cls", max_length=17)
    assert f"rm -r {first.folder}" in str(caught.value)
    edit(model / "config.json", hidden_act="relu")  # the same weights, and other vectors
    with pytest.raises(UserError, match=r"other: weights_sha256"):
        build_engine(model, "mill", max_length=16)
    assert load_engine("mill") == first
    assert left_in(engines) == ["mill"]


def test_a_causal_bert_is_not_exported(engines: Path, model: Path) -> None:
    said: list[str] = []
    edit(model / "config.json", is_decoder=True)
    spec, _ = build(str(model), EngineOptions("mill"), say=said.append, step=lambda text: None)
    assert spec.tiers == ("torch",)
    assert spec.unused == {"onnx": "it is a decoder or has relative positions"}
    (line,) = said
    assert line.startswith(
        "PyTorch computes this engine, on packed rows (runtime torch). Not exported to ONNX: it is a"
    )
    assert sorted(path.name for path in spec.folder.iterdir()) == ["engine.json", "model.safetensors", "tokenizer"]


def test_an_export_that_fails_or_differs_is_not_used_and_the_reason_kept(
    engines: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ModernBERT's windows, which an exported graph has not; and a folder that holds no whole model is refused."""
    folder = save_family("modernbert", model / "family")
    monkeypatch.setattr(tiers, "EXPORTED", ("modernbert",))
    spec = build_engine(folder, "differs")
    assert spec.tiers == ("torch",)
    assert "ONNX FP32 differs from sentence-transformers' encode(): lowest cosine" in spec.unused["onnx"]
    assert not list(spec.folder.glob("*.onnx"))
    monkeypatch.setattr(tiers, "EXPORTED", ("eurobert",))
    spec = build_engine(save_family("eurobert", model / "other"), "fails")
    assert spec.tiers == ("torch",)
    assert "must match" in spec.unused["onnx"]


def spoil(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def remove(*files: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), r"no model folder .there: model.safetensors, tokenizer.json, tokenizer_config.json"),
        (remove("model.safetensors"), r"no model folder .there: config.json"),
        (spoil("config.json", b"{"), r"config\.json cannot be read.*expected JSON"),
        (spoil("config.json", b"{}"), "is no model .*model_type"),
        (lambda folder: edit(folder / "config.json", model_type="nosuch"), "is no model .*nosuch"),
        (
            lambda folder: edit(folder / "config.json", num_hidden_layers=3),
            r"no fitting weights for encoder\.layer\.2\..* …",
        ),
        (
            lambda folder: edit(folder / "config.json", intermediate_size=65),
            r"cannot be loaded .*ignore_mismatched_sizes|no fitting weights for encoder\.layer\.0",
        ),
        (lambda folder: edit(folder / "config.json", num_attention_heads=5), "cannot be loaded"),
        (spoil("model.safetensors", b""), "cannot be loaded"),
        (spoil("model.safetensors", b"x" * 5000), "cannot be loaded"),
        (lambda folder: (remove("model.safetensors")(folder), spoil("pytorch_model.bin", b"x")(folder)), "be loaded"),
        (remove("tokenizer.json"), "has no tokenizer|cannot be loaded"),
        (remove("tokenizer.json", "tokenizer_config.json"), "has no tokenizer; expected one of tokenizer.json"),
        (spoil("tokenizer.json", b"garbage"), "cannot be loaded"),
        (lambda folder: edit(folder / "tokenizer_config.json", pad_token=None), "without a padding token"),
        (spoil("modules.json", b"{"), "modules.json cannot be read"),
    ],
    ids=[
        *("no config", "no weights", "garbled config", "empty config", "unknown type", "missing layer"),
        *("other shape", "bad heads", "empty weights", "garbled weights", "garbled bin", "no tokenizer.json"),
        *("no tokenizer", "garbled tokenizer", "no padding token", "garbled modules"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(
    change: Callable[[Path], object], message: str, engines: Path, model: Path
) -> None:
    change(model)
    with pytest.raises(UserError, match=message) as caught:
        build_engine(model, "mill")
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)
    assert left_in(engines) == []


@pytest.mark.parametrize("name", ["./none", "../none", "/nowhere/none", "~/none"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name: str, engines: Path) -> None:
    with pytest.raises(UserError, match=f"no model folder {name}"):
        build_engine(Path(name) if name.startswith("/") else name, "mill")  # type: ignore[arg-type]
    assert left_in(engines) == []


def test_an_engine_name_that_leads_out_of_the_folder_is_refused(engines: Path, model: Path) -> None:
    with pytest.raises(UserError, match="is no engine name"):
        build_engine(model, "../mill")
    assert left_in(engines) == []


def test_an_engines_folder_that_cannot_be_made_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(model / "config.json" / "engines"))
    settings.cache_clear()
    with pytest.raises(UserError, match="EMBEDMILL_ENGINES"):
        build_engine(model, "mill")


def test_an_export_that_differs_from_pytorch_is_refused(tiny: EngineSpec, tiny_model: Path) -> None:
    model: Any = open_folder(tiny_model)

    def check(pooling: Pooling, normalize: bool) -> Comparison:
        with onnx_engine(tiny, 1) as onnx, torch_cpu_engine(tiny, 1) as pytorch:
            engines: dict[str, Engine] = {"ONNX FP32": onnx, "PyTorch FP32": pytorch}
            parts = parts_of(model, pooling, normalize)
            found = check_export(engines, Expected(parts, open_tokenizer(tiny), ["a prompt"]))
        assert found.keys() == engines.keys()
        return found["PyTorch FP32"]

    assert check("mean", False).within(TOLERANCES["fp32"])
    with pytest.raises(UserError, match="differs from sentence-transformers"):
        check("cls", False)
    with pytest.raises(UserError, match="differs from sentence-transformers"):
        check("mean", True)
    with torch.no_grad():
        model[0].auto_model.get_parameter("encoder.layer.1.output.dense.weight").mul_(2)
    with pytest.raises(UserError, match="differs from sentence-transformers"):
        check("mean", False)


def test_the_weights_hash_is_of_the_values_not_of_the_files(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("half", "shards"):
        shutil.copytree(tiny_model, tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        saved = transformers.AutoModel.from_pretrained(tiny_model)
        saved = saved.half() if name == "half" else saved
        saved.save_pretrained(tmp_path / name, max_shard_size="50KB" if name == "shards" else "5GB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    same = weights_sha256(open_folder(tiny_model))
    assert weights_sha256(open_folder(tmp_path / "shards")) == same
    assert weights_sha256(open_folder(tmp_path / "half")) != same
    edit(tmp_path / "shards" / "config.json", layer_norm_eps=1e-5)
    assert weights_sha256(open_folder(tmp_path / "shards")) != same


def test_a_checkpoint_in_half_precision_becomes_an_engine_in_full(
    engines: Path, tiny_model: Path, tmp_path: Path
) -> None:
    transformers.AutoModel.from_pretrained(tiny_model).half().save_pretrained(tmp_path / "half")
    for file in tiny_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "half")
    spec = build_engine(tmp_path / "half", "half", max_length=16)
    session = onnxruntime.InferenceSession(str(spec.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.array([[2, 9, 11, 3]], np.int32)
    found = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0})[0]
    assert found.dtype == np.float32


def test_the_command_builds_an_engine_and_says_what_it_is(engines: Path, model: Path) -> None:
    done = run("engine_build", "--model", model, "--pooling", "cls", "--normalize", "--max-length", 32)
    assert done.stderr.strip() == ""
    spec = load_engine()
    assert (spec.name, spec.pooling, spec.normalize, spec.max_length) == ("my-model", "cls", True, 32)
    for shown in ("Engine built", "my-model", "pooling cls, norm 1", "32 tokens", spec.fingerprint, "lowest cosine"):
        assert shown in done.stdout
    assert re.search(r"PyTorch on a GPU +│ FP16 +│", done.stdout)
    assert "python -m producer" in done.stdout


def test_an_engine_for_cpus_alone_has_what_they_compute_and_says_so_to_a_gpu(
    engines: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, _ = build(str(model), EngineOptions("both"), say=print, step=print)
    spec, found = build(str(model), EngineOptions("cpu", gpu=False), say=print, step=print)
    assert list(found) == ["ONNX FP32"]
    assert (spec.tiers, spec.onnx_fp16_sha256, spec.fingerprint) == (("onnx",), None, both.fingerprint)
    assert left_in(engines / "cpu") == ["engine.json", "model.onnx", "tokenizer"]
    with open_engine(spec, 1) as engine:
        assert engine.runtime.startswith("onnxruntime")
    refused = called("engine_build", "plan", "--engine", "cpu", "--compute-capability", "8.6", expect=1)
    assert "engine cpu was built for CPUs alone" in refused.stderr
    monkeypatch.setenv("EMBEDMILL_RUNTIME", "torch")
    settings.cache_clear()
    with pytest.raises(UserError, match="built for CPUs alone"), open_engine(spec, 1):
        pass


def test_a_cpu_computes_long_rows_with_pytorch_also_where_an_engine_is_for_cpus_alone(
    engines: Path, tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "long", max_position_embeddings=1025)
    for length, there in ((1024, ("onnx",)), (1025, ("onnx", "torch"))):
        asked = EngineOptions(f"to-{length}", max_length=length, gpu=False)
        assert build(str(model), asked, say=print, step=print)[0].tiers == there


def test_a_model_that_cannot_be_exported_is_built_the_same_for_cpus_alone(engines: Path, tmp_path: Path) -> None:
    model = str(save_family("modernbert", tmp_path / "modernbert"))
    both, _ = build(model, EngineOptions("both"), say=print, step=print)
    spec, _ = build(model, EngineOptions("cpu", gpu=False), say=print, step=print)
    assert (spec.tiers, spec.torch_precision) == (both.tiers, both.torch_precision) == (("torch",), "fp16")


def test_the_command_says_in_one_line_what_is_wrong(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = called("engine_build", "--model", "acme/no-such-model", expect=1)
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: no model acme/no-such-model on the Hub, or no network")
    assert left_in(engines) == []


def test_the_help_mentions_each_option() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for parameter in main.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert option in text
    assert "python -m engine_build --model bert-base-cased" in text
