import numpy as np
import pytest
from support.arrays import DTYPES, assert_same_bytes, decode, encode, rng, storage
from support.attention_cases import Shape, expected, make_sequence

from pagedcore import _core, ops


def fill(shape: Shape, sequence, blocks):
    """A cache in which `sequence` lies in `blocks`, written by write_kv."""
    cache = encode(
        np.full((40, 2, 2, shape.kv_heads, shape.block_size, shape.head_dim), np.nan), shape.dtype
    )
    position = np.arange(len(sequence.query))
    slots = np.take(blocks, position // shape.block_size) * shape.block_size
    slots = slots + position % shape.block_size
    ops.write_kv(sequence.key, sequence.value, cache, slots, layer=1, dtype=shape.dtype)
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_write_kv_writes_paged_attention_reads(dtype):
    shape = Shape(dtype=dtype)
    sequence = make_sequence(shape, 100)
    cache = fill(shape, sequence, [7, 3, 39, 0, 21, 5, 30])
    table = [[7, 3, 39, 0, 21, 5, 30, 2147480000]]
    out = ops.paged_attention(
        sequence.query, cache, table, [0], query_starts=[0, 100], layer=1, dtype=dtype
    )
    assert out.dtype == np.float32 and out.shape == sequence.query.shape
    assert np.abs(out - expected(shape, sequence)).max() < 2e-2
    last = ops.paged_attention(sequence.query[99:], cache, table, [99], layer=1, dtype=dtype)
    assert_same_bytes(last, out[99:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_tensors_give_what_numpy_arrays_give(dtype):
    torch = pytest.importorskip("torch")
    shape = Shape(dtype=dtype, query_dtype=dtype)
    sequence = make_sequence(shape, 50)
    cache = fill(shape, sequence, [4, 9, 1, 2])
    tables, contexts = np.array([[4, 9, 1, 2]], np.int32), np.array([48], np.int32)
    query = sequence.query[48:]
    want = ops.paged_attention(
        query, cache, tables, contexts, query_starts=[0, 2], layer=1, dtype=dtype
    )

    def tensor(array):
        if array.dtype == np.uint16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    out = ops.paged_attention(
        tensor(query), tensor(cache), torch.from_numpy(tables), torch.from_numpy(contexts),
        query_starts=torch.tensor([0, 2]), layer=1,
    )  # fmt: skip
    assert out.dtype == getattr(torch, dtype)
    assert_same_bytes(out.double().numpy(), decode(want))


def test_torch_caches_are_written_in_place():
    torch = pytest.importorskip("torch")
    cache = torch.zeros(4, 1, 2, 2, 16, 8, dtype=torch.bfloat16)
    key, value = torch.randn(2, 3, 2, 8).bfloat16()
    ops.write_kv(key, value, cache, [0, 17, -1])
    assert torch.equal(cache[0, 0, 0, :, 0], key[0]) and torch.equal(cache[1, 0, 1, :, 1], value[1])
    assert cache.count_nonzero() <= 2 * 2 * 2 * 8
    ops.copy_blocks(cache, [[1, 3]])
    assert torch.equal(cache[3], cache[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_blocks_copies_all_layers_and_nothing_else(dtype):
    cache = encode(rng(1).normal(size=(9, 3, 2, 2, 4, 8)), dtype)
    want = cache.copy()
    want[[5, 8]] = want[[0, 3]]
    ops.copy_blocks(cache, [[0, 5], [3, 8]], dtype=dtype)
    assert_same_bytes(cache, want)
    ops.copy_blocks(cache, np.zeros((0, 2), np.int32), dtype=dtype)
    assert_same_bytes(cache, want)


def test_an_output_of_the_caller_is_filled():
    shape = Shape()
    sequence = make_sequence(shape, 20)
    cache = fill(shape, sequence, [1, 2])
    out = np.zeros((1, 4, 64), np.float16)
    result = ops.paged_attention(sequence.query[19:], cache, [[1, 2]], [19], layer=1, out=out)
    assert result is out and np.abs(out).max() > 0


def attend(query=None, cache=None, tables=((0,),), contexts=(0,), **keywords):
    query = np.zeros((1, 2, 8), np.float32) if query is None else query
    cache = np.zeros((4, 1, 2, 1, 16, 8), np.float32) if cache is None else cache
    return ops.paged_attention(query, cache, tables, contexts, **keywords)


BAD_CALLS = [
    (dict(query=np.zeros((1, 2, 16), np.float32)), r"query must have shape \[any, any, 8\]"),
    (dict(query=np.zeros((1, 2, 8))), "query must be float32, float16"),
    (dict(query=np.zeros((1, 2, 8), np.uint16)), "query is uint16: pass dtype='bfloat16'"),
    (dict(query=np.zeros((1, 2, 16), np.float32)[:, :, ::2]), "query must be dense"),
    (dict(cache=np.zeros((4, 1, 2, 1, 12, 8), np.float32)), "block_size must be a power of two"),
    (dict(cache=np.zeros((4, 1, 2, 1, 16, 8), np.int32)), "cache dtype must be float32"),
    (dict(cache=np.zeros((4, 1, 2, 1, 16, 8), np.int8)), r"query must have shape \[any, any, 4\]"),
    (dict(cache=np.zeros((4, 1, 2, 3, 16, 8), np.float32)), "num_heads must be a multiple of"),
    (dict(cache=np.zeros((4, 1, 3, 1, 16, 8), np.float32)), "kv_cache must have shape"),
    (dict(tables=[[4]]), r"block_tables\[0, 0\] must be from 0 to 3, got 4"),
    (dict(contexts=[16]), "block_tables must have 2 entries for sequence 0 of 17 tokens, got 1"),
    (dict(contexts=[-1]), "context_lens must not be negative, got -1"),
    (dict(contexts=[0, 0]), r"context_lens must have shape \[1\]"),
    (dict(query_starts=[0, 2]), "query_starts must end with the number of query rows 1, got 2"),
    (dict(query_starts=[1, 1]), "query_starts must begin with 0, got 1"),
    (dict(layer=1), "layer must be from 0 to 0, got 1"),
    (dict(sliding_window=-1), "sliding_window must not be negative, got -1"),
    (dict(softcap=-2.0), "softcap must not be negative, got -2"),
]


@pytest.mark.parametrize("keywords,message", BAD_CALLS)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(_core.InvalidArgument, match=message):
        attend(**keywords)
    assert np.isfinite(attend()).all()


def test_bad_writes_and_copies_are_named():
    cache = np.zeros((4, 1, 2, 1, 16, 8), np.float32)
    rows = np.zeros((1, 1, 8), np.float32)
    with pytest.raises(ValueError, match=r"slots\[0\] must be from -1 to 63, got 64"):
        ops.write_kv(rows, rows, cache, [64])
    with pytest.raises(ValueError, match="key and value must have one shape and dtype"):
        ops.write_kv(rows, rows.astype(np.float16), cache, [0])
    with pytest.raises(ValueError, match="dst block must be from 0 to 3, got 4"):
        ops.copy_blocks(cache, [[0, 4]])
    with pytest.raises(ValueError, match="no destination that repeats or is a source"):
        ops.copy_blocks(cache, [[0, 1], [1, 2]])
    cache.flags.writeable = False
    with pytest.raises(ValueError, match="kv_cache must be writable"):
        ops.write_kv(rows, rows, cache, [0])


def test_a_batch_without_tokens_is_nothing_to_do():
    out = attend(np.zeros((0, 2, 8), np.float32), query_starts=[0, 0])
    assert out.shape == (0, 2, 8) and out.dtype == storage("float32")
