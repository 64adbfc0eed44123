"""Who gives way when blocks run out, and what of it."""

import pytest
from support.plans import (
    group_under_pressure,
    run,
    run_until_abreast,
    run_until_preempted,
    scheduler_of,
    spans,
)

from pagedcore._core import GroupState, PreemptionKind


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


def test_the_newest_waits_for_a_block_without_losing_any():
    scheduler = scheduler_of(num_blocks=6)
    scheduler.add(list(range(9)), request_id=1)
    newest = scheduler.add(list(range(100, 110)), request_id=2)
    for _ in range(3):
        run(scheduler)
    assert [s.request_id for s in run(scheduler).spans] == [1]
    assert (newest.state, newest.num_computed) == (GroupState.RUNNING, 12)
    assert newest.num_preemptions == 0


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


def test_a_tail_that_a_quota_takes_can_still_be_found_by_others():
    scheduler = scheduler_of()
    scheduler.set_tenant_quota("t", 6)
    scheduler.add(list(range(500, 507)), request_id=1, tenant="t")
    newer = scheduler.add(list(range(13)), request_id=2, tenant="t")
    plan = run_until_preempted(scheduler)
    assert plan.preempted == [2] and (newer.num_computed, len(newer.table)) == (12, 3)
    scheduler.add([*newer.tokens, 90], request_id=3)
    assert spans(run(scheduler))[-1] == (3, 14, 2, True)


def test_what_waits_gives_its_blocks_before_what_runs():
    scheduler = scheduler_of(num_blocks=6, max_num_seqs=2)
    scheduler.add(list(range(8)), request_id=1)
    scheduler.add(list(range(100, 107)), request_id=2)
    run(scheduler)
    waiting = scheduler.restore([200], list(range(200, 208)), 7, request_id=3)
    assert waiting.num_computed == 7
    assert run(scheduler).preempted == [] and waiting.num_computed == 0


def test_a_request_of_higher_priority_needs_no_headroom_beside_lower_ones():
    scheduler = scheduler_of(headroom_tokens=4, max_num_batched_tokens=64)
    scheduler.add(list(range(46)), request_id=1, priority=1)
    run(scheduler)
    scheduler.add(list(range(100, 115)), request_id=2, priority=0)
    assert (2, 0, 15, True) in spans(run(scheduler))


def test_a_request_of_equal_priority_leaves_headroom_to_what_runs():
    scheduler = scheduler_of(headroom_tokens=4, max_num_batched_tokens=64, partial_admission=False)
    scheduler.add(list(range(46)), request_id=1, priority=1)
    run(scheduler)
    scheduler.add(list(range(100, 115)), request_id=2, priority=1)
    assert spans(run(scheduler)) == [(1, 46, 1, True)]


def test_priority_preempts_nobody_where_those_below_hold_too_little():
    scheduler = scheduler_of(num_blocks=8, partial_admission=False)
    scheduler.add(list(range(16)), request_id=1, priority=1)
    scheduler.add(list(range(50, 57)), request_id=2, priority=2)
    run(scheduler)
    scheduler.add(list(range(100, 120)), request_id=3, priority=1)
    plan = run(scheduler)
    assert plan.preempted == [] and [s.request_id for s in plan.spans] == [1, 2]


def test_who_is_admitted_in_a_step_loses_nothing_in_it():
    scheduler = scheduler_of(num_blocks=6)
    scheduler.add(list(range(8)), request_id=1)
    scheduler.add(list(range(100, 116)), request_id=2, priority=2)
    run(scheduler)
    scheduler.add(list(range(200, 216)), request_id=3, priority=1)
    plan = run(scheduler)
    assert plan.preempted == [2]
    assert spans(plan) == [(3, 0, 16, True)]  # the first waits for a block
    assert spans(run(scheduler))[0] == (1, 8, 1, True)
