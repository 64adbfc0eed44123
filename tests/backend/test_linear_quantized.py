import numpy as np
import pytest
from support.arrays import assert_same_bytes, decode, each_isa, encode, rng
from support.quantized import per_output, stored_numbers

from pagedcore import _core

NUM_ROWS = [0, 1, 2, 3, 5, 8, 9, 33]
FORMS = [("int8", 32), ("int8", 128), ("int4", 32), ("int4", 64), ("int4", 128)]
each_form = pytest.mark.parametrize("dtype,group_size", FORMS)


def values(data, scales, dtype, group_size, num_outputs, zero_points=0):
    def spread(per_group):
        rows = per_output(per_group, num_outputs)
        return np.repeat(rows, group_size, axis=0).T.astype(np.float64)

    offset = spread(zero_points) if np.ndim(zero_points) else 0
    return (stored_numbers(data, dtype, num_outputs) - offset) * spread(scales)


def run(backend, x, data, scales, dtype, group_size, num_outputs, zero_points=None):
    y = np.full((len(x), num_outputs), 77, np.float32)
    name = "bfloat16" if x.dtype == np.uint16 else ""
    _core.ops.linear_quantized(
        backend, x, data, scales, y, dtype, group_size, zero_points, x_dtype=name
    )
    return y


@each_form
@pytest.mark.parametrize("weight_dtype", ["float32", "float16", "bfloat16"])
def test_a_weight_is_rounded_to_the_nearest_step_of_its_group(dtype, group_size, weight_dtype):
    weight = encode(rng(1).normal(size=(33, 256)), weight_dtype)
    name = "bfloat16" if weight_dtype == "bfloat16" else ""
    data, scales = _core.ops.quantize_weight(weight, dtype, group_size, name)
    assert scales.shape == (3, 256 // group_size, 16)
    steps = np.abs(np.repeat(per_output(scales, 33), group_size, axis=0).T)
    error = np.abs(values(data, scales, dtype, group_size, 33) - decode(weight))
    # int4 has no 8: a number near minus the largest loses up to a whole step.
    assert np.all(error <= steps * (0.5001 if dtype == "int8" else 1.0001))
    assert np.mean(error <= steps * 0.5001) > 0.9
    one, _ = _core.ops.quantize_weight(weight, dtype, group_size, name, num_threads=1)
    assert_same_bytes(one, data)


@each_isa
@each_form
@pytest.mark.parametrize("zeros", [False, True])
def test_quantised_linear_is_that_of_float64(isa, dtype, group_size, zeros):
    backend = _core.make_cpu_backend(2, isa)
    for rows in NUM_ROWS:
        for num_groups, out_features in ((1, 5), (3, 16), (5, 70)):
            random = rng(rows, num_groups)
            in_features = num_groups * group_size
            x = encode(
                random.normal(size=(rows, in_features)), "bfloat16" if rows % 2 else "float32"
            )
            weight = random.normal(size=(out_features, in_features)).astype(np.float32)
            data, scales = _core.ops.quantize_weight(weight, dtype, group_size)
            zero_points = random.integers(-3, 4, scales.shape).astype(np.int8) if zeros else None
            y = run(backend, x, data, scales, dtype, group_size, out_features, zero_points)
            offsets = zero_points if zeros else 0
            w = values(data, scales, dtype, group_size, out_features, offsets)
            groups = decode(x).reshape(rows, num_groups, group_size)
            step = np.abs(groups).max(axis=-1, keepdims=True) / 127
            # x is rounded to a step of its group: each product errs by half a step at most.
            error = np.broadcast_to(step / 2, groups.shape).reshape(x.shape) @ np.abs(w).T
            want = decode(x) @ w.T
            assert np.all(np.abs(y - want) <= error * 1.001 + 1e-5 * (1 + np.abs(want)))
            # The errors are independent: far below their worst case together.
            assert np.all(np.abs(y - want) <= error * 8 / np.sqrt(in_features) + 1e-4)


@each_isa
@each_form
def test_a_row_has_the_same_bits_alone_and_in_any_batch(isa, dtype, group_size):
    alone, pair = _core.make_cpu_backend(1, isa), _core.make_cpu_backend(2, isa)
    x = rng(4).normal(size=(40, 2048 + 3 * group_size)).astype(np.float32)
    weight = rng(5).normal(size=(90, x.shape[1])).astype(np.float32)
    data, scales = _core.ops.quantize_weight(weight, dtype, group_size)
    form = (data, scales, dtype, group_size, len(weight))
    want = np.concatenate([run(alone, row[None], *form) for row in x])
    for rows in (1, 2, 5, 8, 9, 33, 40):
        y = run(pair, x[:rows], *form)
        assert_same_bytes(y, want[:rows])


def test_bad_group_sizes_are_refused():
    weight = np.zeros((4, 96), np.float32)
    for group_size in (16, 48, 64, 2048):
        with pytest.raises(_core.InvalidArgument, match="power of two from 32 to 1024"):
            _core.ops.quantize_weight(weight, "int8", group_size)
    with pytest.raises(_core.InvalidArgument, match="dtype must be int8 or int4, got float16"):
        _core.ops.quantize_weight(weight, "float16", 32)
