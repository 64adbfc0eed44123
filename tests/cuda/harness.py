"""Calls the ops of libpagedcore's CUDA backend on torch tensors, through a C test library."""

import ctypes
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

KINDS = {"float32": 0, "float16": 1, "bfloat16": 2, "fp8_e4m3": 3}
TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
}
DTYPES = {v: KINDS[k] for k, v in TORCH.items()}
NORMS = {"rms": 0, "layer": 1, "none": 2}
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4}
EPILOGUES = {"store": 0, "accumulate": 1, "gated": 2}
POISON_ENTRY = 2147480000  # for block-table entries that must not be read


def find_library() -> Path | None:
    """The C test library of a build with PAGEDCORE_CUDA=ON and PAGEDCORE_TESTS=ON."""
    named = os.environ.get("PAGEDCORE_CUDA_OPS")
    root = Path(__file__).resolve().parents[2]
    places = (
        [Path(named)] if named else sorted(root.glob("build/*/tests/cuda/libpagedcore_cuda_ops.so"))
    )
    return next((p for p in places if p.exists()), None)


def address(x):
    if x is None:
        return 0
    if isinstance(x, torch.Tensor):
        assert x.is_contiguous()
        return x.data_ptr()
    return int(x)


def kind(x):
    return 0 if x is None else DTYPES[x.dtype]


@dataclass
class Cache:
    """A KV cache tensor [blocks, layers, 2, kv_heads, block_size, head_dim] and its scales."""

    data: torch.Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0

    def ints(self):
        n, layers, _, heads, size, dim = self.data.shape
        return [address(self.data), DTYPES[self.data.dtype], n, layers, heads, size, dim]

    def floats(self):
        return [self.k_scale, self.v_scale]


@dataclass
class Batch:
    """Spans of sequences over one table matrix; host tensors."""

    query_lens: list[int]
    context_lens: list[int]
    tables: list[list[int]]
    block_size: int
    stride: int
    store: bool = True
    share: bool = True  # splits that several sequences hold in the same blocks are read once
    tokens: list[int] | None = None
    keep: list = field(default_factory=list)

    def positions(self):
        return [
            c + i for c, q in zip(self.context_lens, self.query_lens, strict=True) for i in range(q)
        ]

    def slots(self):
        out = []
        for c, q, table in zip(self.context_lens, self.query_lens, self.tables, strict=True):
            for p in range(c, c + q):
                out.append(table[p // self.block_size] * self.block_size + p % self.block_size)
        return out

    def ints(self):
        starts = [0]
        for q in self.query_lens:
            starts.append(starts[-1] + q)
        total, n = starts[-1], len(self.query_lens)
        padded = [[*t, *[POISON_ENTRY] * (self.stride - len(t))] for t in self.tables]
        updates = [(i, j, block) for i, table in enumerate(padded) for j, block in enumerate(table)]

        def host(values, dtype=torch.int32):
            t = torch.tensor(values, dtype=dtype)
            self.keep.append(t)
            return t.data_ptr()

        logit_rows = [s - 1 for s, q in zip(starts[1:], self.query_lens, strict=True) if q > 0]
        contexts = [c + q for c, q in zip(self.context_lens, self.query_lens, strict=True)]
        return [
            total,
            n,
            len(logit_rows),
            max(self.query_lens),
            max(contexts),
            host(self.tokens or [0] * total),
            host(self.positions()),
            host(self.slots(), torch.int64),
            host(starts),
            host(self.context_lens),
            host(list(range(n))),
            self.stride,
            host(logit_rows),
            host(updates),
            len(updates),
            host(padded) if self.share else 0,
            self.block_size,
        ]


class Ops:
    def __init__(self, library: Path, device: str = "cuda"):
        self.lib = ctypes.CDLL(str(library))
        self.lib.ops_open.restype = ctypes.c_void_p
        self.lib.ops_error.restype = ctypes.c_char_p
        self.lib.ops_error.argtypes = [ctypes.c_void_p]
        self.lib.ops_close.argtypes = [ctypes.c_void_p]
        self.lib.ops_call.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
        ]
        self.lib.ops_allocate_host.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        self.lib.ops_allocate_host.restype = ctypes.c_void_p
        self.lib.ops_free_host.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        text = ctypes.create_string_buffer(1024)
        self.handle = self.lib.ops_open(device.encode(), text, ctypes.c_int64(1024))
        self.description = text.value.decode()
        if not self.handle:
            raise RuntimeError(self.description)

    def close(self):
        self.lib.ops_close(self.handle)

    def call(self, op, ints, floats=(), repeats=1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        i = (ctypes.c_int64 * len(ints))(*ints)
        f = (ctypes.c_double * max(1, len(floats)))(*floats)
        if self.lib.ops_call(self.handle, op.encode(), i, f, repeats):
            raise RuntimeError(self.lib.ops_error(self.handle).decode())

    def embed(self, ids, table, y, id_offset=0, accumulate=False):
        self.call(
            "embed",
            [
                ids.numel(),
                table.shape[1],
                address(ids),
                id_offset,
                address(table),
                kind(table),
                table.shape[0],
                int(accumulate),
                address(y),
                kind(y),
            ],
        )

    def norm(self, norm, x, y, weight=None, bias=None, rows=None, epsilon=1e-5):
        self.call(
            "norm",
            [
                NORMS[norm],
                y.shape[0],
                y.shape[1],
                address(x),
                kind(x),
                address(rows),
                address(weight),
                address(bias),
                kind(weight),
                address(y),
                kind(y),
            ],
            [epsilon],
        )

    def linear_ints(
        self,
        x,
        weights,
        y,
        biases=None,
        epilogue="store",
        activation="none",
        in_out=False,
        norm=(None, None, None),  # weight, scaled and squares of the split norm of y
        x_squares=None,
    ):
        ints = [
            x.shape[0],
            x.shape[1],
            address(x),
            kind(x),
            x.stride(0),
            len(weights),
            EPILOGUES[epilogue],
            ACTIVATIONS[activation],
            address(y),
            kind(y),
            y.stride(0),
        ]
        for w, b in zip(weights, biases or [None] * len(weights), strict=True):
            out = w.shape[1] if in_out else w.shape[0]
            ints += [address(w), kind(w), int(in_out), out, address(b), kind(b)]
        weight, scaled, squares = norm
        return [*ints, address(weight), kind(weight), *map(address, (scaled, squares, x_squares))]

    def linear(self, *args, x_epsilon=1e-5, **kwargs):
        self.call("linear", self.linear_ints(*args, **kwargs), [x_epsilon])

    def rope_and_cache(self, *args, **kwargs):
        self.call("rope_and_cache", *self.rope_and_cache_args(*args, **kwargs))

    def linear_rope_and_cache(self, linear, *args, x_epsilon=1e-5, **kwargs):
        """`linear`: what linear_ints() gave; the rest as for rope_and_cache()."""
        ints, floats = self.rope_and_cache_args(*args, **kwargs)
        has_squares = linear[-1] != 0
        self.call("linear_rope_and_cache", linear + ints, [x_epsilon] * has_squares + floats)

    def rope_and_cache_args(
        self,
        qkv,
        positions,
        slots,
        query,
        cache,
        layer=0,
        cos_sin=None,
        rotary_dim=0,
        q_norm=None,
        k_norm=None,
        epsilon=1e-6,
    ):
        ints = [
            qkv.shape[0],
            query.shape[1],
            address(qkv),
            kind(qkv),
            address(positions),
            address(slots),
            address(cos_sin),
            rotary_dim,
            address(q_norm),
            address(k_norm),
            kind(q_norm),
            address(query),
            kind(query),
            layer,
            *cache.ints(),
        ]
        return ints, [epsilon, *cache.floats()]

    def stage(self, batch: Batch):
        ints = batch.ints()
        self.call("reserve_steps", [max(ints[0], 1024), max(ints[1], 256), batch.stride])
        self.call("stage", ints)
        batch.keep.clear()

    def attention_args(
        self, query, out, cache, layer=0, scale=1.0, window=0, softcap=0.0, as_step=0
    ):
        return (
            [
                int(as_step),
                query.shape[1],
                address(query),
                kind(query),
                layer,
                window,
                address(out),
                kind(out),
                *cache.ints(),
            ],
            [scale, softcap, *cache.floats()],
        )

    def paged_attention(self, *args, repeats=1, **kwargs):
        ints, floats = self.attention_args(*args, **kwargs)
        self.call("paged_attention", ints, floats, repeats)

    def gated_activation(self, gate_up, y, activation="silu"):
        self.call(
            "gated_activation",
            [
                y.shape[0],
                y.shape[1],
                address(gate_up),
                kind(gate_up),
                ACTIVATIONS[activation],
                address(y),
                kind(y),
            ],
        )

    def copies(self, what, cache, pairs, host=0, host_blocks=0, repeats=1):
        flat = torch.tensor(pairs, dtype=torch.int32)
        self.call(
            "copies",
            [what, host, host_blocks, flat.data_ptr(), len(pairs), *cache.ints()],
            cache.floats(),
            repeats,
        )

    def sample(self, logits, rows, max_top=0):
        """Samples rows, dicts of SampleRow's fields; gives all outputs in their order."""
        n = len(rows)
        tokens, ranks = torch.zeros(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
        logprobs = torch.zeros(n)
        top, top_logprobs = torch.zeros(n, max_top, dtype=torch.int32), torch.zeros(n, max_top)
        keep, ints, floats = [], [], []

        def span(values, width=1):
            t = torch.tensor(values, dtype=torch.int32)
            keep.append(t)
            return [t.data_ptr(), len(values)]

        for row in rows:
            bias = row.get("bias", [])
            packed = torch.zeros(max(1, len(bias)), 2, dtype=torch.int32)
            for j, (token, value) in enumerate(bias):
                packed[j, 0] = token
                packed[j, 1:].view(torch.float32)[0] = value
            keep.append(packed)
            ints += [
                row.get("logit_row", 0),
                row.get("top_k", 0),
                row.get("num_top", -1),
                row.get("given_token", -1),
                row.get("seed", 0),
                row.get("position", 0),
                *span(row.get("seen", [])),
                packed.data_ptr(),
                len(bias),
                *span(row.get("allowed", [])),
                *span(row.get("banned", [])),
            ]
            floats += [
                row.get("temperature", 0.0),
                row.get("top_p", 1.0),
                row.get("min_p", 0.0),
                row.get("repetition_penalty", 1.0),
                row.get("presence_penalty", 0.0),
                row.get("frequency_penalty", 0.0),
            ]
        head = [
            address(logits),
            logits.shape[0],
            logits.shape[1],
            tokens.data_ptr(),
            n,
            logprobs.data_ptr(),
            n,
            ranks.data_ptr(),
            n,
            max_top,
            top.data_ptr(),
            n * max_top,
            top_logprobs.data_ptr(),
            n * max_top,
            n,
        ]
        self.call("sample", head + ints, floats)
        return tokens, logprobs, ranks, top, top_logprobs


def gather(cache: Cache, layer, table, length):
    """K and V of a sequence's first `length` tokens as float64 [length, heads, dim]."""
    size = cache.data.shape[4]
    blocks = torch.tensor(table[: (length + size - 1) // size], device=cache.data.device)
    data = cache.data.view(torch.uint8)[blocks, layer].view(cache.data.dtype)
    kv = data.to(torch.float32).to(torch.float64).permute(1, 0, 3, 2, 4)
    kv = kv.reshape(2, -1, cache.data.shape[3], cache.data.shape[5])[:, :length]
    return kv[0] * cache.k_scale, kv[1] * cache.v_scale


def reference_attention(query, cache, batch: Batch, layer=0, scale=1.0, window=0, softcap=0.0):
    """Float64 attention of a batch from the rounded inputs: [tokens, heads, dim]."""
    outs, start = [], 0
    for q_len, context, table in zip(
        batch.query_lens, batch.context_lens, batch.tables, strict=True
    ):
        if q_len == 0:
            continue
        q = query[start : start + q_len].to(torch.float64)
        start += q_len
        k, v = gather(cache, layer, table, context + q_len)
        group = q.shape[1] // k.shape[1]
        s = torch.einsum("qhgd,khd->hgqk", q.view(q_len, k.shape[1], group, -1), k) * scale
        if softcap:
            s = softcap * torch.tanh(s / softcap)
        at = torch.arange(context, context + q_len, device=q.device)[:, None]
        key = torch.arange(context + q_len, device=q.device)[None, :]
        seen = key <= at
        if window:
            seen &= key > at - window
        s = s.masked_fill(~seen, -torch.inf)
        v = v.masked_fill(~seen.any(0)[:, None, None], 0.0)
        out = torch.einsum("hgqk,khd->qhgd", torch.softmax(s, -1), v)
        outs.append(out.reshape(q_len, q.shape[1], -1))
    return torch.cat(outs)


def relative_error(out, reference):
    out = out.to(torch.float64)
    assert not out.isnan().any(), "NaN in the output"
    return ((out - reference).norm() / reference.norm()).item()
