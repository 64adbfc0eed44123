"""pagedcore.ops on CUDA tensors: the float64 answer, on the current stream, and what is refused."""

import pytest
import torch
from harness import Batch, Cache, reference_attention, relative_error

pytest.importorskip("pagedcore")
from pagedcore import BackendUnavailable, InvalidArgument, _core, ops

HEADS, KV_HEADS, DIM, SIZE = 8, 2, 64, 16


@pytest.fixture(scope="module", autouse=True)
def cuda_backend():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        _core.make_cuda_backend(0)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def make(lengths, dtype, seed=0):
    """A cache of NaN, tables that lead through it, and each sequence's queries, keys and values."""
    torch.manual_seed(seed)
    counts = [-(-length // SIZE) for length in lengths]
    blocks = torch.randperm(sum(counts) + 3).tolist()
    tables, at = [], 0
    for count in counts:
        tables.append(blocks[at : at + count])
        at += count
    cache = torch.full(
        (len(blocks), 2, 2, KV_HEADS, SIZE, DIM), torch.nan, dtype=dtype, device="cuda"
    )
    total = sum(lengths)
    q = torch.randn(total, HEADS, DIM, device="cuda").to(dtype)
    k, v = (torch.randn(total, KV_HEADS, DIM, device="cuda").to(dtype) for _ in range(2))
    slots = [
        table[p // SIZE] * SIZE + p % SIZE
        for table, length in zip(tables, lengths, strict=True)
        for p in range(length)
    ]
    return cache, tables, q, k, v, slots


def padded(tables):
    width = max(map(len, tables)) + 1
    return [table + [2147480000] * (width - len(table)) for table in tables]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_prefill_and_decode_give_the_float64_answer(dtype):
    lengths = [1, 17, 64, 130]
    cache, tables, q, k, v, slots = make(lengths, dtype)
    ops.write_kv(k, v, cache, slots, layer=1)
    starts = [0, 1, 18, 82, 212]
    out = ops.paged_attention(q, cache, padded(tables), [0] * 4, query_starts=starts, layer=1)
    batch = Batch(lengths, [0] * 4, tables, SIZE, 16)
    expected = reference_attention(q, Cache(cache), batch, layer=1, scale=DIM**-0.5)
    assert out.dtype == dtype and out.device == q.device
    assert relative_error(out, expected) < (1e-5 if dtype == torch.float32 else 8e-3)
    last = torch.tensor(starts[1:], device="cuda") - 1
    one = ops.paged_attention(
        q[last], cache, padded(tables), [length - 1 for length in lengths], layer=1
    )
    assert relative_error(one, expected[last]) < (1e-5 if dtype == torch.float32 else 8e-3)


def test_work_follows_what_the_current_stream_does_before_and_after():
    cache, tables, q, k, v, slots = make([100], torch.bfloat16)
    ops.write_kv(k, v, cache, slots)
    expected = ops.paged_attention(q[99:], cache, tables, [99])
    late_q, late_cache = torch.zeros_like(q), torch.zeros_like(cache)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late_q.copy_(q)
        late_cache.copy_(cache)
        doubled = 2 * ops.paged_attention(late_q[99:], late_cache, tables, [99])
    stream.synchronize()
    assert torch.equal(doubled, 2 * expected)


def test_tables_and_slots_may_lie_on_the_device():
    cache, tables, q, k, v, slots = make([40], torch.bfloat16)
    ops.write_kv(k, v, cache, torch.tensor(slots, device="cuda"))
    a = ops.paged_attention(q[39:], cache, torch.tensor(tables, device="cuda"), [39])
    assert torch.equal(a, ops.paged_attention(q[39:], cache, tables, [39]))
    assert not a.isnan().any()


def test_copy_blocks_copies_all_layers_and_nothing_else():
    cache = torch.randn(6, 2, 2, KV_HEADS, SIZE, DIM, device="cuda").to(torch.bfloat16)
    before = cache.clone()
    ops.copy_blocks(cache, [[0, 3], [5, 1]])
    before[3], before[1] = before[0], before[5]
    assert torch.equal(cache, before)


def test_an_output_of_the_caller_is_filled():
    cache, tables, q, k, v, slots = make([20], torch.bfloat16)
    ops.write_kv(k, v, cache, slots)
    out = torch.full((1, HEADS, DIM), torch.nan, device="cuda")
    assert ops.paged_attention(q[19:], cache, tables, [19], out=out) is out
    assert out.isfinite().all()


def test_tensors_of_two_devices_and_bad_tables_are_named():
    cache, tables, q, k, v, slots = make([20], torch.bfloat16)
    with pytest.raises(InvalidArgument, match="kv_cache must be where query is, cuda:0, got host"):
        ops.paged_attention(q, cache.cpu(), tables, [0], query_starts=[0, 20])
    with pytest.raises(InvalidArgument, match="key must be where kv_cache is, host memory, got"):
        ops.write_kv(k, v, cache.cpu(), slots)
    with pytest.raises(InvalidArgument, match="kv_cache must be on a CUDA device, as the backend"):
        ops.paged_attention(
            q.cpu(), cache.cpu(), tables, [0], query_starts=[0, 20], backend=ops._default_backend(q)
        )
    with pytest.raises(InvalidArgument, match="must be from 0 to"):
        ops.paged_attention(q[19:], cache, [[0, len(cache)]], [19])
    with pytest.raises(InvalidArgument, match="must be dense"):
        ops.paged_attention(q.transpose(0, 1).contiguous().transpose(0, 1), cache, tables, [0])
    with pytest.raises(InvalidArgument, match=r"slots\[0\] must be from -1 to"):
        ops.write_kv(k[:1], v[:1], cache, [len(cache) * SIZE])
