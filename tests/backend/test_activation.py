import math

import numpy as np
import pytest
from support.arrays import ROUNDING, decode, each_isa, encode, rng, storage

from pagedcore import _core

Activation = _core.Activation
erf = np.vectorize(math.erf)

REFERENCES = {
    None: lambda x: x,
    Activation.RELU: lambda x: np.maximum(x, 0),
    Activation.SILU: lambda x: x / (1 + np.exp(-x)),
    Activation.GELU: lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    Activation.GELU_TANH: lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


def run(isa, activation, gate, up, dtype="float32", y_dtype="float32"):
    gate_up = np.concatenate([gate, up], axis=1)
    y = np.full(gate.shape, 77, storage(y_dtype))
    backend = _core.make_cpu_backend(2, isa)
    _core.ops.gated_activation(backend, activation, gate_up, y, dtype, y_dtype)
    return y


@each_isa
@pytest.mark.parametrize("activation", REFERENCES)
@pytest.mark.parametrize(
    "dtype,y_dtype",
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float32", "bfloat16"),
        ("float16", "float32"),
    ],
)
def test_gated_activation_is_that_of_float64(isa, activation, dtype, y_dtype):
    for width in (1, 8, 100, 1536):
        gate = encode(rng(1, width).normal(0, 3, (3, width)), dtype)
        up = encode(rng(2, width).normal(0, 1, (3, width)), dtype)
        y = decode(run(isa, activation, gate, up, dtype, y_dtype))
        want = REFERENCES[activation](decode(gate)) * decode(up)
        # Of float32: 4 units in the last place of a function of size up to |gate|.
        limit = 4e-7 * np.abs(decode(gate) * decode(up)) + ROUNDING[y_dtype] * np.abs(want)
        assert np.all(np.abs(y - want) <= limit + 1e-7)


@each_isa
@pytest.mark.parametrize("activation", REFERENCES)
def test_activations_hold_over_the_whole_range(isa, activation):
    """Sums like 1 + erf lose what is below their last place: the error is relative to the input."""
    x = np.concatenate([np.linspace(-100, 100, 200001), [0.0, -0.0, 1e-30, -1e-30]])
    x = x.astype(np.float32)[None]
    y = run(isa, activation, x, np.ones_like(x))
    with np.errstate(over="ignore"):
        want = REFERENCES[activation](x.astype(np.float64))
    assert np.all(np.abs(y - want) <= 2.5e-7 * np.abs(x))


@each_isa
@pytest.mark.parametrize("activation", REFERENCES)
def test_nan_stays_nan_and_infinity_does_not_spread(isa, activation):
    x = np.array([[np.nan, 3e38, -3e38, 1.0]], np.float32)
    y = run(isa, activation, x, np.ones_like(x))[0]
    assert np.isnan(y[0]) and np.isfinite(y[3])
    assert y[1] == np.float32(3e38)
    assert y[2] == 0 or activation is None
