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

FLOAT_ERROR = 2e-6  # two products, a sum, and for the norm a mean of head_dim terms


def rope_table(positions: int, rotary_dim: int) -> np.ndarray:
    angles = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def turned(x, table, positions, rotary_dim):
    """x [tokens, heads, head_dim] in float64, its first rotary_dim dimensions turned."""
    half = rotary_dim // 2
    cosine, sine = (t[positions][:, None] for t in np.split(table.astype(np.float64), 2, axis=1))
    a, b = x[..., :half], x[..., half:rotary_dim]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, x[..., rotary_dim:]], -1)


def normed(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * decode(weight)


def make_case(heads, kv_heads, head_dim, block_size, dtype, cache_dtype, tokens=19):
    random = rng(1, head_dim, block_size)
    qkv = encode(random.normal(size=(tokens, heads + 2 * kv_heads, head_dim)), dtype)
    slots = random.permutation(32 * block_size)[:tokens].astype(np.int64)
    slots[3] = -1
    cache = encode(np.full((32, 2, 2, kv_heads, block_size, head_dim), 77.0), cache_dtype)
    return qkv, slots, cache


def check_cache(cache, slots, layer, want, limit):
    """Slots hold `want` [2, tokens, kv_heads, head_dim]; everything else is as it was."""
    found = decode(cache)
    block_size = cache.shape[4]
    touched = np.zeros(cache.shape, bool)
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        at = (slot // block_size, layer, slice(None), slice(None), slot % block_size)
        assert np.all(np.abs(found[at] - want[:, token]) <= limit[:, token])
        touched[at] = True
    assert np.all(found[~touched] == 77.0)


@each_isa
@pytest.mark.parametrize("dtype,cache_dtype", [("float32", "float32"), ("float32", "bfloat16"),
                                               ("bfloat16", "float16")])  # fmt: skip
@pytest.mark.parametrize("head_dim,rotary_dim", [(64, 64), (80, 80), (80, 32), (8, 8), (256, 128)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_queries_and_keys_turn_and_the_cache_takes_keys_and_values(
    isa, dtype, cache_dtype, head_dim, rotary_dim, qk_norm
):
    heads, kv_heads, block_size = 4, 2, 4
    qkv, slots, cache = make_case(heads, kv_heads, head_dim, block_size, dtype, cache_dtype)
    tokens = len(slots)
    positions = rng(3).integers(0, 500, tokens).astype(np.int32)
    table = rope_table(500, rotary_dim)
    q_norm, k_norm = (encode(rng(s).normal(1, 0.1, head_dim), dtype) for s in (4, 5))
    query = np.zeros((tokens, heads, head_dim), np.float32)
    _core.ops.rope_and_cache(
        _core.make_cpu_backend(2, isa), qkv, slots, cache, query, positions, table,
        q_norm if qk_norm else None, k_norm if qk_norm else None,
        dtype=dtype, cache_dtype=cache_dtype, layer=1, rotary_dim=rotary_dim, epsilon=1e-6,
    )  # fmt: skip
    q, k, v = np.split(decode(qkv), [heads, heads + kv_heads], axis=1)
    if qk_norm:
        q, k = normed(q, q_norm, 1e-6), normed(k, k_norm, 1e-6)
    q, k = (turned(x, table, positions, rotary_dim) for x in (q, k))
    assert np.all(np.abs(query - q) <= FLOAT_ERROR * (1 + np.abs(q)))
    want = np.stack([k, v])
    limit = FLOAT_ERROR * (1 + np.abs(want)) + ROUNDING[cache_dtype] * np.abs(want)
    check_cache(cache, slots, 1, want, limit)


@each_isa
@pytest.mark.parametrize("head_dim", [8, 72, 256])
def test_an_int8_cache_rounds_each_row_to_steps_of_its_largest(isa, head_dim):
    qkv, slots, cache = make_case(4, 2, head_dim, 4, "float32", "int8")
    qkv[7] = 0
    before = cache.copy()
    query = np.zeros((len(slots), 4, head_dim), np.float32)
    _core.ops.rope_and_cache(
        _core.make_cpu_backend(2, isa), qkv, slots, cache, query, cache_dtype="int8", layer=1
    )
    rows = np.stack([qkv[:, 4:6], qkv[:, 6:]])
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        at = (slot // 4, 1, slice(None), slice(None), slot % 4)
        step = np.abs(rows[:, token]).max(axis=-1, keepdims=True) / 127
        assert np.all(np.abs(decode(cache[at]) - rows[:, token]) <= step * (0.5 + 1e-4))
        cache[at] = before[at]
    assert_same_bytes(cache, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_rope_rows_pass_unchanged(dtype):
    qkv, slots, cache = make_case(2, 2, 64, 16, dtype, dtype)
    query = np.zeros((len(slots), 2, 64), storage("float32"))
    _core.ops.rope_and_cache(
        _core.make_cpu_backend(1), qkv, slots, cache, query, dtype=dtype, cache_dtype=dtype
    )
    assert_same_bytes(query, decode(qkv)[:, :2].astype(np.float32))
    want = np.stack([decode(qkv)[:, 2:4], decode(qkv)[:, 4:]])
    check_cache(cache, slots, 0, want, np.zeros_like(want))


def test_a_token_is_the_same_to_the_bit_alone_and_in_a_batch():
    qkv, slots, cache = make_case(9, 3, 64, 16, "float32", "bfloat16", tokens=100)
    slots[3] = next(i for i in range(32 * 16) if i not in slots)
    positions = np.arange(100, dtype=np.int32)
    table = rope_table(100, 64)

    def run(rows, threads):
        into = cache.copy()
        query = np.zeros((len(slots[rows]), 9, 64), np.float32)
        _core.ops.rope_and_cache(
            _core.make_cpu_backend(threads), qkv[rows], slots[rows], into, query, positions[rows],
            table, cache_dtype="bfloat16", rotary_dim=64,
        )  # fmt: skip
        return query, into

    query, whole = run(slice(None), 2)
    for i in (0, 50, 99):
        alone, part = run(slice(i, i + 1), 1)
        assert_same_bytes(alone[0], query[i])
        at = (slots[i] // 16, slice(None), slice(None), slice(None), slots[i] % 16)
        assert_same_bytes(part[at], whole[at])


def test_a_slot_outside_the_cache_is_refused():
    qkv, slots, cache = make_case(2, 2, 64, 16, "float32", "float32")
    slots[:] = 0
    slots[5] = 32 * 16
    query = np.zeros((len(slots), 2, 64), np.float32)
    with pytest.raises(_core.InvalidArgument, match=r"slots\[5\] must be from -1 to 511, got 512"):
        _core.ops.rope_and_cache(_core.make_cpu_backend(1), qkv, slots, cache, query)
