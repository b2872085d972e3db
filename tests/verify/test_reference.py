from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from bench.families import save_family
from bench.tiny_model import save_tiny_model, save_tiny_tokenizer
from contract.engine import EngineSpec
from contract.engines import engine_of
from contract.errors import UserError
from contract.form import VectorForm
from contract.job import Job
from contract.settings import settings
from producer.dataset import dataset_of
from tests.conftest import build_engine
from tests.verify.jobs import TEXTS, finished_job, save_texts
from verify.reference import Reference, open_model
from verify.sample import SampledRow, draw
from verify.sampled_rows import rows_at
from verify.stats import VectorRules


def opened(job: Job) -> Reference:
    return open_model(job, engine_of(job))


def sampled(job: Job) -> list[SampledRow]:
    """Every row that has a text."""
    rules = VectorRules.of(job, engine_of(job))
    return list(draw(job, range(job.batches), rules, rows=100, seed=0).rows)


def texts_of(job: Job) -> dict[int, str | None]:
    return dict(enumerate(TEXTS[: job.rows]))


def assert_as_stored(job: Job) -> None:
    """The shards' vectors are the reference's: the engine and sentence-transformers agree."""
    rows = sampled(job)
    recomputed = list(opened(job).recompute(rows, texts_of(job)))
    assert len(recomputed) == len(rows) > 10
    for one in recomputed:
        assert one.n_tokens == one.row.n_tokens
        np.testing.assert_allclose(rows_at(job, one.row.batch, [one.row.index])[0].vectors, one.vectors, atol=2e-5)


def test_rows_computed_together_are_what_each_is_alone(job: Job, tiny_model: Path) -> None:
    found = {one.row.row_id: one for one in opened(job).recompute(sampled(job), texts_of(job))}
    assert len(found) == 46
    model = SentenceTransformer(str(tiny_model), device="cpu")
    for row_id in (0, 3, 41, 42, 44):
        alone = model.encode([str(TEXTS[row_id])], show_progress_bar=False)
        np.testing.assert_allclose(found[row_id].vectors, alone, atol=1e-5)
    assert found[44].n_tokens == found[44].row.n_tokens > 512


def test_the_prefix_is_part_of_the_text(tiny: EngineSpec, dataset: Path) -> None:
    job = finished_job(tiny, dataset, prefix="passage: ", limit=12)
    found = list(opened(job).recompute(sampled(job), texts_of(job)))
    assert all(str(one.text).startswith("passage: ") for one in found)
    assert_as_stored(job)


@pytest.mark.parametrize(
    ("truncate_dim", "chosen"),
    [
        (None, {}),
        (7, {}),
        (7, {"normalize": True}),
        (7, {"pooling": "mean"}),
        (None, {"pooling": "mean", "normalize": False}),
    ],
    ids=str,
)
def test_a_models_own_modules_and_what_the_user_chose_against_them(
    truncate_dim: int | None, chosen: dict[str, Any], workplace: Path, dataset: Path
) -> None:
    transformer = Transformer(str(save_tiny_model(workplace / "encoder", num_hidden_layers=1)))
    modules = [transformer, Pooling(32, "cls"), Dense(32, 12), Normalize()]
    model = SentenceTransformer(modules=modules, prompts={"doc": "Text: "}, default_prompt_name="doc", device="cpu")
    model.truncate_dim = truncate_dim
    model.save(str(workplace / "model"), create_model_card=False)
    spec = build_engine(workplace / "model", f"own-{workplace.name}", max_length=48, **chosen)
    for form in (VectorForm(), VectorForm(dimensions=5)):
        assert_as_stored(finished_job(spec, dataset, limit=46, form=form, prefix="Text: "))
        assert_as_stored(finished_job(spec, dataset, limit=46, form=form, overlap=10))


@pytest.mark.parametrize("family", ["StaticEmbedding", "qwen3", "mpnet"])
def test_models_of_other_families(family: str, workplace: Path, dataset: Path) -> None:
    """Row 41 of the texts has no token, not even a special one, in a static model: it has no vector."""
    spec = build_engine(save_family(family, workplace / "family"), f"family-{workplace.name}", max_length=48)
    assert_as_stored(finished_job(spec, dataset, limit=46, prefix="Text: "))
    if family != "StaticEmbedding":
        assert_as_stored(finished_job(spec, dataset, limit=46, overlap=10))
    job = finished_job(spec, dataset, limit=46)
    assert_as_stored(job)
    (row,) = opened(job).recompute([SampledRow(41, 2, 9, 1, False, "")], texts_of(job))
    assert row.vectors.shape == ((0 if family == "StaticEmbedding" else 1), 32)


@pytest.mark.parametrize("normalize", [True, False])
def test_left_padding_gives_the_tokens_of_the_text_alone(normalize: bool, workplace: Path, dataset: Path) -> None:
    spec = build_engine(
        save_family("qwen3", workplace / "family"), f"left-{normalize}", "tokens", normalize=normalize, max_length=48
    )
    assert spec.tiers == ("torch",)
    assert_as_stored(finished_job(spec, dataset, limit=46))


@pytest.mark.parametrize("normalize", [True, False])
def test_tokens(normalize: bool, tiny_model: Path, dataset: Path, workplace: Path) -> None:
    spec = build_engine(tiny_model, f"reference-tokens-{normalize}", "tokens", normalize=normalize, max_length=48)
    assert_as_stored(finished_job(spec, dataset, limit=46))


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


@pytest.mark.parametrize(
    ("what", "change", "told"),
    [
        ("weights", lambda model: save_tiny_model(model, initializer_range=0.03), "^the model .* was changed"),
        ("tokenizer", lambda model: save_tiny_tokenizer(model, 900), "^the tokenizer of the model .* was changed"),
    ],
)
def test_a_changed_model(
    what: str, change: Callable[[Path], object], told: str, workplace: Path, dataset: Path
) -> None:
    """Without a line of its own, a changed tokenizer would have every shard at fault."""
    model = save_tiny_model(workplace / f"changing-{what}")
    spec = build_engine(model, model.name)
    job = finished_job(spec, dataset, limit=4)
    assert opened(job)
    change(model)
    with pytest.raises(UserError, match=told):
        opened(job)
