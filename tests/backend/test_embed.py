import numpy as np
import pytest
from support.arrays import DTYPES, assert_same_bytes, decode, each_isa, encode, rng, storage

from pagedcore import _core


@each_isa
@pytest.mark.parametrize("table_dtype", DTYPES)
@pytest.mark.parametrize("y_dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 576])
def test_embed_gathers_rows_and_rounds_once(isa, table_dtype, y_dtype, width):
    table = encode(rng(1, width).normal(size=(50, width)), table_dtype)
    ids = rng(2).integers(0, 48, 33).astype(np.int32)
    y = np.full((33, width), 77, storage(y_dtype))
    backend = _core.make_cpu_backend(2, isa)
    _core.ops.embed(backend, ids, table, y, table_dtype, y_dtype, id_offset=2)
    assert_same_bytes(y, encode(decode(table)[ids + 2], y_dtype))


def test_embed_adds_to_what_is_there():
    table = rng(3).normal(size=(9, 40)).astype(np.float32)
    ids = np.array([8, 0, 8], np.int32)
    y = rng(4).normal(size=(3, 40)).astype(np.float32)
    want = y + table[ids]
    _core.ops.embed(_core.make_cpu_backend(1), ids, table, y, accumulate=True)
    assert_same_bytes(y, want)
