"""Batches for paged attention, their answer in float64, and the call."""

from dataclasses import dataclass

import numpy as np
from support.arrays import UNUSED_ENTRY, decode, encode, rng, storage

from pagedcore import _core


@dataclass
class Sequence:
    """Everything that one sequence holds: its tokens' queries, keys and values, in order."""

    query: np.ndarray  # [tokens, heads, head_dim]
    key: np.ndarray  # [tokens, kv_heads, head_dim]
    value: np.ndarray


@dataclass
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: str = "float32"
    query_dtype: str = "float32"
    window: int = 0
    softcap: float = 0.0
    layers: int = 2
    layer: int = 1

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


def make_sequence(shape: Shape, tokens: int, *seed: int) -> Sequence:
    """Random rows, already rounded to the dtypes in which the op will read them."""
    random = rng(7, tokens, *seed)

    def rows(heads: int, dtype: str) -> np.ndarray:
        return encode(random.normal(size=(tokens, heads, shape.head_dim)), dtype)

    return Sequence(
        rows(shape.heads, shape.query_dtype),
        rows(shape.kv_heads, shape.dtype),
        rows(shape.kv_heads, shape.dtype),
    )


def expected(shape: Shape, sequence: Sequence) -> np.ndarray:
    """Causal attention of every token of a sequence, in float64: [tokens, heads, head_dim]."""
    query, key, value = (decode(x) for x in (sequence.query, sequence.key, sequence.value))
    group = shape.heads // shape.kv_heads
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) * shape.scale
    if shape.softcap:
        scores = shape.softcap * np.tanh(scores / shape.softcap)
    row, column = np.indices(scores.shape[1:])
    hidden = column > row
    if shape.window:
        hidden |= column <= row - shape.window
    scores[:, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, value)


class Cache:
    """A pool of blocks in which every slot that no sequence holds is NaN."""

    def __init__(self, shape: Shape, num_blocks: int, seed: int = 0):
        self.shape = shape
        array = np.full(
            (num_blocks, shape.layers, 2, shape.kv_heads, shape.block_size, shape.head_dim),
            np.nan,
            np.float32,
        )
        self.array = encode(array, shape.dtype)
        self.free = list(rng(11, seed).permutation(num_blocks))

    def write(self, table: list[int], sequence: Sequence, begin: int, end: int) -> None:
        """Writes tokens [begin, end), taking blocks as `table` grows; their order is random."""
        size = self.shape.block_size
        while len(table) * size < end:
            table.append(int(self.free.pop()))
        for position in range(begin, end):
            block, offset = table[position // size], position % size
            for kind, rows in enumerate((sequence.key, sequence.value)):
                self.array[block, self.shape.layer, kind, :, offset] = rows[position]


def blocks_of(shape: Shape, lengths) -> int:
    return sum(-(-length // shape.block_size) for length in lengths) + 3


def attend(shape: Shape, cache: Cache, spans, backend, out_dtype: str = "float32"):
    """Runs spans [(sequence, table, begin, end)] as one batch; gives the output of each."""
    width = max(len(table) for _, table, _, _ in spans) + 2
    tables = np.full((len(spans), width), UNUSED_ENTRY, np.int32)
    for row, (_, table, _, _) in zip(tables, spans):
        row[: len(table)] = table
    query = np.concatenate([s.query[begin:end] for s, _, begin, end in spans])
    out = np.full(query.shape, 77, storage(out_dtype))
    lengths = [end - begin for _, _, begin, end in spans]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    contexts = np.array([begin for _, _, begin, _ in spans], np.int32)
    _core.ops.paged_attention(
        backend, query, cache.array, tables, contexts, starts, out,
        shape.query_dtype, out_dtype, shape.dtype,
        shape.layer, shape.scale, shape.window, shape.softcap,
    )  # fmt: skip
    return np.split(out, starts[1:-1])


def run_alone(shape: Shape, sequences, backend, out_dtype: str = "float32"):
    """Every sequence from its first token to its last, all in one batch."""
    cache = Cache(shape, blocks_of(shape, [len(s.query) for s in sequences]))
    spans = []
    for sequence in sequences:
        table: list[int] = []
        cache.write(table, sequence, 0, len(sequence.query))
        spans.append((sequence, table, 0, len(sequence.query)))
    return attend(shape, cache, spans, backend, out_dtype)
