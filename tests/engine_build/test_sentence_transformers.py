"""A sentence-transformers user gets the vectors they know: folders that sentence-transformers itself wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer

from bench.tiny_model import save_tiny_model
from contract.engine import INPUTS, OUTPUT, EngineSpec
from contract.errors import UserError
from engine_build.build import build
from engine_build.source import Defaults, defaults_of
from producer.batches import open_tokenizer, tokenize
from tests.conftest import JARGON, MINILM, build_engine

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
    ids, mask, _ = tokenize(texts, open_tokenizer(spec), spec.prefix)
    found = []
    for row, real in zip(ids, mask, strict=True):
        row, real = row[None, : real.sum()], real[None, : real.sum()]
        found.append(session.run([OUTPUT], dict(zip(INPUTS, (row, real, np.zeros_like(row)), strict=True)))[0][0])
    return np.stack(found)


def cosines(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def built(folder: Path, said: list[str] | None = None, max_length: int | None = LENGTH) -> EngineSpec:
    """An engine with every choice but the length left to the folder."""
    spec, _ = build(
        str(folder),
        name=f"of-{folder.parent.name}",
        revision=None,
        pooling=None,
        normalize=None,
        max_length=max_length,
        say=(said if said is not None else []).append,
        step=lambda text: None,
    )
    return spec


def saved(
    folder: Path, *after: Any, prompts: dict[str, str] | None = None, default: str | None = None, **of: Any
) -> Path:
    """A folder as ``SentenceTransformer.save`` leaves it: a tiny BERT and these modules after it."""
    first = Transformer(str(save_tiny_model(folder / "transformer")), **{"max_seq_length": LENGTH} | of)
    model = SentenceTransformer(modules=[first, *after], prompts=prompts, default_prompt_name=default, device="cpu")
    model.save(str(folder / "saved"))
    return folder / "saved"


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: EngineSpec) -> None:
    texts = [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()]
    longest = sorted(texts, key=len)[-3:]
    chosen = texts[:: len(texts) // 32] + longest
    reference = SentenceTransformer(str(MINILM), device="cpu")
    reference.max_seq_length = 512
    expected = reference.encode(chosen, batch_size=8, show_progress_bar=False)
    assert (tokenize(longest, open_tokenizer(minilm))[2] > 512).all()
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
    assert defaults_of(folder).pooling == pooling


def test_modules_named_as_older_versions_named_them_are_honoured(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "cls"), Normalize())
    edit(
        folder / "modules.json",
        lambda modules: [m | {"type": f"sentence_transformers.models.{m['type'].rsplit('.', 1)[-1]}"} for m in modules],
    )
    found = defaults_of(folder)
    assert (found.pooling, found.normalize) == ("cls", True)


def test_a_plain_transformers_folder_asks_for_nothing(tmp_path: Path) -> None:
    assert defaults_of(save_tiny_model(tmp_path / "plain")) == Defaults()


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
    assert "--prefix" in line


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
    assert "--max-length 100" in line


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
        ([Pooling(32, "mean"), Dense(32, 8)], "Dense"),
        ([Pooling(32, "mean"), LayerNorm(32)], "LayerNorm"),
        ([Pooling(32, "max")], "max"),
        ([Pooling(32, "lasttoken")], "lasttoken"),
        ([Pooling(32, ("cls", "mean"))], "cls and mean"),
    ],
    ids=["Dense", "LayerNorm", "max", "lasttoken", "two poolings"],
)
def test_what_an_engine_cannot_honour_is_refused_by_name(modules: list[Any], named: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, *modules)
    with pytest.raises(UserError, match=named) as caught:
        defaults_of(folder)
    assert "\n" not in str(caught.value)


def test_older_switches_that_an_engine_cannot_honour_are_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(UserError, match="weightedmean"):
        defaults_of(folder)


def test_a_module_with_code_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    edit(folder / "modules.json", lambda modules: [modules[0] | {"type": "custom_st.Transformer"}, *modules[1:]])
    with pytest.raises(UserError, match=r"custom_st\.Transformer"):
        defaults_of(folder)


def test_a_prompt_that_is_left_out_of_the_pooling_is_refused(tmp_path: Path) -> None:
    outside = Pooling(32, "mean", include_prompt=False)
    folder = saved(tmp_path / "with", outside, prompts={"doc": "Text: "}, default="doc")
    with pytest.raises(UserError, match="include_prompt"):
        defaults_of(folder)
    assert defaults_of(saved(tmp_path / "without", outside)).prefix == ""


def test_token_vectors_that_are_normalized_before_pooling_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, Normalize(module_input_name="token_embeddings"), Pooling(32, "mean"))
    with pytest.raises(UserError, match="Normalize"):
        defaults_of(folder)


def test_a_garbled_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, Pooling(32, "mean"))
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"1_Pooling/config\.json cannot be read"):
        defaults_of(folder)
