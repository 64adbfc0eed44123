"""Hold, fork, save and load of requests that own several sequences: samples, best_of, beams."""

import random
import struct

import pytest
from support.tiny_models import clone, collect, make_engine, results, run, tiny_llama

from pagedcore import _core

MODEL = tiny_llama(seed=4)
PROMPT = [5, 17, 80, 3, 44, 23, 9, 61, 12, 90, 33, 2, 7]
GROUPS = [
    {"n": 3, "temperature": 1.0, "seed": 3, "logprobs": 1},
    {"n": 2, "temperature": 1.0, "seed": 4, "stop_token_ids": list(range(0, 97, 7))},
    {"n": 2, "best_of": 4, "temperature": 1.0, "seed": 5, "logprobs": 2},
    {"n": 2, "best_of": 3, "temperature": 0.9, "seed": 6, "stop_token_ids": list(range(0, 97, 5))},
    {"n": 3, "beam_width": 3},
    {"n": 2, "beam_width": 4, "stop_token_ids": list(range(0, 97, 6)), "length_penalty": 2.0},
    {"n": 2, "temperature": 1.0, "seed": 7, "prompt_logprobs": 1, "repetition_penalty": 1.2},
]


def params(**options):
    return _core.SamplingParams(**({"temperature": 0.0, "max_tokens": 20} | options))


def engine_of(**options):
    return make_engine(MODEL, **({"num_blocks": 128, "block_size": 4} | options))


def step(engine, count, outputs=None):
    outputs = {} if outputs is None else outputs
    for _ in range(count):
        collect(outputs, engine.step())
        assert engine.verify() == []
    return outputs


def whole(prompt, **options):
    engine = engine_of()
    request = engine.add_request(prompt, params(**options))
    return results(run(engine), request)


def is_empty(engine):
    stats = engine.stats()
    return (stats.used_blocks, stats.num_held, engine.verify()) == (0, 0, [])


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("block_size", [4, 16, 1])
def test_a_loaded_group_goes_on_as_if_it_had_never_stopped(group, block_size):
    wanted = whole(PROMPT, **group)
    for num_steps in [0, 1, 2, 7, 13]:
        engine = engine_of()
        request = engine.add_request(PROMPT, params(**group))
        before = step(engine, num_steps)
        if not engine.has_unfinished():
            break
        snapshot = engine.save(request)
        other = engine_of(num_blocks=500, block_size=block_size)
        loaded = other.load(snapshot)
        assert other.verify() == []
        computed = other.stats().num_computed_tokens
        outputs = {(loaded, index): clone(output) for (_, index), output in before.items()}
        assert results(run(other, outputs), loaded) == wanted
        assert is_empty(other)
        if num_steps > 0:  # nothing that the snapshot holds is computed again
            assert other.stats().num_computed_tokens - computed < 20 * len(PROMPT)
            assert other.stats().num_recomputed_tokens == 0
        assert results(run(engine, before), request) == wanted


def test_a_group_is_loaded_with_its_blocks_shared_as_they_were():
    engine = engine_of()
    request = engine.add_request(PROMPT * 3, params(n=4, temperature=1.0, seed=1))
    step(engine, 6)
    snapshot, alone = engine.save(request), engine.save(request, 1)
    assert len(snapshot) < 2 * len(alone)
    other = engine_of(block_size=8, num_blocks=100)
    other.load(snapshot)
    # 39 + 5 tokens computed: four blocks of 8 are common, two are each one's own.
    assert other.stats().used_blocks == 4 + 4 * 2
    assert other.stats().saved_slots == 3 * 4 * 8


def test_a_group_that_does_not_fit_is_computed_again():
    wanted = whole(PROMPT, **GROUPS[4])
    engine = engine_of()
    request = engine.add_request(PROMPT, params(**GROUPS[4]))
    step(engine, 8)
    small = engine_of(num_blocks=26)
    busy = small.add_request(PROMPT * 5, params())
    outputs = step(small, 4)
    loaded = small.load(engine.save(request))
    run(small, outputs)
    assert results(outputs, loaded) == wanted
    assert results(outputs, busy) == whole(PROMPT * 5)


def test_a_swapped_group_is_saved_with_its_blocks():
    block_bytes = 2 * 2 * 2 * 8 * 4 * 4
    engine = engine_of(num_blocks=24, preemption_mode="swap", swap_space_bytes=100 * block_bytes)
    group = {"n": 3, "temperature": 1.0, "seed": 2}
    first = engine.add_request(PROMPT, params(max_tokens=30), priority=0)
    second = engine.add_request(PROMPT[::-1], params(**group), priority=1)
    outputs = {}
    while not any(s.host_table for s in engine.kv_map().sequences if s.request_id == second):
        assert engine.has_unfinished()
        step(engine, 1, outputs)
    other = engine_of(enable_prefix_caching=False)
    loaded = other.load(engine.save(second))
    num_known = len(outputs[second, 0].tokens)
    again = run(other)
    assert other.stats().num_computed_tokens == 3 * (20 - num_known)
    wanted = whole(PROMPT[::-1], **group)
    for index in range(3):
        assert again[loaded, index].tokens == wanted[index][0][num_known:]
    run(engine, outputs)
    assert results(outputs, second) == wanted
    assert results(outputs, first) == whole(PROMPT, max_tokens=30)


def test_one_beam_goes_on_alone_under_new_params():
    engine = engine_of()
    request = engine.add_request(PROMPT, params(beam_width=3))
    step(engine, 5)
    tokens = engine.tokens(request, 1)
    snapshot = engine.save(request, 1)
    other = engine_of()
    with pytest.raises(ValueError, match="one beam"):
        other.load(snapshot)
    loaded = other.load(snapshot, params())
    assert results(run(other), loaded) == whole(tokens)
    fork = engine.fork(request, params(), index=1)
    assert results(run(engine), fork) == whole(tokens)


def test_several_sequences_are_not_loaded_under_new_params():
    engine = engine_of()
    request = engine.add_request(PROMPT, params(n=2, temperature=1.0), hold=True)
    step(engine, 3)
    with pytest.raises(ValueError, match="save one of them"):
        engine.load(engine.save(request), params())
    run(engine)
    with pytest.raises(ValueError, match="index must be given"):
        engine.save(request)
    with pytest.raises(ValueError, match="had finished"):
        engine.load(engine.save(request, 1))
    engine.release(request)
    assert is_empty(engine)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_sequences_that_a_held_group_reports_can_be_gone_on_from(group):
    engine = engine_of(enable_prefix_caching=False)
    request = engine.add_request(PROMPT, params(**group), hold=True)
    got = results(run(engine), request)
    assert got == whole(PROMPT, **group)
    assert len(got) == group["n"] and engine.stats().num_held == 1
    for index, (tokens, *_) in got.items():
        assert engine.tokens(request, index) == PROMPT + tokens
        computed = engine.stats().num_computed_tokens
        fork = engine.fork(request, params(max_tokens=5), index=index, more_tokens=[1, 2])
        wanted = whole(PROMPT + tokens + [1, 2], max_tokens=5)
        assert results(run(engine), fork) == wanted
        # Only what no open beam shared with a hypothesis at the end is computed again.
        assert engine.stats().num_computed_tokens - computed <= 2 + 5 + len(tokens)
        loaded = engine.load(engine.save(request, index), params(max_tokens=5))
        assert results(run(engine), loaded) == whole(PROMPT + tokens, max_tokens=5)
    with pytest.raises(ValueError, match="index"):
        engine.tokens(request, group["n"])
    engine.release(request)
    assert is_empty(engine)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_a_group_held_late_or_released_early_reports_the_same(group):
    for hold_at, release_at in [(0, 9), (4, 9), (9, 99)]:
        engine = engine_of()
        request = engine.add_request(PROMPT, params(**group))
        outputs = {}
        for i in range(40):
            if i == hold_at:
                engine.hold(request)
            if i == release_at:
                engine.release(request)
            step(engine, 1, outputs)
        assert results(outputs, request) == whole(PROMPT, **group)
        engine.release(request)
        assert is_empty(engine)


def checksum(data):
    """FNV-1a over 8 bytes at a time, as the library's."""
    value, mask = 0xCBF29CE484222325, (1 << 64) - 1
    whole_words = len(data) // 8 * 8
    for (word,) in struct.iter_unpack("<Q", data[:whole_words]):
        value = (value ^ word) * 0x100000001B3 & mask
        value ^= value >> 32
    for byte in data[whole_words:]:
        value = (value ^ byte) * 0x100000001B3 & mask
    return value


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_a_forged_snapshot_is_refused_or_runs_but_never_breaks_the_engine(group):
    engine = engine_of()
    request = engine.add_request(PROMPT, params(**group, max_tokens=6))
    step(engine, 3)
    snapshot = engine.save(request)
    assert struct.pack("<Q", checksum(snapshot[:-8])) == snapshot[-8:]
    engine.abort(request)
    rng = random.Random(1)
    num_refused = 0
    for _ in range(150):
        forged = bytearray(snapshot)
        at = rng.choice([rng.randrange(20, 400), rng.randrange(20, len(snapshot) - 8)])
        forged[at] = rng.choice([0, 1, 127, 128, 255, forged[at] ^ 1 << rng.randrange(8)])
        forged[-8:] = struct.pack("<Q", checksum(forged[:-8]))
        try:
            engine.load(bytes(forged))
        except ValueError:
            num_refused += 1
        assert engine.verify() == []
        for _ in range(30):
            engine.step()
            assert engine.verify() == []
        for loaded in range(request, request + 300):
            engine.abort(loaded)
    assert num_refused > 10
    assert is_empty(engine)


def test_a_sibling_that_ends_with_its_first_token_leaves_others_their_samples():
    drawn = {"n": 2, "temperature": 1.0, "seed": 6}
    first, second = (tokens for tokens, *_ in whole([5], max_tokens=1, **drawn).values())
    assert first != second
    parting = {**drawn, "stop_token_ids": first}
    neighbour = {"temperature": 1.0, "seed": 9}

    engine = engine_of(max_num_seqs=3)
    request = engine.add_request(PROMPT, params(**neighbour), priority=1)
    late = engine.add_request(PROMPT[1:], params(), priority=2)
    outputs = step(engine, 3)
    group = engine.add_request([5], params(**parting))  # goes before both, in place of the last
    run(engine, outputs)
    assert results(outputs, group) == whole([5], **parting)
    assert results(outputs, request) == whole(PROMPT, **neighbour)
    assert results(outputs, late) == whole(PROMPT[1:])
