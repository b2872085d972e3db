"""Sparse vectors: what the verifier finds of them, and how a job is searched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SparseEncoder

from bench.families import save_family
from contract.form import VectorForm
from embedmill.search import search
from tests.commands import called
from tests.conftest import build_engine
from tests.verify.jobs import TEXTS, finished_job, rewrite, save_texts, with_value
from verify.sample import draw
from verify.stats import VectorRules

Change = Callable[[pa.Table], pa.Table]


def of_row(name: str, change: Callable[[list[Any]], object]) -> Change:
    """A change of row 3's value of a column."""
    return lambda table: with_value(name, 3, change(table[name][3].as_py()))(table)


def swapped(values: list[Any]) -> list[Any]:
    return [values[1], values[0], *values[2:]]


HARMS: list[tuple[Change, str, str]] = [
    (of_row("weights", lambda weights: [float("nan"), *weights[1:]]), "non_finite", "1 (3)"),
    (of_row("weights", lambda weights: [0.0] * len(weights)), "zero", "1 (3)"),
    (of_row("weights", lambda weights: weights[1:]), "unreadable", "row 3 has not as many weights as indices"),
    (of_row("indices", lambda indices: None), "unreadable", "row 3 has not as many weights as indices"),
    (of_row("indices", swapped), "unreadable", "the indices of row 3 do not ascend"),
    (of_row("indices", lambda indices: [*indices[:-1], 424]), "unreadable", "from 0 to below 424"),
    (of_row("indices", lambda indices: [-1, *indices[1:]]), "unreadable", "the indices of row 3 do not ascend"),
    (lambda table: table.drop_columns("weights"), "unreadable", "no column embedding of vectors of float"),
]
"""A change of a shard, the finding of ``ShardStats``, and what it says."""


def test_a_sparse_job_is_verified_and_searched_and_each_harm_is_found(workplace: Path) -> None:
    spec = build_engine(save_family("SPLADE", workplace / "model"), "splade", max_length=64)
    dataset = save_texts(workplace / "texts", TEXTS)
    half = finished_job(spec, dataset, form=VectorForm(dtype="float16"))
    assert "Verified: 48 rows" in called("verify", half.folder, "--sample", "all").output
    job = finished_job(spec, dataset)
    assert "Verified: 48 rows" in called("verify", job.folder, "--sample", "all").output
    model = SparseEncoder(spec.model, device="cpu")
    model.max_seq_length = 64
    queries, rows = (model.encode(texts).to_dense() for texts in (["spam"], [text or "" for text in TEXTS]))
    theirs = queries @ rows.T
    present = [row for row, text in enumerate(TEXTS) if text is not None]
    for one in (half, job):
        (hits,) = search(one, ("spam",), count=5)
        assert {hit.similarity for hit in hits} == {"dot product"}
        found = [theirs[0, hit.row].item() for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], found, rtol=1e-3)
        assert found[0] == pytest.approx(theirs[0, present].max().item(), rel=1e-3)
    whole = job.shard(0).read_bytes()
    for change, finding, said in HARMS:
        rewrite(job, 0, change)
        stats = draw(job, range(3), VectorRules.of(job, spec), rows=48, seed=0).stats
        assert said in str(getattr(stats, finding)), stats
        job.shard(0).put(whole)
    rewrite(job, 0, of_row("weights", lambda weights: [-30.0, *weights[1:]]))
    told = called("verify", job.folder, "--sample", "all", expect=1).output
    assert "Not verified (fp32 vectors)" in told
