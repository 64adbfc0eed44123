import numpy as np
import pytest
from support.arrays import (
    DTYPES,
    ROUNDING,
    assert_same_bytes,
    decode,
    each_isa,
    encode,
    rng,
    storage,
)

from pagedcore import _core

RMS, LAYER, NONE = _core.NormKind.RMS, _core.NormKind.LAYER, None  # None: convert only
WIDTHS = [1, 8, 15, 64, 100, 576]
# A mean of some hundred float32 terms and three more roundings.
FLOAT_ERROR = 2e-6


def expected(kind, x, weight, bias, epsilon):
    y = decode(x)
    if kind == LAYER:
        y = y - y.mean(axis=-1, keepdims=True)
    if kind != NONE:
        y = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + epsilon)
    y = y if weight is None else y * decode(weight)
    return y if bias is None else y + decode(bias)


def run(
    backend, kind, x, y_dtype, weight=None, bias=None, rows=None, weight_dtype="", epsilon=1e-5
):
    num_rows = len(x) if rows is None else len(rows)
    y = np.full((num_rows, x.shape[1]), 77, storage(y_dtype))
    x_dtype = "bfloat16" if x.dtype == np.uint16 else ""
    _core.ops.norm(
        backend,
        kind,
        x,
        weight,
        bias,
        rows,
        y,
        x_dtype=x_dtype,
        weight_dtype=weight_dtype,
        y_dtype=y_dtype,
        epsilon=epsilon,
    )
    return y


@each_isa
@pytest.mark.parametrize("kind", [RMS, LAYER, NONE])
@pytest.mark.parametrize(
    "x_dtype,y_dtype",
    [
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float16"),
    ],
)
def test_norm_is_that_of_float64(isa, kind, x_dtype, y_dtype):
    backend = _core.make_cpu_backend(2, isa)
    for width in WIDTHS:
        random = rng(3, width)
        x = encode(random.normal(1.0, 2.0, (5, width)), x_dtype)
        weight_dtype = DTYPES[width % 3]
        weight = bias = None
        if kind != NONE:
            weight = encode(random.normal(1.0, 0.1, width), weight_dtype)
            bias = encode(random.normal(0.0, 0.1, width), weight_dtype) if kind == LAYER else None
        y = run(backend, kind, x, y_dtype, weight, bias, weight_dtype=weight_dtype, epsilon=1e-3)
        want = expected(kind, x, weight, bias, 1e-3)
        limit = FLOAT_ERROR * (1 + np.abs(want)) + ROUNDING[y_dtype] * np.abs(want)
        assert np.all(np.abs(decode(y) - want) <= limit)


@pytest.mark.parametrize("kind", [RMS, LAYER])
def test_rows_are_gathered_and_each_is_the_same_to_the_bit_alone(kind):
    x = encode(rng(5).normal(size=(300, 576)), "float32")
    rows = rng(6).integers(0, 300, 77).astype(np.int32)
    weight = encode(rng(7).normal(size=576), "float32")
    together = run(_core.make_cpu_backend(2), kind, x, "float32", weight, rows=rows)
    backend = _core.make_cpu_backend(1)
    for row, y in zip(rows, together):
        assert_same_bytes(run(backend, kind, x[row : row + 1], "float32", weight)[0], y)


def test_norm_may_work_in_place():
    x = encode(rng(8).normal(size=(4, 100)), "float32")
    backend = _core.make_cpu_backend(1)
    want = run(backend, RMS, x, "float32")
    _core.ops.norm(backend, RMS, x, y=x)
    assert_same_bytes(x, want)


def test_norm_refuses_what_it_cannot_do():
    backend = _core.make_cpu_backend(1)
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(_core.InvalidArgument, match=r"weight must have shape \[8\], got \[7\]"):
        run(backend, RMS, x, "float32", np.zeros(7, np.float32))
    with pytest.raises(_core.InvalidArgument, match="x must be float32, float16 or bfloat16"):
        _core.ops.norm(backend, RMS, np.zeros((2, 8), np.int32), y=x)
    with pytest.raises(_core.InvalidArgument, match="epsilon must not be negative"):
        run(backend, RMS, x, "float32", epsilon=-1.0)
    with pytest.raises(_core.InvalidArgument, match="y must be dense and row-major"):
        _core.ops.norm(backend, RMS, x, y=np.zeros((2, 16), np.float32)[:, ::2])
