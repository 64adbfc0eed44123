"""The bits of every kind of request, under every kind of pressure at once, in any block size."""

import functools

import pytest
from support.tiny_models import clone, collect, make_engine, results, run, tiny_llama

from pagedcore import _core

MODEL = tiny_llama(seed=4)
TOKEN_BYTES = MODEL[0].num_layers * 2 * MODEL[0].num_kv_heads * MODEL[0].head_dim * 4
PROMPT = [5, 17, 80, 3, 44, 23, 9, 61, 12, 90, 33, 2, 7]
FORMS = [
    {"n": 3, "temperature": 1.0, "seed": 1, "logprobs": 1},
    {"beam_width": 3, "n": 3},
    {"best_of": 4, "n": 2, "temperature": 1.0, "seed": 2, "logprobs": 2},
    {"temperature": 0.0, "logprobs": 1, "prompt_logprobs": 1},
    {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.3, "logprobs": 1},
]
REQUESTS = [(PROMPT[i:] + PROMPT[:i], FORMS[i % len(FORMS)]) for i in range(10)]


def params(form):
    return _core.SamplingParams(max_tokens=24, **form)


@functools.cache
def alone(i):
    prompt, form = REQUESTS[i]
    engine = make_engine(MODEL, num_blocks=64)
    request = engine.add_request(prompt, params(form))
    return results(run(engine), request)


def step(engine, outputs, count):
    for _ in range(count):
        collect(outputs, engine.step())
        assert engine.verify() == []


@pytest.mark.parametrize("budget", [7, 64])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("block_size, num_slots", [(1, 160), (4, 160), (16, 256)])
@pytest.mark.parametrize("mode", ["recompute", "swap", "auto"])
def test_every_request_gives_its_own_bits(mode, block_size, num_slots, caching, budget):
    engine = make_engine(
        MODEL,
        num_blocks=num_slots // block_size,
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_num_seqs=8,
        enable_prefix_caching=caching,
        preemption_mode=mode,
        swap_space_bytes=0 if mode == "recompute" else 1024 * TOKEN_BYTES,  # room for all
    )
    engine.set_tenant_quota("b", num_slots * 3 // 4 // block_size)
    outputs = {}
    order = {}  # request id to its place in REQUESTS
    for i, (prompt, form) in enumerate(REQUESTS):
        # The later ones come first, and what runs makes way for them.
        options = {"priority": -(i // 3), "tenant": "ab"[i % 2]}
        order[engine.add_request(prompt, params(form), **options)] = i
        step(engine, outputs, 3)
    live = next(iter(engine.kv_map().sequences)).request_id
    fork = engine.fork(live, params(FORMS[4]), at_token=len(PROMPT))
    for request in list(order):
        if engine.metrics(request) is None:
            continue
        loaded = engine.load(engine.save(request))
        order[loaded] = order[request]
        for (owner, index), output in list(outputs.items()):
            if owner == request:
                outputs[loaded, index] = clone(output)
    run(engine, outputs)
    for request, i in order.items():
        assert results(outputs, request) == alone(i), i
    again = make_engine(MODEL, num_blocks=64)
    wanted = again.add_request(REQUESTS[order[live]][0], params(FORMS[4]))
    assert results(outputs, fork) == results(run(again), wanted)

    stats = engine.stats()
    assert (stats.used_blocks, stats.used_host_blocks) == (0, 0)
    if mode == "recompute":
        assert stats.num_recompute_preemptions > 0 and stats.num_recomputed_tokens > 0
        assert stats.num_tail_preemptions > 0 or budget == 7  # too few at once to lack blocks
    if mode == "swap":
        assert stats.num_swapped_in_blocks == stats.num_swapped_out_blocks > 0
    if caching:
        assert stats.num_prefix_hit_tokens > 0
