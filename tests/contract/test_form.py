"""Each form against sentence-transformers' own functions on the same vectors."""

import numpy as np
import pytest
from pydantic import ValidationError
from sentence_transformers.util import quantize_embeddings, truncate_embeddings

from contract.form import VectorForm

VECTORS = np.random.default_rng(1).normal(size=(300, 36)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CALIBRATION, RANGES = VECTORS[:100], np.vstack([VECTORS[:100].min(axis=0), VECTORS[:100].max(axis=0)])


def int8(ranges: np.ndarray = RANGES) -> VectorForm:
    return VectorForm(dtype="int8", ranges=(tuple(ranges[0].tolist()), tuple(ranges[1].tolist())))


def test_int8_is_sentence_transformers() -> None:
    theirs = quantize_embeddings(VECTORS, "int8", calibration_embeddings=CALIBRATION)
    ours = int8().quantized(VECTORS)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)
    assert {-128, 127} <= set(ours.ravel().tolist())  # what lies outside the calibration's ranges is there too


def test_an_element_of_one_value_only_is_sentence_transformers_too() -> None:
    still = RANGES.copy()
    still[1, 3] = still[0, 3]
    assert np.array_equal(int8(still).quantized(VECTORS), quantize_embeddings(VECTORS, "int8", ranges=still))


@pytest.mark.parametrize("elements", [36, 32, 7])
def test_binary_is_sentence_transformers(elements: int) -> None:
    vectors = VECTORS[:, :elements].copy()
    vectors[0, 0] = 0
    theirs = quantize_embeddings(vectors, "binary")
    ours = VectorForm(dtype="binary").quantized(vectors)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)
    assert ours.shape[1] == VectorForm(dtype="binary").width(elements)


@pytest.mark.parametrize("dimensions", [1, 8, 36])
def test_fewer_dimensions_are_sentence_transformers(dimensions: int) -> None:
    form = VectorForm(dimensions=dimensions)
    assert np.array_equal(form.shortened(VECTORS, normalize=False), truncate_embeddings(VECTORS, dimensions))
    again = form.shortened(VECTORS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, rtol=1e-6)
    assert (again * truncate_embeddings(VECTORS, dimensions) >= 0).all()


def test_float16_is_the_nearest_one_and_may_be_too_small_for_a_value() -> None:
    quantized = VectorForm(dtype="float16").quantized(np.array([[0.1, 70_000, -1e-9]], np.float32))
    assert quantized.dtype.name == "float16"
    assert quantized.tolist() == [[np.float16(0.1), np.inf, 0]]


@pytest.mark.parametrize("form", [int8(), VectorForm(dtype="binary"), VectorForm(dtype="float16"), VectorForm()])
def test_what_is_dequantized_is_quantized_the_same_again(form: VectorForm) -> None:
    quantized = form.quantized(VECTORS)
    dequantized = form.dequantized(quantized, VECTORS.shape[1])
    assert (dequantized.dtype.name, dequantized.shape) == ("float32", VECTORS.shape)
    assert np.array_equal(form.quantized(dequantized), quantized)


@pytest.mark.parametrize("form", [int8(), VectorForm(dtype="binary")])
def test_the_nearest_vector_to_a_reference_is_the_reference_where_it_is_stored_alike(form: VectorForm) -> None:
    np.testing.assert_allclose(form.nearest(form.quantized(VECTORS), VECTORS), VECTORS, atol=1e-6)


def test_the_nearest_vector_of_a_neighbouring_step_is_its_edge() -> None:
    form = VectorForm(dtype="int8", ranges=((0.0, 0.0, 0.0, 0.0), (255.0, 255.0, 255.0, 255.0)))
    reference = np.array([[10.25, 10.25, -40.0, 300.0]], np.float32)
    assert form.quantized(reference).tolist() == [[-118, -118, -128, 127]]
    other = np.array([[-117, -119, -127, 126]], np.int8)
    assert form.nearest(other, reference).tolist() == [[11, 10, 1, 255]]


def test_the_nearest_vector_of_another_sign_is_zero_there() -> None:
    form = VectorForm(dtype="binary")
    reference = np.array([[0.5, -0.5, 0.25]], np.float32)
    assert form.nearest(form.quantized(-reference), reference).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "int8"},
        {"ranges": ((0.0,), (1.0,))},
        {"dtype": "int8", "ranges": ((0.0,), (1.0, 2.0))},
        {"dtype": "x"},
    ],
)
def test_a_form_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VectorForm.model_validate(fields)
