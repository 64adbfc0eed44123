"""Arrays for the tests of ops: each dtype as numpy holds it, with its exact float64 values."""

import numpy as np
import pytest

from pagedcore import _core

DTYPES = ("float32", "float16", "bfloat16")
UNUSED_ENTRY = 2147480000  # in a block table: no kernel may follow it
# Half of the distance between neighbours at 1: the error of one rounding, relative.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def isas() -> list[str]:
    """The instruction sets that this machine can force."""
    found = []
    for isa in ("avx2", "avx512", "avx512_bf16", "neon"):
        try:
            _core.make_cpu_backend(1, isa)
        except _core.InvalidArgument:
            continue
        found.append(isa)
    return found


ISAS = isas()
each_isa = pytest.mark.parametrize("isa", ISAS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def encode(values, dtype: str) -> np.ndarray:
    """`values` rounded to `dtype`, ties to even; bfloat16 as uint16, int8 as the cache's rows."""
    x = np.ascontiguousarray(values, np.float32)
    if dtype == "int8":
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        codes = np.nan_to_num(np.rint(x / scale)).astype(np.int8)
        return np.concatenate([codes, scale.view(np.int8)], axis=-1)
    if dtype != "bfloat16":
        return x.astype(dtype)
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def decode(array: np.ndarray) -> np.ndarray:
    """The exact values as float64; uint16 is bfloat16, int8 rows of the cache."""
    if array.dtype == np.int8:
        scale = np.ascontiguousarray(array[..., -4:]).view(np.float32)
        return array[..., :-4] * scale.astype(np.float64)
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def storage(dtype: str) -> np.dtype:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_same_bytes(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == b.tobytes(), f"{np.sum(a != b)} of {a.size} numbers differ"
