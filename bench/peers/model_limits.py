"""What the machine allows: the larger of operations over peak and bytes over bandwidth.

Weights are read once a step and K, V (bf16) of every context token once a step; activations stay in
cache. Weights of 8 and 4 bits count without scales, their operations at twice the bf16 peak.
"""

from __future__ import annotations

from engines import KV_GIB
from shapes import SHAPES, parameter_counts
from workload import trace_lengths

BITS = {"bf16": 16, "int8": 8, "int4": 4}


class ModelLimits:
    """Bounds of one model with weights of one width, at the machine's limits of one moment.

    ``limits`` holds bench_limits' ``dram_gb_s`` and ``bf16_gflop_s``.
    """

    def __init__(self, size: str, weights: str, limits: dict[str, float]) -> None:
        shape = SHAPES[size]
        self._all_pass, self._samples_pass = parameter_counts(size)
        self._weight_bytes = (self._all_pass + self._samples_pass) * BITS[weights] // 8
        attention = shape["head_dim"] * shape["num_hidden_layers"]
        self._pair_flops = 4 * shape["num_attention_heads"] * attention
        self._token_bytes = 4 * shape["num_key_value_heads"] * attention
        self._bytes_per_s = limits["dram_gb_s"] * 1e9
        self._flops_per_s = limits["bf16_gflop_s"] * 1e9 * (1 if weights == "bf16" else 2)

    def figures(self) -> dict[str, float]:
        """Figure name -> its bound, in the figure's own unit; not every figure has one."""
        bounds = {f"prefill_{n}_tok_s": n / self._prefill_seconds(n) for n in (512, 2048)}
        for batch in (1, 8, 32):
            seconds = self._decode_seconds([128 + 64] * batch)
            bounds[f"decode_b{batch}_tok_s"] = batch / seconds
        bounds["trace_s"] = self._trace_seconds()
        bounds["trace_peak_mb"] = (self._weight_bytes + (KV_GIB << 30)) / 2**20
        return bounds

    def _prefill_seconds(self, tokens: int) -> float:
        """Of one prompt, computed in one step."""
        flops = 2 * (tokens * self._all_pass + self._samples_pass)
        flops += self._pair_flops * tokens * (tokens + 1) / 2
        return max(flops / self._flops_per_s, self._weight_bytes / self._bytes_per_s)

    def _decode_seconds(self, contexts: list[int]) -> float:
        """Of one step that samples a token of each sequence."""
        flops = 2 * len(contexts) * (self._all_pass + self._samples_pass)
        flops += self._pair_flops * sum(contexts)
        bytes_read = self._weight_bytes + self._token_bytes * sum(contexts)
        return max(flops / self._flops_per_s, bytes_read / self._bytes_per_s)

    def _trace_seconds(self) -> float:
        """All prompts one after another, then decode steps of whoever is still unfinished."""
        prompts, outputs = trace_lengths()
        seconds = sum(map(self._prefill_seconds, prompts))
        for step in range(1, max(outputs)):
            running = [p + step for p, o in zip(prompts, outputs) if o > step]
            seconds += self._decode_seconds(running)
        return seconds
