"""The ops of a Backend on arrays; pagedcore.ops is the face."""

from __future__ import annotations

import collections.abc
import enum
import typing

import pagedcore._core

class LinearEpilogue(enum.Enum):
    ACCUMULATE = ...
    GATED = ...
    STORE = ...

def copy_blocks(
    arg0: pagedcore._core.Backend, arg1: typing.Any, arg2: typing.Any, arg3: str
) -> None: ...
def embed(
    backend: pagedcore._core.Backend,
    ids: typing.Any,
    table: typing.Any,
    y: typing.Any,
    dtype: str = "",
    y_dtype: str = "",
    id_offset: int = 0,
    accumulate: bool = False,
) -> None: ...
def gated_activation(
    backend: pagedcore._core.Backend,
    activation: pagedcore._core.Activation | None,
    gate_up: typing.Any,
    y: typing.Any,
    dtype: str = "",
    y_dtype: str = "",
) -> None: ...
def linear(
    backend: pagedcore._core.Backend,
    x: typing.Any,
    weights: collections.abc.Sequence[typing.Any],
    y: typing.Any,
    biases: collections.abc.Sequence[typing.Any | None] = [],
    epilogue: LinearEpilogue = ...,
    activation: pagedcore._core.Activation | None = None,
    in_out: bool = False,
    x_dtype: str = "",
    weight_dtype: str = "",
    bias_dtype: str = "",
    y_dtype: str = "",
) -> None: ...
def linear_quantized(
    backend: pagedcore._core.Backend,
    x: typing.Any,
    data: typing.Any,
    scales: typing.Any,
    y: typing.Any,
    dtype: str,
    group_size: int,
    zero_points: typing.Any | None = None,
    x_dtype: str = "",
) -> None: ...
def norm(
    backend: pagedcore._core.Backend,
    kind: pagedcore._core.NormKind | None,
    x: typing.Any,
    weight: typing.Any | None,
    bias: typing.Any | None,
    rows: typing.Any | None,
    y: typing.Any,
    x_dtype: str = "",
    weight_dtype: str = "",
    y_dtype: str = "",
    epsilon: float = 9.999999747378752e-06,
) -> None: ...
def paged_attention(
    arg0: pagedcore._core.Backend,
    arg1: typing.Any,
    arg2: typing.Any,
    arg3: typing.Any,
    arg4: typing.Any,
    arg5: typing.Any,
    arg6: typing.Any,
    arg7: str,
    arg8: str,
    arg9: str,
    arg10: int,
    arg11: float,
    arg12: int,
    arg13: float,
) -> None: ...
def quantize_weight(
    weight: typing.Any, dtype: str, group_size: int, weight_dtype: str = "", num_threads: int = 0
) -> tuple[typing.Any]: ...
def rope_and_cache(
    backend: pagedcore._core.Backend,
    qkv: typing.Any,
    slots: typing.Any,
    kv_cache: typing.Any,
    query: typing.Any | None = None,
    positions: typing.Any | None = None,
    cos_sin: typing.Any | None = None,
    q_norm: typing.Any | None = None,
    k_norm: typing.Any | None = None,
    dtype: str = "",
    cache_dtype: str = "",
    layer: int = 0,
    rotary_dim: int = 0,
    epsilon: float = 9.999999974752427e-07,
) -> None: ...
