"""The two model shapes that every engine serves: S, a 135M Llama, and M, a 1.24B Llama."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "S": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "rope_theta": 10_000.0,
    },
    "M": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "rope_theta": 500_000.0,
    },
}


def parameter_counts(size: str) -> tuple[int, int]:
    """Weights that every token passes, and those that only tokens that sample need to pass.

    The latter lie behind the last layer's keys and values: its attention's output and MLP, and the
    vocabulary projection.
    """
    shape = SHAPES[size]
    hidden, head_dim = shape["hidden_size"], shape["head_dim"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    qkv = hidden * head_dim * (heads + 2 * kv_heads)
    behind = hidden * head_dim * heads + 3 * hidden * shape["intermediate_size"]
    layers = shape["num_hidden_layers"]
    return layers * qkv + (layers - 1) * behind, behind + hidden * shape["vocab_size"]
