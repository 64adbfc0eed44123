"""The other ops of the CUDA backend against float64 references."""

import math

import pytest
import torch
from harness import TORCH, Cache, relative_error

LIMIT = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 5e-3}
FLOATS = ["float32", "float16", "bfloat16"]


def randn(*shape, dtype="float32", seed=0):
    g = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=g).to(TORCH[dtype])


def poisoned(*shape, dtype="float32"):
    return torch.full(shape, torch.nan, device="cuda", dtype=TORCH[dtype])


def act(name, x):
    return {
        "none": lambda: x,
        "silu": lambda: torch.nn.functional.silu(x),
        "gelu": lambda: torch.nn.functional.gelu(x),
        "gelu_tanh": lambda: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": lambda: torch.relu(x),
    }[name]()


@pytest.mark.parametrize("width", [8, 20, 576, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_embed_copies_or_adds_rows(ops, dtype, width, accumulate):
    table = randn(50, width, dtype=dtype)
    ids = torch.randint(0, 48, (9,), device="cuda", dtype=torch.int32)
    y = randn(9, width, seed=1) if accumulate else poisoned(9, width)
    expected = table.double()[ids.long() + 2] + (y.double() if accumulate else 0)
    ops.embed(ids, table, y, id_offset=2, accumulate=accumulate)
    assert relative_error(y, expected) < 1e-6


@pytest.mark.parametrize("width", [8, 20, 576, 2048, 12288])
@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
@pytest.mark.parametrize(
    ("x_dtype", "y_dtype"),
    [("float32", "bfloat16"), ("float32", "float32"), ("float16", "float16")],
)
def test_norm_equals_the_reference(ops, norm, width, x_dtype, y_dtype):
    x = randn(17, width, dtype=x_dtype) * 3 + 0.5
    weight, bias = randn(width, dtype=y_dtype, seed=1), randn(width, dtype=y_dtype, seed=2)
    rows = torch.tensor([3, 16, 0, 3], device="cuda", dtype=torch.int32)
    y = poisoned(4, width, dtype=y_dtype)
    affine = norm != "none"
    ops.norm(norm, x, y, weight if affine else None, bias if norm == "layer" else None, rows)
    d = x.double()[rows.long()]
    if norm == "layer":
        d = torch.nn.functional.layer_norm(d, (width,), weight.double(), bias.double(), 1e-5)
    if norm == "rms":
        d = d / (d.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert relative_error(y, d) < LIMIT[y_dtype]


SHAPES = [
    (576, [576, 192, 192]),
    (2048, [512, 1000]),
    (64, [50]),
    (64, [56]),
    (256, [12800, 72]),
    (200, [72, 130]),
    (1024, [4096, 4096]),
]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 17, 33, 64, 130])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("epilogue", ["store", "accumulate", "gated"])
def test_linear_equals_the_reference(ops, rows, dtype, shape, with_bias, epilogue):
    k, outs = shape
    if epilogue == "gated":
        outs = [outs[0], outs[0]]
    x = randn(rows, k, dtype=dtype)
    weights = [randn(n, k, dtype=dtype, seed=n + i) / math.sqrt(k) for i, n in enumerate(outs)]
    biases = [randn(n, dtype=dtype, seed=n + i) if with_bias else None for i, n in enumerate(outs)]
    parts = [
        x.double() @ w.double().T + (0 if b is None else b.double())
        for w, b in zip(weights, biases, strict=True)
    ]
    if epilogue == "gated":
        y, expected = poisoned(rows, outs[0], dtype=dtype), act("silu", parts[0]) * parts[1]
        ops.linear(x, weights, y, biases, epilogue, "silu")
        limit = 2 * LIMIT[dtype]  # gate and up are rounded too
    elif epilogue == "accumulate":
        y = randn(rows, sum(outs), seed=5)
        expected = y.double() + torch.cat(parts, 1)
        ops.linear(x, weights, y, biases, epilogue)
        limit = 2e-6
    else:
        y, expected = poisoned(rows, sum(outs), dtype=dtype), act("gelu", torch.cat(parts, 1))
        ops.linear(x, weights, y, biases, epilogue, "gelu")
        limit = 2 * LIMIT[dtype]
    assert relative_error(y, expected) < limit


def test_neighbouring_weights_are_multiplied_at_once_with_the_same_result(ops):
    x = randn(40, 512, dtype="bfloat16")
    whole = randn(768, 512, dtype="bfloat16")
    apart = [whole[:512].clone(), whole[512:640].clone(), whole[640:].clone()]
    y, z = poisoned(40, 768, dtype="bfloat16"), poisoned(40, 768, dtype="bfloat16")
    ops.linear(x, [whole[:512], whole[512:640], whole[640:]], y)
    ops.linear(x, apart, z)
    assert relative_error(y, x.double() @ whole.double().T) < 5e-3
    assert relative_error(z, x.double() @ whole.double().T) < 5e-3


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_reads_transposed_weights(ops, rows, dtype):
    x, w = randn(rows, 768, dtype=dtype), randn(768, 2304, dtype=dtype, seed=1)
    b = randn(2304, dtype=dtype, seed=2)
    y = poisoned(rows, 2304, dtype=dtype)
    ops.linear(x, [w], y, [b], in_out=True)
    assert relative_error(y, x.double() @ w.double() + b.double()) < LIMIT[dtype]


@pytest.mark.parametrize("rows", [1, 6])
def test_linear_gives_float32_logits_of_16_bit_weights(ops, rows):
    x, w = randn(rows, 2048, dtype="bfloat16"), randn(32001, 2048, dtype="bfloat16", seed=1)
    y = poisoned(rows, 32001)
    ops.linear(x, [w], y)
    assert relative_error(y, x.double() @ w.double().T) < 2e-6


class Heads:
    """What rope_and_cache reads beside qkv and writes, and its float64 reference."""

    heads, kv_heads, size = 6, 2, 16

    def __init__(self, tokens, head_dim, dtype, cache_dtype, rotary, qk_norm):
        self.dtype, self.cache_dtype, self.head_dim = dtype, cache_dtype, head_dim
        self.rotary_dim = int(head_dim * rotary) // 2 * 2
        self.positions = torch.randint(0, 500, (tokens,), device="cuda", dtype=torch.int32)
        self.slots = torch.randperm(5 * self.size, device="cuda")[:tokens].to(torch.int64)
        if tokens > 1:
            self.slots[tokens // 3] = -1
        angles = torch.rand(500, max(1, self.rotary_dim // 2), device="cuda") * 6
        turns = torch.cat([angles.cos(), angles.sin()], 1).contiguous()
        self.cos_sin = turns if self.rotary_dim else None
        self.norms = [randn(head_dim, dtype=dtype, seed=s) if qk_norm else None for s in (3, 4)]
        data = torch.full((5, 3, 2, self.kv_heads, self.size, head_dim), 7.0, device="cuda")
        scales = (0.5, 2.0) if cache_dtype == "fp8_e4m3" else (1.0, 1.0)
        self.cache = Cache(data.to(TORCH[cache_dtype]), *scales)
        self.query = poisoned(tokens, self.heads, head_dim, dtype=dtype)

    def args(self):
        return (
            *(self.positions, self.slots, self.query, self.cache, 1),
            *(self.cos_sin, self.rotary_dim, *self.norms),
        )

    def turn(self, y, weight):
        if weight is not None:
            y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
        if not self.rotary_dim:
            return y
        half = self.rotary_dim // 2
        c, s = self.cos_sin.double()[self.positions.long()][:, None].split(half, -1)
        a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
        return torch.cat([a * c - b * s, b * c + a * s, rest], -1)

    def check(self, qkv):
        """`qkv`: [tokens, (heads + 2 * kv_heads) * head_dim] float64."""
        x = qkv.view(qkv.shape[0], -1, self.head_dim)
        q, k, v = x.split([self.heads, self.kv_heads, self.kv_heads], 1)
        assert relative_error(self.query, self.turn(q, self.norms[0])) < LIMIT[self.dtype]
        data, slots = self.cache.data.to(torch.float32), 5 * self.size
        stored = data.double()[:, 1].permute(1, 0, 3, 2, 4)
        stored = stored.reshape(2, slots, self.kv_heads, self.head_dim)
        keep = self.slots >= 0
        at = self.slots[keep]
        limit = {"fp8_e4m3": 4e-2}.get(self.cache_dtype) or LIMIT[self.cache_dtype]
        keys, values = stored[0][at] * self.cache.k_scale, stored[1][at] * self.cache.v_scale
        assert relative_error(keys, self.turn(k, self.norms[1])[keep]) < limit
        assert relative_error(values, v[keep]) < limit
        untouched = torch.ones(slots, dtype=torch.bool, device="cuda")
        untouched[at] = False
        assert (stored[:, untouched] == 7).all()
        assert (data[:, [0, 2]] == 7).all()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("bfloat16", "fp8_e4m3"),
    ],
)
@pytest.mark.parametrize("rotary", [1.0, 0.5, 0.3, 0.0])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_rope_and_cache_rotates_and_stores(ops, head_dim, dtype, cache_dtype, rotary, qk_norm):
    heads = Heads(13, head_dim, dtype, cache_dtype, rotary, qk_norm)
    qkv = randn(13, (heads.heads + 2 * heads.kv_heads) * head_dim, dtype=dtype)
    ops.rope_and_cache(qkv, *heads.args())
    heads.check(qkv.double())


@pytest.mark.parametrize("rows", [1, 4, 13, 32, 40])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [("bfloat16", "bfloat16"), ("bfloat16", "fp8_e4m3"), ("float16", "float16")],
)
@pytest.mark.parametrize("rotary", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("with_norm_and_bias", [False, True])
def test_linear_rope_and_cache_equals_the_reference(
    ops, rows, head_dim, dtype, cache_dtype, rotary, with_norm_and_bias
):
    heads = Heads(rows, head_dim, dtype, cache_dtype, rotary, with_norm_and_bias)
    outs = [n * head_dim for n in (heads.heads, heads.kv_heads, heads.kv_heads)]
    x = randn(rows, 1032, dtype=dtype)
    weights = [randn(n, 1032, dtype=dtype, seed=i) / 32 for i, n in enumerate(outs)]
    biases = [
        randn(n, dtype=dtype, seed=i) if with_norm_and_bias else None for i, n in enumerate(outs)
    ]
    qkv = poisoned(rows, sum(outs), dtype=dtype)
    ops.linear_rope_and_cache(ops.linear_ints(x, weights, qkv, biases), qkv, *heads.args())
    products = x.double() @ torch.cat(weights).double().T
    heads.check(products + (torch.cat(biases).double() if with_norm_and_bias else 0))


@pytest.mark.parametrize("width", [20, 1536, 8192])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "none"])
def test_gated_activation_equals_the_reference(ops, width, dtype, activation):
    gate_up = randn(7, 2 * width, dtype=dtype)
    y = poisoned(7, width, dtype=dtype)
    ops.gated_activation(gate_up, y, activation)
    gate, up = gate_up.double().split(width, 1)
    assert relative_error(y, act(activation, gate) * up) < LIMIT[dtype]


@pytest.mark.parametrize("shape", [(2, 2, 16, 128), (3, 1, 1, 8), (1, 5, 256, 80)], ids=str)
def test_blocks_are_copied_and_swapped_whole(ops, shape):
    layers, heads, size, dim = shape
    data = randn(40, layers, 2, heads, size, dim, dtype="bfloat16")
    before = data.clone()
    cache = Cache(data)
    ops.copies(0, cache, [(3, 7), (3, 8), (0, 39)])
    expected = before.clone()
    expected[7], expected[8], expected[39] = before[3], before[3], before[0]
    assert torch.equal(data, expected)

    block_bytes = data[0].numel() * 2
    host = ops.lib.ops_allocate_host(ops.handle, 10 * block_bytes)
    ops.copies(1, cache, [(1, 4), (2, 5), (9, 0)], host, 10)
    saved = data.clone()
    data[[1, 2, 9]] = 0
    ops.copies(2, cache, [(4, 1), (5, 2), (0, 9), (0, 10)], host, 10)
    saved[10] = saved[9]
    assert torch.equal(data, saved)
    ops.lib.ops_free_host(ops.handle, host)


def test_a_wrong_parameter_is_refused_and_the_backend_goes_on(ops):
    x, w, y = randn(2, 64, dtype="bfloat16"), randn(8, 64), poisoned(2, 8)
    with pytest.raises(RuntimeError, match="bfloat16"):
        ops.linear(x, [w], y)
    ops.linear(x, [w.bfloat16()], y)
    assert not y.isnan().any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("epilogue", ["store", "accumulate", "gated"])
@pytest.mark.parametrize("shape", [(2048, 2048), (4096, 2560), (200, 136)], ids=str)
def test_a_row_gives_the_same_bytes_among_any_3_to_32_rows_on_hopper(ops, dtype, epilogue, shape):
    """Neither what lies behind the last row nor their number is seen; see cuda/README.md."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("one kernel serves 3 to 32 rows on Hopper only")
    k, n = shape
    weights = [randn(n, k, dtype=dtype, seed=s) / math.sqrt(k) for s in (1, 2)]
    x, before = randn(32, k, dtype=dtype), randn(32, n if epilogue == "gated" else 2 * n, seed=3)
    whole = before.clone()
    ops.linear(x, weights, whole, epilogue=epilogue, activation="silu")
    for rows in range(3, 33):
        some, y = x.clone(), before.clone()
        some[rows:], y[rows:] = torch.nan, torch.nan
        ops.linear(some[:rows], weights, y[:rows], epilogue=epilogue, activation="silu")
        assert torch.equal(y[:rows], whole[:rows]), rows
        assert y[rows:].isnan().all(), rows


def test_a_row_gives_the_same_bytes_among_any_rows_of_its_class(ops):
    """One cuBLASLt algorithm serves 17 to 32 rows, and so on; see cuda/README.md."""
    for low, high in ((3, 16), (17, 32), (33, 64), (65, 128), (129, 256)):
        for k, n in ((2048, 2048), (4096, 6144)):
            x, w = randn(high, k, dtype="bfloat16"), randn(n, k, dtype="bfloat16", seed=1)
            whole, part = poisoned(high, n, dtype="bfloat16"), poisoned(low, n, dtype="bfloat16")
            ops.linear(x, [w], whole)
            ops.linear(x[:low].contiguous(), [w], part)
            assert torch.equal(part, whole[:low]), (low, high, k, n)


def needs_split_norms():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("only Hopper's product of few rows splits norms")


def split_norm(rows, width, dtype="bfloat16"):
    """Weight, scaled and squares of a split norm of [rows, width]."""
    weight = randn(width, dtype=dtype, seed=7) + 1
    return weight, poisoned(rows, width, dtype=dtype), poisoned(rows, -(-width // 128))


@pytest.mark.parametrize("rows", [3, 16, 17, 32])
@pytest.mark.parametrize("width", [200, 1024, 4096])
@pytest.mark.parametrize("reader", ["store", "gated", "odd", "odd and gated", "heads"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_norm_that_two_products_split_equals_the_reference(ops, rows, width, reader, with_bias):
    needs_split_norms()
    x, w = randn(rows, 520, dtype="bfloat16"), randn(width, 520, dtype="bfloat16", seed=1) / 5
    y = randn(rows, width, seed=2) * 100
    norm = split_norm(rows, width)
    expected = y.double() + x.double() @ w.double().T
    ops.linear(x, [w], y, epilogue="accumulate", norm=norm)
    assert relative_error(y, expected) < 2e-6
    assert torch.equal(norm[1], (y * norm[0].float()).bfloat16())
    padded = torch.nn.functional.pad(y.double(), (0, -width % 128)).view(rows, -1, 128)
    assert relative_error(norm[2], padded.square().sum(-1)) < 1e-6

    normed = y.double() / (y.double().square().mean(-1, keepdim=True) + 1e-3).sqrt()
    normed *= norm[0].double()
    outs = [72, 136] if "gated" not in reader else [136, 136]
    if "odd" in reader:  # cuBLASLt's
        outs = [n + 4 for n in outs]
    heads = Heads(rows, 64, "bfloat16", "bfloat16", 1.0, False)
    if reader == "heads":
        outs = [6 * 64, 4 * 64]
    weights = [randn(n, width, dtype="bfloat16", seed=i) for i, n in enumerate(outs)]
    weights = [v / math.sqrt(width) for v in weights]
    biases = [randn(n, dtype="bfloat16", seed=3) if with_bias else None for n in outs]
    a, b = (
        normed @ v.double().T + (c.double() if with_bias else 0)
        for v, c in zip(weights, biases, strict=True)
    )
    ends = {"x_squares": norm[2], "x_epsilon": 1e-3}
    if reader == "heads":
        qkv = poisoned(rows, sum(outs), dtype="bfloat16")
        linear = ops.linear_ints(norm[1], weights, qkv, biases, x_squares=norm[2])
        ops.linear_rope_and_cache(linear, qkv, *heads.args(), x_epsilon=1e-3)
        return heads.check(torch.cat([a, b], 1))
    if "gated" in reader:
        z, expected = poisoned(rows, outs[0], dtype="bfloat16"), act("silu", a) * b
        ops.linear(norm[1], weights, z, biases, "gated", "silu", **ends)
    else:
        z, expected = poisoned(rows, sum(outs), dtype="bfloat16"), act("gelu", torch.cat([a, b], 1))
        ops.linear(norm[1], weights, z, biases, "store", "gelu", **ends)
    assert relative_error(z, expected) < 2 * LIMIT["bfloat16"]


def test_a_row_of_a_split_norm_gives_the_same_bytes_among_any_3_to_32_rows(ops):
    """Nor does it matter what the buffers held; see cuda/README.md."""
    needs_split_norms()
    x, w = randn(32, 2048, dtype="bfloat16"), randn(1160, 2048, dtype="bfloat16", seed=1) / 45
    weights = [randn(n * 64, 1160, dtype="bfloat16", seed=n) / 34 for n in (6, 2, 2)]
    before = randn(32, 1160, seed=2)
    whole = Heads(32, 64, "bfloat16", "bfloat16", 1.0, True)
    outcomes = {}
    for rows in (32, *range(3, 32)):
        y, norm = before.clone(), split_norm(rows, 1160)
        ops.linear(x[:rows].contiguous(), [w], y[:rows], epilogue="accumulate", norm=norm)
        whole.query.fill_(torch.nan)
        whole.cache.data.fill_(7.0)
        qkv = poisoned(rows, 640, dtype="bfloat16")
        linear = ops.linear_ints(norm[1], weights, qkv, x_squares=norm[2])
        positions, slots, query, *rest = whole.args()
        ops.linear_rope_and_cache(linear, qkv, positions[:rows], slots[:rows], query[:rows], *rest)
        stored = [whole.cache.data[s // 16, 1, :, :, s % 16] for s in slots.tolist() if s >= 0]
        outcomes[rows] = (y[:rows], query[:rows].clone(), torch.stack(stored))
        assert torch.equal(y[rows:], before[rows:])
        assert query[rows:].isnan().all(), rows
    for rows, (y, query, stored) in outcomes.items():
        assert torch.equal(y, outcomes[32][0][:rows]), rows
        assert torch.equal(query, outcomes[32][1][:rows]), rows
        kept = int((whole.slots[:rows] >= 0).sum())
        assert torch.equal(stored[:kept], outcomes[32][2][:kept]), rows


@pytest.mark.parametrize(("rows", "dtype"), [(2, "bfloat16"), (33, "bfloat16"), (8, "float16")])
def test_a_norm_that_cannot_be_split_is_refused(ops, rows, dtype):
    x, w, y = randn(rows, 64, dtype=dtype), randn(256, 64, dtype=dtype), randn(rows, 256)
    with pytest.raises(RuntimeError, match="split norms"):
        ops.linear(x, [w], y, epilogue="accumulate", norm=split_norm(rows, 256, dtype))
