"""pagedcore bench: throughput and latency of a model, and the share of the machine's limit."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagedcore import _core
from pagedcore._core import InvalidArgument
from pagedcore.cli.options import HelpFormatter, add_engine_options, load_model
from pagedcore.cli.watch import add_watch_option, num_preemptions, watching
from pagedcore.llm import LLM
from pagedcore.sampling_params import SamplingParams

_EXAMPLES = """\
examples:
  pagedcore bench --model ./smol --prompt-len 512 --output-len 1    prefill
  pagedcore bench --model ./smol --num-prompts 1 --output-len 256   decode, one at a time
  pagedcore bench --model ./smol --trace lengths.txt --limit 200    lengths of real requests"""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="measure throughput and latency",
        description="Serve prompts of random tokens, all given at once, and measure throughput, "
        "latency\nand the share of the limit that this machine was measured to have.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--num-prompts", type=int, default=32, metavar="N", help="requests")
    parser.add_argument("--prompt-len", type=int, default=128, metavar="N", help="tokens each")
    parser.add_argument("--output-len", type=int, default=128, metavar="N", help="tokens each")
    parser.add_argument(
        "--trace", metavar="FILE", help='lengths instead: lines of "prompt output", in tokens'
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N lines of the trace"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random tokens")
    parser.add_argument("--no-probe", action="store_true", help="do not measure the machine first")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_watch_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.seed < 0:
        raise InvalidArgument(f"--seed must be at least 0, got {args.seed}")
    llm = load_model(args)
    lengths = read_lengths(args, llm.engine.config.max_model_len)
    limits = None
    if not args.no_probe and llm.engine.backend_description.startswith("cpu"):
        limits = _core.measure_cpu_limits(args.threads or 0, args.isa or "")
    with watching(llm, args.watch):
        measured = measure(llm, lengths, args.seed)
    facts = summary(llm, lengths, measured, limits)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        shown = f"{value:,.4g}" if isinstance(value, float) and value < 1000 else value
        shown = f"{value:,.0f}" if isinstance(value, float) and value >= 1000 else shown
        print(f"{name.replace('_', ' '):<28} {shown}")
    return 0


def read_lengths(args: argparse.Namespace, longest: int) -> list[tuple[int, int]]:
    """(prompt, output) tokens of each request; prompts are cut so that both fit the model."""
    if args.trace is None:
        lengths = [(args.prompt_len, args.output_len)] * args.num_prompts
    else:
        lengths = _read_trace(Path(args.trace))[: args.limit]
    if not lengths or min(min(pair) for pair in lengths) < 1:
        raise InvalidArgument("there must be a request, and all lengths must be at least 1")
    most = max(output for _, output in lengths)
    if most >= longest:
        raise InvalidArgument(f"output lengths must be below max_model_len ({longest}), got {most}")
    return [(min(prompt, longest - output), output) for prompt, output in lengths]


def _read_trace(path: Path) -> list[tuple[int, int]]:
    try:
        lines = path.read_text().splitlines()
        rows = [line.split()[:2] for line in lines if line.strip() and line[0] != "#"]
        return [(int(prompt), int(output)) for prompt, output in rows]
    except (OSError, ValueError) as error:
        raise InvalidArgument(f'{path} is no list of "prompt output" lines: {error}') from None


@dataclass
class Measured:
    """What a run showed; the lists have one entry a step or one a request."""

    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)
    step_samples: list[int] = field(default_factory=list)
    step_waste: list[float] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)
    per_token_ms: list[float] = field(default_factory=list)


def measure(llm: LLM, lengths: list[tuple[int, int]], seed: int) -> Measured:
    """Serves all requests at once, after one short request that warms up."""
    import numpy as np
    from tqdm import tqdm

    random = np.random.default_rng(seed)
    vocabulary = llm.engine.model_config.vocab_size
    prompts = [random.integers(0, vocabulary, size=prompt).tolist() for prompt, _ in lengths]
    llm.generate([prompts[0][:8]], SamplingParams(max_tokens=2, temperature=0), use_tqdm=False)
    engine, result = llm.engine, Measured()
    begin, computed = time.perf_counter(), engine.stats().num_computed_tokens
    outputs: dict[int, int] = {}
    for prompt, (_, output) in zip(prompts, lengths):
        params = SamplingParams(max_tokens=output, ignore_eos=True, temperature=0)
        outputs[engine.add_request(prompt, params.core)] = output
    no_progress = llm.on_step is not None or not sys.stderr.isatty()
    with tqdm(total=len(prompts), unit="request", disable=no_progress) as progress:
        while engine.has_unfinished():
            started = time.perf_counter()
            updates = engine.step()
            result.step_seconds.append(time.perf_counter() - started)
            if llm.on_step is not None:
                llm.on_step()
            stats = engine.stats()
            result.step_tokens.append(stats.num_computed_tokens - computed)
            result.step_samples.append(len(updates))
            result.step_waste.append(stats.waste)
            computed = stats.num_computed_tokens
            for update in updates:
                if (metrics := update.metrics) is not None:
                    result.first_token_ms.append(metrics.first_token_us / 1e3)
                    rest = (metrics.total_us - metrics.first_token_us) / 1e3
                    result.per_token_ms.append(rest / max(1, outputs[update.request_id] - 1))
                    progress.update()
    result.seconds = time.perf_counter() - begin
    return result


def summary(
    llm: LLM, lengths: list[tuple[int, int]], run: Measured, limits: _core.CpuLimits | None
) -> dict[str, Any]:
    """The figures of a run, units in their names."""
    import numpy as np

    stats = llm.engine.stats()
    prompt_tokens = sum(prompt for prompt, _ in lengths)
    output_tokens = sum(output for _, output in lengths)
    facts: dict[str, Any] = {
        "backend": llm.engine.backend_description,
        "requests": len(lengths),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "seconds": run.seconds,
        "output_tokens_per_second": output_tokens / run.seconds,
        "total_tokens_per_second": (prompt_tokens + output_tokens) / run.seconds,
        "first_token_ms_median": float(np.median(run.first_token_ms)),
        "first_token_ms_p99": float(np.percentile(run.first_token_ms, 99)),
        "per_token_ms_median": float(np.median(run.per_token_ms)),
        "per_token_ms_p99": float(np.percentile(run.per_token_ms, 99)),
        "steps": len(run.step_tokens),
        "host_us_per_step": stats.total_host_us / max(1, stats.num_steps),
        "preemptions": num_preemptions(stats),
        "kv_waste_percent": 100 * float(np.mean(run.step_waste)),
    }
    if limits is not None:
        seconds = limit_seconds(llm, lengths, run, limits)
        facts["memory_gb_per_second"] = limits.dram_gb_s
        facts["bf16_gflop_per_second"] = limits.bf16_gflop_s
        facts["share_of_limit_percent"] = 100 * seconds / run.seconds
    return facts


def limit_seconds(
    llm: LLM, lengths: list[tuple[int, int]], run: Measured, limits: _core.CpuLimits
) -> float:
    """The least time in which this machine could have done the run's steps.

    A step reads every weight once and multiplies it with every token, or with those that sample
    where it lies behind the last layer's keys and values, whichever takes longer; each decoded
    token reads the KV of all tokens before it.
    """
    import numpy as np

    plan = llm.engine.memory_plan
    all_pass, samples_pass = step_weights(llm)
    weight_bytes = step_weight_bytes(llm)
    bits = 8 * weight_bytes / (all_pass + samples_pass)
    # Products of signed bytes run at twice the rate of bfloat16.
    peak = limits.f32_gflop_s if bits > 16 else limits.bf16_gflop_s * (2 if bits < 16 else 1)
    tokens, samples = np.array(run.step_tokens), np.array(run.step_samples)
    compute = 2 * (all_pass * tokens + samples_pass * samples) / (peak * 1e9)
    read = weight_bytes / (limits.dram_gb_s * 1e9)
    contexts = sum(output * (prompt + output / 2) for prompt, output in lengths)
    kv = contexts * plan.block_bytes / llm.engine.config.block_size / (limits.dram_gb_s * 1e9)
    return float(np.maximum(compute, read).sum() + kv)


def step_weights(llm: LLM) -> tuple[int, int]:
    """Weights that every token of a step passes, and those that only tokens that sample pass."""
    model = llm.engine.model_config
    head = model.vocab_size * model.hidden_size
    matrices = model.intermediate_size * (3 if model.gated_mlp else 2)
    behind = model.hidden_size * (model.num_heads * model.head_dim + matrices)
    return llm.num_weights - head * (1 if model.tied_embeddings else 2) - behind, behind + head


def step_weight_bytes(llm: LLM) -> int:
    """Bytes of weights that a step reads: all but a token embedding that is not lm_head too."""
    tensors = dict(llm.tensors)
    if "lm_head.weight" in tensors:
        for name in llm.tensors:
            if name.endswith(("embed_tokens.weight", "wte.weight")):
                del tensors[name]
    bits = {"float32": 32, "int32": 32, "int8": 8, "int4": 4}
    return sum(math.prod(shape) * bits.get(dtype, 16) // 8 for dtype, shape in tensors.values())
