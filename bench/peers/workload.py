"""The work that every engine is given, and how it is measured.

An engine is an object with

* ``name`` and ``dtype`` (what it computes in),
* ``load(model_dir, num_threads)``,
* ``generate(prompts, max_new_tokens, n=1, temperature=0.0)`` that blocks until all requests are
  done (end-of-sequence ignored) and returns the number of tokens produced. ``prompts`` is a list
  of token-id lists, ``max_new_tokens`` an int or one int a prompt,
* ``pid`` if it computes in a process of its own.

Decode speeds are derived for every engine alike: ``B * (new - 1) / (t(new tokens) - t(1 token))``.
Every repetition uses new random prompts, so that no prefix cache can serve a prefill.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

FIRST_ID, LAST_ID = 300, 19_000  # ordinary token ids in both models
METRICS = ("ttft", "prefill", "decode", "parallel", "prefix", "trace")
Prompts = list[list[int]]


class Engine(Protocol):
    """What an adapter in engines.py provides."""

    name: str
    dtype: str

    def load(self, model_dir: str, num_threads: int) -> None: ...

    def generate(
        self,
        prompts: Prompts,
        max_new_tokens: int | list[int],
        n: int = 1,
        temperature: float = 0.0,
    ) -> int: ...


def random_prompts(rng: np.random.Generator, count: int, length: int) -> Prompts:
    """``count`` prompts of ``length`` random token ids."""
    return [rng.integers(FIRST_ID, LAST_ID, length).tolist() for _ in range(count)]


def trace_lengths(seed: int = 0, count: int = 64) -> tuple[list[int], list[int]]:
    """Prompt and output lengths: lognormal with ShareGPT's means, sigma 1, clipped to [4, 1024]."""
    rng = np.random.default_rng(seed)

    def draw(mean: float) -> list[int]:
        lengths = rng.lognormal(np.log(mean) - 0.5, 1.0, count)
        return np.clip(lengths, 4, 1024).astype(int).tolist()

    return draw(161.0), draw(338.0)


def trace_requests(seed: int) -> tuple[Prompts, list[int]]:
    """The trace's 64 requests with fresh random prompts."""
    prompt_lengths, output_lengths = trace_lengths()
    rng = np.random.default_rng(10_000 + seed)
    return [random_prompts(rng, 1, length)[0] for length in prompt_lengths], output_lengths


def shared_prefix_prompts(seed: int, count: int = 32, shared: int = 1024, own: int = 32) -> Prompts:
    """``count`` prompts that share their first ``shared`` tokens."""
    rng = np.random.default_rng(20_000 + seed)
    prefix = random_prompts(rng, 1, shared)[0]
    return [prefix + tail for tail in random_prompts(rng, count, own)]


def peak_memory_mb(pid: int | str = "self") -> float:
    """Peak resident memory of a process, in MB."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class Suite:
    """Measures one engine that is loaded already; every figure is a list of repetitions."""

    def __init__(self, engine: Engine, repetitions: int = 3, cap_s: float = 45.0) -> None:
        self.engine = engine
        self.repetitions = repetitions
        self.cap_s = cap_s
        self.rng = np.random.default_rng(time.time_ns())

    def seconds(self, prompts: Prompts, new: int | list[int], **sampling: Any) -> float:
        """Wall time of one batch; fails if the engine produced another number of tokens."""
        samples = sampling.get("n", 1)
        expected = samples * (sum(new) if isinstance(new, list) else new * len(prompts))
        start = time.perf_counter()
        produced = self.engine.generate(prompts, new, **sampling)
        elapsed = time.perf_counter() - start
        if produced != expected:
            raise RuntimeError(f"{self.engine.name} produced {produced} tokens, not {expected}")
        return elapsed

    def repeat(self, measure: Callable[[int], float]) -> list[float]:
        """Up to ``repetitions`` values, fewer once ``cap_s`` seconds have passed."""
        start, values = time.perf_counter(), []
        for i in range(self.repetitions):
            values.append(measure(i))
            if time.perf_counter() - start > self.cap_s:
                break
        return values

    def fresh(self, count: int, length: int) -> Prompts:
        """New random prompts."""
        return random_prompts(self.rng, count, length)

    def run(self, metrics: tuple[str, ...] = METRICS) -> Iterator[tuple[str, list[float]]]:
        """Yields (figure, values) as they are measured."""
        self.seconds(self.fresh(1, 128), 8)  # warm-up
        for metric in metrics:
            yield from getattr(self, f"measure_{metric}")()

    def measure_ttft(self) -> Iterator[tuple[str, list[float]]]:
        """Seconds to the first token of a 128-token prompt."""
        yield "ttft_128_s", self.repeat(lambda _: self.seconds(self.fresh(1, 128), 1))

    def measure_prefill(self) -> Iterator[tuple[str, list[float]]]:
        """Prompt tokens a second."""
        for length in (512, 2048):
            self.seconds(self.fresh(1, length), 1)
            values = self.repeat(lambda _, n=length: n / self.seconds(self.fresh(1, n), 1))
            yield f"prefill_{length}_tok_s", values

    def measure_decode(self, new: int = 128) -> Iterator[tuple[str, list[float]]]:
        """Generated tokens a second once the prompts are computed."""
        for batch in (1, 8, 32):
            pairs = [
                (self.seconds(self.fresh(batch, 128), 1), self.seconds(self.fresh(batch, 128), new))
                for _ in range(self.repetitions)
            ]
            first = statistics.median(pair[0] for pair in pairs)
            yield (
                f"decode_b{batch}_tok_s",
                [batch * (new - 1) / (whole - first) for _, whole in pairs],
            )

    def measure_parallel(self) -> Iterator[tuple[str, list[float]]]:
        """Seconds for 8 prompts of 512 tokens with 8 samples of 64 tokens each."""
        yield (
            "parallel_8x8_s",
            self.repeat(lambda _: self.seconds(self.fresh(8, 512), 64, n=8, temperature=1.0)),
        )

    def measure_prefix(self) -> Iterator[tuple[str, list[float]]]:
        """Seconds for 32 requests on one 1,024-token prefix, into a cold cache."""
        base = time.time_ns() % 1_000_000
        yield (
            "prefix_s",
            self.repeat(lambda i: self.seconds(shared_prefix_prompts(base + i), 32)),
        )

    def measure_trace(self) -> Iterator[tuple[str, list[float]]]:
        """Seconds for 64 requests of ShareGPT-like lengths, all submitted at once."""
        base = time.time_ns() % 1_000_000

        def one(i: int) -> float:
            prompts, new = trace_requests(base + i)
            return self.seconds(prompts, new)

        yield "trace_s", self.repeat(one)
