"""A request's output is the same bytes whatever else happens in the engine."""

import numpy as np
import pytest
from support import tiny_models
from support.tiny_models import collect, generate, quantized, run, tiny_llama

from pagedcore import _core

SIZES = {"hidden": 64, "inner": 96}  # that groups of 32 inputs divide
MODELS = {
    "float32": (tiny_llama(seed=1), {}),
    "int8": (quantized(tiny_llama(seed=1, **SIZES), "int8"), {}),
    "int4": (quantized(tiny_llama(seed=1, **SIZES), "int4"), {}),
    "int8 KV": (tiny_llama(seed=1), {"kv_dtype": "int8"}),
}
VOCAB_SIZE = 97


def make_engine(model, **config):
    weights, kv = model
    return tiny_models.make_engine(weights, **kv, **config)


def make_prompts(count=32, seed=5):
    """Ragged prompts, about half of which share beginnings."""
    rng = np.random.default_rng(seed)
    common = rng.integers(0, VOCAB_SIZE, 40).tolist()
    prompts = []
    for i in range(count):
        own = rng.integers(0, VOCAB_SIZE, int(rng.integers(1, 50))).tolist()
        prompts.append((common[: int(rng.integers(1, 40))] if i % 2 else []) + own)
    return prompts


PROMPTS = make_prompts()
GREEDY = _core.SamplingParams(temperature=0.0, max_tokens=24)


def seeded(logprobs=2):
    kinds = [
        {},
        {"top_p": 0.9},
        {"top_k": 12},
        {"min_p": 0.05},
        {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1},
    ]
    return [
        _core.SamplingParams(
            temperature=1.0, seed=i, max_tokens=24, logprobs=logprobs, **kinds[i % 5]
        )
        for i in range(len(PROMPTS))
    ]


def all_params(kind):
    return [GREEDY] * len(PROMPTS) if kind == "greedy" else seeded()


def outputs_of(engine, kind):
    ids = [engine.add_request(p, q) for p, q in zip(PROMPTS, all_params(kind))]
    outputs = run(engine)
    assert engine.stats().used_blocks == 0
    return [(outputs[i, 0].tokens, outputs[i, 0].logprobs) for i in ids]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def alone(model):
    """Outputs of each request in an engine of its own."""
    result = {}
    for kind in ("greedy", "seeded"):
        result[kind] = []
        for prompt, params in zip(PROMPTS, all_params(kind)):
            engine = make_engine(model, num_blocks=64)
            request = engine.add_request(prompt, params)
            output = run(engine)[request, 0]
            result[kind].append((output.tokens, output.logprobs))
    return result


def test_outputs_vary_so_that_equality_says_something(alone):
    for kind in ("greedy", "seeded"):
        assert len({tuple(tokens) for tokens, _ in alone[kind]}) == len(PROMPTS)
        assert sum(len(set(tokens)) for tokens, _ in alone[kind]) > 8 * len(PROMPTS)


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
@pytest.mark.parametrize(
    "config",
    [
        {"num_blocks": 400},
        {"num_blocks": 400, "max_num_batched_tokens": 7},
        {"num_blocks": 400, "max_num_seqs": 5, "max_num_batched_tokens": 64},
        {"num_blocks": 6000, "block_size": 1},
        {"num_blocks": 100, "block_size": 64},
        {"num_blocks": 400, "enable_prefix_caching": False},
        {"num_blocks": 400, "num_threads": 2},
    ],
    ids=str,
)
def test_a_batch_gives_what_each_request_gives_alone(model, alone, kind, config):
    assert outputs_of(make_engine(model, **config), kind) == alone[kind]


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_preemption_changes_nothing(model, alone, kind, block_size):
    load = sum(-(-(len(p) + 24) // block_size) for p in PROMPTS)
    engine = make_engine(model, num_blocks=load // 3, block_size=block_size)
    assert outputs_of(engine, kind) == alone[kind]
    assert engine.stats().num_recomputed_tokens > 0
    assert engine.stats().num_recomputed_tokens > 0


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
def test_prefix_hits_change_nothing(model, alone, kind):
    engine = make_engine(model, num_blocks=600)
    outputs_of(engine, kind)
    before = engine.stats().num_prefix_hit_tokens
    assert outputs_of(engine, kind) == alone[kind]
    assert engine.stats().num_prefix_hit_tokens - before > sum(map(len, PROMPTS)) // 2


def test_requests_that_come_and_go_change_nothing(model, alone):
    rng = np.random.default_rng(3)
    engine = make_engine(model, num_blocks=60, max_num_batched_tokens=40)
    params, outputs, ids, noise = all_params("seeded"), {}, [], []
    waiting = list(range(len(PROMPTS)))
    while waiting or engine.has_unfinished():
        for _ in range(min(len(waiting), int(rng.integers(0, 3)))):
            i = waiting.pop(0)
            ids.append(engine.add_request(PROMPTS[i], params[i]))
            noise.append(engine.add_request(rng.integers(0, VOCAB_SIZE, 20).tolist(), GREEDY))
        if noise and rng.random() < 0.7:
            engine.abort(noise.pop(int(rng.integers(len(noise)))))
        collect(outputs, engine.step())
        assert engine.verify() == []
    got = [(outputs[i, 0].tokens, outputs[i, 0].logprobs) for i in ids]
    assert got == alone["seeded"]


@pytest.mark.parametrize("max_num_seqs", [8, 32])
def test_sequences_move_up_where_others_end_before_them(model, alone, max_num_seqs):
    lengths = np.random.default_rng(4).integers(1, 24, len(PROMPTS))
    params = seeded(logprobs=-1)
    for wanted, length in zip(params, lengths):
        wanted.max_tokens = int(length)
    engine = make_engine(model, num_blocks=400, max_num_seqs=max_num_seqs)
    expected = [tokens[:length] for (tokens, _), length in zip(alone["seeded"], lengths)]
    assert generate(engine, PROMPTS, params) == expected


def test_the_engine_seed_decides_where_a_request_brings_none(model):
    params = _core.SamplingParams(temperature=1.0, max_tokens=16)
    runs = [
        generate(make_engine(model, num_blocks=64, seed=s), PROMPTS[:4], params) for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    same_prompt = generate(make_engine(model, num_blocks=64), [PROMPTS[0]] * 2, params)
    assert same_prompt[0] != same_prompt[1]
