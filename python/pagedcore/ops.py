"""Attention over a paged KV cache, on numpy arrays and torch tensors where they lie.

A KV cache is one array `[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]` (keys,
then values) of float32, float16 or bfloat16. Torch tensors of bfloat16 are taken as they are; numpy
has no bfloat16, so there it is an array of uint16 together with `dtype="bfloat16"`. On the CPU the
cache may be int8 `[..., head_dim + 4]`: a row ends with the float32 that times its numbers is their
value. Slot `block * block_size + offset` is the place of one token; a block table lists the blocks
of a sequence in order. Arrays must be dense and row-major; none is copied but where a function says
so.

Tensors on a CUDA device are worked on there, on torch's current stream, without waiting for it. All
of a call lie on one device then, but tables, lengths, slots and copies, which the host reads: give
them as lists or host arrays, for device tensors of them are first copied and so waited for.
Other libraries' CUDA arrays come by DLPack and are worked on on the legacy default stream, or on
that of `backend`: `_core.make_cuda_backend(device, stream)`, where `stream` is a cudaStream_t.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from pagedcore import _core
from pagedcore._core import ops as _ops
from pagedcore.tensors import dtype_of

__all__ = ["copy_blocks", "paged_attention", "write_kv"]

Array: TypeAlias = Any  # a numpy array, a torch tensor, a CUDA array with DLPack

_CUDA = 2  # of DLPack's devices

_backends = threading.local()


def paged_attention(
    query: Array,
    kv_cache: Array,
    block_tables: ArrayLike,
    context_lens: ArrayLike,
    *,
    query_starts: ArrayLike | None = None,
    layer: int = 0,
    scale: float | None = None,
    sliding_window: int = 0,
    softcap: float = 0.0,
    dtype: str = "",
    out: Array | None = None,
    backend: _core.Backend | None = None,
) -> Array:
    """Causal attention of new tokens over the cached tokens of their sequences, their own included.

    Prefill chunks and decodes go in one call. Token i of a sequence's span stands at position
    p = context_lens + i and sees positions (p - sliding_window, p]; the keys and values of all of
    them must be in the cache (`write_kv`). On the CPU a row's result has the same bits whatever
    else is in the batch, however its sequence is cut into spans, and for any block size; CUDA gives
    other last bits for a span of one token than for longer ones.

    Args:
        query: `[num_tokens, num_heads, head_dim]`, the spans of all sequences end to end; float32,
            float16 or bfloat16. num_heads is a multiple of num_kv_heads.
        kv_cache: As the module says.
        block_tables: int32 `[num_seqs, any]`; entries behind a sequence's last block are not read.
        context_lens: int32 `[num_seqs]`, each sequence's tokens in the cache before its span.
        query_starts: int32 `[num_seqs + 1]`, the first token of each span, then num_tokens. By
            default each sequence has one token.
        layer: Which layer of the cache.
        scale: Of the scores; 1 / sqrt(head_dim) by default.
        sliding_window: In tokens; 0 for none.
        softcap: Scores become `softcap * tanh(score / softcap)`; 0 for none.
        dtype: "bfloat16" where uint16 arrays hold that.
        out: Where to put the result, of query's shape; new by default, like `query`, which must be
            a numpy array or torch tensor then.
        backend: Which threads and instruction set, or device and stream to use; by default one of
            the calling thread's own: as many threads as the process may use, or query's device.

    Returns:
        `out`: `[num_tokens, num_heads, head_dim]`.

    Raises:
        InvalidArgument: An array has the wrong shape, dtype, layout or device, or a table leads
            outside the cache; the message names argument, value and rule.
        BackendUnavailable: For CUDA tensors, where this build or machine has no CUDA.

    Source:
        Kwon et al., "Efficient Memory Management for Large Language Model Serving with
        PagedAttention", SOSP 2023, section 4.
    """
    contexts = _int32(context_lens)
    starts = np.arange(len(contexts) + 1) if query_starts is None else query_starts
    result = _like(query) if out is None else out
    _check_one_device(query=query, kv_cache=kv_cache, out=result)
    _ops.paged_attention(
        backend or _default_backend(query),
        query,
        kv_cache,
        _int32(block_tables),
        contexts,
        _int32(starts),
        result,
        _dtype(query, dtype),
        _dtype(result, dtype),
        _dtype(kv_cache, dtype),
        layer,
        float(query.shape[-1]) ** -0.5 if scale is None else scale,
        sliding_window,
        softcap,
    )
    return result


def write_kv(
    key: Array,
    value: Array,
    kv_cache: Array,
    slots: ArrayLike,
    *,
    layer: int = 0,
    dtype: str = "",
    backend: _core.Backend | None = None,
) -> None:
    """Writes the keys and values of tokens into the cache, rounded to its dtype.

    Args:
        key: `[num_tokens, num_kv_heads, head_dim]`; float32, float16 or bfloat16. Key and value are
            copied once to lie side by side.
        value: Of the same shape and dtype.
        kv_cache: As the module says; changed in place.
        slots: int64 `[num_tokens]`, the place of each token; -1: it is left out.
        layer: Which layer of the cache.
        dtype: "bfloat16" where uint16 arrays hold that.
        backend: As for `paged_attention`.

    Raises:
        InvalidArgument: An array has the wrong shape, dtype, layout or device, or a slot lies
            outside the cache.
        BackendUnavailable: As for `paged_attention`.
    """
    if key.shape != value.shape or dtype_of(key) != dtype_of(value):
        raise _core.InvalidArgument(
            f"key and value must have one shape and dtype, got {dtype_of(key)}{[*key.shape]} and "
            f"{dtype_of(value)}{[*value.shape]}"
        )
    _check_one_device(kv_cache=kv_cache, key=key, value=value)
    both = _concatenate(key, value)
    _ops.rope_and_cache(
        backend or _default_backend(kv_cache),
        both,
        np.ascontiguousarray(_on_host(slots), np.int64),
        kv_cache,
        dtype=_dtype(key, dtype),
        cache_dtype=_dtype(kv_cache, dtype),
        layer=layer,
    )


def copy_blocks(
    kv_cache: Array,
    copies: ArrayLike,
    *,
    dtype: str = "",
    backend: _core.Backend | None = None,
) -> None:
    """Copies whole blocks, over all layers, within the cache.

    Args:
        kv_cache: As the module says; changed in place.
        copies: int32 `[num_copies, 2]`, source and destination blocks. No destination repeats or is
            also a source.
        dtype: "bfloat16" where a uint16 array holds that.
        backend: As for `paged_attention`.

    Raises:
        InvalidArgument: A block lies outside the cache, or a destination repeats or is a source.
        BackendUnavailable: As for `paged_attention`.
    """
    pairs = _int32(copies).reshape(-1, 2)
    targets = pairs[:, 1]
    if len(np.unique(targets)) < len(targets) or np.isin(targets, pairs[:, 0]).any():
        raise _core.InvalidArgument(
            f"copies must have no destination that repeats or is a source, got {pairs.tolist()}"
        )
    _ops.copy_blocks(
        backend or _default_backend(kv_cache), kv_cache, pairs, _dtype(kv_cache, dtype)
    )


def _default_backend(array: Array) -> _core.Backend:
    """Of the array's device and current stream; a thread's own, for it serves one at a time."""
    kind, device = _device(array)
    key = (kind, device, _current_stream(array, device) if kind == _CUDA else 0)
    found: dict[tuple[int, int, int], _core.Backend] = _backends.__dict__.setdefault("found", {})
    if key not in found:
        on_cuda = kind == _CUDA
        found[key] = _core.make_cuda_backend(*key[1:]) if on_cuda else _core.make_cpu_backend()
    return found[key]


def _device(array: Array) -> tuple[int, int]:
    """DLPack's kind and number; what does not know DLPack is on the host, or is refused later."""
    if not hasattr(array, "__dlpack_device__"):
        return 1, 0
    kind, device = array.__dlpack_device__()
    return int(kind), int(device)


def _current_stream(array: Array, device: int) -> int:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return 0
    return int(torch.cuda.current_stream(device).cuda_stream)


def _check_one_device(**arrays: Array) -> None:
    """Raises InvalidArgument unless all are on the host, or all on one CUDA device."""
    names = list(arrays)
    places = [_device(array) for array in arrays.values()]
    for name, place in zip(names, places, strict=True):
        if place != places[0] and _CUDA in (place[0], places[0][0]):
            raise _core.InvalidArgument(
                f"{name} must be where {names[0]} is, {_place(places[0])}, got {_place(place)}"
            )


def _place(device: tuple[int, int]) -> str:
    return f"cuda:{device[1]}" if device[0] == _CUDA else "host memory"


def _on_host(values: Any) -> Any:
    return values.cpu() if hasattr(values, "cpu") else values


def _dtype(array: Array, dtype: str) -> str:
    return dtype if dtype_of(array) == "uint16" else ""


def _int32(values: ArrayLike) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.ascontiguousarray(_on_host(values), np.int32)


def _like(array: Array) -> Array:
    return np.empty_like(array) if isinstance(array, np.ndarray) else array.new_empty(array.shape)


def _concatenate(key: Array, value: Array) -> Array:
    if isinstance(key, np.ndarray):
        return np.concatenate([key, value], axis=1)
    both = key.new_empty((key.shape[0], 2 * key.shape[1], key.shape[2]))
    both[:, : key.shape[1]], both[:, key.shape[1] :] = key, value
    return both
