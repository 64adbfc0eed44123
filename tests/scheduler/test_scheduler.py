"""Scheduler rules one by one, on plans: no model, no memory."""

import pytest

from pagedcore._core import (
    GroupState,
    HeadroomPolicy,
    InvalidArgument,
    PreemptionKind,
    PreemptionMode,
    QueueFull,
    Scheduler,
    SchedulerConfig,
)


def scheduler_of(**options):
    defaults = {
        "num_blocks": 16,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "max_model_len": 64,
        "headroom_tokens": 0,
    }
    return Scheduler(SchedulerConfig(**defaults | options))


def run(scheduler, token=7):
    """One step in which every sequence that reaches its end gets `token`."""
    plan = scheduler.schedule()
    scheduler.commit()
    for span in plan.spans:
        if span.reaches_end:
            scheduler.append_token(span.sequence_id, token)
    assert scheduler.check_invariants() == []
    return plan


def spans(plan):
    return [(s.request_id, s.context_len, s.query_len, s.reaches_end) for s in plan.spans]


def test_a_prompt_is_computed_in_chunks_and_sampled_at_its_end():
    scheduler = scheduler_of(max_num_batched_tokens=8)
    scheduler.add(list(range(20)), request_id=1)
    assert spans(run(scheduler)) == [(1, 0, 8, False)]
    assert spans(run(scheduler)) == [(1, 8, 8, False)]
    assert spans(run(scheduler)) == [(1, 16, 4, True)]
    assert spans(run(scheduler)) == [(1, 20, 1, True)]


def test_decoding_sequences_come_before_prompts():
    scheduler = scheduler_of(max_num_batched_tokens=8)
    scheduler.add(list(range(4)), request_id=1)
    run(scheduler)
    scheduler.add(list(range(100, 120)), request_id=2)
    assert spans(run(scheduler)) == [(1, 4, 1, True), (2, 0, 7, False)]


def test_admission_is_first_come_first_served_without_bypass():
    scheduler = scheduler_of(num_blocks=8, partial_admission=False)
    scheduler.add(list(range(16)), request_id=1)
    scheduler.add(list(range(100, 120)), request_id=2)
    scheduler.add([50], request_id=3)
    assert [s.request_id for s in run(scheduler).spans] == [1]
    scheduler.abort(1)
    assert [s.request_id for s in run(scheduler).spans] == [2, 3]


def test_the_last_free_blocks_go_to_the_next_prompts_first_tokens():
    scheduler = scheduler_of(num_blocks=8)
    scheduler.add(list(range(15)), request_id=1)
    scheduler.add(list(range(100, 120)), request_id=2)
    assert spans(run(scheduler)) == [(1, 0, 15, True), (2, 0, 16, False)]


def test_two_prompts_share_the_blocks_of_their_common_beginning():
    scheduler = scheduler_of()
    first = scheduler.add(list(range(10)), request_id=1)
    run(scheduler)
    second = scheduler.add([*range(8), 90, 91], request_id=2)
    plan = run(scheduler)
    assert spans(plan)[1] == (2, 8, 2, True)
    assert second.table[:2] == first.table[:2]


def test_a_hit_inside_a_block_copies_it_and_computes_the_rest():
    scheduler = scheduler_of()
    first = scheduler.add(list(range(8)), request_id=1)
    run(scheduler)
    second = scheduler.add([*range(7), 90], request_id=2)
    plan = run(scheduler)
    assert plan.copies == [(first.table[1], second.table[1])]
    assert spans(plan)[1] == (2, 7, 1, True)


def test_a_request_may_refuse_prefix_hits():
    scheduler = scheduler_of()
    scheduler.add(list(range(8)), request_id=1)
    run(scheduler)
    scheduler.add(list(range(8)), request_id=2, read_prefix_cache=False)
    assert spans(run(scheduler))[1] == (2, 0, 8, True)


def test_siblings_share_the_prompt_and_copy_one_block_each_but_the_last():
    scheduler = scheduler_of()
    parent = scheduler.add(list(range(6)), request_id=1, num_sequences=3)
    run(scheduler)
    children = [scheduler.fork(parent.id, 6) for _ in range(2)]
    for token, child in enumerate(children):
        scheduler.append_token(child.id, token)
    plan = run(scheduler)
    assert len(plan.copies) == 2
    assert [s.query_len for s in plan.spans] == [1, 1, 1]
    assert len({s.table[0] for s in (parent, *children)}) == 1
    assert len({s.table[1] for s in (parent, *children)}) == 3


@pytest.mark.parametrize("caching", [True, False])
def test_sharing_inside_a_group_is_rebuilt_after_a_recompute(caching):
    scheduler = scheduler_of(num_blocks=12, enable_prefix_caching=caching, partial_admission=False)
    older = scheduler.add(list(range(500, 516)), request_id=1)
    parent = scheduler.add(list(range(10)), request_id=2, num_sequences=2)
    run(scheduler)
    child = scheduler.fork(parent.id, 10)
    scheduler.append_token(child.id, 8)
    while parent.state != GroupState.PREEMPTED:
        run(scheduler)
    assert (child.num_computed, child.index, child.table) == (0, -1, [])
    scheduler.finish(older.id)
    steps = []
    while parent.num_tokens == child.num_tokens and not (steps and steps[-1][-1].reaches_end):
        steps.append(run(scheduler).spans)
    assert parent.table[:2] == child.table[:2]
    assert not set(parent.table[2:]) & set(child.table[2:])
    assert [s.reaches_end for s in steps[-1]] == [True, True]  # abreast
    computed = sum(s.query_len for step in steps for s in step)
    assert computed <= parent.num_tokens - 1 + child.num_tokens - 1 - 8


def test_the_newest_request_gives_way_and_comes_back_before_new_ones():
    scheduler = scheduler_of(num_blocks=6, tail_preemption=False, partial_admission=False)
    first = scheduler.add(list(range(8)), request_id=1)
    second = scheduler.add(list(range(100, 108)), request_id=2)
    third = scheduler.add(list(range(200, 209)), request_id=3)
    while not run(scheduler).preempted:
        pass
    assert second.state == GroupState.PREEMPTED
    assert second.last_preemption == PreemptionKind.RECOMPUTE
    assert third.state == GroupState.WAITING
    scheduler.finish(first.id)
    assert next(s.request_id for s in run(scheduler).spans) == 2


def test_only_the_tail_of_the_victim_is_taken():
    scheduler = scheduler_of(num_blocks=6)
    scheduler.add(list(range(9)), request_id=1)
    victim = scheduler.add(list(range(100, 110)), request_id=2)
    while not run(scheduler).preempted:
        pass
    assert victim.last_preemption == PreemptionKind.TAIL
    assert victim.state == GroupState.RUNNING
    assert (victim.num_computed, len(victim.table)) == (8, 2)


def group_under_pressure(num_branches=2, **options):
    """An old request that grows, and a group of siblings with a common prompt of ten tokens."""
    scheduler = scheduler_of(**{"num_blocks": 12, "partial_admission": False} | options)
    older = scheduler.add(list(range(500, 516)), request_id=1)
    parent = scheduler.add(list(range(10)), request_id=2, num_sequences=num_branches)
    run(scheduler)
    members = [parent]
    for token in range(1, num_branches):
        members.append(scheduler.fork(parent.id, 10))
        scheduler.append_token(members[-1].id, 100 + token)
    return scheduler, older, members


def run_until_preempted(scheduler):
    while not (plan := run(scheduler)).preempted:
        pass
    return plan


def kinds_of_preemptions(scheduler, sequence, count):
    kinds = []
    while len(kinds) < count:
        run(scheduler)
        if sequence.num_preemptions > len(kinds):
            kinds.append(sequence.last_preemption)
    return kinds


def run_until_abreast(scheduler, count):
    """The spans of all steps until `count` sequences reach their ends in one."""
    steps = [run(scheduler).spans]
    while sum(s.reaches_end for s in steps[-1]) < count:
        steps.append(run(scheduler).spans)
        assert len(steps) < 50
    return [span for step in steps for span in step]


@pytest.mark.parametrize("caching", [True, False])
def test_only_the_tails_of_a_group_are_taken_and_its_sharing_stays(caching):
    scheduler, older, members = group_under_pressure(3, enable_prefix_caching=caching)
    before = [m.table for m in members]
    while not scheduler.stats().preempted_tokens:  # blocks without tokens go first
        run(scheduler)
    assert members[0].last_preemption == PreemptionKind.TAIL
    assert all(m.state == GroupState.RUNNING for m in members)
    lost = [m for m in members if m.num_computed < m.num_tokens - 1]
    assert len(lost) == 1 and lost[0].num_computed == 4 * len(lost[0].table)
    assert all(m.table[:2] == b[:2] for m, b in zip(members, before))
    num_lost = lost[0].num_tokens - 1 - lost[0].num_computed
    assert scheduler.stats().preempted_tokens == num_lost
    scheduler.finish(older.id)
    spans = run_until_abreast(scheduler, 3)
    assert sum(s.query_len for s in spans) == num_lost + 3
    assert scheduler.stats().recomputed_tokens == num_lost
    assert len({m.num_tokens for m in members}) == 1
    assert len({m.table[0] for m in members}) == 1


def test_a_block_that_siblings_share_is_taken_from_all_and_computed_once():
    scheduler = scheduler_of(num_blocks=7, partial_admission=False, enable_prefix_caching=False)
    older = scheduler.add(list(range(500, 508)), request_id=1)
    parent = scheduler.add(list(range(16)), request_id=2, num_sequences=2)
    run(scheduler)
    child = scheduler.fork(parent.id, 16)
    scheduler.append_token(child.id, 8)
    run_until_preempted(scheduler)
    while len(parent.table) > 3:
        run(scheduler)
    assert parent.table == child.table and parent.num_computed == child.num_computed == 12
    scheduler.finish(older.id)
    spans = run_until_abreast(scheduler, 2)
    assert parent.table[:4] == child.table[:4]
    assert sum(s.query_len for s in spans) <= 4 + 2 * 2


def test_the_tails_of_a_group_are_swapped_out_and_back_where_the_mode_is_swap():
    scheduler, older, members = group_under_pressure(
        3, num_host_blocks=8, preemption_mode=PreemptionMode.SWAP
    )
    tables = [m.table for m in members]
    computed = [m.num_computed for m in members]
    while not (plan := run(scheduler)).swap_out:
        tables = [m.table for m in members]
        computed = [m.num_computed for m in members]
    assert members[0].last_preemption == PreemptionKind.SWAP
    assert [len(plan.swap_out), plan.swap_in] == [1, []]
    [(source, target)] = plan.swap_out
    [loser] = [i for i, t in enumerate(tables) if t[-1] == source]
    hosts = {s.id: s.host_table for s in scheduler.kv_map().sequences}
    assert [hosts[m.id] for m in members] == [[target] if i == loser else [] for i in range(3)]
    assert [m.num_computed for m in members] == computed
    scheduler.finish(older.id)
    back = run(scheduler)
    assert [source for source, _ in back.swap_in] == [target]
    assert members[loser].table[len(tables[loser]) - 1] == back.swap_in[0][1]
    assert [s.context_len for s in back.spans] == computed
    stats = scheduler.stats()
    assert (stats.recomputed_tokens, stats.host_blocks_used) == (0, 0)


def test_a_tail_is_dropped_where_no_host_block_is_left():
    scheduler, older, members = group_under_pressure(
        3, num_host_blocks=1, preemption_mode=PreemptionMode.SWAP
    )
    kinds = kinds_of_preemptions(scheduler, members[0], 2)
    assert kinds == [PreemptionKind.SWAP, PreemptionKind.TAIL]
    assert scheduler.stats().host_blocks_used == 0
    scheduler.finish(older.id)
    run_until_abreast(scheduler, 3)


def test_what_a_file_held_is_served_to_no_one_even_after_a_swap():
    scheduler = scheduler_of(
        num_blocks=6, num_host_blocks=8, preemption_mode=PreemptionMode.SWAP, tail_preemption=False
    )
    older = scheduler.add(list(range(500, 509)), request_id=1)
    run(scheduler)
    tokens = list(range(10))
    restored = scheduler.restore(tokens[:6], tokens, 9, request_id=2)
    run_until_preempted(scheduler)
    assert restored.state == GroupState.SWAPPED
    scheduler.finish(older.id)
    run(scheduler)
    assert restored.num_computed > 9
    scheduler.finish(restored.id)
    scheduler.add(tokens, request_id=3)
    assert spans(run(scheduler)) == [(3, 0, 10, True)]


def test_the_newest_waits_for_a_block_without_losing_any():
    scheduler = scheduler_of(num_blocks=6)
    scheduler.add(list(range(9)), request_id=1)
    newest = scheduler.add(list(range(100, 110)), request_id=2)
    for _ in range(3):
        run(scheduler)
    assert [s.request_id for s in run(scheduler).spans] == [1]
    assert (newest.state, newest.num_computed) == (GroupState.RUNNING, 12)
    assert newest.num_preemptions == 0


def test_swap_moves_every_shared_block_once_and_back():
    scheduler = scheduler_of(
        num_blocks=8,
        num_host_blocks=8,
        preemption_mode=PreemptionMode.SWAP,
        tail_preemption=False,
        partial_admission=False,
        enable_prefix_caching=False,
    )
    older = scheduler.add(list(range(500, 512)), request_id=1)
    parent = scheduler.add(list(range(10)), request_id=2, num_sequences=2)
    run(scheduler)
    child = scheduler.fork(parent.id, 10)
    scheduler.append_token(child.id, 8)
    plan = run(scheduler)
    tables = (parent.table, child.table)
    while not plan.swap_out:
        tables = (parent.table, child.table)
        plan = run(scheduler)
    moved = [source for source, _ in plan.swap_out]
    assert sorted(moved) == sorted({*tables[0], *tables[1]})
    assert parent.state == GroupState.SWAPPED
    computed = parent.num_computed
    scheduler.finish(older.id)
    back = run(scheduler)
    assert len(back.swap_in) == len(moved)
    assert back.swap_out == []
    assert [s.context_len for s in back.spans] == [computed, computed]
    assert parent.table[:2] == child.table[:2]
    assert scheduler.stats().recomputed_tokens == 0


def test_auto_takes_what_the_measured_costs_make_cheaper():
    for rate, kind in [(1e9, PreemptionKind.SWAP), (1e-9, PreemptionKind.TAIL)]:
        scheduler = scheduler_of(
            num_blocks=6, num_host_blocks=8, preemption_mode=PreemptionMode.AUTO
        )
        scheduler.set_costs(prefill_tokens_per_s=1.0, swap_blocks_per_s=rate)
        scheduler.add(list(range(9)), request_id=1)
        victim = scheduler.add(list(range(100, 110)), request_id=2)
        while not run(scheduler).preempted:
            pass
        assert victim.last_preemption == kind


PRICES = {
    "a fast bus": ({"prefill_tokens_per_s": 1.0, "swap_blocks_per_s": 1e9}, True),
    "a slow bus": ({"prefill_tokens_per_s": 1.0, "swap_blocks_per_s": 1e-9}, False),
    "two moves cost what four tokens do": (
        {"prefill_tokens_per_s": 2.0, "swap_blocks_per_s": 1.0},
        False,
    ),
    "two moves cost less than four tokens": (
        {"prefill_tokens_per_s": 1.9, "swap_blocks_per_s": 1.0},
        True,
    ),
    "tokens ride along free": (
        {"prefill_tokens_per_s": 1.0, "swap_blocks_per_s": 1e9, "min_step_s": 100.0},
        False,
    ),
    "decoding fills the step": (
        {"prefill_tokens_per_s": 1.0, "swap_blocks_per_s": 1e9, "min_step_s": 1.0},
        True,
    ),
    "nothing is measured": ({"prefill_tokens_per_s": 0.0, "swap_blocks_per_s": 0.0}, False),
}


@pytest.mark.parametrize(("costs", "swaps"), PRICES.values(), ids=PRICES)
def test_auto_takes_the_tail_the_way_that_costs_less(costs, swaps):
    scheduler, _, _ = group_under_pressure(
        2, num_host_blocks=8, preemption_mode=PreemptionMode.AUTO
    )
    scheduler.set_costs(**costs)
    plan = run_until_preempted(scheduler)
    assert bool(plan.swap_out) == swaps


def test_auto_does_not_move_what_another_request_keeps_findable():
    scheduler = scheduler_of(
        num_blocks=10,
        num_host_blocks=16,
        preemption_mode=PreemptionMode.AUTO,
        tail_preemption=False,
    )
    scheduler.set_costs(prefill_tokens_per_s=1.0, swap_blocks_per_s=1.0)
    prompt = list(range(16))
    older = scheduler.add([*prompt, 90, 91, 92], request_id=1)
    run(scheduler)
    newer = scheduler.add([*prompt, 80], request_id=2, priority=1)
    run(scheduler)
    assert newer.table[:4] == older.table[:4]
    scheduler.add(list(range(100, 120)), request_id=3)
    plan = run(scheduler)  # to move five blocks costs more than to compute the one that is lost
    assert newer.last_preemption == PreemptionKind.RECOMPUTE and plan.swap_out == []


def test_auto_drops_what_is_free_to_compute_and_moves_the_rest():
    scheduler, older, members = group_under_pressure(
        2, num_host_blocks=8, preemption_mode=PreemptionMode.AUTO
    )
    scheduler.set_costs(prefill_tokens_per_s=1.0, swap_blocks_per_s=1e9, min_step_s=5.0)
    kinds = kinds_of_preemptions(scheduler, members[0], 2)
    assert kinds == [PreemptionKind.TAIL, PreemptionKind.SWAP]
    scheduler.finish(older.id)
    computed = sum(s.query_len for s in run_until_abreast(scheduler, 2))
    stats = scheduler.stats()
    assert 0 < stats.recomputed_tokens <= 4 and computed == stats.recomputed_tokens + 2


def test_a_request_of_higher_priority_takes_the_place_of_a_lower_one():
    scheduler = scheduler_of(num_blocks=6)
    low = scheduler.add(list(range(16)), request_id=1, priority=5)
    run(scheduler)
    high = scheduler.add(list(range(100, 123)), request_id=2, priority=1)
    assert [s.request_id for s in run(scheduler).spans] == [2]
    assert (low.state, high.state) == (GroupState.PREEMPTED, GroupState.RUNNING)


def test_priority_takes_only_the_tail_where_that_suffices():
    scheduler = scheduler_of(num_blocks=6)
    low = scheduler.add(list(range(16)), request_id=1, priority=5)
    run(scheduler)
    high = scheduler.add(list(range(100, 112)), request_id=2, priority=1)
    assert [s.request_id for s in run(scheduler).spans] == [2]
    assert (low.last_preemption, low.state) == (PreemptionKind.TAIL, GroupState.RUNNING)
    assert (low.num_computed, len(low.table)) == (12, 3)
    scheduler.finish(high.id)
    assert spans(run(scheduler)) == [(1, 12, 5, True)]


def test_equal_priority_never_preempts_a_runner_for_a_newcomer():
    scheduler = scheduler_of(num_blocks=6, partial_admission=False)
    scheduler.add(list(range(16)), request_id=1, priority=1)
    run(scheduler)
    scheduler.add(list(range(100, 116)), request_id=2, priority=1)
    assert [s.request_id for s in run(scheduler).spans] == [1]


def test_a_tenant_at_its_quota_waits_and_others_pass():
    scheduler = scheduler_of()
    scheduler.set_tenant_quota("t", 4)
    scheduler.add(list(range(12)), request_id=1, tenant="t")
    scheduler.add(list(range(100, 112)), request_id=2, tenant="t")
    scheduler.add(list(range(200, 212)), request_id=3, tenant="u")
    assert [s.request_id for s in run(scheduler).spans] == [1, 3]
    with pytest.raises(InvalidArgument, match="takes 6 blocks .* quota of tenant 't' is 4"):
        scheduler.add(list(range(20)), request_id=4, tenant="t")


def test_a_group_that_outgrows_the_pool_is_reported_and_nobody_else_suffers():
    scheduler = scheduler_of(num_blocks=4)
    scheduler.add(list(range(12)), request_id=1)
    plan = run(scheduler)
    while not plan.capacity_exceeded:
        plan = run(scheduler)
    assert plan.capacity_exceeded == [1]
    scheduler.add(list(range(100, 110)), request_id=2)
    scheduler.abort(1)
    assert [s.request_id for s in run(scheduler).spans] == [2]


def test_a_group_that_can_never_grow_ends_before_it_takes_anything_from_others():
    scheduler = scheduler_of(num_blocks=12)
    parent = scheduler.add(list(range(8)), request_id=1, num_sequences=4)
    run(scheduler)
    for token in range(3):
        scheduler.append_token(scheduler.fork(parent.id, 8).id, token)
    other = scheduler.add([50], request_id=2)
    plan = run(scheduler)
    while not plan.capacity_exceeded:  # the four need a block each at once
        plan = run(scheduler)
    assert plan.capacity_exceeded == [1]
    assert (other.num_preemptions, other.state) == (0, GroupState.RUNNING)
    scheduler.abort(1)
    assert [s.request_id for s in run(scheduler).spans] == [2]


def test_nobody_passes_a_group_of_the_same_tenant_that_waits_for_its_quota():
    scheduler = scheduler_of()
    scheduler.set_tenant_quota("t", 6)
    first = scheduler.add(list(range(12)), request_id=1, tenant="t")
    scheduler.add(list(range(100, 117)), request_id=2, tenant="t")
    scheduler.add([200], request_id=3, tenant="t")
    urgent = scheduler.add([300], request_id=4, tenant="t", priority=-1)
    assert [s.request_id for s in run(scheduler).spans] == [4, 1]
    scheduler.finish(urgent.id)
    assert [s.request_id for s in run(scheduler).spans] == [1]
    scheduler.finish(first.id)
    assert [s.request_id for s in run(scheduler).spans] == [2, 3]


def test_a_tenant_short_of_quota_holds_nobody_else_up():
    scheduler = scheduler_of(num_blocks=12, partial_admission=False)
    scheduler.set_tenant_quota("t", 6)
    scheduler.add(list(range(8)), request_id=1, tenant="t")
    second = scheduler.add(list(range(100, 108)), request_id=2, tenant="t")
    while second.num_preemptions == 0:
        run(scheduler)
    scheduler.add(list(range(200, 208)), request_id=3, tenant="u")
    for _ in range(8):
        plan = run(scheduler)
        assert {1, 3} <= {s.request_id for s in plan.spans}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "the prompt must have at least one token"),
        ({"prompt": [0] * 65}, "the prompt has 65 tokens, max_model_len is 64"),
        ({"prompt": [0] * 17}, "17 prompt tokens .* take 5 blocks of 4 tokens, .* has 4"),
        ({"num_sequences": 9}, "has 9 sequences, max_num_seqs is 8"),
        ({"num_sequences": 0}, "num_sequences must be at least 1, got 0"),
        ({"max_total_tokens": -1}, "max_total_tokens must not be negative, got -1"),
        ({"request_id": 1}, "request_id 1 is in use"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_the_numbers(options, message):
    scheduler = scheduler_of(num_blocks=4)
    scheduler.add([1, 2], request_id=1)
    before = scheduler.stats().waiting_groups
    options = {"prompt": [1], "request_id": 2} | options
    with pytest.raises(InvalidArgument, match=message):
        scheduler.add(options.pop("prompt"), **options)
    assert scheduler.stats().waiting_groups == before


def test_a_full_queue_refuses_with_its_own_error():
    scheduler = scheduler_of(max_waiting=1)
    scheduler.add([1], request_id=1)
    with pytest.raises(QueueFull, match="1 requests wait, max_waiting is 1"):
        scheduler.add([1], request_id=2)
    run(scheduler)
    scheduler.add([1], request_id=2)


def test_a_held_sequence_keeps_its_blocks_and_can_be_forked_into_the_next_turn():
    scheduler = scheduler_of()
    turn = scheduler.add(list(range(10)), request_id=1)
    run(scheduler)
    run(scheduler)
    scheduler.hold(turn.id)
    assert not scheduler.has_unfinished
    assert (turn.num_tokens, turn.num_computed) == (12, 11)
    following = scheduler.fork_request(turn.id, 12, [30, 31], request_id=2)
    assert following.tokens == [*turn.tokens, 30, 31]
    plan = run(scheduler)
    assert spans(plan) == [(2, 11, 3, True)]
    assert following.table[:2] == turn.table[:2]
    scheduler.release(turn.id)
    with pytest.raises(InvalidArgument, match=f"sequence {turn.id} has ended"):
        turn.tokens  # noqa: B018
    scheduler.abort(2)
    assert scheduler.stats().used_slots == 0


def test_a_live_sequence_can_be_forked_at_any_token():
    scheduler = scheduler_of()
    parent = scheduler.add(list(range(10)), request_id=1)
    run(scheduler)
    child = scheduler.fork_request(parent.id, 6, [], request_id=2)
    assert child.table == parent.table[:2]
    plan = run(scheduler)
    assert spans(plan)[1] == (2, 5, 1, True)
    assert plan.copies == [(parent.table[1], child.table[1])]


def test_a_restored_sequence_goes_on_where_it_was():
    scheduler = scheduler_of()
    tokens = list(range(11))
    sequence = scheduler.restore(tokens[:6], tokens, 10, request_id=1)
    assert (sequence.num_computed, len(sequence.table)) == (10, 3)
    assert spans(run(scheduler)) == [(1, 10, 1, True)]
    scheduler.add(tokens, request_id=2)
    assert spans(run(scheduler))[1] == (2, 0, 11, True)  # a file's content serves no one else


def test_a_restore_without_room_is_computed_instead():
    scheduler = scheduler_of(num_blocks=4, partial_admission=False)
    scheduler.add(list(range(100, 112)), request_id=1)
    run(scheduler)
    sequence = scheduler.restore([1], list(range(1, 10)), 8, request_id=2)
    assert (sequence.num_computed, sequence.table) == (0, [])


def test_an_abandoned_step_is_planned_again():
    scheduler = scheduler_of()
    sequence = scheduler.add(list(range(10)), request_id=1)
    scheduler.schedule()
    scheduler.abandon()
    assert (sequence.state, sequence.num_computed) == (GroupState.PREEMPTED, 0)
    assert spans(run(scheduler)) == [(1, 0, 10, True)]


@pytest.mark.parametrize("policy", [HeadroomPolicy.WATERMARK, HeadroomPolicy.GROWTH])
def test_admission_leaves_headroom_for_what_runs(policy):
    scheduler = scheduler_of(
        num_blocks=8, headroom=policy, watermark=0.25, headroom_tokens=8, partial_admission=False
    )
    scheduler.add(list(range(12)), request_id=1)
    scheduler.add(list(range(100, 117)), request_id=2)  # five blocks, five are free
    assert [s.request_id for s in run(scheduler).spans] == [1]


def test_first_changed_block_says_which_table_entries_are_new():
    scheduler = scheduler_of()
    sequence = scheduler.add(list(range(7)), request_id=1)
    changes = [run(scheduler).spans[0].first_changed_block for _ in range(3)]
    assert changes == [0, 2, 2]
    assert len(sequence.table) == 3


def test_statistics_add_up_to_the_pool():
    scheduler = scheduler_of()
    scheduler.add(list(range(10)), request_id=1)
    scheduler.add(list(range(50, 54)), request_id=2)
    run(scheduler)
    scheduler.abort(2)
    stats = scheduler.stats()
    parts = (stats.used_slots, stats.reserved_slots, stats.cached_slots, stats.free_slots)
    assert parts == (10, 2, 4, 48)
    assert sum(parts) == stats.total_slots
    assert stats.waste == pytest.approx(2 / 12)


def test_the_block_map_names_every_blocks_owners():
    scheduler = scheduler_of()
    parent = scheduler.add(list(range(6)), request_id=1, num_sequences=2)
    run(scheduler)
    child = scheduler.fork(parent.id, 6)
    kv_map = scheduler.kv_map()
    assert [s.id for s in kv_map.sequences] == [parent.id, child.id]
    for block, info in enumerate(kv_map.blocks):
        owners = [s.id for s in kv_map.sequences if block in s.table]
        assert (sorted(info.owners), info.ref_count) == (owners, len(owners))
    assert kv_map.blocks[parent.table[0]].hash != 0
