"""Paged attention on CUDA against float64, from the rounded inputs; unread slots hold NaN."""

import math

import pytest
import torch
from harness import TORCH, Batch, Cache, reference_attention, relative_error

# The reference has the rounded inputs; what is left is P in 16 bits and the rounding of the output.
LIMIT = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 5e-3, "fp8_e4m3": 1e-3}
LENGTHS = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 257, 512, 1000, 1025, 2049, 4097]


def make_case(
    dtype, head_dim, kv_heads, group, block_size, query_lens, context_lens, seed=0, q_dtype=None
):
    """Random queries and a cache whose every slot outside the sequences is NaN, tables permuted."""
    g = torch.Generator().manual_seed(seed)
    total = [c + q for c, q in zip(context_lens, query_lens, strict=True)]
    counts = [(t + block_size - 1) // block_size for t in total]
    num_blocks = sum(counts) + 3
    order = torch.randperm(num_blocks, generator=g).tolist()
    tables, at = [], 0
    for n in counts:
        tables.append(order[at : at + n])
        at += n
    layers = 2
    shape = (num_blocks, layers, 2, kv_heads, block_size, head_dim)
    cuda = torch.Generator("cuda").manual_seed(seed)
    wide = torch.full(shape, torch.nan, device="cuda")
    for table, t in zip(tables, total, strict=True):
        for index, block in enumerate(table):
            used = min(block_size, t - index * block_size)
            wide[block, 1, :, :, :used] = torch.randn(
                2, kv_heads, used, head_dim, device="cuda", generator=cuda
            )
    cache = Cache(wide.to(TORCH[dtype]))
    if dtype == "fp8_e4m3":
        cache.k_scale, cache.v_scale = 0.5, 2.0
    q_dtype = q_dtype or ("bfloat16" if dtype == "fp8_e4m3" else dtype)
    query = torch.randn(
        sum(query_lens), kv_heads * group, head_dim, device="cuda", generator=cuda
    ).to(TORCH[q_dtype])
    stride = max(counts) + 2
    return query, cache, Batch(query_lens, context_lens, tables, block_size, stride)


def check(
    ops, case, window=0, softcap=0.0, as_step=False, limit=None, dtype="bfloat16", scale=None
):
    query, cache, batch = case
    scale = scale or 1 / math.sqrt(query.shape[2])
    out = torch.full_like(query, torch.nan)
    ops.stage(batch)
    ops.paged_attention(
        query, out, cache, layer=1, scale=scale, window=window, softcap=softcap, as_step=as_step
    )
    reference = reference_attention(query, cache, batch, 1, scale, window, softcap)
    error = relative_error(out, reference)
    if query.dtype == torch.bfloat16:
        limit = max(limit or 0, LIMIT["bfloat16"])
    assert error < (limit or LIMIT[dtype]), error
    return out


HEADS = [(1, 1), (2, 4), (2, 5), (1, 7), (2, 8), (1, 16), (1, 20)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("kv_heads", "group"), HEADS)
def test_decode_equals_the_reference_for_ragged_lengths(ops, dtype, head_dim, kv_heads, group):
    lens = LENGTHS
    check(
        ops,
        make_case(dtype, head_dim, kv_heads, group, 16, [1] * len(lens), [n - 1 for n in lens]),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("kv_heads", "group"), HEADS)
def test_prefill_equals_the_reference_for_ragged_chunks(ops, dtype, head_dim, kv_heads, group):
    query = [2, 3, 15, 16, 17, 33, 64, 65, 129, 200, 31, 300, 5]
    context = [0, 0, 1, 16, 15, 100, 0, 63, 1000, 33, 2049, 0, 4092]
    check(ops, make_case(dtype, head_dim, kv_heads, group, 16, query, context), dtype=dtype)


@pytest.mark.parametrize("block_size", [1, 2, 4, 8, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("window", [0, 90])
def test_any_block_size_serves_a_mixed_batch(ops, dtype, head_dim, block_size, window):
    query = [1, 7, 1, 130, 1, 1, 40]
    context = [300, 0, 0, 77, 1499, 15, 512]
    case = make_case(dtype, head_dim, 2, 4, block_size, query, context)
    check(ops, case, dtype=dtype, window=window)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_query_tiles_beyond_the_number_of_processors_are_computed(ops, dtype, head_dim):
    case = make_case(dtype, head_dim, 8, 4, 16, [257] * 40, [91] * 40)
    check(ops, case, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [8, 24, 48, 64, 112, 128, 512])
def test_head_dims_and_dtypes_without_tensor_cores_are_served(ops, dtype, head_dim):
    if dtype != "float32" and head_dim in (64, 128):
        pytest.skip("served by the tensor-core kernels")
    query, context = [1, 7, 1, 33], [300, 0, 0, 77]
    check(ops, make_case(dtype, head_dim, 2, 3, 16, query, context), dtype=dtype)


@pytest.mark.parametrize("q_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_queries_may_have_another_dtype_than_the_cache(ops, dtype, q_dtype):
    case = make_case(dtype, 128, 2, 4, 16, [1, 50, 1], [700, 3, 0], q_dtype=q_dtype)
    # A float32 query is rounded to the cache's dtype.
    check(ops, case, dtype=dtype, limit=5e-3)


@pytest.mark.parametrize("window", [1, 5, 16, 100, 511, 5000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sliding_window_hides_what_lies_before_it(ops, dtype, window):
    query, context = [1, 1, 1, 200, 1, 65], [0, 14, 99, 0, 3000, 1500]
    case = make_case(dtype, 64, 2, 4, 16, query, context)
    _, cache, batch = case
    # Blocks that lie wholly before every window hold NaN, as blocks given back would.
    for c, table in zip(batch.context_lens, batch.tables, strict=True):
        first = max(0, c - window + 1)
        for block in table[: first // 16]:
            cache.data[block] = torch.nan
    check(ops, case, window=window, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_softcap_bounds_the_scores(ops, dtype):
    case = make_case(dtype, 128, 2, 4, 16, [1, 100, 1], [900, 33, 17])
    check(
        ops, case, softcap=5.0, scale=1.0, dtype=dtype, limit=2e-5 if dtype == "float32" else None
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_large_scores_do_not_overflow(ops, dtype):
    query, cache, batch = make_case(dtype, 128, 2, 4, 16, [1, 100, 1], [900, 33, 17])
    check(ops, ((query * 30).contiguous(), cache, batch), scale=1.0, dtype=dtype, limit=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8_e4m3"])
def test_a_sequence_gives_the_same_bytes_alone_and_in_a_batch(ops, dtype):
    lens = [1, 17, 300, 1025, 4097, 700, 64]
    query, cache, batch = make_case(dtype, 128, 2, 4, 16, [1] * len(lens), [n - 1 for n in lens])
    together = check(ops, (query, cache, batch), dtype=dtype)
    for i, n in enumerate(lens):
        alone = Batch([1], [n - 1], [batch.tables[i]], 16, batch.stride)
        q = query[i : i + 1].clone()
        assert torch.equal(check(ops, (q, cache, alone), dtype=dtype)[0], together[i])


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e4m3"])
def test_a_sequence_gives_the_same_bytes_alone_and_where_thread_blocks_take_many_splits(ops, dtype):
    """Alone, the warps that compute a split merge it; else, but for the last, another warp."""
    lens = [4097, 300, 1025, 2049] * 16
    query, cache, batch = make_case(dtype, 128, 8, 4, 16, [1] * len(lens), [n - 1 for n in lens])
    together = check(ops, (query, cache, batch), dtype=dtype)
    for i in (0, 1, 2, 3, 60, 61, 62, 63):
        alone = Batch([1], [lens[i] - 1], [batch.tables[i]], 16, batch.stride)
        q = query[i : i + 1].clone()
        assert torch.equal(check(ops, (q, cache, alone), dtype=dtype)[0], together[i])


@pytest.mark.parametrize("window", [0, 1500])
@pytest.mark.parametrize("shared", [0, 5 * 320])
@pytest.mark.parametrize("count", [9, 33, 40])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_groups_of_splits_give_the_same_bytes_folded_by_one_thread_block_and_apart(
    ops, head_dim, count, shared, window
):
    """Of many sequences, groups are taken whole; of one alone, a thread block takes a split."""
    lens = [4700 - 31 * i for i in range(count)]
    case = make_case("bfloat16", head_dim, 8, 3, 16, [1] * count, [n - 1 for n in lens])
    query, cache, batch = case
    for table in batch.tables:
        table[: shared // 16] = batch.tables[0][: shared // 16]
    together = check(ops, case, window=window)
    for i in range(0, count, 4):
        alone = Batch([1], [lens[i] - 1], [batch.tables[i]], 16, batch.stride)
        q = query[i : i + 1].clone()
        assert torch.equal(check(ops, (q, cache, alone), window=window)[0], together[i])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8_e4m3"])
@pytest.mark.parametrize("window", [0, 200])
def test_a_prompt_gives_the_same_bytes_however_it_is_chunked(ops, dtype, window):
    query, cache, batch = make_case(dtype, 128, 2, 4, 16, [700], [0])
    whole = check(ops, (query, cache, batch), dtype=dtype, window=window)
    for chunk in (7, 64, 333):
        for start in range(0, 700 - chunk, chunk):
            part = Batch([chunk], [start], batch.tables, 16, batch.stride)
            q = query[start : start + chunk].clone()
            out = torch.full_like(q, torch.nan)
            ops.stage(part)
            ops.paged_attention(q, out, cache, layer=1, scale=1 / math.sqrt(128), window=window)
            assert torch.equal(out, whole[start : start + chunk]), (chunk, start)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8_e4m3"])
def test_a_replayed_graph_gives_the_bytes_of_a_launch(ops, dtype):
    full = [3000, 900, 4097, 513, 64]
    query, cache, batch = make_case(dtype, 64, 2, 4, 16, [1] * 5, [n - 1 for n in full])
    padded = torch.zeros(8, *query.shape[1:], device="cuda", dtype=query.dtype)
    padded[:5] = query
    out = torch.empty_like(padded)
    for step in range(6):
        lens = [100 + step * 500, 1 + step, 4097 - 700 * step, 513, 64 - step]
        now = Batch([1] * 5, [n - 1 for n in lens], batch.tables, 16, batch.stride)
        out.fill_(torch.nan)
        ops.stage(now)
        ops.paged_attention(padded, out, cache, layer=1, scale=0.125, as_step=True)
        direct = torch.full_like(query, torch.nan)
        ops.paged_attention(query, direct, cache, layer=1, scale=0.125)
        assert torch.equal(out[:5], direct)
        assert relative_error(direct, reference_attention(query, cache, now, 1, 0.125)) < 5e-3
        assert out[5:].isnan().all(), "rows beyond the real ones were written"


def test_repeated_launches_agree_bitwise(ops):
    lens = [4097, 3000, 17, 900] * 8
    query, cache, batch = make_case("bfloat16", 128, 4, 4, 16, [1] * 32, [n - 1 for n in lens])
    first = check(ops, (query, cache, batch))
    for _ in range(20):
        out = torch.full_like(query, torch.nan)
        ops.paged_attention(query, out, cache, layer=1, scale=1 / math.sqrt(128))
        assert torch.equal(out, first)


def test_a_query_of_no_tokens_is_left_out(ops):
    case = make_case("bfloat16", 128, 2, 4, 16, [1, 0, 20, 0, 1], [10, 40, 3, 0, 77])
    check(ops, case)


@pytest.mark.parametrize("window", [0, 300, 1200])
@pytest.mark.parametrize("group", [1, 3, 4, 5, 8, 20])
@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e4m3"])
def test_splits_in_common_blocks_give_the_bytes_of_each_sequence_alone(
    ops, dtype, head_dim, group, window
):
    lens = [2000, 1290, 2100, 1100, 1400, 1025, 300, 2200, 1536, 1100, 1101, 4000]
    shared = [0, 1280, 1024, 1024, 512, 1024, 256, 1536, 1024, 1040, 700, 1024]
    case = make_case(dtype, head_dim, 2, group, 16, [1] * len(lens), [n - 1 for n in lens])
    query, cache, batch = case
    for table, tokens in zip(batch.tables, shared, strict=True):
        table[: tokens // 16] = batch.tables[0][: tokens // 16]
    together = check(ops, case, dtype=dtype, window=window)
    for other in (batch.tables, batch.tables[::-1]):
        reverse = other is not batch.tables
        rows = range(len(lens))[:: -1 if reverse else 1]
        alone = Batch(
            [1] * len(lens), [lens[i] - 1 for i in rows], other, 16, batch.stride, share=reverse
        )
        q = query[list(rows)].contiguous()
        out = check(ops, (q, cache, alone), dtype=dtype, window=window)
        assert torch.equal(out, together[list(rows)])


@pytest.mark.parametrize("group", [4, 8])
def test_many_sequences_on_one_prefix_give_the_bytes_of_each_alone(ops, group):
    lens = [1088 + i for i in range(40)]
    query, cache, batch = make_case(
        "bfloat16", 128, 8, group, 16, [1] * len(lens), [n - 1 for n in lens]
    )
    for table in batch.tables:
        table[:64] = batch.tables[0][:64]
    together = check(ops, (query, cache, batch))
    alone = Batch(batch.query_lens, batch.context_lens, batch.tables, 16, batch.stride, share=False)
    assert torch.equal(check(ops, (query, cache, alone)), together)


def test_a_replayed_graph_follows_what_sequences_share(ops):
    lens = [1300] * 8
    query, cache, batch = make_case("bfloat16", 128, 2, 4, 16, [1] * 8, [n - 1 for n in lens])
    own = [list(t) for t in batch.tables]
    out = torch.empty_like(query)
    for step in range(6):
        for i, table in enumerate(batch.tables):
            same = 64 if (i + step) % 3 else 0
            table[:64] = own[0][:same] + own[i][same:64]
        ops.stage(batch)
        out.fill_(torch.nan)
        ops.paged_attention(query, out, cache, layer=1, scale=0.1, as_step=True)
        alone = Batch(batch.query_lens, batch.context_lens, batch.tables, 16, batch.stride)
        alone.share = False
        direct = torch.full_like(query, torch.nan)
        ops.stage(alone)
        ops.paged_attention(query, direct, cache, layer=1, scale=0.1)
        assert torch.equal(out, direct)
