"""Nested lists in JSON: what `json` reads and writes, and what is refused."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from convoy.service.dtypes import DTYPES
from convoy.service.errors import BadTensor
from convoy.service.frontend.rest.nested import read, shortest, write

FLOAT = np.dtype(np.float32)
_FLOATS = ("float16", "float32", "float64")


def any_array() -> st.SearchStrategy[np.ndarray]:
    def of(name: str) -> st.SearchStrategy[np.ndarray]:
        kind = DTYPES[name]
        finite = {"allow_nan": False, "allow_infinity": False} if name in _FLOATS else {}
        return arrays(kind, array_shapes(min_dims=1, max_dims=4, max_side=4), elements=finite)

    return st.sampled_from(sorted(DTYPES)).flatmap(of)


@given(any_array())
def test_every_array_is_read_as_it_was_written(values):
    text = write(values)
    found = read(text, values.dtype, "x")
    assert np.array_equal(found, values)
    assert found.dtype == values.dtype
    assert np.array_equal(np.array(json.loads(text), values.dtype), values)


@given(st.recursive(st.floats(-1e3, 1e3) | st.integers(-9, 9), lambda of: st.lists(of, max_size=3), max_leaves=12))
def test_lists_are_read_as_numpy_reads_them_or_are_refused(lists):
    text = json.dumps(lists, indent=1).encode()
    try:
        expected = np.array(lists, np.float64)
    except ValueError:
        expected = np.empty(0)
    if expected.size == 0 or expected.ndim > 9:
        with pytest.raises(BadTensor):
            read(text, np.dtype(np.float64), "x")
    else:
        found = read(text, np.dtype(np.float64), "x")
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "text", "message"),
    [
        ("float32", b"[[1, 2], [3]]", "x is ragged: lists in its element 1 differ in length from those before"),
        ("float32", b"[[1], [2], 3]", "x is ragged: lists in its element 2 differ in length from those before"),
        ("float32", b"[1, [2]]", "x is ragged: lists in its element 1 differ in length from those before"),
        ("float32", b"[[[1, 2], [3]], [[1, 2], [3]]]", "x is ragged: lists in its element 0 differ in length"),
        ("float32", b"[]", "x contains an empty list, want 1 element or more"),
        ("float32", b"[[1], [ ]]", "x contains an empty list"),
        ("float32", b"[1, true]", "x contains 'true]', want numbers in nested lists"),
        ("float32", b'["1"]', "x contains '\"1\"]', want numbers in nested lists"),
        ("float32", b"[1, null]", "x contains 'null]', want numbers"),
        ("float32", b"[1e39]", "x has 1e+39, which is outside FP32"),
        ("float16", b"[70000]", "x has 70000, which is outside FP16"),
        ("float64", b"[1e999]", "x has a number that is outside FP64"),
        ("int8", b"[127, 128]", "x has '128', which is outside INT8"),
        ("uint64", b"[-1]", "x has '-1', which is outside UINT64"),
        ("int64", b"[9223372036854775808]", "x has '9223372036854775808', which is outside INT64"),
        ("int64", b"[" + b"9" * 5000 + b"]", "x has a number that is outside INT64"),
        ("int32", b"[1.0]", "x has numbers with a fraction or an exponent, want whole ones: INT32"),
        ("int32", b"[1e3]", "x has numbers with a fraction or an exponent"),
        ("bool", b"[true, 0]", "x contains '0]', want true or false in nested lists"),
        ("bool", b"[null]", "x contains 'null]', want true or false"),
        ("float32", b"[" * 10 + b"1" + b"]" * 10, "x is nested 10 deep, want at most 9"),
    ],
)
def test_what_is_no_array_is_refused(dtype, text, message):
    with pytest.raises(BadTensor) as refused:
        read(text, np.dtype(dtype), "x")
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(300_000,), (3, 100_000), (400, 20, 40), (70_000, 1)])
def test_large_arrays_are_read_and_written_in_pieces(dtype, shape):
    values = (np.arange(np.prod(shape)) % 127).astype(dtype).reshape(shape)
    text = write(values)
    assert json.loads(text) == values.tolist()
    assert np.array_equal(read(text, values.dtype, "x"), values)


@given(arrays(np.uint32, st.integers(1, 200)))
def test_floats_are_written_with_the_digits_that_their_dtype_needs(bits):
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = shortest(values)
    for one, value in zip(found, values, strict=True):
        assert np.float32(one) == value
        assert len(repr(one).replace("-", "").split("e")[0].replace(".", "").strip("0")) <= 9


@pytest.mark.parametrize("count", [1, 3, 100, 1000])
def test_a_short_decimal_stays_short(count):
    values = np.array([0.1, 0.9876543, 1e-7, 123456.7, 3e38, 0, -2.5] * count, np.float32)
    assert shortest(values) == [0.1, 0.9876543, 1e-07, 123456.7, 3e38, 0.0, -2.5] * count
    assert write(np.array(0.1, np.float32)) == b"0.1"


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 0, 3)])
def test_empty_arrays_are_written(shape):
    values = np.empty(shape, np.float32)
    assert json.loads(write(values)) == values.tolist()
