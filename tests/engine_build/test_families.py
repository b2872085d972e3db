"""Every family of models that the documentation names: each tier of each against ``SentenceTransformer.encode()``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.families import FAMILIES
from bench.models import CPU, ODD_TEXTS, PAGE, families_on, lowest_cosines
from engine_build.tiers import EXPORTED


def test_the_texts_are_many_and_odd() -> None:
    assert len(ODD_TEXTS) == len(set(ODD_TEXTS)) >= 60
    assert {"", "a", "[MASK]", "</s>", "<pad>"} <= set(ODD_TEXTS)
    assert max(map(len, ODD_TEXTS)) > 4000
    assert any("\x00" in text for text in ODD_TEXTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tier_gives_the_vectors_of_encode(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lowest_cosines(name, tmp_path)
    assert found.spec.tiers[0] == FAMILIES[name].tier
    assert set(found.cosines) == {*found.spec.tiers, "modules"}
    assert min(found.cosines.values()) >= 0.99999, found.cosines


def test_the_page_has_the_families_and_what_computes_them() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert families_on(page) == list(FAMILIES)
    for name, family in FAMILIES.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        assert f"| {CPU[family.tier]} |" in line
        assert all(f"`{one}`" in line for one in family.known)
    assert f"{len(ODD_TEXTS)} odd texts" in page


def test_what_is_exported_is_among_the_families() -> None:
    named: Any = {family.model_type for family in FAMILIES.values()}
    assert named >= {*EXPORTED}
    assert np.unique([family.tier for family in FAMILIES.values()]).tolist() == ["modules", "onnx", "torch"]
