"""``python -m bench.shapes NAME FOLDER``: a model of a well-known one's shape with seeded weights, as
``SentenceTransformer.save_pretrained`` leaves it. For speed where the Hub cannot be reached."""

from pathlib import Path
from typing import Any

import click
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from bench.tiny_model import save_tiny_tokenizer

_BASE: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}

SHAPES: dict[str, dict[str, Any]] = {
    "mpnet-base": _BASE
    | {"model_type": "mpnet", "intermediate_size": 3072, "vocab_size": 30_527, "max_position_embeddings": 514},
    "deberta-v3-base": _BASE
    | {
        "model_type": "deberta-v2",
        "intermediate_size": 3072,
        "vocab_size": 128_100,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
    },
    "modernbert-base": _BASE
    | {"model_type": "modernbert", "num_hidden_layers": 22, "intermediate_size": 1152, "vocab_size": 50_368},
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151_669,
        "max_position_embeddings": 32_768,
    },
    "embeddinggemma-300m": {
        "model_type": "gemma3_text",
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 1152,
        "vocab_size": 262_144,
        "sliding_window": 512,
        "use_bidirectional_attention": True,
        "max_position_embeddings": 2048 * 2,
    },
}
"""The configurations that the models of these names have on the Hub, as far as they decide the speed. Their tokenizers
are the bundled texts' WordPiece. EmbeddingGemma's own texts have at most 2,048 tokens; here 4,096 fit."""


def save_shape(name: str, folder: Path) -> Path:
    """Write a model of ``SHAPES``; qwen3 pools its last token, EmbeddingGemma has its two Dense modules."""
    shape = dict(SHAPES[name])
    transformers.set_seed(7)
    config = transformers.AutoConfig.for_model(shape.pop("model_type"), **shape, pad_token_id=0)
    transformers.AutoModel.from_config(config).save_pretrained(folder / "plain")
    last = name.startswith("qwen3")
    save_tiny_tokenizer(folder / "plain", 28_996, padding_side="left" if last else "right")
    modules: list[Any] = [
        Transformer(str(folder / "plain")),
        Pooling(shape["hidden_size"], "lasttoken" if last else "mean"),
    ]
    if name.startswith("embeddinggemma"):
        width, linear = shape["hidden_size"], torch.nn.Identity()
        modules += [
            Dense(width, 4 * width, False, activation_function=linear),
            Dense(4 * width, width, False, activation_function=linear),
        ]
    model = SentenceTransformer(modules=[*modules, Normalize()], device="cpu")
    model.save_pretrained(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


@click.command()
@click.argument("name", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(name: str, folder: Path) -> None:
    """Write the model NAME into FOLDER/saved."""
    click.echo(save_shape(name, folder))


if __name__ == "__main__":
    main(prog_name="python -m bench.shapes")
