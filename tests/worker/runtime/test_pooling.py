"""Pooling of rows that lie end to end, against sentence-transformers' own on padded rows."""

from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from contract.graph import MODES
from worker.runtime.pooling import pool

LENGTHS = (5, 1, 12, 3)
PADDED = 12


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(sum(LENGTHS), 8, generator=torch.Generator().manual_seed(1))


def padded(hidden: torch.Tensor, *, left: bool) -> dict[str, Any]:
    features = torch.full((len(LENGTHS), PADDED, 8), 1e6)
    mask = torch.zeros(len(LENGTHS), PADDED, dtype=torch.int64)
    for row, values in enumerate(hidden.split(LENGTHS)):
        place = slice(PADDED - len(values), PADDED) if left else slice(len(values))
        features[row, place], mask[row, place] = values, 1
    return {"token_embeddings": features, "attention_mask": mask}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("pooling", [*MODES, "cls+mean", "max+lasttoken+weightedmean"])
def test_every_mode_is_sentence_transformers(pooling: str, skip: int, left: bool, hidden: torch.Tensor) -> None:
    ends = torch.tensor([0, *LENGTHS, 0]).cumsum(0).int()  # the last row has no tokens
    modes: Any = tuple(pooling.split("+"))
    features = padded(hidden, left=left) | ({"prompt_length": skip} if skip else {})
    expected = Pooling(8, modes, include_prompt=not skip)(features)["sentence_embedding"]
    found = pool(hidden, ends, pooling, skip)
    assert found.shape == (len(LENGTHS) + 1, 8 * len(modes))
    left_something = [row for row, length in enumerate(LENGTHS) if length > skip]
    torch.testing.assert_close(found[left_something], expected[left_something])


def test_tokens_stay_as_they_are(hidden: torch.Tensor) -> None:
    assert pool(hidden, torch.tensor([0, len(hidden)]), "tokens") is hidden
