"""How a step's cost grows with batch, context and position, at 1 and 2 threads, as plots.

    python bench/growth.py MODEL_DIR --prompt FILE   measures, writes results/growth_cpu.jsonl
    python bench/growth.py --plot                    draws growth.svg from it (needs matplotlib)

The longest context is computed once and kept in FILE; every other context is a fork of it at an
earlier token. `--growths` and `--seconds` cut the work into pieces: a prompt that is not finished
goes on from FILE, contexts that it does not reach yet are left out, and figures take the place of
older ones. Each is the median of some steps; beside it stands the least time that bytes and
operations allow at the limits measured just before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from quiet import Quiet

from pagedcore import LLM, SamplingParams, _core
from pagedcore.cli.bench import step_weight_bytes, step_weights

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "growth_cpu.jsonl"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (128, 512, 2048, 8192, 32_000)
BATCH_CONTEXT = 128
CHUNK = 2048
STEPS = 16
FIRST_ID, LAST_ID = 300, 19_000


class Floor:
    """The least time of a step: bytes over bandwidth or operations over peak.

    ``measure`` waits for a quiet machine and finds both limits; call it before what they bound.
    """

    def __init__(self, llm: LLM, threads: int, quiet: Quiet) -> None:
        model, plan = llm.engine.model_config, llm.engine.memory_plan
        self._threads, self._quiet = threads, quiet
        self._all_pass, self._samples_pass = step_weights(llm)
        self._weight_bytes = step_weight_bytes(llm)
        self._token_bytes = plan.block_bytes / llm.engine.config.block_size
        self._pair_flops = 4 * model.num_heads * model.head_dim * model.num_layers

    def measure(self) -> None:
        self._quiet.hold()
        self.limits = _core.measure_cpu_limits(self._threads)

    def line(self, growth: str, x: int, milliseconds: float, least: float) -> dict:
        """One figure beside its bound and the limits that gave it."""
        limits = {"dram_gb_s": self.limits.dram_gb_s, "bf16_gflop_s": self.limits.bf16_gflop_s}
        return {"growth": growth, "x": x, "ms": milliseconds, "least_ms": least, **limits}

    def milliseconds(self, tokens: int, pairs: int, kv_tokens: int, samples: int) -> float:
        """Of a step over `tokens`, with `pairs` of query and key and `kv_tokens` of K and V."""
        bytes_read = self._weight_bytes + self._token_bytes * kv_tokens
        flops = 2 * (self._all_pass * tokens + self._samples_pass * samples)
        flops += self._pair_flops * pairs
        seconds_reading = bytes_read / (self.limits.dram_gb_s * 1e9)
        return 1e3 * max(seconds_reading, flops / (self.limits.bf16_gflop_s * 1e9))


def step_milliseconds(engine: _core.Engine) -> float:
    """Wall time of one engine step."""
    start = time.perf_counter()
    engine.step()
    return 1e3 * (time.perf_counter() - start)


def decode_milliseconds(engine: _core.Engine) -> float:
    """Median wall time of a decode step of what is running; the first one may finish prompts."""
    return statistics.median(step_milliseconds(engine) for _ in range(STEPS))


def greedy(max_tokens: int) -> _core.SamplingParams:
    """Argmax decoding that no end-of-sequence stops."""
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True).core


def measure_batches(llm: LLM, floor: Floor, random: np.random.Generator) -> Iterator[dict]:
    """A decode step of 1 to 128 sequences of equal context."""
    for batch in BATCHES:
        running = [
            llm.engine.add_request(prompt.tolist(), greedy(STEPS + 8))
            for prompt in random.integers(FIRST_ID, LAST_ID, (batch, BATCH_CONTEXT))
        ]
        while len(llm.engine.step()) < batch:
            pass
        floor.measure()
        milliseconds = decode_milliseconds(llm.engine)
        kv_tokens = batch * (BATCH_CONTEXT + STEPS // 2)
        least = floor.milliseconds(batch, kv_tokens, kv_tokens, batch)
        yield floor.line("batch", batch, milliseconds, least)
        for request in running:
            llm.engine.abort(request)


class LongPrompt:
    """A prompt that `llm` computes chunk by chunk, kept in a file from process to process."""

    def __init__(self, llm: LLM, path: Path, length: int) -> None:
        self._engine, self._path = llm.engine, path
        self._tokens = np.random.default_rng(1).integers(FIRST_ID, LAST_ID, length).tolist()
        self.request: int | None = None
        self.position = 0
        if path.exists():
            with path.open("rb") as file:
                self.position = int.from_bytes(file.read(8), "little")
                self.request = self._engine.load(file.read(), greedy(1), hold=True)
            self._finish()

    @property
    def is_whole(self) -> bool:
        return self.position == len(self._tokens)

    def extend(self) -> tuple[int, float]:
        """Computes the next chunk: how many tokens it has, and the wall time of its step in ms."""
        chunk = self._tokens[self.position : self.position + CHUNK]
        before, options = self.request, {"hold": True}
        if before is None:
            self.request = self._engine.add_request(chunk, greedy(1), **options)
        else:
            self.request = self._engine.fork(
                before, greedy(1), at_token=self.position, more_tokens=chunk, **options
            )
            self._engine.abort(before)
        milliseconds = step_milliseconds(self._engine)
        self._finish()
        self.position += len(chunk)
        return len(chunk), milliseconds

    def save(self) -> None:
        with self._path.open("wb") as file:
            file.write(self.position.to_bytes(8, "little"))
            file.write(self._engine.save(self.request))

    def _finish(self) -> None:
        while self._engine.has_unfinished():
            self._engine.step()


def measure_contexts(
    llm: LLM, floor: Floor, prompt: LongPrompt, contexts: list[int]
) -> Iterator[dict]:
    """A decode step of one sequence, forked from the prompt at ever later tokens."""
    for context in contexts:
        if context > prompt.position:
            break
        branch = llm.engine.fork(prompt.request, greedy(STEPS + 8), at_token=context)
        llm.engine.step()
        floor.measure()
        milliseconds = decode_milliseconds(llm.engine)
        least = floor.milliseconds(1, context, context, 1)
        yield floor.line("context", context, milliseconds, least)
        llm.engine.abort(branch)


def measure_prefill(floor: Floor, prompt: LongPrompt, seconds: float) -> Iterator[dict]:
    """The chunks of the prompt that are still to be computed, until `seconds` have passed."""
    end = time.monotonic() + seconds
    while not prompt.is_whole and time.monotonic() < end:
        floor.measure()
        position = prompt.position
        tokens, milliseconds = prompt.extend()
        pairs = tokens * position + tokens * (tokens + 1) // 2
        least = floor.milliseconds(tokens, pairs, position + tokens, 1)
        yield floor.line("position", position, milliseconds, least)
    prompt.save()


def measure(args: argparse.Namespace, threads: int, quiet: Quiet) -> Iterator[dict]:
    """The figures asked for at one thread count."""
    llm = LLM(
        args.model,
        num_threads=threads,
        max_model_len=args.contexts[-1] + 64,
        max_num_batched_tokens=CHUNK,
        kv_cache_bytes=2 << 30,
        enable_prefix_caching=False,
    )
    floor = Floor(llm, threads, quiet)
    if "batch" in args.growths:
        yield from measure_batches(llm, floor, np.random.default_rng(0))
    if args.prompt is None:
        return
    prompt = LongPrompt(llm, args.prompt, args.contexts[-1])
    if "position" in args.growths and threads == args.threads[0]:
        yield from measure_prefill(floor, prompt, args.seconds)
    if "context" in args.growths:
        yield from measure_contexts(llm, floor, prompt, args.contexts)


def write(results: Path, new: dict) -> None:
    """Adds a line, or puts it in the place of the one of the same growth, x and thread count."""

    def key(line: dict) -> tuple:
        return line["model"], line["threads"], line["growth"], line["x"]

    text = results.read_text() if results.exists() else ""
    lines = {key(line): line for line in map(json.loads, text.splitlines())} | {key(new): new}
    order = sorted(lines.values(), key=lambda line: (-line["threads"], line["growth"], line["x"]))
    results.write_text("".join(json.dumps(line) + "\n" for line in order))


PANELS = {
    "batch": ("Decode by batch", f"sequences, of {BATCH_CONTEXT} tokens each"),
    "context": ("Decode of one sequence by context", "context, tokens"),
    "position": (f"Prefill by {CHUNK}-token chunk", "position of the chunk, tokens"),
}


def plot(results: Path, image: Path) -> None:
    """One panel a kind of growth, one colour a thread count, floors dashed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in results.read_text().splitlines()]
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 4.2), layout="constrained")
    for axis, (growth, (title, xlabel)) in zip(axes, PANELS.items()):
        for threads, colour in ((1, "tab:blue"), (2, "tab:orange")):
            points = [p for p in lines if p["growth"] == growth and p["threads"] == threads]
            if not points:
                continue
            xs = [p["x"] for p in points]
            label = f"{threads} thread" + ("s" if threads > 1 else "")
            axis.plot(xs, [p["ms"] for p in points], "o-", color=colour, label=label)
            least = [p["least_ms"] for p in points]
            axis.plot(xs, least, "--", color=colour, alpha=0.6, label=f"{label}, machine's limit")
        axis.set(title=title, xlabel=xlabel, ylabel="time of a step, ms")
        if growth == "position":
            axis.set(ylim=(0, None))
        else:
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(xs, map(str, xs), minor=False)
            axis.xaxis.set_minor_formatter("")
            axis.yaxis.set_major_formatter("{x:g}")
            bottom, top = axis.get_ylim()
            axis.yaxis.set_minor_formatter("{x:g}" if top < 10 * bottom else "")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"Cost of one step on the CPU, model {lines[0]['model']}")
    figure.savefig(image, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="the first prefills")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="ascending")
    parser.add_argument("--growths", nargs="+", default=list(PANELS), choices=list(PANELS))
    parser.add_argument("--prompt", type=Path, help="file that keeps the longest context's KV")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for the prompt")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", action="store_true", help="draw --results, measure nothing")
    parser.add_argument("--lock", type=Path, nargs="*", default=[], help="files to flock meanwhile")
    args = parser.parse_args()
    if args.plot:
        plot(args.results, HERE / "growth.svg")
        return
    if args.model is None:
        parser.error("MODEL_DIR is needed to measure")
    if args.prompt is None and set(args.growths) != {"batch"}:
        parser.error("--prompt FILE is needed for position and context")
    quiet = Quiet(args.lock)
    for threads in args.threads:
        for line in measure(args, threads, quiet):
            line = {"model": Path(args.model).name, "threads": threads} | line
            print(json.dumps(line), flush=True)
            write(args.results, line)


if __name__ == "__main__":
    main()
