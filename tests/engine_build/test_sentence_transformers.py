"""A sentence-transformers user gets the vectors they know: folders that sentence-transformers itself wrote."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
    WordWeights,
)

from bench.families import save_family
from bench.tiny_model import save_tiny_model
from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.graph import OUTPUT
from engine_build.build import build
from engine_build.prepare import EngineOptions
from producer.tokenizer import open_tokenizer, tokenize
from tests.conftest import JARGON, MINILM, build_engine
from tests.contract.samples import a_job
from verify.reference import open_model
from worker.runtime.choose import open_engine

LENGTH = 64
"""At which the tiny models' rows are truncated, here and by sentence-transformers."""

TEXTS = [
    "",
    "The Miller GRINDS the corn.",
    "the miller grinds the corn.",
    "ÄRGER at /dev/null",
    "a bit more of it " * 90,
]


def engine_vectors(spec: EngineSpec, texts: list[str]) -> npt.NDArray[np.float32]:
    """What the engine makes of texts with its own prefix, one at a time."""
    session = onnxruntime.InferenceSession(str(spec.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    tokens, _ = tokenize(texts, open_tokenizer(spec), spec.prefix)
    found = []
    for row, length in enumerate(tokens.lengths):
        feed = tokens.slice(slice(row, row + 1)).padded(int(length), spec.pad_id)
        found.append(session.run([OUTPUT], feed)[0][0])
    return np.stack(found)


def computed(spec: EngineSpec, texts: list[str], prefix: str = "") -> npt.NDArray[np.float32]:
    """What the runtime that a worker takes makes of texts."""
    rows = open_tokenizer(spec)
    tokens, n_tokens = tokenize(texts, rows, prefix)
    skipped = 0 if rows.pools_prompt else rows.prompt_tokens(prefix)
    batch = Batch("job", 0, "", np.arange(len(tokens)), tokens, n_tokens, prompt_tokens=skipped)
    with open_engine(spec, 1) as engine:
        return engine.infer(batch).vectors


def by_modules(folder: Path) -> EngineSpec:
    """An engine that is computed by the model's own modules, as ``encode()`` does."""
    spec = built(folder)
    assert spec.tiers == ("modules",)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(computed(spec, TEXTS), expected, atol=2e-6)
    return spec


def cosines(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def built(folder: Path, said: list[str] | None = None, max_length: int | None = LENGTH) -> EngineSpec:
    """An engine with every choice but the length left to the folder."""
    spec, _ = build(
        str(folder),
        EngineOptions(f"of-{folder.parent.name}", max_length=max_length),
        say=(said if said is not None else []).append,
        step=lambda text: None,
    )
    return spec


def saved(
    folder: Path, *after: Any, prompts: dict[str, str] | None = None, default: str | None = None, **of: Any
) -> Path:
    """A folder as ``SentenceTransformer.save`` leaves it: a tiny BERT of one layer and these modules after it."""
    encoder = save_tiny_model(folder / "transformer", num_hidden_layers=1)
    first = Transformer(str(encoder), **{"max_seq_length": LENGTH} | of)
    model = SentenceTransformer(modules=[first, *after], prompts=prompts, default_prompt_name=default, device="cpu")
    model.save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: EngineSpec) -> None:
    texts = [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()]
    longest = sorted(texts, key=len)[-3:]
    chosen = texts[:: len(texts) // 12] + longest
    reference = SentenceTransformer(str(MINILM), device="cpu")
    reference.max_seq_length = 512
    expected = reference.encode(chosen, batch_size=1, show_progress_bar=False)
    assert (tokenize(longest, open_tokenizer(minilm))[1] > 512).all()
    assert cosines(engine_vectors(minilm, chosen), expected).min() >= 0.99999


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_folder_saved_today_decides_pooling_and_normalization(pooling: Any, normalize: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, pooling), *([Normalize()] if normalize else []))
    spec = built(folder)
    assert (spec.pooling, spec.normalize) == (pooling, normalize)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(engine_vectors(spec, TEXTS), expected, atol=1e-5)


def test_the_users_choice_overrules_the_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "cls"), Normalize())
    spec = build_engine(folder, "chosen", "mean", normalize=False, max_length=LENGTH)
    assert (spec.pooling, spec.normalize) == ("mean", False)
    spec = build_engine(folder, "tokens-of-a-folder", "tokens", max_length=LENGTH)
    assert (spec.pooling, spec.normalize) == ("tokens", False)  # the last hidden state, as it is


@pytest.mark.parametrize(
    ("switches", "pooling"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, "mean"),
        ({}, "mean"),
    ],
)
def test_a_folder_with_the_older_switches_is_honoured(switches: dict[str, bool], pooling: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **switches}))
    assert SentenceTransformer(str(folder), device="cpu")[1].pooling_mode == pooling
    assert built(folder).pooling == pooling


def test_modules_named_as_older_versions_named_them_are_honoured(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "cls"), Normalize())
    edit(
        folder / "modules.json",
        lambda modules: [m | {"type": f"sentence_transformers.models.{m['type'].rsplit('.', 1)[-1]}"} for m in modules],
    )
    spec = built(folder)
    assert (spec.pooling, spec.normalize) == ("cls", True)


def test_a_plain_transformers_folder_asks_for_means_alone(tmp_path: Path) -> None:
    spec = built(save_tiny_model(tmp_path / "plain"), max_length=None)
    assert (spec.pooling, spec.normalize, spec.chosen, spec.prefix, spec.prompts) == ("mean", False, (), "", {})
    assert (spec.truncate_dim, spec.include_prompt, spec.model_length) == (None, True, 512)


def test_the_default_prompt_is_the_engines_prefix(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"), prompts={"query": "Query: ", "doc": "Text: "}, default="doc")
    said: list[str] = []
    spec = built(folder, said)
    assert spec.prefix == "Text: "
    assert said == []
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(engine_vectors(spec, TEXTS), expected, atol=1e-5)


def test_prompts_without_a_default_are_offered_in_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    spec = built(saved(tmp_path, Pooling(32, "mean"), prompts={"query": "Query: ", "passage": "Text: "}), said)
    assert spec.prefix == ""
    (line,) = said
    assert "query 'Query: '" in line
    assert "passage 'Text: '" in line
    assert "--prompt NAME" in line


def test_lower_casing_that_the_folder_asks_for_is_done(tmp_path: Path) -> None:
    """Saved today it is in the tokenizer; older folders say ``do_lower_case`` and leave the tokenizer as it is."""
    cased = {"normalizer": {"type": "NFC"}}
    folder = saved(tmp_path, Pooling(32, "mean"))
    edit(folder / "tokenizer.json", lambda tokenizer: tokenizer | cased)
    as_it_is = engine_vectors(built(folder), TEXTS)
    assert cosines(as_it_is[1:2], as_it_is[2:3]) < 0.999

    (tmp_path / "older").mkdir()
    folder = folder.rename(tmp_path / "older" / "saved")
    edit(folder / "sentence_bert_config.json", lambda _: {"max_seq_length": LENGTH, "do_lower_case": True})
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    found = engine_vectors(built(folder), TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found[1], found[2], atol=1e-5)

    folder = saved(tmp_path / "today", Pooling(32, "mean"), do_lower_case=True)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(engine_vectors(built(folder), TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["today's", "older"])
def test_another_length_of_the_folders_is_said_in_one_line(layout: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"), max_seq_length=100)
    if layout == "older":
        edit(folder / "tokenizer_config.json", lambda config: config | {"model_max_length": 512})
        edit(folder / "sentence_bert_config.json", lambda _: {"max_seq_length": 100, "do_lower_case": False})
    assert SentenceTransformer(str(folder), device="cpu").max_seq_length == 100
    said: list[str] = []
    assert built(folder, said, max_length=None).max_length == 512
    (line,) = said
    assert "100 tokens" in line
    assert "--max-length model" in line


def test_the_folders_own_length_is_chosen_without_a_word(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    said: list[str] = []
    spec = built(folder, said, max_length=LENGTH)
    assert (spec.max_length, said) == (LENGTH, [])
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(engine_vectors(spec, TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ([WordWeights(["a"], {"a": 2.0}), Pooling(32, "mean")], "WordWeights"),
        ([Dense(32, 8, module_input_name="token_embeddings"), Pooling(8, "mean")], "Dense"),
        ([Pooling(32, "mean"), Normalize(module_output_name="other")], "Normalize module of other"),
        ([Normalize(module_input_name="token_embeddings"), Pooling(32, "mean")], "Normalize"),
    ],
    ids=["WordWeights", "Dense before", "Normalize of another", "Normalize before"],
)
def test_modules_that_are_not_taken_apart_compute_as_they_are(modules: list[Any], named: str, tmp_path: Path) -> None:
    if named == "WordWeights":
        words = list(transformers.AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "words")).get_vocab())
        modules[0] = WordWeights(words, {"the": 0.1, "miller": 3.0})
    folder = saved(tmp_path, *modules)
    spec = by_modules(folder)
    assert named in spec.unused["onnx"]
    assert spec.unused["torch"] == spec.unused["onnx"]


def test_a_choice_of_another_pooling_needs_one_to_change(tmp_path: Path) -> None:
    folder = saved(tmp_path, Normalize(module_input_name="token_embeddings"), Pooling(32, "mean"))
    with pytest.raises(
        UserError, match=r"--pooling cls; the model has no Pooling module to change: it has .* Normalize"
    ):
        build_engine(folder, "none", "cls")
    assert build_engine(folder, "of-tokens", "tokens", max_length=LENGTH).tiers == ("onnx", "torch")


POOLINGS: list[Any] = [
    *("max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
    *(("cls", "mean"), ("max", "lasttoken", "weightedmean")),
]


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_every_pooling_is_computed_on_packed_rows(pooling: Any, include_prompt: bool, tmp_path: Path) -> None:
    after = [Pooling(32, pooling, include_prompt=include_prompt), Normalize()]
    folder = saved(tmp_path, *after, prompts={"doc": "A text, as is: "}, default="doc")
    spec = built(folder)
    assert spec.tiers == ("torch",)
    assert spec.pooling == (pooling if isinstance(pooling, str) else "+".join(pooling))
    model = SentenceTransformer(str(folder), device="cpu")
    for prefix in ("", spec.prefix):
        expected = model.encode(TEXTS, prompt=prefix, show_progress_bar=False)
        np.testing.assert_allclose(computed(spec, TEXTS, prefix), expected, atol=2e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_prompt_can_be_left_out_of_a_pooling_that_is_exported_otherwise(pooling: Any, tmp_path: Path) -> None:
    outside = Pooling(32, pooling, include_prompt=False)
    spec = built(saved(tmp_path / f"with-{pooling}", outside, prompts={"doc": "A text: "}, default="doc"))
    assert (spec.tiers, spec.prefix, spec.include_prompt) == (("torch",), "A text: ", False)
    assert "include_prompt is false" in spec.unused["onnx"]
    expected = SentenceTransformer(spec.model, device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(computed(spec, TEXTS, spec.prefix), expected, atol=2e-6)
    assert built(saved(tmp_path / f"without-{pooling}", outside)).tiers == ("onnx", "torch")


def test_a_chosen_pooling_leaves_a_prompt_out_as_the_models_own_does(tmp_path: Path) -> None:
    """In the engine and in what the verifier compares with: if both pooled it, they would agree on a wrong vector."""
    folder = saved(tmp_path, Pooling(32, "mean", include_prompt=False), prompts={"doc": "A text: "}, default="doc")
    options = EngineOptions("prompt-outside-cls", max_length=LENGTH, pooling="cls")
    spec, _ = build(str(folder), options, say=lambda line: None, step=lambda text: None)
    assert (spec.pooling, spec.include_prompt, spec.chosen) == ("cls", False, ("pooling",))
    modules: list[Any] = list(SentenceTransformer(str(folder), device="cpu"))
    expected = SentenceTransformer(modules=[modules[0], Pooling(32, "cls", include_prompt=False)], device="cpu")
    vectors = expected.encode(TEXTS, prompt="A text: ", show_progress_bar=False)
    np.testing.assert_allclose(computed(spec, TEXTS, "A text: "), vectors, atol=2e-6)
    job = a_job(tmp_path / "output", engine=spec.name, fingerprint=spec.fingerprint, prefix="A text: ")
    pooling: Any = list(open_model(job, spec).model)[1]
    assert (pooling.pooling_mode, pooling.include_prompt) == ("cls", False)


def test_the_models_own_modules_leave_a_prompt_out_too(tmp_path: Path) -> None:
    first = Transformer(str(save_family("t5", tmp_path / "family") / "."), max_seq_length=LENGTH)
    model = SentenceTransformer(
        modules=[first, Pooling(32, "mean", include_prompt=False)], prompts={"doc": "A text: "}, device="cpu"
    )
    model.save(str(tmp_path / "instructor"), create_model_card=False)
    spec = built(tmp_path / "instructor")
    assert spec.tiers == ("modules",)
    expected = model.encode(TEXTS, prompt_name="doc", show_progress_bar=False)
    np.testing.assert_allclose(computed(spec, TEXTS, "A text: "), expected, atol=2e-6)


def test_a_static_model_as_model2vec_leaves_it(tmp_path: Path) -> None:
    """Its configuration is of no architecture that transformers has, and its weights have another name."""
    folder = save_family("StaticEmbedding", tmp_path / "family")
    weights = load_file(folder / "model.safetensors")
    save_file({"embeddings": weights["embedding.weight"].half()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "hidden_dim": 32, "normalize": True}))
    said: list[str] = []
    spec = built(folder, said, max_length=None)
    assert (spec.tiers, spec.architecture, spec.max_length) == (("modules",), "StaticEmbedding", 512)
    assert spec.precision_on_gpu == "FP32"
    assert said[0] == "sentence-transformers truncates none of this model's texts; this engine does at 512 tokens."
    texts = [text for text in TEXTS if text]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    assert cosines(computed(spec, texts), expected).min() >= 0.99999


def test_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = save_family("qwen3", tmp_path / "family").with_name("plain")
    edit(folder / "tokenizer_config.json", lambda config: config | {"chat_template": "{{ messages[0].content }}"})
    with pytest.raises(UserError, match="puts texts into a chat template"):
        built(folder)


def test_older_switches_of_every_pooling_are_honoured(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_weightedmean_tokens": True})
    )
    assert built(folder).pooling == "weightedmean"


def test_a_module_with_code_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    edit(folder / "modules.json", lambda modules: [modules[0] | {"type": "custom_st.Transformer"}, *modules[1:]])
    with pytest.raises(UserError, match=r"custom_st\.Transformer"):
        built(folder)


def test_a_garbled_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"1_Pooling/config\.json cannot be read"):
        built(folder)


def equal(folder: Path, **options: Any) -> EngineSpec:
    """An engine whose vectors are encode()'s, which is asked here, and not by embedmill."""
    spec = built(folder)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False, **options)
    found = engine_vectors(spec, TEXTS)
    assert found.shape == expected.shape
    assert cosines(found, expected).min() >= 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)
    return spec


@pytest.mark.parametrize(
    "after",
    [
        [Dense(32, 12)],
        [Dense(32, 12, bias=False, activation_function=torch.nn.GELU()), Normalize()],
        [LayerNorm(32), Dropout(0.5), Normalize()],
        [Normalize(), Dense(32, 64, activation_function=torch.nn.Identity())],
        [Dense(32, 32, use_residual=True), LayerNorm(32)],
    ],
    ids=["Tanh", "GELU, normalized", "LayerNorm, Dropout", "normalized before", "residual"],
)
def test_modules_after_the_pooling_are_in_the_engine(after: list[Any], tmp_path: Path) -> None:
    spec = equal(saved(tmp_path, Pooling(32, "mean"), *after))
    assert spec.normalize == isinstance(after[-1], Normalize) == spec.unit_norm


def test_a_folder_that_modules_json_names_and_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "cls"))
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(UserError, match="cannot be loaded"):
        built(folder)


def test_truncate_dim_is_honoured_without_normalizing_again(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"), Normalize())
    edit(folder / "config_sentence_transformers.json", lambda config: config | {"truncate_dim": 10})
    spec = equal(folder)
    assert (spec.hidden, spec.encoder_width, spec.truncate_dim) == (10, 32, 10)
    assert (spec.normalize, spec.unit_norm, spec.chosen) == (True, False, ())
    asked = build_engine(folder, "asked", normalize=True, max_length=LENGTH)
    assert (asked.unit_norm, asked.chosen) == (True, ("normalize",))
    np.testing.assert_allclose(np.linalg.norm(engine_vectors(asked, TEXTS), axis=1), 1, atol=1e-6)
    assert asked.fingerprint != spec.fingerprint


def test_the_encoder_of_a_folder_of_its_own_is_taken_and_not_other_weights_in_the_root(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [*folder.glob("tokenizer*"), folder / "sentence_bert_config.json"]:
        shutil.move(file, inner)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, inner)
    edit(folder / "modules.json", lambda modules: [modules[0] | {"path": "0_Transformer"}, *modules[1:]])
    save_tiny_model(tmp_path / "other", initializer_range=0.5, num_hidden_layers=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    equal(folder)
    (folder / "config.json").unlink()
    assert built(folder).fingerprint == built(folder).fingerprint


def test_more_tokens_than_the_embedding_has_rows_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["a token more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="ids up to 1000, and the model's embedding 1,000 rows"):
        built(folder)


def test_code_that_a_model_brings_along_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    edit(folder / "config.json", lambda config: config | {"auto_map": {"AutoModel": "modeling_mine.Mine"}})
    (folder / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"code of its own \(auto_map in config\.json\)"):
        built(folder)
    assert not (tmp_path / "ran").exists()


def test_the_length_of_the_model_is_taken_by_that_word_and_recorded(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"), max_seq_length=100)
    assert build_engine(folder, "by-default").longest_row == (
        "512 tokens (sentence-transformers cuts this model's texts at 100)"
    )
    spec = build_engine(folder, "by-word", max_length="model")
    assert (spec.max_length, spec.model_length, spec.longest_row) == (100, 100, "100 tokens")


def test_an_activation_that_would_be_replaced_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"), Dense(32, 8))
    edit(folder / "2_Dense" / "config.json", lambda config: config | {"activation_function": "mine.Swish"})
    with pytest.raises(UserError, match=r"mine\.Swish.*not trusted") as caught:
        built(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["truncation_side", "padding_side"])
def test_a_tokenizer_that_works_from_the_left_is_refused(side: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    edit(folder / "tokenizer_config.json", lambda config: config | {side: "left"})
    with pytest.raises(UserError, match=f"{side} is left"):
        built(folder)


@pytest.mark.parametrize("normalize", [True, False])
def test_tokens_are_token_embeddings(normalize: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "cls"), Dense(32, 8), Normalize())
    spec = build_engine(folder, f"tokens-{normalize}", "tokens", normalize=normalize, max_length=LENGTH)
    assert (spec.per_token, spec.hidden, spec.normalize, spec.unit_norm) == (True, 32, normalize, normalize)
    model = SentenceTransformer(str(folder), device="cpu")
    for text in TEXTS:
        (expected,) = model.encode([text], output_value="token_embeddings", show_progress_bar=False)
        expected = torch.nn.functional.normalize(expected, dim=-1) if normalize else expected
        np.testing.assert_allclose(engine_vectors(spec, [text])[0], expected.numpy(), atol=1e-5)


def test_a_choice_leaves_the_models_other_modules(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "cls"), Dense(32, 8), Normalize())
    spec = build_engine(folder, "otherwise", "mean", normalize=False, max_length=LENGTH)
    assert set(spec.chosen) == {"pooling", "normalize"}
    model: Any = SentenceTransformer(str(folder), device="cpu")
    changed = SentenceTransformer(modules=[model[0], Pooling(32, "mean"), model[2]], device="cpu")
    expected = changed.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(engine_vectors(spec, TEXTS), expected, atol=1e-5)
