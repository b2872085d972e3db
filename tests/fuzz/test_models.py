"""Model folders drawn at random: each gives the vectors of sentence-transformers' ``encode()``, or is refused.

``EMBEDMILL_FUZZ=2000 python -m pytest tests/fuzz/test_models.py -s`` draws so many folders and prints the figures.
"""

import collections
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from tokenizers import ByteLevelBPETokenizer

from bench.tiny_model import JARGON, save_tiny_model
from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from engine_build.build import build
from engine_build.prepare import EngineOptions
from engine_build.tiers import EXPORTED
from producer.tokenizer import open_tokenizer, tokenize
from worker.runtime.choose import open_engine

FOLDERS = int(os.environ.get("EMBEDMILL_FUZZ", "200"))
SEEDS = 8
WIDTH = 16

TEXTS = [
    *("", " ", "\n\t", "a", "The Miller GRINDS", "the miller grinds", " leading", "trailing  \n", "two  spaces"),
    *("ÄRGER Ünïcödé", "A\u0308RGER e\u0301", "日本語 text 中文", "نص عربي", "emoji 🙂👍🏽",),
    *("\x00NUL\x07\x1b", "\u200b\u2028x"),
    *("[MASK]", "</s>", "<mask>", "[CLS] a [SEP]", "<s>x</s> [PAD] <pad>", "don't; e-mail http://x.org", "z" * 120),
    "a bit more of it, and then some. " * 30,
]  # fmt: skip


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of WordPiece and one of bytes, and the folders of tiny encoders of all kinds with the former."""
    root = tmp_path_factory.mktemp("bases")
    save_tiny_model(root / "wordpiece", vocabulary=400)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    lines = JARGON.read_text(encoding="utf-8").splitlines()[:100]
    bpe.train_from_iterator(lines, vocab_size=400, special_tokens=special, show_progress=False)
    vocabulary, merges = bpe.save_model(str(root))
    transformers.RobertaTokenizerFast(vocab=vocabulary, merges=merges).save_pretrained(root / "bytes")
    return {name: root / name for name in ("wordpiece", "bytes")}


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    there = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(change(there)))


def encoder(draw: random.Random, folder: Path, bases: dict[str, Path]) -> list[str]:
    """A transformers folder; returns what was drawn."""
    kind = draw.choice([*EXPORTED] + ["bert"] * 6 + ["modernbert", "deberta-v2", "eurobert"])
    tokens = draw.choice(["wordpiece", "wordpiece", "bytes"])
    positions = draw.choice([40, 66, 130])
    shape: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "vocab_size": 400, "max_position_embeddings": positions}
    if kind == "distilbert":
        shape = {"dim": WIDTH, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 400}
        shape |= {"max_position_embeddings": positions}
    if kind in ("albert", "electra"):
        shape["embedding_size"] = draw.choice([8, WIDTH])
    if kind in ("bert", "roberta"):
        shape["hidden_act"] = draw.choice(["gelu", "relu", "gelu_new"])
    torch.manual_seed(draw.randrange(2**32))
    shape["pad_token_id"] = 1 if tokens == "bytes" else 0
    config = transformers.AutoConfig.for_model(kind, **shape, initializer_range=draw.choice([0.02, 0.3]))
    model = transformers.AutoModel.from_config(config)
    half = draw.random() < 0.1
    (model.half() if half else model).save_pretrained(folder)
    shutil.copytree(bases[tokens], folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json", "model.*"))
    drawn = [kind, tokens, *(["half"] if half else [])]
    if draw.random() < 0.25:
        edit(folder / "tokenizer.json", lambda one: one | {"normalizer": draw.choice([None, {"type": "NFC"}])})
        drawn.append("normalizer")
    return drawn


def folder_of(draw: random.Random, place: Path, bases: dict[str, Path]) -> tuple[Path, list[str]]:
    """A model's folder, and what was drawn."""
    plain = place / "plain"
    drawn = encoder(draw, plain, bases)
    if draw.random() < 0.12:
        return damaged(draw, plain, drawn)
    width = WIDTH
    mode: Any = draw.choice(["mean", "cls"] * 5 + ["max", "lasttoken", "weightedmean", ("mean", "cls")])
    include = draw.random() > 0.15
    first = Transformer(str(plain), max_seq_length=draw.choice([None, 16, 32]), do_lower_case=draw.random() < 0.2)
    modules: list[Any] = [first, Pooling(width, mode, include_prompt=include)]
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
        what = draw.choice(["Normalize", "Dense", "LayerNorm"])
        width = modules[1].pooling_output_dimension if len(modules) == 2 else width
        if what == "Dense":
            out = draw.choice([5, 12, 16, 33])
            activation = draw.choice(
                [torch.nn.Tanh, torch.nn.Identity, torch.nn.GELU, torch.nn.Sigmoid, torch.nn.SiLU]
            )()
            options: dict[str, Any] = {"bias": draw.random() < 0.7, "use_residual": draw.random() < 0.2}
            modules.append(Dense(width, out, activation_function=activation, **options))
            width = out
        else:
            modules.append(Normalize() if what == "Normalize" else LayerNorm(width))
        drawn.append(what)
    if draw.random() < 0.4:
        modules.append(Normalize())
    prompts = draw.choice([None, None, {"query": "Query: ", "doc": "  text:"}])
    default = draw.choice([None, "doc"]) if prompts else None
    model = SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name=default, device="cpu")
    folder = place / "saved"
    model.save(str(folder), create_model_card=False)
    drawn += [str(mode), *([] if include else ["include_prompt"]), *(["prompts"] if prompts else [])]
    if draw.random() < 0.2:
        cut = draw.choice([4, 8, 100])
        edit(folder / "config_sentence_transformers.json", lambda one: one | {"truncate_dim": cut})
        drawn.append("truncate_dim")
    if draw.random() < 0.3:
        as_of_old(folder, draw)
        drawn.append("old")
    if draw.random() < 0.25:
        into_subfolder(folder)
        drawn.append("0_Transformer")
    return damaged(draw, folder, drawn) if draw.random() < 0.2 else (folder, drawn)


def as_of_old(folder: Path, draw: random.Random) -> None:
    """The files as older versions of sentence-transformers wrote them."""
    edit(
        folder / "modules.json",
        lambda every: [
            one | {"type": f"sentence_transformers.models.{one['type'].rsplit('.', 1)[-1]}"} for one in every
        ],
    )

    def switches(config: dict[str, Any]) -> dict[str, Any]:
        modes = config.pop("pooling_mode")
        modes = [modes] if isinstance(modes, str) else modes
        old = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
        old["weightedmean"] = "weightedmean_tokens"
        named = {f"pooling_mode_{name}": mode in modes for mode, name in old.items()}
        return {"word_embedding_dimension": config.pop("embedding_dimension"), **config, **named}

    edit(folder / "1_Pooling" / "config.json", switches)
    lower = draw.random() < 0.3
    edit(
        folder / "sentence_bert_config.json",
        lambda _: {"max_seq_length": draw.choice([16, 32]), "do_lower_case": lower},
    )
    if draw.random() < 0.5:
        weights = transformers.AutoModel.from_pretrained(folder).state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")


def into_subfolder(folder: Path) -> None:
    """The encoder in a folder of its own, and in the root, half of the time, the configuration of another."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    beside = {"modules.json", "config_sentence_transformers.json"}
    for file in [file for file in folder.iterdir() if file.is_file() and file.name not in beside]:
        shutil.move(file, inner)
    edit(folder / "modules.json", lambda every: [every[0] | {"path": "0_Transformer"}, *every[1:]])


def damaged(draw: random.Random, folder: Path, drawn: list[str]) -> tuple[Path, list[str]]:
    """The folder with one thing wrong with it."""
    inner = folder / "0_Transformer" if (folder / "0_Transformer").is_dir() else folder
    what = draw.choice(["nothing", "pooling", "tokens", "weights", "left", "code", "dtype"])
    if what == "pooling":
        shutil.rmtree(folder / "1_Pooling", ignore_errors=True)
    elif what == "tokens":
        tokenizer = transformers.AutoTokenizer.from_pretrained(inner)
        tokenizer.add_tokens([f"extra{number}" for number in range(draw.choice([1, 20]))])
        tokenizer.save_pretrained(inner)
    elif what == "weights" and (file := inner / "model.safetensors").exists():
        from safetensors.torch import load_file, save_file

        weights = load_file(file)
        weights.pop(draw.choice(sorted(weights)))
        save_file(weights, file, {"format": "pt"})
    elif what == "left":
        edit(inner / "tokenizer_config.json", lambda one: one | {"truncation_side": "left"})
    elif what == "code":
        edit(inner / "config.json", lambda one: one | {"auto_map": {"AutoModel": "mine.Model"}})
    elif what == "dtype":
        edit(inner / "config.json", lambda one: one | {"dtype": "float16"})
    return folder, [*drawn, f"damage: {what}"]


def engine_vectors(spec: EngineSpec, prefix: str) -> npt.NDArray[np.float32]:
    """By what a worker takes; zeros of a text that has no token."""
    rows = open_tokenizer(spec)
    tokens, n_tokens = tokenize(TEXTS, rows, prefix)
    skipped = 0 if rows.pools_prompt else rows.prompt_tokens(prefix)
    batch = Batch("fuzz", 0, "", np.arange(len(tokens)), tokens, n_tokens, prompt_tokens=skipped)
    with open_engine(spec, 1) as engine:
        return engine.infer(batch).vectors


def judge(folder: Path, name: str) -> str:
    """``equal: `` and the tier, ``refused: …`` or ``wrong: …``."""
    try:
        spec, _ = build(str(folder), EngineOptions(name), say=lambda line: None, step=lambda text: None)
    except UserError as refusal:
        return f"refused: {refusal.message}" if "\n" not in refusal.message else f"wrong: two lines {refusal.message}"
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = spec.max_length
    takes_prompts = spec.include_prompt or "onnx" not in spec.tiers
    for prefix in dict.fromkeys((spec.prefix, "", *(model.prompts.values() if takes_prompts else ()))):
        options = {} if prefix == spec.prefix else {"prompt": prefix}
        expected = model.encode(TEXTS, show_progress_bar=False, **options).astype(np.float64)
        found = np.asarray(engine_vectors(spec, prefix), np.float64)
        if found.shape != expected.shape:
            return f"wrong: shape {found.shape}, expected {expected.shape}"
        norms = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
        lowest = ((found * expected).sum(axis=1) / norms[0] / norms[1]).min()
        if not lowest >= 0.99999 or not np.allclose(*norms, rtol=1e-3):
            return f"wrong: cosine {lowest}"
    return f"equal: {spec.tiers[0]}"


@pytest.mark.slow
@pytest.mark.timeout(max(300, FOLDERS * 2))
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_folder_gives_encodes_vectors_or_is_refused(
    seed: int, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    settings.cache_clear()
    outcomes: collections.Counter[str] = collections.Counter()
    wrong, drawn_of = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for number in range(-(-FOLDERS // SEEDS)):
        draw = random.Random(1000 * number + seed)
        place = tmp_path / str(number)
        folder, drawn = folder_of(draw, place, bases)
        outcome = judge(folder, "drawn")
        outcomes[outcome if outcome.startswith("equal") else outcome.split(":")[0]] += 1
        drawn_of.append((drawn, outcome))
        if outcome.startswith("wrong"):
            wrong.append(f"seed {seed}, folder {number}, {', '.join(drawn)}: {outcome}")
        shutil.rmtree(place)
        shutil.rmtree(tmp_path / "engines", ignore_errors=True)
    torch.set_num_threads(threads)
    print(f"seed {seed}: {sum(outcomes.values())} folders, {dict(outcomes)}")
    if os.environ.get("EMBEDMILL_FUZZ_SHOW"):
        for drawn, outcome in drawn_of:
            print("   ", ", ".join(drawn), "->", outcome[:200])
    assert not wrong, "\n".join(wrong)
    assert sum(outcomes[f"equal: {tier}"] for tier in ("onnx", "torch", "modules")) >= 0.6 * sum(outcomes.values())
    assert outcomes["refused"] or sum(outcomes.values()) < 25  # damaged folders are drawn too
