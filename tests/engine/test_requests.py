"""What a request may ask for, when it ends and what it reports."""

import numpy as np
import pytest
from support.tiny_models import Output, collect, generate, make_engine, run, tiny_llama

from pagedcore import _core

MODEL = tiny_llama(seed=2)
VOCAB_SIZE = 97
PROMPT = [3, 14, 15, 92, 6, 5, 35, 8, 97 - 1, 79]


def params(**options):
    return _core.SamplingParams(**({"temperature": 0.0, "max_tokens": 12} | options))


def outputs_of(engine, *requests):
    """Outputs of (prompt, params) requests, one list of sequences a request."""
    ids = [engine.add_request(prompt, p) for prompt, p in requests]
    outputs = run(engine)
    assert engine.stats().used_blocks == 0
    return [[outputs[i, j] for j in range(len(outputs)) if (i, j) in outputs] for i in ids]


def one(**options):
    engine = make_engine(MODEL, num_blocks=64, eos_token_ids=options.pop("eos", []))
    [[output]] = outputs_of(engine, (PROMPT, params(**options)))
    return output


# When it ends


def test_max_tokens_ends_with_length():
    output = one(max_tokens=5)
    assert len(output.tokens) == 5 and output.reason == "length"


def test_an_eos_token_ends_with_stop_and_is_part_of_the_output():
    tokens = one().tokens
    end = next(i for i, t in enumerate(tokens) if t not in tokens[:i] and i > 1)
    output = one(eos=[tokens[end]])
    assert output.tokens == tokens[: end + 1]
    assert (output.reason, output.update.stop_token) == ("stop", tokens[end])
    assert one(eos=[tokens[end]], ignore_eos=True).tokens == tokens
    assert one(stop_token_ids=[tokens[end]]).tokens == tokens[: end + 1]
    assert one(stop_token_ids=[tokens[end]], ignore_eos=True).tokens == tokens[: end + 1]


def test_stop_tokens_are_not_taken_before_min_tokens():
    first = one().tokens[0]
    output = one(stop_token_ids=[first], min_tokens=6)
    assert first not in output.tokens[:6] and len(output.tokens) >= 6


def test_max_model_len_ends_with_length_and_no_max_tokens_reaches_it():
    engine = make_engine(MODEL, num_blocks=64, max_model_len=len(PROMPT) + 9)
    [[a], [b]] = outputs_of(
        engine, (PROMPT, params(max_tokens=100)), (PROMPT, params(max_tokens=None))
    )
    assert len(a.tokens) == 9 and a.reason == "length" and a.tokens == b.tokens


def test_a_request_that_outgrows_the_pool_alone_ends_with_capacity_and_the_numbers():
    engine = make_engine(MODEL, num_blocks=4, block_size=4)
    [[big], [small]] = outputs_of(engine, (PROMPT, params(max_tokens=40)), (PROMPT[:4], params()))
    assert big.reason == "capacity" and "4 blocks of 4 tokens" in big.update.explanation
    assert len(big.tokens) == 16 - len(PROMPT) + 1
    assert small.reason == "length" and len(small.tokens) == 12
    alone = make_engine(MODEL, num_blocks=64)
    assert (
        outputs_of(alone, (PROMPT, params(max_tokens=len(big.tokens))))[0][0].tokens == big.tokens
    )


@pytest.mark.parametrize("group", [{"n": 3}, {"n": 2, "best_of": 4}, {"n": 2, "beam_width": 3}])
def test_all_sequences_of_a_group_end_when_its_prompt_finds_no_room(group):
    engine = make_engine(MODEL, num_blocks=8, block_size=4, enable_prefix_caching=False)
    holder = engine.add_request([5] * 17, params(max_tokens=8), hold=True)
    while engine.has_unfinished():
        engine.step()
    request = engine.add_request(list(range(3, 15)), params(**group))
    ended = run(engine)
    assert sorted(ended) == [(request, i) for i in range(group["n"])]
    for output in ended.values():
        assert output.reason == "capacity" and "8 blocks of 4" in output.update.explanation
    engine.release(holder)
    assert engine.verify() == [] and engine.stats().used_blocks == 0


def test_aborted_and_finished_requests_send_nothing_more():
    engine = make_engine(MODEL, num_blocks=64)
    first, second = engine.add_request(PROMPT, params()), engine.add_request(PROMPT, params())
    engine.step()
    engine.abort(first)
    engine.abort(first)
    engine.abort(12345)
    outputs = run(engine)
    assert all(request == second for request, _ in outputs)
    third = engine.add_request(PROMPT, params(n=2, temperature=1.0))
    engine.step()
    engine.finish_sequence(third, 0)
    engine.finish_sequence(third, 7)
    outputs = run(engine)
    assert set(outputs) == {(third, 1)} and not engine.has_unfinished()
    assert engine.verify() == [] and engine.stats().used_blocks == 0


def test_siblings_cannot_end_before_they_part():
    engine = make_engine(MODEL, num_blocks=64)
    request = engine.add_request(PROMPT, params(n=3, temperature=1.0))
    for index in range(3):
        with pytest.raises(ValueError, match="part with their first tokens"):
            engine.finish_sequence(request, index)
    assert set(run(engine)) == {(request, 0), (request, 1), (request, 2)}


# What it samples


def test_siblings_have_streams_of_their_own_and_share_the_prompt():
    engine = make_engine(MODEL, num_blocks=64)
    request = (PROMPT, params(n=8, temperature=1.0, seed=5))
    [outputs] = outputs_of(engine, request)
    assert len(outputs) == 8 and len({tuple(o.tokens) for o in outputs}) == 8
    assert engine.stats().num_computed_tokens == len(PROMPT) + 8 * 11
    assert outputs[0].tokens == one(temperature=1.0, seed=5).tokens
    assert [o.tokens for o in outputs_of(engine, request)[0]] == [o.tokens for o in outputs]


@pytest.mark.parametrize("num_blocks", [64, 14])
def test_mixed_requests_give_what_they_give_alone(num_blocks):
    requests = [
        (PROMPT, params()),
        (PROMPT[:7], params(n=4, temperature=1.0, seed=1)),
        (PROMPT[2:], params(beam_width=4, n=4)),
        (PROMPT * 2, params(best_of=3, n=2, temperature=1.0, seed=2)),
        (PROMPT[:3], params(temperature=0.7, top_p=0.9, seed=3)),
    ]
    alone = [outputs_of(make_engine(MODEL, num_blocks=64, block_size=4), r)[0] for r in requests]
    engine = make_engine(MODEL, num_blocks=num_blocks * 2, block_size=4)
    for got, wanted in zip(outputs_of(engine, *requests), alone):
        assert [o.tokens for o in got] == [o.tokens for o in wanted]
    assert (engine.stats().num_recomputed_tokens > 0) == (num_blocks == 14)


def test_best_of_returns_the_most_likely_of_all_samples():
    engine = make_engine(MODEL, num_blocks=64)
    options = {"temperature": 1.5, "seed": 9, "logprobs": 0}
    [every] = outputs_of(engine, (PROMPT, params(n=6, **options)))
    [best] = outputs_of(engine, (PROMPT, params(n=2, best_of=6, **options)))
    ranked = sorted(every, key=lambda o: -o.update.cumulative_logprob)
    assert [o.tokens for o in best] == [o.tokens for o in ranked[:2]]
    assert [o.logprobs for o in best] == [o.logprobs for o in ranked[:2]]


def test_logprobs_come_with_each_token_and_add_up():
    output = one(logprobs=3, temperature=1.0, seed=1)
    assert len(output.logprobs) == 12 and all(len(entries) == 4 for entries in output.logprobs)
    for token, entries in zip(output.tokens, output.logprobs):
        assert entries[0][0] == token
        assert [rank for _, _, rank in entries[1:]] == [1, 2, 3]
        assert entries[1][1] >= entries[2][1] >= entries[3][1]
        by_rank = {rank: t for t, _, rank in entries[1:]}
        assert by_rank.get(entries[0][2], token) == token
    total = sum(entries[0][1] for entries in output.logprobs)
    assert np.isclose(output.update.cumulative_logprob, total)


@pytest.mark.parametrize("budget", [2048, 7, 2])
def test_prompt_logprobs_are_those_that_sampling_gives(budget):
    tokens = one(max_tokens=20, ignore_eos=True, logprobs=2)
    whole = PROMPT + tokens.tokens
    engine = make_engine(MODEL, num_blocks=64, max_num_batched_tokens=budget, max_num_seqs=3)
    generate(engine, [whole], params(max_tokens=1))  # fills the prefix cache
    [[output]] = outputs_of(engine, (whole, params(prompt_logprobs=2, max_tokens=3)))
    [first] = outputs_of(engine, (whole[:-1], params(prompt_logprobs=2, max_tokens=3, n=2)))[:1]
    entries = output.prompt_logprobs
    assert len(entries) == len(whole) - 1
    assert entries[len(PROMPT) - 1 :] == tokens.logprobs
    assert [e[0][0] for e in entries] == whole[1:]
    assert len(first) == 2 and first[0].prompt_logprobs == entries[:-1]
    assert first[1].prompt_logprobs is None


def test_penalties_bias_allowed_and_bad_tokens_act_on_every_step():
    tokens = one(max_tokens=30).tokens
    assert len(set(one(max_tokens=30, frequency_penalty=2.0, presence_penalty=2.0).tokens)) > len(
        set(tokens)
    )
    assert not set(one(bad_token_ids=tokens[:3]).tokens) & set(tokens[:3])
    assert set(one(allowed_token_ids=[5, 9]).tokens) <= {5, 9}
    assert set(one(logit_bias=[(42, 1000.0)]).tokens) == {42}


# What is refused


BAD_REQUESTS = [
    ([], {}, "prompt must have at least one token"),
    ([VOCAB_SIZE], {}, f"from 0 to {VOCAB_SIZE - 1}, got {VOCAB_SIZE} at position 0"),
    ([1, -1], {}, "got -1 at position 1"),
    ([1] * 512, {}, "shorter than max_model_len (512)"),
    ([1] * 300, {}, "300"),
    ([1], {"temperature": float("nan")}, "temperature must be a finite number"),
    ([1], {"temperature": -1.0}, "temperature"),
    ([1], {"temperature": float("inf")}, "temperature"),
    ([1], {"top_p": 0.0}, "top_p must be above 0"),
    ([1], {"top_p": 1.1}, "top_p"),
    ([1], {"top_k": -2}, "top_k"),
    ([1], {"min_p": float("nan")}, "min_p"),
    ([1], {"repetition_penalty": 0.0}, "repetition_penalty"),
    ([1], {"presence_penalty": 3.0}, "presence_penalty"),
    ([1], {"n": 0}, "n must be at least 1"),
    ([1], {"n": 300}, "n must be at most 256"),
    ([1], {"n": 3, "best_of": 2}, "best_of"),
    ([1], {"n": 3, "beam_width": 2}, "beam_width"),
    ([1], {"beam_width": 60}, "beam_width must be at most"),
    ([1], {"max_tokens": 0}, "max_tokens must be at least 1"),
    ([1], {"min_tokens": -1}, "min_tokens"),
    ([1], {"min_tokens": 20}, "min_tokens must be at most max_tokens (12)"),
    ([1], {"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ([1], {"logit_bias": [(1, float("nan"))]}, "logit_bias"),
    ([1], {"logit_bias": [(-1, 0.0)]}, "logit_bias"),
    ([1], {"allowed_token_ids": [1], "bad_token_ids": [1]}, "allowed_token_ids"),
    ([1], {"logprobs": -2}, "logprobs"),
    ([1], {"prompt_logprobs": VOCAB_SIZE + 1}, "prompt_logprobs"),
]


@pytest.mark.parametrize("prompt, options, message", BAD_REQUESTS, ids=lambda v: str(v)[:40])
def test_a_bad_request_is_refused_alone_and_changes_nothing(prompt, options, message):
    engine = make_engine(MODEL, num_blocks=16)
    good, outputs = engine.add_request(PROMPT, params()), {}
    collect(outputs, engine.step())
    with pytest.raises(ValueError) as refusal:
        engine.add_request(prompt, params(**options))
    assert message in str(refusal.value)
    run(engine, outputs)
    assert outputs[good, 0].tokens == one().tokens
    assert engine.add_request(PROMPT, params()) == good + 1


def test_a_full_queue_refuses_with_an_error_of_its_own():
    engine = make_engine(MODEL, num_blocks=16, max_waiting=2)
    for _ in range(2):
        engine.add_request(PROMPT, params())
    with pytest.raises(_core.QueueFull, match="max_waiting is 2"):
        engine.add_request(PROMPT, params())
    assert len(run(engine)) == 2


BAD_CONFIGS = [
    ({"block_size": 3}, "block_size must be a power of two from 1 to 256, got 3"),
    ({"block_size": 0}, "block_size"),
    ({"block_size": 512}, "block_size"),
    ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
    ({"num_blocks": 8, "kv_cache_bytes": 1 << 20}, "only one of kv_cache_bytes and num_blocks"),
    ({"kv_cache_bytes": 100}, "kv_cache_bytes must be at least"),
    ({"max_num_seqs": 0}, "max_num_seqs"),
    ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
    ({"max_model_len": -1}, "max_model_len"),
    ({"max_model_len": 1}, "max_model_len"),
    ({"max_waiting": -1}, "max_waiting"),
    ({"swap_space_bytes": -1}, "swap_space_bytes"),
    ({"swap_space_bytes": 1}, "swap_space_bytes must be 0 or at least"),
    ({"preemption_mode": "swap"}, "swap_space_bytes must be above 0"),
    ({"preemption_mode": "maybe"}, "preemption_mode"),
    ({"kv_dtype": "int4"}, "kv_dtype"),
    ({"eos_token_ids": [-1]}, "eos_token_ids"),
]


@pytest.mark.parametrize("config, message", BAD_CONFIGS, ids=lambda v: str(v)[:40])
def test_a_bad_configuration_is_refused(config, message):
    with pytest.raises(ValueError) as refusal:
        make_engine(MODEL, **config)
    assert message in str(refusal.value)


# Memory


@pytest.mark.parametrize("config", [{"num_blocks": 10}, {"kv_cache_bytes": 1 << 20}, {}], ids=str)
def test_the_memory_plan_is_exact(config):
    model, weights = MODEL
    backend = _core.make_cpu_backend(num_threads=1)
    engine_config = _core.EngineConfig(max_num_batched_tokens=64, max_num_seqs=8, **config)
    plan = _core.Engine.plan_memory(model, weights, backend, engine_config)
    assert backend.allocated_bytes == 0
    engine = _core.Engine(model, weights, backend, engine_config)
    assert engine.allocated_bytes == plan.total_bytes == engine.memory_plan.total_bytes
    assert plan.kv_cache_bytes == plan.num_blocks * plan.block_bytes
    assert plan.block_bytes == 2 * 2 * 2 * 8 * 16 * 4
    generate(engine, [PROMPT], params())
    assert engine.allocated_bytes == plan.total_bytes


def test_metrics_tell_times_and_counts():
    engine = make_engine(MODEL, num_blocks=64)
    run(engine, {})
    first = engine.add_request(PROMPT, params())
    outputs = run(engine)
    metrics = outputs[first, 0].update.metrics
    assert metrics.num_prompt_tokens == len(PROMPT) and metrics.num_cached_tokens == 0
    assert 0 <= metrics.queue_us <= metrics.first_token_us <= metrics.total_us
    assert metrics.num_preemptions == 0 and metrics.last_preemption is None
    assert engine.metrics(first) is None
    second = engine.add_request(PROMPT, params())
    assert run(engine)[second, 0].update.metrics.num_cached_tokens == len(PROMPT) - 1


def test_outputs_arrive_token_by_token():
    engine = make_engine(MODEL, num_blocks=64)
    request = engine.add_request(PROMPT, params(max_tokens=4))
    outputs: dict[tuple[int, int], Output] = {}
    for count in range(1, 5):
        collect(outputs, engine.step())
        assert len(outputs[request, 0].tokens) == count
    assert not engine.has_unfinished()
