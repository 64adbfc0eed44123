"""Prefill and decode of one model through the engine, as shares of the limit around each run.

    python bench/end_to_end.py MODEL_DIR --rounds 7

Memory bandwidth of a shared machine drifts by the second, so the limits are measured right before
and right after every run and averaged; the medians over the rounds are what to quote. Neighbours
that stop a processor within a run lower its share; that of the run's median step leaves them out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass

from pagedcore import LLM, _core
from pagedcore.cli.bench import limit_seconds, measure


@dataclass(frozen=True)
class Work:
    """Requests of equal lengths, given all at once."""

    name: str
    requests: int
    prompt_tokens: int
    output_tokens: int

    def lengths(self) -> list[tuple[int, int]]:
        """(prompt, output) tokens of each request."""
        return [(self.prompt_tokens, self.output_tokens)] * self.requests


WORKS = [
    Work("prefill 512", 1, 512, 1),
    Work("prefill 2048", 1, 2048, 1),
    Work("decode 1", 1, 8, 128),
    Work("decode 8", 8, 8, 128),
    Work("decode 32", 32, 8, 64),
]


def limits_now(threads: int) -> _core.CpuLimits:
    """The machine's ceilings at this moment, best instruction set."""
    return _core.measure_cpu_limits(threads, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="works by name, 'decode 1,decode 8'")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else [work.name for work in WORKS]
    works = [work for work in WORKS if work.name in wanted]

    llm = LLM(args.model, num_threads=args.threads, max_model_len=4096, enable_prefix_caching=False)
    shares: dict[str, list[float]] = {work.name: [] for work in works}
    step_shares: dict[str, list[float]] = {work.name: [] for work in works}
    rates: dict[str, list[float]] = {work.name: [] for work in works}
    bandwidth: list[float] = []
    for seed in range(args.rounds):
        before = limits_now(args.threads)
        for work in works:
            run = measure(llm, work.lengths(), seed)
            after = limits_now(args.threads)
            least = [limit_seconds(llm, work.lengths(), run, limits) for limits in (before, after)]
            tokens = work.requests * max(work.output_tokens - 1, work.prompt_tokens)
            rates[work.name].append(tokens / run.seconds)
            shares[work.name].append(100 * statistics.mean(least) / run.seconds)
            median_steps = statistics.median(run.step_seconds) * len(run.step_seconds)
            step_shares[work.name].append(100 * statistics.mean(least) / median_steps)
            bandwidth.append(after.dram_gb_s)
            before = after
    for work in works:
        line = {
            "work": work.name,
            "tokens_per_second": round(statistics.median(rates[work.name]), 1),
            "share_of_limit_percent": round(statistics.median(shares[work.name]), 1),
            "lowest": round(min(shares[work.name]), 1),
            "highest": round(max(shares[work.name]), 1),
            "of_median_step_percent": round(statistics.median(step_shares[work.name]), 1),
        }
        print(json.dumps(line))
    print(json.dumps({"dram_gb_s_median": round(statistics.median(bandwidth), 1)}))


if __name__ == "__main__":
    main()
