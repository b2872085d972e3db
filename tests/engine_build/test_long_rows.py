"""What a build says of rows that may be long, and the text that it compares them on."""

from pathlib import Path

import pytest

from bench.families import save_family
from engine_build.build import build
from engine_build.compare_export import long_text
from engine_build.prepare import EngineOptions
from producer.tokenizer import tokenize, tokenizer_from

SQUARE = "memory by the square of a row's length, here of up to 1,100 tokens"


@pytest.mark.parametrize(
    ("family", "line"),
    [
        (
            "bert",
            f"On a CPU PyTorch computes this engine where it is installed: ONNX Runtime's attention takes {SQUARE}.",
        ),
        ("t5", f"This model's own attention may take {SQUARE}."),
        ("modernbert", None),
    ],
)
def test_it_says_what_takes_memory_by_the_square_of_a_row(family: str, line: str | None, tmp_path: Path) -> None:
    heads = {"num_heads": 1} if family == "t5" else {"num_attention_heads": 1, "max_position_embeddings": 1100}
    model, said = save_family(family, tmp_path / "model", num_hidden_layers=2, **heads), list[str]()
    build(str(model), EngineOptions(f"square-{family}", max_length=1100), say=said.append, step=lambda text: None)
    assert [one for one in said if "square" in one] == ([line] if line else [])


@pytest.mark.parametrize(("length", "least", "most"), [(513, 513, 20_000), (4096, 4096, 20_000), (8192, 2500, 4096)])
def test_the_long_text_fills_a_row_or_has_up_to_4096_tokens(
    length: int, least: int, most: int, tiny_model: Path
) -> None:
    rows = tokenizer_from(tiny_model / "tokenizer.json", length, 0)
    _, (tokens,) = tokenize([long_text(rows)], rows)
    assert least <= tokens <= most
