"""The work that every engine is given, and how it is measured.

Decode speeds are derived for every engine alike: ``B * (new - 1) / (t(new tokens) - t(1 token))``,
the latter as the mean of one turn before and one after, since the machine's speed drifts.
Every repetition uses new random prompts, so that no prefix cache can serve a prefill.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from engines import Batch, Engine

FIRST_ID, LAST_ID = 300, 19_000  # ordinary token ids in both models


def trace_lengths(seed: int = 0, count: int = 64) -> tuple[list[int], list[int]]:
    """Prompt and output lengths: lognormal with ShareGPT's means, sigma 1, clipped to [4, 1024]."""
    rng = np.random.default_rng(seed)

    def draw(mean: float) -> list[int]:
        lengths = rng.lognormal(np.log(mean) - 0.5, 1.0, count)
        return np.clip(lengths, 4, 1024).astype(int).tolist()

    return draw(161.0), draw(338.0)


class Work:
    """Measures single figures of one loaded engine, with prompts drawn from ``seed``."""

    def __init__(self, engine: Engine, seed: int, decode_tokens: int = 128) -> None:
        self._engine = engine
        self._rng = np.random.default_rng(seed)
        self._decode_tokens = decode_tokens

    def measure(self, figure: str, repetitions: int) -> list[float]:
        """``repetitions`` values of a figure named in FIGURES."""
        once = FIGURES[figure]
        return [once(self) for _ in range(repetitions)]

    def warm_up(self) -> None:
        """The first requests of a process pay for what it makes lazily."""
        self._seconds(Batch(self._fresh(1, 128), [8]))
        self._seconds(Batch(self._fresh(2, 64), [4] * 2))

    def _fresh(self, count: int, length: int) -> list[list[int]]:
        """``count`` prompts of ``length`` random token ids."""
        return self._rng.integers(FIRST_ID, LAST_ID, (count, length)).tolist()

    def _seconds(self, batch: Batch) -> float:
        """Wall time of one batch; fails if the engine produced another number of tokens."""
        expected = batch.samples * sum(batch.lengths)
        start = time.perf_counter()
        produced = self._engine.generate(batch)
        elapsed = time.perf_counter() - start
        if produced != expected:
            raise RuntimeError(f"the engine produced {produced} tokens, not {expected}")
        return elapsed

    def first_token(self) -> float:
        """Seconds to the first token of a 128-token prompt."""
        return self._seconds(Batch(self._fresh(1, 128), [1]))

    def prefill(self, length: int) -> float:
        """Prompt tokens a second of one prompt."""
        return length / self._seconds(Batch(self._fresh(1, length), [1]))

    def decode(self, batch: int) -> float:
        """Generated tokens a second once the 128-token prompts are computed."""

        def seconds(tokens: int) -> float:
            return self._seconds(Batch(self._fresh(batch, 128), [tokens] * batch))

        before, whole, after = seconds(1), seconds(self._decode_tokens), seconds(1)
        return batch * (self._decode_tokens - 1) / (whole - (before + after) / 2)

    def parallel(self) -> float:
        """Seconds for 8 prompts of 512 tokens with 8 samples of 64 tokens each."""
        return self._seconds(Batch(self._fresh(8, 512), [64] * 8, samples=8, temperature=1.0))

    def prefix(self) -> float:
        """Seconds for 32 requests of 32 tokens on one 1,024-token prefix, into a cold cache."""
        (shared,) = self._fresh(1, 1024)
        return self._seconds(Batch([shared + own for own in self._fresh(32, 32)], [32] * 32))

    def trace(self) -> float:
        """Seconds for 64 requests of ShareGPT-like lengths, all submitted at once."""
        prompt_lengths, output_lengths = trace_lengths()
        prompts = [self._fresh(1, length)[0] for length in prompt_lengths]
        return self._seconds(Batch(prompts, output_lengths))


FIGURES: dict[str, Callable[[Work], float]] = {
    "ttft_128_s": Work.first_token,
    "prefill_512_tok_s": lambda work: work.prefill(512),
    "prefill_2048_tok_s": lambda work: work.prefill(2048),
    "decode_b1_tok_s": lambda work: work.decode(1),
    "decode_b8_tok_s": lambda work: work.decode(8),
    "decode_b32_tok_s": lambda work: work.decode(32),
    "parallel_8x8_s": Work.parallel,
    "prefix_s": Work.prefix,
    "trace_s": Work.trace,
}
