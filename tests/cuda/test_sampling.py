"""Sampling on CUDA: against exact distributions, float64 selections, and the CPU's own draws."""

import pytest
import torch
from harness import Ops, find_library


@pytest.fixture(scope="session")
def cpu_ops(ops):
    cpu = Ops(find_library(), "cpu")
    yield cpu
    cpu.close()


def logits_of(rows, vocab, seed=0, scale=3.0):
    g = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(rows, vocab, device="cuda", generator=g) * scale


@pytest.mark.parametrize("vocab", [7, 1000, 32000, 128256])
def test_greedy_takes_the_highest_and_of_equals_the_lowest(ops, vocab):
    logits = logits_of(5, vocab)
    logits[2, [3, 5]] = 100.0
    logits[3] = 1.5
    logits[4, 0] = torch.nan
    tokens, *_ = ops.sample(logits, [{"logit_row": i} for i in range(5)])
    expected = logits.nan_to_num(-1e30).argmax(-1).tolist()
    expected[2], expected[3] = 3, 0
    assert tokens.tolist() == expected


@pytest.mark.parametrize("vocab", [50, 32000, 128256])
def test_logprobs_ranks_and_top_tokens_are_the_models(ops, vocab):
    logits = logits_of(3, vocab)
    rows = [
        {"logit_row": i, "num_top": 20, "temperature": 0.7, "seed": i, "top_p": 0.9}
        for i in range(3)
    ]
    tokens, logprobs, ranks, top, top_logprobs = ops.sample(logits, rows, max_top=20)
    exact = torch.log_softmax(logits.double(), -1).cpu()
    values, ids = exact.topk(20)
    assert torch.equal(top.long(), ids)
    assert (top_logprobs - values).abs().max() < 1e-5
    for i in range(3):
        assert abs(logprobs[i] - exact[i, tokens[i]]) < 1e-5
        assert ranks[i] == 1 + (exact[i] > exact[i, tokens[i]]).sum()


SETTINGS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 2048},
    {"top_k": 3000},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02},
]


def allowed_set(row, top_k=0, top_p=1.0, min_p=0.0):
    p = torch.softmax(row.double(), -1)
    order = torch.argsort(p, descending=True, stable=True)
    if top_k:
        order = order[:top_k]
    weights = p[order] / p[order].sum()
    before = weights.cumsum(0) - weights
    keep = (before < top_p) & (weights / weights[0] >= min_p)
    return order[keep], weights[keep] / weights[keep].sum()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_stay_in_the_set_and_follow_the_distribution(ops, settings):
    row = logits_of(1, 5000, seed=3)
    draws = 20000
    tokens, *_ = ops.sample(
        row, [{"temperature": 1.0, "seed": 7, "position": i, **settings} for i in range(draws)]
    )
    ids, p = allowed_set(row[0].cpu(), **settings)
    counts = torch.bincount(tokens.long(), minlength=5000).double()
    outside = counts.clone()
    outside[ids] = 0
    assert outside.sum() <= 2  # where a token lies on the border to within rounding
    expected = p * draws
    big = expected >= 10
    chi = ((counts[ids] - expected)[big] ** 2 / expected[big]).sum()
    n = int(big.sum())
    assert chi < n + 6 * (2 * n) ** 0.5 + 12


@pytest.mark.parametrize("vocab", [999, 49152, 128256])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_equal_the_cpus_but_for_rounding(ops, cpu_ops, vocab, settings):
    logits = logits_of(2, vocab, seed=vocab)
    g = torch.Generator().manual_seed(1)
    rows = [
        {
            "logit_row": i % 2,
            "temperature": 0.8,
            "seed": i // 7,
            "position": i,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.1,
            **settings,
            "seen": [(t, t % 3) for t in torch.randperm(vocab, generator=g)[:50].tolist()],
            "bias": [(5, 1.5), (8, -3.0)],
            "banned": [int(logits[i % 2].argmax())],
        }
        for i in range(64)
    ]
    if settings.get("top_k", 0) > 2048 or settings.get("top_k", 0) >= vocab:
        pytest.skip("drawn by another method than the CPU's")
    cuda, *_ = ops.sample(logits, rows)
    cpu, *_ = cpu_ops.sample(logits.cpu(), rows)
    assert (cuda != cpu).sum() <= 2


def test_equal_logits_keep_the_lowest_ids(ops):
    logits = torch.zeros(1, 128256, device="cuda")
    rows = [{"temperature": 1.0, "top_k": 50, "seed": 1, "position": i} for i in range(300)]
    tokens, *_ = ops.sample(logits, rows)
    assert tokens.max() < 50 and len(set(tokens.tolist())) > 40


def test_allowed_banned_and_given_tokens(ops):
    logits = logits_of(1, 1000)
    best = logits[0].argsort(descending=True).tolist()
    rows = [
        {"allowed": [best[5], best[9]]},
        {"banned": best[:3]},
        {"given_token": best[7], "num_top": 0},
        {"allowed": [4, 9], "banned": [4, 9]},
        {"bias": [(best[50], 1000.0)]},
    ]
    tokens, logprobs, ranks, *_ = ops.sample(logits, rows)
    assert tokens.tolist() == [best[5], best[3], best[7], 4, best[50]]
    assert ranks[2] == 8
    assert abs(logprobs[2] - torch.log_softmax(logits[0].double(), -1)[best[7]].item()) < 1e-5


def test_a_row_draws_the_same_token_alone_and_among_others(ops):
    logits = logits_of(4, 32000)
    rows = [
        {"logit_row": i % 4, "temperature": 1.0, "top_p": 0.9, "seed": 3, "position": i}
        for i in range(300)
    ]
    together, *_ = ops.sample(logits, rows)
    for i in (0, 7, 150, 299):
        alone, *_ = ops.sample(logits, [rows[i]])
        assert alone[0] == together[i]
