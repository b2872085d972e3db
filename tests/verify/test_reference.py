from pathlib import Path

import numpy as np
import pytest

from bench.tiny_model import save_tiny_model
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import Job, engine_of
from contract.settings import settings
from engine_build.model import hidden_states, pooled
from producer.dataset import dataset_of
from tests.conftest import build_engine
from tests.verify.jobs import TEXTS, finished_job, save_texts
from verify.reference import Reference, open_reference
from verify.sample import draw


def opened(job: Job) -> Reference:
    return open_reference(job, engine_of(job), dataset_of(job))


def test_rows_computed_together_are_what_each_is_alone(job: Job) -> None:
    reference = opened(job)
    rows = draw(job, range(3), max_length=512, width=32, rows=100, seed=0).rows
    found = {one.row.row_id: one for one in reference.recompute(rows)}
    assert len(found) == 46
    for row_id in (0, 3, 41, 42, 44):
        tokens = reference.tokenizer([TEXTS[row_id]], truncation=True, max_length=512, return_tensors="pt")
        mask = tokens["attention_mask"]
        types = tokens["input_ids"] * 0
        alone = pooled(hidden_states(reference.model, tokens["input_ids"], mask, types), mask, "mean", normalize=False)
        np.testing.assert_allclose(found[row_id].vectors, alone.detach().numpy(), atol=1e-5)
    assert found[44].n_tokens == found[44].row.n_tokens > 512


def test_the_prefix_is_part_of_the_text(tiny: EngineSpec, dataset: Path) -> None:
    job = finished_job(tiny, dataset, prefix="passage: ", limit=5)
    rows = draw(job, range(1), max_length=512, width=32, rows=100, seed=0).rows
    found = list(opened(job).recompute(rows))
    assert len(found) == 5
    assert all(str(one.text).startswith("passage: ") for one in found)
    assert all(one.n_tokens == one.row.n_tokens for one in found)


def test_an_engine_that_is_gone(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "nothing"))
    settings.cache_clear()
    with pytest.raises(UserError, match="no engine tiny"):
        engine_of(job)


def test_another_engine_of_the_same_name(
    job: Job, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "others"))
    settings.cache_clear()
    other = build_engine(tiny_model, "tiny", pooling="cls")
    with pytest.raises(UserError, match=other.fingerprint):
        engine_of(job)


def test_a_changed_dataset(job: Job, dataset: Path) -> None:
    save_texts(dataset, [*TEXTS[:-1], "The last row!"])
    with pytest.raises(UserError, match="was changed"):
        dataset_of(job)


def test_a_dataset_that_is_gone(job: Job, dataset: Path) -> None:
    dataset.rename(dataset.with_name("elsewhere"))
    with pytest.raises(UserError, match="no dataset"):
        dataset_of(job)


def test_a_changed_model(workplace: Path, dataset: Path) -> None:
    model = save_tiny_model(workplace / "changing")
    spec = build_engine(model, "changing")
    job = finished_job(spec, dataset, limit=4)
    assert opened(job)
    save_tiny_model(model, initializer_range=0.03)
    with pytest.raises(UserError, match="was changed"):
        opened(job)
