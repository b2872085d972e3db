"""Seeded tiny models of every family that is known to work, each as ``SentenceTransformer.save_pretrained`` leaves it.

They have the family's own code, with its kind of tokenizer, pooling and padding, and random weights.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import sentence_transformers
import torch
import transformers
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bench.tiny_model import JARGON, SPECIAL_TOKENS, save_tiny_model
from contract.engine import OpenedBy, Tier

Words = Literal["wordpiece", "bytes", "unigram"]

WIDTH = 32
"""Of the tiny models' vectors."""
_VOCABULARY, _ROWS = 400, 424
"""Entries of the tokenizers' vocabularies, and rows of the embeddings: as in real models, a few more."""
_SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": _ROWS,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # of vectors that differ from text to text
}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
_T5: dict[str, Any] = {"d_model": WIDTH, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64}


@dataclass(frozen=True)
class Family:
    """One architecture, and how its best known models are made of it."""

    model_type: str
    """As transformers names it."""
    known: tuple[str, ...]
    """Models of it, by their names on the Hub, the best known first; none where those bring code of their own."""
    tier: Tier
    """The first that an engine of it has."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from ``_SHAPE``."""
    words: Words = "wordpiece"
    """How its tokenizer parts a text."""
    pooling: str | tuple[str, ...] = "mean"
    left: bool = False
    """Whether its tokenizer pads on the left."""
    dense: Literal["", "two", "tanh"] = ""
    """Which Dense modules follow the pooling."""
    output: OpenedBy = "SentenceTransformer"
    """sentence-transformers' class for models of this output."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


_QUERY = {"query": "Instruct: Find the passage that answers.\nQuery: ", "document": ""}
_E5 = {"query": "query: ", "document": "passage: "}

FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        "bert", ("sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-base-en-v1.5", "intfloat/e5-base-v2"), "onnx"
    ),
    "roberta": Family(
        "roberta", ("sentence-transformers/all-distilroberta-v1",), "onnx", {"pad_token_id": 1}, "bytes"
    ),
    "xlm-roberta": Family(
        "xlm-roberta", ("BAAI/bge-m3", "intfloat/multilingual-e5-large"), "onnx", {"pad_token_id": 1}, "unigram",
        prompts=_E5,
    ),
    "camembert": Family(
        "camembert", ("dangvantuan/sentence-camembert-base",), "onnx", {"pad_token_id": 1}, "unigram"
    ),
    "electra": Family("electra", ("google/electra-small-discriminator",), "onnx", {"embedding_size": 16}),
    "distilbert": Family("distilbert", ("sentence-transformers/multi-qa-distilbert-cos-v1",), "onnx", pooling="cls"),
    "albert": Family("albert", ("sentence-transformers/paraphrase-albert-small-v2",), "onnx", {"embedding_size": 16}),
    "ernie": Family("ernie", ("nghuyong/ernie-3.0-base-zh",), "onnx", pooling="cls"),
    "nomic_bert": Family(
        "nomic_bert", ("nomic-ai/nomic-embed-text-v1.5",), "onnx",
        prompts={"query": "search_query: ", "document": "search_document: "},
    ),
    "gte": Family("gte", (), "onnx", {}, "unigram", pooling="cls"),
    "jina_embeddings_v3": Family("jina_embeddings_v3", (), "onnx", {}, "unigram"),
    "modernbert": Family(
        "modernbert", ("nomic-ai/modernbert-embed-base", "Alibaba-NLP/gte-modernbert-base"), "torch",
        {"local_attention": 16, "global_attn_every_n_layers": 2}, "bytes", pooling="cls",
    ),
    "eurobert": Family("eurobert", ("EuroBERT/EuroBERT-210m",), "torch", {"num_key_value_heads": 2}, "bytes"),
    "qwen2": Family(
        "qwen2", (), "torch", {"num_key_value_heads": 2}, "bytes",
        pooling="lasttoken", left=True, prompts=_QUERY,
    ),
    "qwen3": Family(
        "qwen3", ("Qwen/Qwen3-Embedding-0.6B",), "torch", _GROUPED, "bytes", pooling="lasttoken", left=True,
        prompts=_QUERY,
    ),
    "mistral": Family(
        "mistral", ("intfloat/e5-mistral-7b-instruct", "Salesforce/SFR-Embedding-Mistral"), "torch",
        _GROUPED | {"sliding_window": 24}, "unigram", pooling="lasttoken", prompts=_QUERY,
    ),
    "llama": Family(
        "llama", (), "torch", {"num_key_value_heads": 2}, "bytes",
        pooling="weightedmean", left=True,
    ),
    "llama, bidirectional": Family(
        "llama", (), "torch", {"num_key_value_heads": 2, "is_causal": False}, "bytes",
        left=True,
    ),
    "gemma3_text": Family(
        "gemma3_text", ("google/embeddinggemma-300m",), "torch",
        _GROUPED | {"sliding_window": 24, "use_bidirectional_attention": True,
                    "layer_types": ["sliding_attention", "full_attention"]},
        "unigram", dense="two",
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "mpnet": Family("mpnet", ("sentence-transformers/all-mpnet-base-v2",), "onnx", {"pad_token_id": 1}),
    "deberta-v2": Family(
        "deberta-v2", ("microsoft/deberta-v3-base",), "modules",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True,
         "norm_rel_ebd": "layer_norm", "position_biased_input": False},
        "unigram",
    ),
    "t5": Family(
        "t5", ("sentence-transformers/gtr-t5-base", "sentence-transformers/sentence-t5-base"), "modules", _T5,
        "unigram", dense="two",
    ),
    "LaBSE": Family("bert", ("sentence-transformers/LaBSE",), "onnx", pooling="cls", dense="tanh"),
    "SPLADE": Family(
        "bert", ("naver/splade-v3", "prithivida/Splade_PP_en_v2"),
        "modules", {"initializer_range": 1.0}, output="SparseEncoder",
    ),
    "ColBERT": Family(
        "bert", ("colbert-ir/colbertv2.0", "answerdotai/answerai-colbert-small-v1"),
        "onnx", output="MultiVectorEncoder", prompts={"query": "[Q] ", "document": "[D] "},
    ),
    "StaticEmbedding": Family(
        "StaticEmbedding", ("sentence-transformers/static-retrieval-mrl-en-v1", "minishlab/potion-base-8M"), "modules"
    ),
}  # fmt: skip


def save_family(name: str, folder: Path, **config: object) -> Path:
    """Write a tiny model of a family of ``FAMILIES`` as ``SentenceTransformer.save_pretrained`` leaves it.

    Args:
        name: of the family.
        folder: for the model, in its folder ``saved``.
        config: of transformers' configuration what differs from the family's, such as ``max_position_embeddings``.
    """
    family = FAMILIES[name]
    family = replace(family, config={**family.config, **config})
    modules = _static(folder) if family.model_type == "StaticEmbedding" else _modules(family, folder)
    model = getattr(sentence_transformers, family.output)(
        modules=modules, prompts=dict(family.prompts), default_prompt_name=family.default_prompt, device="cpu"
    )
    model.save_pretrained(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def _static(folder: Path) -> list[Any]:
    save_tiny_model(folder / "words", vocabulary=_VOCABULARY)
    torch.manual_seed(7)
    tokenizer = Tokenizer.from_file(str(folder / "words" / "tokenizer.json"))
    return [StaticEmbedding(tokenizer, embedding_dim=WIDTH), Normalize()]


def _modules(family: Family, folder: Path) -> list[Any]:
    plain = folder / "plain"
    shape = dict(_SHAPE)
    if family.model_type == "distilbert":
        shape = {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": _ROWS}
    transformers.set_seed(7)
    config = transformers.AutoConfig.for_model(family.model_type, **(shape | dict(family.config)))
    made: Any = _kind(family)(config)
    made.save_pretrained(plain)
    _tokenizer(family, config.pad_token_id or 0).save_pretrained(plain)
    if family.output == "SparseEncoder":
        return [Transformer(str(plain), transformer_task="fill-mask"), SpladePooling()]
    if family.output == "MultiVectorEncoder":
        named: dict[str, Any] = {"module_input_name": "token_embeddings"}
        projection = Dense(WIDTH, 16, bias=False, activation_function=torch.nn.Identity(), **named)
        return [Transformer(str(plain)), projection, MultiVectorMask(list(".,;-()")), Normalize(**named)]
    modules: list[Any] = [Transformer(str(plain)), Pooling(config.hidden_size, family.pooling)]
    if family.dense == "two":
        modules += [Dense(WIDTH, 48, activation_function=torch.nn.Identity()), Dense(48, WIDTH)]
    if family.dense == "tanh":
        modules += [Dense(WIDTH, WIDTH)]
    return [*modules, Normalize()]


def _kind(family: Family) -> Any:
    """What makes the encoder of a configuration."""
    if family.output == "SparseEncoder":
        return transformers.AutoModelForMaskedLM.from_config
    return transformers.T5EncoderModel if family.model_type == "t5" else transformers.AutoModel.from_config


_SEGMENTS = {True: ["token_type_ids"], False: []}


def _tokenizer(family: Family, pad_id: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of the family's kind, with its special tokens around a text."""
    # A decoder that pools its last token has one special token, at a text's end.
    single = "$A [SEP]" if family.pooling == "lasttoken" else "[CLS] $A [SEP]"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=_trained(family.words, pad_id, single),  # which it copies
        **SPECIAL_TOKENS,
        padding_side="left" if family.left else "right",
        model_max_length=512,
        # RoBERTa's and the decoders' give no token types.
        model_input_names=["input_ids", *_SEGMENTS[family.words == "wordpiece"], "attention_mask"],
    )


@functools.cache
def _trained(words: Words, pad_id: int, single: str) -> Tokenizer:
    """Trained on the Jargon File.

    Args:
        words: its kind.
        pad_id: the padding's id.
        single: a text with its special tokens.
    """
    special = list(SPECIAL_TOKENS.values())
    special[0], special[pad_id] = special[pad_id], special[0]
    lines = JARGON.read_text(encoding="utf-8").splitlines()[: _VOCABULARY * 3 // 10]
    tokenizer, trainer = _untrained(words, special)
    tokenizer.train_from_iterator(lines, trainer)
    ends = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return tokenizer


def _untrained(words: Words, special: list[str]) -> tuple[Tokenizer, Any]:
    size: dict[str, Any] = {"vocab_size": _VOCABULARY, "special_tokens": special, "show_progress": False}
    if words == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer, trainers.WordPieceTrainer(**size)
    if words == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, trainers.BpeTrainer(**size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(**size, unk_token="[UNK]")
