import itertools

import numpy as np
import pytest
from support.arrays import ROUNDING, assert_same_bytes, decode, each_isa, encode, rng, storage

from pagedcore import _core

STORE = _core.ops.LinearEpilogue.STORE
ACCUMULATE = _core.ops.LinearEpilogue.ACCUMULATE
GATED = _core.ops.LinearEpilogue.GATED
NUM_ROWS = [0, 1, 2, 5, 7, 8, 9, 31, 33, 100]
SIZES = [(1, 1), (7, 17), (33, 16), (64, 70), (111, 50), (13001, 21)]
# What each set reads beside bfloat16 weights: x is rounded to it first.
OPERANDS = {"avx512_bf16": "bfloat16"}


def name_of(array):
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def run(backend, x, weights, y_dtype="float32", y=None, biases=(), **keywords):
    gated = keywords.get("epilogue") == GATED
    axis = 1 if keywords.get("in_out") else 0
    width = weights[0].shape[axis] if gated else sum(w.shape[axis] for w in weights)
    y = np.full((len(x), width), 77, storage(y_dtype)) if y is None else y
    _core.ops.linear(
        backend, x, list(weights), y, list(biases),
        x_dtype=name_of(x), weight_dtype=name_of(weights[0]), y_dtype=y_dtype,
        bias_dtype=name_of(biases[0]) if len(biases) else "", **keywords,
    )  # fmt: skip
    return y


def products(isa, x, weight):
    """The float64 product, and what the float32 sums of the kernels may be off."""
    operand = OPERANDS.get(isa, "float32") if weight.dtype == np.uint16 else "float32"
    a, b = decode(encode(decode(x), operand)), decode(weight)
    # Rounding errors of a sum of n terms: at most n halves of a unit in the last place of the sum
    # of their sizes.
    return a @ b.T, (np.abs(a) @ np.abs(b).T) * (a.shape[1] + 2) * 2.0**-24 + 1e-30


def silu(x):
    return x / (1 + np.exp(-x))


def assert_near(y, want, error, y_dtype):
    limit = error + ROUNDING[y_dtype] * np.abs(want) + (6e-8 if y_dtype == "float16" else 0)
    assert np.all(np.abs(decode(y) - want) <= limit), np.max(np.abs(decode(y) - want) / limit)


@each_isa
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("x_dtype", ["float32", "own"])
def test_linear_is_that_of_float64(isa, dtype, x_dtype):
    x_dtype = dtype if x_dtype == "own" else x_dtype
    backend = _core.make_cpu_backend(2, isa)
    for rows, (in_features, out_features) in itertools.product(NUM_ROWS, SIZES):
        random = rng(rows, in_features)
        x = encode(random.normal(size=(rows, in_features)), x_dtype)
        weight = encode(random.normal(size=(out_features, in_features)), dtype)
        want, error = products(isa, x, weight)
        y = run(backend, x, [weight])
        assert_near(y, want, error, "float32")
        transposed = run(backend, x, [np.ascontiguousarray(weight.T)], in_out=True)
        assert_same_bytes(transposed, y)


@each_isa
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_epilogues_finish_the_sums(isa, dtype, rows):
    backend = _core.make_cpu_backend(2, isa)
    random = rng(11, rows)
    x = encode(random.normal(size=(rows, 70)), dtype)
    weights = [encode(random.normal(size=(n, 70)) / 8, dtype) for n in (40, 17, 33)]
    biases = [encode(random.normal(size=len(w)), dtype) for w in weights]
    parts = [products(isa, x, w) for w in weights]
    sums = np.concatenate([part + decode(b) for (part, _), b in zip(parts, biases)], axis=1)
    error = np.concatenate([e for _, e in parts], axis=1) + 2.0**-22 * (1 + np.abs(sums))
    for y_dtype in ("float32", dtype):
        y = run(backend, x, weights, y_dtype, biases=biases)
        assert_near(y, sums, error, y_dtype)
        y = run(backend, x, weights, y_dtype, biases=biases, activation=_core.Activation.RELU)
        assert_near(y, np.maximum(sums, 0), error, y_dtype)
        before = encode(random.normal(size=sums.shape), y_dtype)
        y = run(backend, x, weights, y_dtype, before.copy(), biases, epilogue=ACCUMULATE)
        assert_near(y, decode(before) + sums, error, y_dtype)
        gate, up = parts[0][0], products(isa, x, weights[0][::-1].copy())[0]
        y = run(
            backend, x, [weights[0], weights[0][::-1].copy()], y_dtype,
            epilogue=GATED, activation=_core.Activation.SILU,
        )  # fmt: skip
        gated_error = (
            parts[0][1] * (1 + np.abs(up)) + parts[0][1][:, ::-1] * (1 + np.abs(gate))
        ) * 2
        assert_near(y, silu(gate) * up, gated_error + 2.0**-20 * np.abs(silu(gate) * up), y_dtype)


@each_isa
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("in_features", [1187, 13001])  # segments of a row: 1 or 2, and 9 and more
def test_a_row_has_the_same_bits_alone_and_in_any_batch(isa, in_features, dtype):
    alone, pair = _core.make_cpu_backend(1, isa), _core.make_cpu_backend(2, isa)
    random = rng(12)
    x = encode(random.normal(size=(100, in_features)), dtype)
    weights = [encode(random.normal(size=(n, in_features)), dtype) for n in (90, 33)]
    want = np.concatenate([run(alone, row[None], weights) for row in x])
    for rows in NUM_ROWS:
        for start in (0, 100 - rows):
            y = run(pair, x[start : start + rows], weights)
            assert_same_bytes(y, want[start : start + rows])


def test_linear_refuses_what_it_cannot_do():
    backend = _core.make_cpu_backend(1)
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(_core.InvalidArgument, match=r"weight must have shape \[any, 8\]"):
        run(backend, x, [np.zeros((4, 7), np.float32)])
    with pytest.raises(_core.InvalidArgument, match="weights must be 1 to 3 arrays, got 0"):
        _core.ops.linear(backend, x, [], np.zeros((2, 4), np.float32))
    with pytest.raises(_core.InvalidArgument, match="biases must be one for each of 1 weights"):
        run(backend, x, [np.zeros((4, 8), np.float32)], biases=[np.zeros(4, np.float32)] * 2)
    with pytest.raises(_core.InvalidArgument, match="gated op needs two weights"):
        run(backend, x, [np.zeros((4, 8), np.float32)], epilogue=GATED)


def test_an_instruction_set_of_another_processor_is_refused_with_the_list():
    with pytest.raises(_core.InvalidArgument, match=r"isa must be one of .*avx2.*, got 'mmx'"):
        _core.make_cpu_backend(1, "mmx")
