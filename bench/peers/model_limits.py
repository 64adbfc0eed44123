"""What the machine allows: the larger of operations over peak and bytes over bandwidth.

Weights are read once a step and K, V of every context token once a step; activations stay in cache.
"""

from __future__ import annotations

from shapes import SHAPES, parameter_counts
from workload import trace_lengths


def step_seconds(
    size: str, limits: dict[str, float], tokens: int, context: float, rows: int
) -> float:
    """Least seconds of one step of ``tokens`` tokens, ``rows`` of them sampled.

    ``context`` is the number of (query token, key token) pairs that attention must score; the bytes
    of K and V that it reads are counted by the caller's choice of one query a sequence (decode).
    """
    shape = SHAPES[size]
    layers, lm_head = parameter_counts(size)
    flops = 2 * tokens * layers + 2 * rows * lm_head
    flops += (
        4 * context * shape["num_attention_heads"] * shape["head_dim"] * shape["num_hidden_layers"]
    )
    weights_bytes = 2 * (layers + lm_head)
    kv_bytes = 4 * shape["num_key_value_heads"] * shape["head_dim"] * shape["num_hidden_layers"]
    decode_context = context if tokens == rows else 0
    seconds_bytes = (weights_bytes + kv_bytes * decode_context) / (limits["dram_gb_s"] * 1e9)
    return max(flops / (limits["bf16_gflop_s"] * 1e9), seconds_bytes)


def model_limits(size: str, limits: dict[str, float]) -> dict[str, float]:
    """Figure name -> its bound on this machine, in the figure's own unit."""
    bounds = {}
    for length in (512, 2048):
        pairs = length * (length + 1) / 2
        bounds[f"prefill_{length}_tok_s"] = length / step_seconds(size, limits, length, pairs, 1)
    for batch in (1, 8, 32):
        seconds = step_seconds(size, limits, batch, batch * (128 + 64), batch)
        bounds[f"decode_b{batch}_tok_s"] = batch / seconds
    bounds["trace_s"] = trace_seconds(size, limits)
    return bounds


def trace_seconds(size: str, limits: dict[str, float]) -> float:
    """All prompts in one go, then decode steps of whoever is still unfinished."""
    prompts, outputs = trace_lengths()
    seconds = sum(step_seconds(size, limits, p, p * (p + 1) / 2, 1) for p in prompts)
    for step in range(1, max(outputs)):
        running = [p + step for p, o in zip(prompts, outputs) if o > step]
        seconds += step_seconds(size, limits, len(running), sum(running), len(running))
    return seconds
