"""A small pass over every kernel, for compute-sanitizer (bench/run_on_gpu.sh runs it there)."""

import pytest
import torch
from harness import Cache, relative_error
from test_attention import check, make_case


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_sanitized_attention(ops, dtype, head_dim):
    case = make_case(dtype, head_dim, 1, 4, 16, [1, 3, 1, 1, 70], [700, 0, 0, 2100, 90])
    check(ops, case, dtype=dtype)
    check(ops, case, dtype=dtype, window=100)


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e4m3"])
@pytest.mark.parametrize("group", [4, 20])
def test_sanitized_attention_on_common_blocks(ops, dtype, group):
    case = make_case(dtype, 64, 1, group, 16, [1] * 6, [1100, 1200, 1050, 1300, 40, 1100])
    tables = case[2].tables
    for table in tables[1:]:
        table[:64] = tables[0][:64]
    check(ops, case, dtype=dtype)
    check(ops, case, dtype=dtype, window=800)


@pytest.mark.parametrize("epilogue", ["store", "accumulate", "gated"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sanitized_linear_of_few_rows(ops, dtype, epilogue):
    """Stages that are used again, slices of the inputs, ragged edges."""
    x = torch.randn(19, 1992, device="cuda").to(dtype)
    weights = list(torch.randn(2, 200, 1992, device="cuda").to(dtype) / 45)
    parts = [x.double() @ w.double().T for w in weights]
    y = torch.ones(19, 200 if epilogue == "gated" else 400, device="cuda")
    ops.linear(
        x, weights, y, epilogue=epilogue, activation="silu" if epilogue == "gated" else "none"
    )
    if epilogue == "gated":
        expected = torch.nn.functional.silu(parts[0]) * parts[1]
    else:
        expected = torch.cat(parts, 1) + (epilogue == "accumulate")
    assert relative_error(y, expected) < 1e-5


@pytest.mark.parametrize("head_dim", [64, 128])
def test_sanitized_split_norm_and_heads(ops, head_dim):
    """A norm begun by one product and ended by the next, whose heads are turned and stored."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("only Hopper's product of few rows splits norms")
    x = torch.randn(19, 1992, device="cuda").bfloat16()
    w = torch.randn(200, 1992, device="cuda").bfloat16() / 45
    y, squares = torch.ones(19, 200, device="cuda"), torch.empty(19, 2, device="cuda")
    scaled = torch.empty(19, 200, device="cuda", dtype=torch.bfloat16)
    ops.linear(x, [w], y, epilogue="accumulate", norm=(w[0, :200].contiguous(), scaled, squares))
    cache = Cache(torch.zeros(6, 2, 2, 1, 16, head_dim, device="cuda", dtype=torch.bfloat16))
    qkv = torch.empty(19, 4 * head_dim, device="cuda", dtype=torch.bfloat16)
    heads = torch.randn(4 * head_dim, 200, device="cuda").bfloat16()
    positions = torch.arange(19, device="cuda", dtype=torch.int32)
    query = torch.full((19, 2, head_dim), torch.nan, device="cuda", dtype=torch.bfloat16)
    linear = ops.linear_ints(scaled, [heads], qkv, x_squares=squares)
    turns = torch.rand(19, head_dim, device="cuda")
    ops.linear_rope_and_cache(
        linear, qkv, positions, positions.long(), query, cache, 1, turns, head_dim
    )
    assert not query.isnan().any()


def test_sanitized_other_ops(ops):
    x = torch.randn(3, 256, device="cuda")
    y = torch.empty(3, 256, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(512, 256, device="cuda").bfloat16()
    ops.norm("rms", x, y, w[0].contiguous())
    ops.norm("layer", x, y, w[0].contiguous(), w[1].contiguous())
    z = torch.empty(3, 256, device="cuda", dtype=torch.bfloat16)
    ops.linear(y, [w[:256], w[256:]], z, epilogue="gated", activation="silu")
    cache = Cache(torch.zeros(6, 2, 2, 1, 16, 64, device="cuda", dtype=torch.bfloat16))
    positions = torch.arange(3, device="cuda", dtype=torch.int32)
    query = torch.empty(3, 2, 64, device="cuda", dtype=torch.bfloat16)
    ops.rope_and_cache(z, positions, positions.long(), query, cache)
    ops.copies(0, cache, [(0, 4), (1, 5)])
    logits = torch.randn(3, 5000, device="cuda")
    rows = [
        {"logit_row": 0},
        {
            "logit_row": 1,
            "temperature": 1.0,
            "top_p": 0.9,
            "num_top": 5,
            "seen": [(1, 1)],
            "repetition_penalty": 1.2,
        },
        {"logit_row": 2, "temperature": 1.0, "top_k": 40},
    ]
    ops.sample(logits, rows, max_top=5)
