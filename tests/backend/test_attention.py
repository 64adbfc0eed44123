import numpy as np
import pytest
from support.arrays import DTYPES, ISAS, assert_same_bytes, decode, each_isa
from support.attention_cases import (
    Cache,
    Shape,
    attend,
    blocks_of,
    expected,
    make_sequence,
    run_alone,
)

from pagedcore import _core

# float32 sums of at most some hundred products of normal numbers, and exponents of scores whose own
# error is some 1e-6: a few 1e-6 of outputs of size 1. Measured: 3e-6 at most.
FLOAT_TOLERANCE = 1e-5
# Where bfloat16 is multiplied in pairs, queries and weights are rounded to bfloat16 (2^-9 each):
# scores of size 1 move by 2^-9 of their parts' norm, and outputs by as much. torch's own attention
# in bfloat16 rounds the same and the output besides; test_bfloat16_is_as_exact_as_torch compares.
PAIR_TOLERANCE = 2e-2

CACHE_DTYPES = [*DTYPES, "int8"]
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 129, 300]


def tolerance(isa: str, dtype: str) -> float:
    in_pairs = dtype in ("bfloat16", "int8") and isa == "avx512_bf16"
    return PAIR_TOLERANCE if in_pairs else FLOAT_TOLERANCE


def backend(isa: str = "", threads: int = 2):
    return _core.make_cpu_backend(threads, isa)


def check(shape: Shape, isa: str, lengths=LENGTHS) -> None:
    sequences = [make_sequence(shape, n) for n in lengths]
    for sequence, out in zip(sequences, run_alone(shape, sequences, backend(isa))):
        error = np.abs(out - expected(shape, sequence)).max()
        assert error < tolerance(isa, shape.dtype)


@each_isa
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64, 72, 80, 96, 128, 256])
def test_attention_is_that_of_float64(isa, dtype, head_dim):
    check(Shape(head_dim=head_dim, dtype=dtype), isa, [1, 17, 65, 129])


@each_isa
@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (3, 3), (4, 1), (9, 3), (7, 1), (16, 2)])
def test_any_number_of_heads_shares_a_kv_head(isa, heads, kv_heads):
    check(Shape(heads=heads, kv_heads=kv_heads, dtype="bfloat16"), isa)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("block_size", [1, 2, 16, 64, 256])
def test_any_block_size_and_ragged_lengths_work(dtype, block_size):
    around = {1, block_size - 1, block_size, block_size + 1}
    check(Shape(dtype=dtype, block_size=block_size), ISAS[-1], sorted({*LENGTHS, *around} - {0}))


@each_isa
@pytest.mark.parametrize("window", [1, 7, 64, 100])
def test_a_sliding_window_hides_older_positions(isa, window):
    check(Shape(dtype="float32", window=window), isa)


@each_isa
def test_scores_are_softly_capped(isa):
    check(Shape(dtype="float32", softcap=2.0), isa)


@pytest.mark.parametrize("query_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_queries_and_outputs_have_dtypes_of_their_own(query_dtype, out_dtype):
    shape = Shape(query_dtype=query_dtype)
    sequence = make_sequence(shape, 70)
    (out,) = run_alone(shape, [sequence], backend(), out_dtype)
    want = expected(shape, sequence)
    rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[out_dtype]
    assert np.all(np.abs(decode(out) - want) <= FLOAT_TOLERANCE + rounding * np.abs(want))


def test_bfloat16_is_as_exact_as_torch():
    torch = pytest.importorskip("torch")
    shape = Shape(heads=8, kv_heads=2, dtype="bfloat16")
    sequence = make_sequence(shape, 512)
    (out,) = run_alone(shape, [sequence], backend())
    want = expected(shape, sequence)

    def tensor(rows):
        return torch.tensor(decode(rows)).bfloat16().permute(1, 0, 2)[None]

    theirs = torch.nn.functional.scaled_dot_product_attention(
        tensor(sequence.query),
        *(tensor(np.repeat(x, 4, axis=1)) for x in (sequence.key, sequence.value)),
        is_causal=True,
    )
    theirs = theirs[0].permute(1, 0, 2).double().numpy()
    assert np.sqrt(np.mean((out - want) ** 2)) < np.sqrt(np.mean((theirs - want) ** 2))


def decode_batch(shape: Shape, sequences, begins):
    """Spans of the last tokens of sequences whose earlier ones are in the cache."""
    cache = Cache(shape, blocks_of(shape, [len(s.query) for s in sequences]), seed=1)
    spans = []
    for sequence, begin in zip(sequences, begins):
        table: list[int] = []
        cache.write(table, sequence, 0, len(sequence.query))
        spans.append((sequence, table, begin, len(sequence.query)))
    return cache, spans


VARIANTS = [
    {"dtype": "float32"},
    {"dtype": "bfloat16", "heads": 9, "kv_heads": 3},
    {"dtype": "float16", "head_dim": 80},
    {"dtype": "bfloat16", "window": 50},
    {"dtype": "int8", "heads": 6, "kv_heads": 2, "head_dim": 72},
    {"dtype": "float32", "softcap": 3.0, "heads": 3, "kv_heads": 1},
]


@each_isa
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_is_the_same_to_the_bit_in_any_chunk(isa, variant):
    shape = Shape(**variant)
    sequence = make_sequence(shape, 333)
    (whole,) = run_alone(shape, [sequence], backend(isa))
    for chunk in (1, 37, 100):
        cache = Cache(shape, blocks_of(shape, [333]), seed=chunk)
        table: list[int] = []
        parts = []
        for begin in range(0, 333, chunk):
            end = min(begin + chunk, 333)
            cache.write(table, sequence, begin, end)
            parts += attend(shape, cache, [(sequence, table, begin, end)], backend(isa))
            if chunk == 1 and begin > 66:  # past the first tile
                break
        part = np.concatenate(parts)
        assert_same_bytes(part, whole[: len(part)])


@each_isa
@pytest.mark.parametrize("variant", [*VARIANTS, {"dtype": "float32", "window": 700}])
def test_a_long_sequence_is_the_same_to_the_bit_however_many_threads_share_it(isa, variant):
    shape = Shape(**variant)
    sequences = [make_sequence(shape, n) for n in (1300, 40)]
    cache, spans = decode_batch(shape, sequences, [1299, 38])
    alone = attend(shape, cache, spans, backend(isa, threads=1))
    want = expected(shape, sequences[0])[1299:]
    assert np.abs(alone[0] - want).max() < tolerance(isa, shape.dtype)
    for threads in (2, 3, 7):
        shared = attend(shape, cache, spans, backend(isa, threads))
        for one, other in zip(shared, alone):
            assert_same_bytes(one, other)


@each_isa
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_is_the_same_to_the_bit_in_any_batch(isa, variant):
    shape = Shape(**variant)
    lengths = [300, 1, 64, 129, 17, 65, 256, 257]
    begins = [299, 0, 0, 128, 3, 64, 192, 1]
    sequences = [make_sequence(shape, n) for n in lengths]
    cache, spans = decode_batch(shape, sequences, begins)
    together = attend(shape, cache, spans, backend(isa))
    for span, out in zip(spans, together):
        assert_same_bytes(attend(shape, cache, [span], backend(isa, 1))[0], out)


@each_isa
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_is_the_same_to_the_bit_for_any_block_size_and_number_of_threads(isa, variant):
    sequences = [make_sequence(Shape(**variant), n) for n in (300, 77)]
    want = None
    for block_size, threads in ((16, 2), (1, 1), (8, 3), (128, 4)):
        shape = Shape(**variant, block_size=block_size)
        outs = run_alone(shape, sequences, backend(isa, threads))
        want = want or outs
        for a, b in zip(outs, want):
            assert_same_bytes(a, b)


def test_an_empty_span_changes_nothing():
    shape = Shape()
    sequences = [make_sequence(shape, n) for n in (20, 33, 40)]
    cache, spans = decode_batch(shape, sequences, [19, 33, 39])
    first, middle, last = attend(shape, cache, spans, backend())
    assert middle.shape[0] == 0
    assert_same_bytes(first, attend(shape, cache, spans[:1], backend())[0])
    assert_same_bytes(last, attend(shape, cache, spans[2:], backend())[0])


def branch(shape: Shape, parent, tokens: int, length: int, *seed: int):
    """A sequence of `length` tokens that has its first `tokens` tokens in common with `parent`."""
    child = make_sequence(shape, length, *seed)
    for name in ("query", "key", "value"):
        getattr(child, name)[:tokens] = getattr(parent, name)[:tokens]
    return child


def tree_of_spans(shape: Shape, cache: Cache):
    """Spans whose tables share blocks as a tree: a prompt, its branches, theirs, and a stranger."""
    root = make_sequence(shape, 400)
    family = [(root, 0, None)]
    for i, (parent, tokens, length) in enumerate(
        [(0, 256, 300), (0, 256, 257), (1, 288, 420), (1, 288, 300), (0, 128, 129), (0, 400, 411)]
    ):
        family.append((branch(shape, family[parent][0], tokens, length, i), tokens, parent))
    family.append((make_sequence(shape, 200, 99), 0, None))
    spans, tables = [], []
    for sequence, tokens, parent in family:
        whole = tokens // shape.block_size
        table = list(tables[parent][:whole]) if parent is not None else []
        length = len(sequence.query)
        cache.write(table, sequence, whole * shape.block_size, length)
        tables.append(table)
        spans.append((sequence, table, length - 1 - len(spans) % 3, length))
    return spans


@each_isa
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("block_size", [16, 128])
def test_shared_blocks_change_no_bit(isa, variant, block_size):
    shape = Shape(**variant, block_size=block_size)
    cache = Cache(shape, 400)
    spans = tree_of_spans(shape, cache)
    order = np.random.default_rng(5).permutation(len(spans))
    for threads in (1, 2, 3):
        together = attend(shape, cache, [spans[i] for i in order], backend(isa, threads))
        for i, out in zip(order, together):
            assert_same_bytes(out, attend(shape, cache, [spans[i]], backend(isa))[0])
            assert np.isfinite(out).all()


def test_tables_may_agree_again_behind_blocks_in_which_they_differ():
    shape = Shape()
    cache = Cache(shape, 60)
    sequence = make_sequence(shape, 256)
    table: list[int] = []
    cache.write(table, sequence, 0, 256)
    spans = [(sequence, table, 255, 256)]
    for i in (0, 3, 4, 8, 15):
        other = list(table)
        other[i] = int(cache.free.pop())
        cache.array[other[i]] = cache.array[table[(i + 1) % 16]]
        spans.append((sequence, other, 255, 256))
    together = attend(shape, cache, spans, backend())
    for span, out in zip(spans, together):
        assert_same_bytes(out, attend(shape, cache, [span], backend())[0])
        assert not np.array_equal(out, together[0]) or span is spans[0]


def test_many_sequences_on_one_prefix_are_as_each_alone():
    shape = Shape(heads=9, kv_heads=3, dtype="bfloat16")
    cache = Cache(shape, 600)
    root = make_sequence(shape, 192)
    first: list[int] = []
    cache.write(first, root, 0, 192)
    spans = []
    for i in range(70):
        length = 193 + i
        sequence = branch(shape, root, 192, length, i)
        table = first[:12]
        cache.write(table, sequence, 192, length)
        spans.append((sequence, table, length - 1, length))
    for (sequence, *_), out in zip(spans, attend(shape, cache, spans, backend())):
        assert np.abs(out - expected(shape, sequence)[-1:]).max() < PAIR_TOLERANCE
    alone = [attend(shape, cache, [span], backend())[0] for span in spans[::10]]
    for a, b in zip(alone, attend(shape, cache, spans, backend())[::10]):
        assert_same_bytes(a, b)
