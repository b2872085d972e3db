import numpy as np
import pytest

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.form import VectorForm
from contract.tokens import TokenRows
from contract.vectors import RowVectors
from producer.tokenizer import open_tokenizer, tokenize_windows
from worker.rows import EmbeddedBatch, into_form, pool_windows


def batch_of(row_id: list[int], lengths: list[int]) -> Batch:
    tokens = TokenRows(np.ones(sum(lengths), np.int32), np.array(lengths, np.int32))
    return Batch("j", 0, "e", np.array(row_id), tokens, np.bincount(row_id, lengths)[row_id].astype(np.int32))


def found(vectors: list[list[float]], errors: dict[int, str] | None = None) -> EmbeddedBatch:
    return EmbeddedBatch(RowVectors.pooled(np.array(vectors, np.float32)), errors or {}, 0, 1)


def test_a_texts_vector_is_the_mean_of_its_windows_weighted_by_their_tokens() -> None:
    batch = batch_of([0, 1, 1, 1, 2, 3], [4, 8, 8, 2, 0, 3])  # row 2 has no text
    vectors = [[9.0, 1.0], [1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [7.0, 7.0]]
    texts, one = pool_windows(batch, found(vectors), normalize=False)
    assert texts.row_id.tolist() == [0, 1, 2, 3]
    mean = np.average(vectors[1:4], axis=0, weights=[8, 8, 2])
    np.testing.assert_allclose(one.vectors.values, np.stack([vectors[0], mean, vectors[4]]), rtol=1e-6)
    _, unit = pool_windows(batch, found(vectors), normalize=True)
    np.testing.assert_allclose(unit.vectors.values[1], mean / np.linalg.norm(mean), rtol=1e-6)
    assert unit.vectors.values[0].tolist() == vectors[0]  # a single window's vector is the engine's, to the bit


def test_a_text_of_which_a_window_fails_has_the_windows_error_and_no_vector() -> None:
    batch = batch_of([0, 0, 1, 2, 2], [8, 8, 8, 8, 8])
    vectors = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]  # place 3 has none
    texts, one = pool_windows(batch, found(vectors, {3: "why"}), normalize=False)
    assert one.errors == {2: "why"}
    assert one.vectors.values.tolist() == [[1.5, 1.5], [3, 3]]
    assert len(texts) == 3
    _, none = pool_windows(batch_of([0, 0], [8, 8]), found([[1.0, 1.0]], {0: "why"}), normalize=False)
    assert (none.errors, none.vectors.values.shape) == ({0: "why"}, (0, 2))


def test_without_windows_nothing_changes() -> None:
    batch, vectors = batch_of([0, 1], [4, 8]), found([[1.0, 2.0], [3.0, 4.0]])
    assert pool_windows(batch, vectors, normalize=True) == (batch, vectors)


@pytest.mark.parametrize("form", [VectorForm(dtype="float16"), VectorForm(dimensions=1)])
def test_a_vector_that_has_no_such_form_is_its_rows_error(form: VectorForm, tiny: EngineSpec) -> None:
    batch = batch_of([0, 1, 2], [4, 0, 4])
    bad = [0.0, 70_000.0]  # nothing in its first dimension, and too large for float16
    kept = into_form(batch, found([[1.0, 2.0], bad]), form, tiny)
    assert "not finite or zero" in kept.errors[2]
    assert len(kept.vectors) == 1


@pytest.mark.parametrize("overlap", [0, 1, 7, 29])
@pytest.mark.parametrize("words", [0, 29, 30, 31, 52, 53, 200])
def test_windows_are_those_of_transformers(overlap: int, words: int, tiny: EngineSpec, tiny_model: object) -> None:
    from transformers import AutoTokenizer

    text = " ".join("bit" for _ in range(words))
    rows = open_tokenizer(tiny.model_copy(update={"max_length": 32}))
    owners, tokens, n_tokens = tokenize_windows([text, None, "one bit"], rows, "", overlap)
    theirs = AutoTokenizer.from_pretrained(tiny_model)(
        text, truncation=True, max_length=32, stride=overlap, return_overflowing_tokens=True
    )["input_ids"]
    windows = [row.tolist() for row in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])]
    assert windows[:-2] == theirs
    assert owners.tolist() == [0] * len(theirs) + [1, 2]
    assert set(n_tokens[:-2].tolist()) == {words + 2}
    assert n_tokens[-2] == 0
