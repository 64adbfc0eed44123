"""Fork, hold, release, save and load: what a caller can do with a live sequence."""

import numpy as np
import pytest
from support.tiny_models import collect, make_engine, run, tiny_llama

from pagedcore import _core

MODEL = tiny_llama(seed=4)
PROMPT = [5, 17, 80, 3, 44, 23, 9, 61, 12, 90, 33, 2, 7]
FORMS = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.0, "seed": 4, "top_p": 0.8, "repetition_penalty": 1.3},
    {"temperature": 0.8, "presence_penalty": 0.7, "frequency_penalty": 0.2, "seed": 5},
]


def params(**options):
    return _core.SamplingParams(**({"temperature": 0.0, "max_tokens": 24} | options))


def engine_of(**options):
    return make_engine(MODEL, **({"num_blocks": 64, "block_size": 4} | options))


def alone(prompt, **options):
    engine = engine_of()
    request = engine.add_request(prompt, params(**options))
    return run(engine)[request, 0].tokens


def step(engine, count, outputs=None):
    outputs = {} if outputs is None else outputs
    for _ in range(count):
        collect(outputs, engine.step())
        assert engine.verify() == []
    return outputs


def is_empty(engine):
    return engine.stats().used_blocks == 0 and engine.verify() == []


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("at", [1, 4, 13, 14, 18, 20, None])
def test_a_fork_of_a_live_sequence_gives_what_its_tokens_give_as_a_prompt(form, at):
    engine = engine_of()
    parent = engine.add_request(PROMPT, params(**form))
    outputs = step(engine, 8)
    known = engine.tokens(parent)
    assert known[: len(PROMPT)] == PROMPT and len(known) == len(PROMPT) + 8
    options = form | {"max_tokens": 10}
    child = engine.fork(parent, params(**options), at_token=at)
    run(engine, outputs)
    assert outputs[child, 0].tokens == alone(known[:at], **options)
    assert outputs[parent, 0].tokens == alone(PROMPT, **form)
    assert is_empty(engine)


def test_a_fork_computes_nothing_that_its_parent_has_and_copies_one_block():
    engine = engine_of(enable_prefix_caching=False)
    parent = engine.add_request(PROMPT, params(max_tokens=40))
    step(engine, 10)
    before = engine.stats()
    children = [engine.fork(parent, params(seed=i, temperature=1.0)) for i in range(3)]
    step(engine, 1)
    after = engine.stats()
    assert after.num_computed_tokens - before.num_computed_tokens == 4
    assert after.num_copied_blocks - before.num_copied_blocks <= 3
    assert after.shared_savings > 0.5
    for request in [parent, *children]:
        engine.abort(request)
    assert is_empty(engine)


def test_a_held_request_can_be_gone_on_from_after_its_end():
    engine = engine_of(enable_prefix_caching=False)
    first = engine.add_request(PROMPT, params(max_tokens=6), hold=True)
    run(engine)
    assert engine.stats().num_held == 1 and engine.stats().used_blocks > 0
    turn = [1, 2, 3]
    known = engine.tokens(first)
    computed = engine.stats().num_computed_tokens
    second = engine.fork(first, params(), more_tokens=turn)
    outputs = run(engine)
    assert outputs[second, 0].tokens == alone(known + turn)
    assert engine.stats().num_computed_tokens - computed == 1 + len(turn) + 23
    engine.release(first)
    engine.release(first)
    assert is_empty(engine)
    with pytest.raises(ValueError, match="neither live nor held"):
        engine.fork(first, params())


def test_a_held_request_keeps_its_metrics_until_it_is_aborted():
    engine = engine_of()
    request = engine.add_request(PROMPT, params(max_tokens=6), hold=True)
    at_its_end = run(engine)[request, 0].update.metrics
    assert engine.metrics(request).total_us == at_its_end.total_us > 0
    engine.abort(request)
    assert engine.metrics(request) is None
    assert is_empty(engine)


def test_hold_and_release_of_a_live_request():
    engine = engine_of()
    kept = engine.add_request(PROMPT, params(max_tokens=4))
    dropped = engine.add_request(PROMPT[:5], params(max_tokens=4), hold=True)
    engine.hold(kept)
    engine.release(dropped)
    run(engine)
    assert len(engine.tokens(kept)) == len(PROMPT) + 4
    with pytest.raises(ValueError):
        engine.tokens(dropped)
    engine.release(kept)
    assert is_empty(engine)


def test_all_siblings_of_a_held_request_can_be_forked():
    engine = engine_of()
    request = engine.add_request(PROMPT, params(n=3, temperature=1.0, seed=2), hold=True)
    outputs = run(engine)
    forks = [engine.fork(request, params(), index=i) for i in range(3)]
    after = run(engine)
    for i, fork in enumerate(forks):
        assert after[fork, 0].tokens == alone(PROMPT + outputs[request, i].tokens)
    engine.release(request)
    assert is_empty(engine)


@pytest.mark.parametrize(
    "call",
    [
        lambda e, r: e.fork(r + 99, params()),
        lambda e, r: e.fork(r, params(), index=1),
        lambda e, r: e.fork(r, params(), at_token=0),
        lambda e, r: e.fork(r, params(), at_token=1000),
        lambda e, r: e.fork(r, params(temperature=-1.0)),
        lambda e, r: e.fork(r, params(), more_tokens=[-3]),
        lambda e, r: e.fork(r, params(), more_tokens=[3] * 600),
        lambda e, r: e.save(r + 99),
        lambda e, r: e.save(r, 1),
        lambda e, r: e.tokens(r, -1),
        lambda e, r: e.set_tenant_quota("a", -1),
    ],
)
def test_a_wrong_call_is_refused_and_changes_nothing(call):
    engine = engine_of()
    request = engine.add_request(PROMPT, params())
    outputs = step(engine, 3)
    with pytest.raises(ValueError):
        call(engine, request)
    assert run(engine, outputs)[request, 0].tokens == alone(PROMPT)
    assert set(outputs) == {(request, 0)} and is_empty(engine)


# Snapshots


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 9])
@pytest.mark.parametrize("block_size", [4, 16, 1])
def test_a_loaded_snapshot_goes_on_as_if_it_had_never_stopped(form, steps, block_size):
    engine = engine_of()
    request = engine.add_request(PROMPT, params(**form))
    noise = engine.add_request(PROMPT[3:], params(temperature=1.0, seed=9))
    before = step(engine, steps)
    snapshot = engine.save(request)
    engine.abort(noise)
    assert run(engine, before)[request, 0].tokens == (whole := alone(PROMPT, **form))

    other = engine_of(num_blocks=200, block_size=block_size)
    other.add_request(PROMPT[::-1], params(temperature=1.0, seed=1))
    loaded = other.load(snapshot)
    computed = other.stats().num_computed_tokens
    outputs = run(other)
    assert outputs[loaded, 0].tokens == whole[steps:]
    assert outputs[loaded, 0].reason == "length"
    if steps:  # nothing that the snapshot holds is computed again
        new = other.stats().num_computed_tokens - computed
        assert new == (24 - steps) + len(PROMPT) + 23
    assert is_empty(other)


@pytest.mark.parametrize("block_size", [4, 16, 1])
def test_a_loaded_snapshot_of_an_int8_cache_goes_on_in_any_block_size(block_size):
    engine = engine_of(kv_dtype="int8")
    request = engine.add_request(PROMPT, params())
    before = step(engine, 9)
    snapshot = engine.save(request)
    whole = run(engine, before)[request, 0].tokens
    other = engine_of(kv_dtype="int8", num_blocks=200, block_size=block_size)
    loaded = other.load(snapshot)
    assert run(other)[loaded, 0].tokens == whole[9:]
    assert other.stats().num_computed_tokens == len(whole) - 9


def test_a_sibling_is_saved_with_its_own_stream():
    engine = engine_of()
    request = engine.add_request(PROMPT, params(n=3, temperature=1.0, seed=8, logprobs=1))
    before = step(engine, 5)
    snapshots = [engine.save(request, i) for i in range(3)]
    whole = run(engine, before)
    other = engine_of(block_size=8)
    ids = [other.load(snapshot) for snapshot in snapshots]
    outputs = run(other)
    for i, loaded in enumerate(ids):
        assert outputs[loaded, 0].tokens == whole[request, i].tokens[5:]
        assert outputs[loaded, 0].logprobs == whole[request, i].logprobs[5:]
        total = whole[request, i].update.cumulative_logprob
        assert outputs[loaded, 0].update.cumulative_logprob == total


def test_a_snapshot_that_does_not_fit_is_computed_again():
    engine = engine_of()
    request = engine.add_request(PROMPT, params())
    step(engine, 10)
    snapshot = engine.save(request)
    small = engine_of(num_blocks=10)
    busy = small.add_request(PROMPT * 2, params(max_tokens=12))
    outputs = step(small, 4)
    loaded = small.load(snapshot)
    run(small, outputs)
    assert outputs[loaded, 0].tokens == alone(PROMPT)[10:]
    assert outputs[busy, 0].tokens == alone(PROMPT * 2, max_tokens=12)


def test_a_finished_sequence_is_loaded_under_new_params():
    engine = engine_of()
    request = engine.add_request(PROMPT, params(max_tokens=5), hold=True)
    tokens = PROMPT + run(engine)[request, 0].tokens
    snapshot = engine.save(request)
    other = engine_of()
    with pytest.raises(ValueError, match="had finished"):
        other.load(snapshot)
    loaded = other.load(snapshot, params())
    assert run(other)[loaded, 0].tokens == alone(tokens)
    assert other.stats().num_computed_tokens == 24


def test_a_damaged_or_foreign_snapshot_is_refused():
    engine = engine_of()
    request = engine.add_request(PROMPT, params())
    step(engine, 4)
    snapshot = engine.save(request)
    rng = np.random.default_rng(1)
    damaged = [b"", b"hello", snapshot[:19], snapshot[:-1], snapshot + b"x", bytes(len(snapshot))]
    damaged += [snapshot[: int(n)] for n in rng.integers(0, len(snapshot), 20)]
    for at in [0, 8, 12, *rng.integers(0, len(snapshot), 50).tolist()]:
        changed = bytearray(snapshot)
        changed[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(changed))
    for data in damaged:
        with pytest.raises(ValueError, match="snapshot"):
            engine.load(data)
    other = make_engine(tiny_llama(seed=5), num_blocks=64)
    with pytest.raises(ValueError, match="another model"):
        other.load(snapshot)
    with pytest.raises(ValueError, match="KV is float32"):
        engine_of(kv_dtype="bfloat16").load(snapshot)
    assert engine.verify() == []


# Looking in


def test_the_kv_map_shows_every_block_and_every_table():
    engine = engine_of(num_blocks=32)
    request = engine.add_request(PROMPT, params(n=3, temperature=1.0, seed=2))
    step(engine, 6)
    view, stats = engine.kv_map(), engine.stats()
    assert len(view.sequences) == 3 and {s.request_id for s in view.sequences} == {request}
    references = np.zeros(32, int)
    for sequence in view.sequences:
        assert sequence.state.name == "RUNNING"
        assert len(sequence.table) * 4 >= sequence.num_computed
        np.add.at(references, sequence.table, 1)
        for block in sequence.table:
            assert sequence.id in view.blocks[block].owners
    assert references.tolist() == view.ref_counts.tolist()
    assert (references > 0).sum() == stats.used_blocks
    assert stats.used_blocks + stats.cached_blocks + stats.free_blocks == stats.num_blocks == 32
    assert stats.saved_slots == 4 * (references.sum() - stats.used_blocks) > 0
    engine.abort(request)


def test_the_kv_map_tells_in_which_step_a_block_was_last_used():
    engine = engine_of(num_blocks=32)
    engine.add_request(PROMPT, params(max_tokens=5))
    run(engine)
    view = engine.kv_map()
    assert view.step == 5
    uses = [view.blocks[block].last_use for block in range(32)]
    assert sorted(uses, reverse=True) == [5] * 5 + [0] * 27  # 17 tokens, until they were let go


def test_the_slots_that_stats_tells_of_add_up_to_the_pool():
    engine = engine_of(num_blocks=32, block_size=4)
    engine.add_request(PROMPT[4:], params(max_tokens=4))
    held = engine.add_request(PROMPT[::-1], params(max_tokens=1), hold=True)
    run(engine)
    live = engine.add_request(PROMPT, params(n=3, temperature=1.0, seed=2))
    step(engine, 2)  # three blocks are common, and each has a token of its own behind the prompt
    stats = engine.stats()
    assert stats.used_slots == 13 + 3 * 4 + 3 * 2
    assert stats.reserved_slots == 3 + 3 * 2
    assert stats.cached_slots == 9 + 4 - 1
    parts = [stats.used_slots, stats.reserved_slots, stats.cached_slots, stats.free_slots]
    assert sum(parts) == stats.total_slots == 32 * 4
    assert stats.used_slots + stats.reserved_slots == 4 * stats.used_blocks
    assert stats.cached_slots == 4 * stats.cached_blocks
    assert stats.free_slots == 4 * stats.free_blocks
    assert stats.waste == pytest.approx(stats.reserved_slots / (4 * stats.used_blocks))
    unshared = sum(len(s.table) for s in engine.kv_map().sequences)
    assert stats.shared_savings == pytest.approx(1 - stats.used_blocks / unshared)
    engine.abort(live)
    engine.release(held)
    assert is_empty(engine)


def test_priority_and_tenants_do_not_change_answers():
    engine = engine_of(num_blocks=24)
    engine.set_tenant_quota("a", 12)
    ids, outputs = [], {}
    for i in range(12):
        tenant = "a" if i % 2 else "b"
        p = params(temperature=1.0, seed=i)
        ids.append(engine.add_request(PROMPT[i % 5 :], p, priority=i % 3, tenant=tenant))
        step(engine, 2, outputs)
    run(engine, outputs)
    for i, request in enumerate(ids):
        assert outputs[request, 0].tokens == alone(PROMPT[i % 5 :], temperature=1.0, seed=i)
    assert is_empty(engine)
