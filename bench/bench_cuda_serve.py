"""Serves one workload with pagedcore and with transformers' continuous batching on one GPU.

The Llama-3.2-1B shape, random bf16 weights, greedy, prompts of 512 tokens. Decode speed is that of
the tokens between the 8th and the 72nd of every sequence: the time of 72 new tokens less that of 8.
`profile` looks at the kernels of decode steps instead.
Run: python bench/bench_cuda_serve.py ours|transformers|profile [--batches 1 32 256] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from shapes import SHAPES

PROMPT, FEW, MANY = 512, 8, 72


def llama_config() -> Any:
    from transformers import LlamaConfig

    shape = dict(SHAPES["M"])
    theta = shape.pop("rope_theta")
    return LlamaConfig(
        **shape,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


def random_tensors() -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, all of them views of one buffer."""
    c = SHAPES["M"]
    hidden, mlp = c["hidden_size"], c["intermediate_size"]
    heads, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    buffer = (torch.randn(c["vocab_size"] * hidden) / 64).to(torch.bfloat16)
    shapes = {
        "model.embed_tokens.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (heads, hidden),
            layer + "self_attn.k_proj.weight": (kv, hidden),
            layer + "self_attn.v_proj.weight": (kv, hidden),
            layer + "self_attn.o_proj.weight": (hidden, heads),
            layer + "mlp.gate_proj.weight": (mlp, hidden),
            layer + "mlp.up_proj.weight": (mlp, hidden),
            layer + "mlp.down_proj.weight": (hidden, mlp),
        }
    return {name: buffer[: torch.Size(shape).numel()].view(shape) for name, shape in shapes.items()}


def make_ours() -> Any:
    from pagedcore import LLM

    return LLM.from_tensors(
        llama_config().to_dict(),
        random_tensors(),
        device="cuda",
        max_model_len=1024,
        max_num_seqs=256,
        max_num_batched_tokens=4096,
        num_blocks=256 * 40,
        enable_prefix_caching=False,
    )


def prompts_of(batch: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(batch)
    return torch.randint(10, 128000, (batch, PROMPT), generator=g).tolist()


def ours() -> Any:
    from pagedcore import SamplingParams

    llm = make_ours()

    def generate(prompts: list[list[int]], count: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs)

    return generate


def transformers() -> Any:
    from transformers import GenerationConfig, LlamaForCausalLM
    from transformers import __version__ as version

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(llama_config(), attn_implementation="sdpa").eval()
    print(f"transformers {version}", flush=True)

    def generate(prompts: list[list[int]], count: int) -> int:
        config = GenerationConfig(
            max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=2
        )
        outputs = model.generate_batch(prompts, generation_config=config, progress_bar=False)
        return sum(len(o.generated_tokens) for o in outputs.values())

    return generate


def compare(name: str, batches: list[int], out: Path | None) -> None:
    generate = {"ours": ours, "transformers": transformers}[name]()
    for batch in batches:
        prompts = prompts_of(batch)
        times: dict[int, float] = {}
        generate(prompts, FEW)  # graphs, memory and compiled code are there from now on
        for count in (FEW, MANY):
            start = time.perf_counter()
            tokens = generate(prompts, count)
            times[count] = time.perf_counter() - start
            if tokens != batch * count:
                print(f"{name}: {tokens} tokens instead of {batch * count}", flush=True)
        line = {
            "bench": "cuda_serve",
            "engine": name,
            "model": "llama-1b",
            "batch": batch,
            "prompt": PROMPT,
            "decode_tokens_per_s": round(batch * (MANY - FEW) / (times[MANY] - times[FEW])),
            "seconds_of_72": round(times[MANY], 4),
            "device": torch.cuda.get_device_name(),
        }
        print(json.dumps(line), flush=True)
        if out:
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")


STEPS_PROFILED = 8


def profile(batches: list[int], out: Path) -> None:
    """Where a decode step's time goes.

    Prints, for each batch size, the time of a step; the part of it in which a kernel or a copy ran;
    and the rest, in which the device waits for the host. The first is measured without a profiler,
    for that slows the host; all are medians. Writes one step's kernels in the order of their
    starts, and how long each kind ran.
    """
    from pagedcore import _core

    engine = make_ours().engine
    params = _core.SamplingParams()
    params.temperature, params.max_tokens, params.ignore_eos = 0.0, 400, True
    with out.open("w") as file:
        for batch in batches:
            ids = [engine.add_request(prompt, params) for prompt in prompts_of(batch)]
            while len(engine.step()) < batch:
                pass
            times = []
            for _ in range(8 + 4 * STEPS_PROFILED):
                start = time.perf_counter()
                engine.step()
                times.append((time.perf_counter() - start) * 1e6)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
                torch.cuda.synchronize()
                for _ in range(STEPS_PROFILED + 1):
                    engine.step()
            for id_ in ids:
                engine.abort(id_)
            steps = steps_of(prof)
            step_us = median(times[8:])
            busy_us = median(busy(step) for step in steps)
            line = {
                "bench": "cuda_step_profile",
                "model": "llama-1b",
                "batch": batch,
                "step_us": round(step_us, 1),
                "busy_us": round(busy_us, 1),
                "gap_us": round(step_us - busy_us, 1),
                "device": torch.cuda.get_device_name(),
            }
            print(json.dumps(line), flush=True)
            file.write(f"# {json.dumps(line)}\n")
            write_step(file, steps[-1])


Event = tuple[float, float, str]  # start and end in us, name


def steps_of(prof: torch.profiler.profile) -> list[list[Event]]:
    """The kernels and copies between the ends of two sampling kernels, in the order of starts."""
    events = sorted(
        (e.start_ns() / 1e3, (e.start_ns() + e.duration_ns()) / 1e3, e.name())
        for e in prof.profiler.kineto_results.events()
        if e.duration_ns() > 0 and not e.name().startswith("cuda")
    )
    ends = [i for i, event in enumerate(events) if "sample_kernel" in event[2]]
    return [events[a + 1 : b + 1] for a, b in pairwise(ends)]


def busy(step: list[Event]) -> float:
    """The time in which at least one of them ran."""
    reached, total = step[0][0], 0.0
    for start, end, _ in step:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def write_step(file: Any, step: list[Event]) -> None:
    kinds: dict[str, list[float]] = {}
    for start, end, name in step:
        kinds.setdefault(name[:90], []).append(end - start)
    for name, times in sorted(kinds.items(), key=lambda kind: -sum(kind[1])):
        file.write(f"# {sum(times):.1f} us in {len(times)}: {name}\n")
    for start, end, name in step:
        file.write(f"{start - step[0][0]:.2f} {end - start:.2f} {name[:90]}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["ours", "transformers", "profile"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32, 256])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    try:
        if args.what == "profile":
            profile(args.batches, args.out or Path("profile.txt"))
        else:
            compare(args.what, args.batches, args.out)
    except Exception as error:
        print(f"{args.what}: not measured: {type(error).__name__}: {error}"[:2000])
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
