"""Host time of a decode step of vLLM's scheduler alone: schedule() and update_from_output().

python bench/peers/vllm_scheduler.py MODEL_DIR 256 1024

Requests of 128 tokens, all running, one token each a step, no model. Prints ``{"256": us, ..}``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time

import numpy as np
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 16
PROMPT_TOKENS = 128
STEPS = 128


def make_scheduler(model_dir: str, running: int) -> Scheduler:
    """A scheduler whose KV cache has room for ``running`` requests."""
    num_blocks = running * ((PROMPT_TOKENS + 2 * STEPS) // BLOCK_SIZE + 2)
    config = EngineArgs(
        model=model_dir,
        skip_tokenizer_init=True,
        max_model_len=4096,
        max_num_seqs=running,
        max_num_batched_tokens=8192,
        block_size=BLOCK_SIZE,
        enable_prefix_caching=False,
        async_scheduling=False,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=8, head_size=64, dtype=torch.bfloat16
    )
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
        log_stats=False,
    )


def step(scheduler: Scheduler) -> tuple[int, float]:
    """Requests in one step, and the microseconds that the scheduler took for it."""
    start = time.perf_counter()
    plan = scheduler.schedule()
    planned = time.perf_counter()
    ids = list(plan.num_scheduled_tokens)
    indices = {request: i for i, request in enumerate(ids)}
    output = ModelRunnerOutput(ids, indices, sampled_token_ids=[[7]] * len(ids))
    computed = time.perf_counter()
    scheduler.update_from_output(plan, output)
    return len(ids), 1e6 * (planned - start + time.perf_counter() - computed)


def decode_step_us(model_dir: str, running: int) -> float:
    """Median of STEPS steps with ``running`` requests."""
    scheduler = make_scheduler(model_dir, running)
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=0.0, max_tokens=2000, ignore_eos=True)
    for i in range(running):
        prompt = rng.integers(300, 19_000, PROMPT_TOKENS).tolist()
        scheduler.add_request(Request(f"r{i}", prompt, params, None))
    for _ in range(running * PROMPT_TOKENS // 8192 + 2):
        step(scheduler)
    steps = [step(scheduler) for _ in range(STEPS)]
    assert all(count == running for count, _ in steps)
    return statistics.median(microseconds for _, microseconds in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir")
    parser.add_argument("running", type=int, nargs="+")
    args = parser.parse_args()
    gc.collect()
    gc.freeze()  # as vLLM's engine core does
    print(json.dumps({n: decode_step_us(args.model_dir, n) for n in args.running}))


if __name__ == "__main__":
    main()
