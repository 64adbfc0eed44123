"""Whole engines on CUDA: the CPU's tokens and transformers', whatever happens in the engine."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pagedcore")
from support import models

from pagedcore import LLM, BackendUnavailable, SamplingParams

LENGTHS = (1, 3, 8, 17, 25, 40, 64, 90)
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
OPTIONS = {"block_size": 8, "num_blocks": 256, "max_num_batched_tokens": 50}


@pytest.fixture(scope="module", autouse=True)
def cuda_backend():
    try:
        from pagedcore import _core

        _core.make_cuda_backend(0)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def make(case, device, dtype=torch.float32, **options):
    config = models.CASES[case]()
    model = models.build(config, dtype=dtype)
    llm = LLM.from_tensors(
        models.config_json(config), model.state_dict(), device=device, **{**OPTIONS, **options}
    )
    return llm, models.prompts(config.vocab_size, LENGTHS, seed=2)


def tokens(llm, prompts, params=GREEDY):
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert llm.engine.verify() == []
    assert llm.engine.stats().used_blocks == 0
    return [[list(o.token_ids) for o in output.outputs] for output in outputs]


@pytest.mark.parametrize("case", models.CASES)
def test_float32_models_give_the_cpus_greedy_tokens(case):
    cuda, prompts = make(case, "cuda")
    cpu, _ = make(case, "cpu")
    assert tokens(cuda, prompts) == tokens(cpu, prompts)


@pytest.mark.parametrize("case", ["llama_grouped_queries", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens_a_step", [50, 20])  # 20: few rows, see skinny_linear
def test_16_bit_models_stay_near_the_cpu(case, dtype, tokens_a_step):
    cuda, prompts = make(case, "cuda", dtype, max_num_batched_tokens=tokens_a_step)
    cpu, _ = make(case, "cpu", dtype)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    for a, b in zip(
        cuda.generate(prompts, params, use_tqdm=False),
        cpu.generate(prompts, params, use_tqdm=False),
        strict=True,
    ):
        for x, y in zip(a.prompt_logprobs[1:], b.prompt_logprobs[1:], strict=True):
            for token, entry in x.items():
                assert abs(entry.logprob - y[token].logprob) < 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 40},
        {"num_blocks": 40, "swap_space_bytes": 1 << 24, "preemption_mode": "swap"},
        {"block_size": 1, "num_blocks": 2048},
        {"block_size": 64},
        {"enable_prefix_caching": False},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 2048},
    ],
    ids=str,
)
def test_pressure_and_layout_do_not_change_a_float32_answer(options):
    cuda, prompts = make("llama_grouped_queries", "cuda", **options)
    plain, _ = make("llama_grouped_queries", "cpu")
    assert tokens(cuda, prompts) == tokens(plain, prompts)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(n=4, temperature=0.8, top_p=0.9, seed=3, max_tokens=32, ignore_eos=True),
        SamplingParams(n=3, temperature=1.0, top_k=20, seed=4, max_tokens=32, ignore_eos=True),
        SamplingParams(beam_width=4, n=4, max_tokens=24, temperature=0.0),
    ],
    ids=["top_p", "top_k", "beams"],
)
def test_groups_share_blocks_and_give_the_cpus_tokens(params):
    cuda, prompts = make("llama_grouped_queries", "cuda")
    cpu, _ = make("llama_grouped_queries", "cpu")
    assert tokens(cuda, prompts, params) == tokens(cpu, prompts, params)


def test_the_same_request_again_gives_the_same_bfloat16_tokens():
    llm, prompts = make("llama_head_128", "cuda", torch.bfloat16, enable_prefix_caching=False)
    assert tokens(llm, prompts) == tokens(llm, prompts)


@pytest.mark.parametrize("case", ["llama_grouped_queries", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_plan_is_exact(case, dtype):
    llm, prompts = make(case, "cuda", dtype)
    planned = llm.engine.memory_plan.total_bytes
    assert llm.engine.allocated_bytes == planned
    tokens(llm, prompts)
    assert llm.engine.allocated_bytes == planned


def test_all_device_memory_comes_back():
    make("llama_grouped_queries", "cuda")
    torch.cuda.synchronize()
    before, _ = torch.cuda.mem_get_info()
    for _ in range(3):
        llm, prompts = make("llama_grouped_queries", "cuda")
        tokens(llm, prompts)
        del llm
    after, _ = torch.cuda.mem_get_info()
    assert before - after < 64 << 20
