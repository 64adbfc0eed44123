"""The sampling op on the CPU against float64 references in numpy."""

import numpy as np
import pytest

from pagedcore import _core

VOCAB_SIZES = [1, 2, 15, 16, 17, 255, 256, 257, 1000, 50257]


@pytest.fixture(scope="module", params=[1, 2])
def backend(request):
    return _core.make_cpu_backend(num_threads=request.param)


def make_logits(rows, vocab_size, *, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, vocab_size)) * scale).astype(np.float32)


def sample(backend, logits, rows, max_top=0):
    return _core.sample(backend, logits, rows, max_top)


def tokens_of(backend, logits, rows):
    return sample(backend, logits, rows)[0]


def log_softmax(x):
    x = x.astype(np.float64)
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def order_of(scores):
    """Ids from the most likely on; lower ids first among equals."""
    return np.lexsort((np.arange(len(scores)), -scores))


def changed(logits, row):
    """What is left of one row of logits after bias, allowed, banned and penalties."""
    x = logits.astype(np.float64)
    for token, bias in row.bias:
        x[token] += bias
    if row.allowed:
        out = np.ones(len(x), bool)
        out[row.allowed] = False
        x[out] = -np.inf
    x[list(row.banned)] = -np.inf
    for token, count in row.seen:
        penalty = row.repetition_penalty
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
        if count:
            x[token] -= row.frequency_penalty * count + row.presence_penalty
    return x


def probabilities(logits, row):
    """The distribution that a row draws from."""
    x = changed(logits, row) / row.temperature
    order = order_of(x)
    keep = np.zeros(len(x), bool)
    keep[order[: row.top_k or len(x)]] = True
    p = np.where(keep, np.exp(x - x.max()), 0.0)
    if row.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= row.top_p * p.sum()]] = 0
    p[p < row.min_p * p.max()] = 0
    return p / p.sum()


def chi_square_p_value(counts, expected):
    """Probability of a statistic as large as this one, by Wilson and Hilferty's approximation."""
    from math import erfc, sqrt

    few = expected < 8
    counts = np.append(counts[~few], counts[few].sum())
    expected = np.append(expected[~few], expected[few].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = max(len(counts) - 1, 1)
    statistic = ((counts - expected) ** 2 / expected).sum()
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / sqrt(2 / (9 * degrees))
    return erfc(z / sqrt(2)) / 2


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_greedy_takes_the_highest_logit_and_the_lowest_id_of_equals(backend, vocab_size):
    logits = make_logits(8, vocab_size)
    logits[4:] = np.round(logits[4:])  # many equal ones
    rows = [_core.SampleRow(logit_row=i) for i in range(8)]
    assert tokens_of(backend, logits, rows).tolist() == logits.argmax(-1).tolist()


def test_rows_may_be_read_several_times_and_in_any_order(backend):
    logits = make_logits(3, 100)
    rows = [_core.SampleRow(logit_row=i) for i in (2, 0, 2, 1)]
    expected = logits.argmax(-1)[[2, 0, 2, 1]]
    assert tokens_of(backend, logits, rows).tolist() == expected.tolist()


def test_an_empty_batch_is_a_no_op(backend):
    assert tokens_of(backend, make_logits(1, 10), []).tolist() == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 4.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 40, "temperature": 3.0},
        {"top_p": 0.9},
        {"top_p": 0.5, "temperature": 2.0},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"top_k": 30, "top_p": 0.8, "min_p": 0.02},
        {"top_p": 0.95, "min_p": 0.05, "temperature": 1.5},
        {"bias": [(3, 5.0), (400, 4.0)], "banned": [1, 2, 5]},
        {"allowed": [3, 300, 599, 17], "top_p": 0.9, "temperature": 4.0},
        {
            "repetition_penalty": 1.3,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "seen": [(i, i % 4) for i in range(0, 600, 2)],
        },
    ],
    ids=str,
)
def test_draws_follow_the_distribution(backend, options):
    vocab_size, draws = 600, 20000
    logits = make_logits(1, vocab_size, scale=2.0, seed=3)
    row = _core.SampleRow(**({"temperature": 1.0} | options))
    rows = []
    for position in range(draws):
        rows.append(_core.SampleRow(**({"temperature": 1.0, "seed": 11} | options)))
        rows[-1].position = position
    counts = np.bincount(tokens_of(backend, logits, rows), minlength=vocab_size)
    p = probabilities(logits[0], row)
    assert counts[p == 0].sum() == 0
    assert chi_square_p_value(counts, p * draws) > 1e-4


@pytest.mark.parametrize("vocab_size", [5, 300, 5000])
@pytest.mark.parametrize("top_k", [0, 50, 2000])
def test_equal_logits_are_cut_at_the_lowest_ids(backend, vocab_size, top_k):
    logits = np.zeros((1, vocab_size), np.float32)
    rows = [
        _core.SampleRow(temperature=1.0, top_p=0.5, top_k=top_k, seed=5, position=i)
        for i in range(300)
    ]
    kept = min(top_k, vocab_size) if top_k else vocab_size
    tokens = tokens_of(backend, logits, rows)
    assert tokens.max() < -(-kept // 2)
    assert len(set(tokens.tolist())) > min(100, kept // 5)


@pytest.mark.parametrize("vocab_size", [300, 50257])
def test_logprobs_ranks_and_top_tokens_are_those_of_the_raw_row(backend, vocab_size):
    logits = make_logits(6, vocab_size)
    logits[5] = np.round(logits[5])
    options = {"temperature": 0.7, "banned": [0, 1], "bias": [(7, 20.0)], "num_top": 20}
    rows = [_core.SampleRow(logit_row=i, position=i, **options) for i in range(6)]
    tokens, logprobs, ranks, top_tokens, top_logprobs = sample(backend, logits, rows, 24)
    reference = log_softmax(logits)
    for i in range(6):
        order = order_of(logits[i])
        assert top_tokens[i, :20].tolist() == order[:20].tolist()
        # exp2 is good to 2e-7 and sums run in float32 within a block of 256.
        assert np.allclose(top_logprobs[i, :20], reference[i, order[:20]], rtol=1e-6, atol=2e-6)
        assert np.isclose(logprobs[i], reference[i, tokens[i]], rtol=1e-6, atol=2e-6)
        assert order[ranks[i] - 1] == tokens[i]


def test_a_given_token_is_taken_and_measured(backend):
    logits = make_logits(2, 1000)
    rows = [
        _core.SampleRow(logit_row=i, given_token=t, num_top=0) for i in (0, 1) for t in (0, 999)
    ]
    tokens, logprobs, ranks, _, _ = sample(backend, logits, rows)
    assert tokens.tolist() == [0, 999, 0, 999]
    reference = log_softmax(logits)
    assert np.allclose(logprobs, reference[[0, 0, 1, 1], tokens], atol=2e-6, rtol=1e-6)
    for i, token in enumerate(tokens):
        assert order_of(logits[i // 2])[ranks[i] - 1] == token


def test_more_top_tokens_than_the_vocabulary_has_end_in_minus_one(backend):
    logits = np.float32([[1, 3, -np.inf, 2]])
    rows = [_core.SampleRow(num_top=4)]
    _, _, _, top_tokens, top_logprobs = sample(backend, logits, rows, 4)
    assert top_tokens.tolist() == [[1, 3, 0, -1]]
    assert top_logprobs[0, 3] == -np.inf


def test_a_row_gives_the_same_bytes_whatever_else_is_in_the_batch(backend):
    vocab_size = 4099
    logits = make_logits(64, vocab_size, seed=9)
    rng = np.random.default_rng(1)

    def make_row(i):
        kinds = [{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.02}, {"banned": [i, 2 * i]}]
        return _core.SampleRow(temperature=1.0, seed=3, position=i, num_top=5, **kinds[i % 5])

    alone = []
    for i in range(64):
        alone.append(sample(backend, logits[i : i + 1], [make_row(i)], 5))
    order = rng.permutation(64)
    rows = []
    for i in order:
        rows.append(make_row(int(i)))
        rows[-1].logit_row = int(i)
    together = sample(backend, logits, rows, 5)
    for at, i in enumerate(order):
        for whole, part in zip(together, alone[i]):
            assert whole[at].tobytes() == part[0].tobytes()


def test_the_same_seed_and_position_draw_the_same_token_and_others_differ(backend):
    logits = np.zeros((1, 30000), np.float32)

    def draw(**options):
        return int(tokens_of(backend, logits, [_core.SampleRow(temperature=1.0, **options)])[0])

    assert draw(seed=1, position=7) == draw(seed=1, position=7)
    assert len({draw(seed=s, position=p) for s in range(-3, 3) for p in range(6)}) > 30
    assert draw(seed=2**40, position=0) != draw(seed=0, position=0)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}])
def test_nan_is_never_taken_and_an_empty_choice_falls_back(backend, options):
    logits = make_logits(1, 500)
    logits[0, ::2] = np.nan
    rows = [_core.SampleRow(seed=1, position=i, **options) for i in range(50)]
    assert all(token % 2 for token in tokens_of(backend, logits, rows))
    row = _core.SampleRow(allowed=[9, 4], banned=[4, 9], **options)
    assert tokens_of(backend, logits, [row]).tolist() == [9]
    nothing = np.full((1, 500), -np.inf, np.float32)
    assert tokens_of(backend, nothing, [_core.SampleRow(**options)]).tolist() == [0]


def test_extreme_temperatures_are_greedy_and_uniform(backend):
    logits = make_logits(1, 1000)
    cold = [_core.SampleRow(temperature=1e-30, seed=1, position=i) for i in range(20)]
    assert set(tokens_of(backend, logits, cold)) == {logits.argmax()}
    hot = [_core.SampleRow(temperature=1e30, seed=1, position=i) for i in range(2000)]
    assert len(set(tokens_of(backend, logits, hot).tolist())) > 800
