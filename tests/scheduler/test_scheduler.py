"""Scheduler rules one by one, on plans: no model, no memory."""

import pytest
from support.plans import run, scheduler_of, spans

from pagedcore._core import GroupState, HeadroomPolicy, InvalidArgument, QueueFull


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


def test_a_decode_step_computes_what_came_to_each_sequence_since_the_last():
    scheduler = scheduler_of()
    first, second, third = (scheduler.add([10 * i, 1], request_id=i) for i in (1, 2, 3))
    for _ in range(3):
        plan = run(scheduler)
    assert spans(plan) == [(i, 3, 1, True) for i in (1, 2, 3)]
    scheduler.append_token(second.id, 8)
    assert spans(run(scheduler)) == [(1, 4, 1, True), (3, 4, 1, True), (2, 4, 2, True)]
    scheduler.finish(first.id)
    assert spans(run(scheduler)) == [(2, 6, 1, True), (3, 5, 1, True)]
    scheduler.schedule()
    scheduler.commit()
    scheduler.append_token(third.id, 8)  # and none to the second
    assert spans(run(scheduler)) == [(3, 7, 1, True)]


def test_a_decode_step_in_which_a_block_is_missing_leaves_the_others_what_they_have():
    scheduler = scheduler_of(num_blocks=4, partial_admission=False)
    older, _, newer = (scheduler.add([10 * i], request_id=i) for i in (1, 2, 3))
    for _ in range(3):
        run(scheduler)
    assert spans(run(scheduler)) == [(i, 3, 1, True) for i in (1, 2, 3)]
    plan = run(scheduler)  # one block is left, and two come from the newest
    assert plan.preempted == [3] and spans(plan) == [(1, 4, 1, True), (2, 4, 1, True)]
    assert len(older.table) == 2 and newer.num_computed == 0


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


def test_a_prompt_waits_for_the_beginning_that_another_computes_in_this_step():
    scheduler = scheduler_of()
    first = scheduler.add(list(range(8)), request_id=1)
    second = scheduler.add([*range(8), 90, 91], request_id=2)
    assert spans(run(scheduler)) == [(1, 0, 8, True)]
    assert spans(run(scheduler))[1] == (2, 8, 2, True)
    assert second.table[:2] == first.table[:2]


def test_a_prompt_does_not_wait_for_less_than_half_of_it():
    scheduler = scheduler_of()
    scheduler.add(list(range(8)), request_id=1)
    scheduler.add([*range(4), *range(90, 96)], request_id=2)
    assert spans(run(scheduler)) == [(1, 0, 8, True), (2, 0, 10, True)]


def test_a_prompt_waits_for_exactly_half_of_it():
    scheduler = scheduler_of()
    scheduler.add(list(range(4)), request_id=1)
    scheduler.add([*range(4), *range(90, 94)], request_id=2)
    assert spans(run(scheduler)) == [(1, 0, 4, True)]
    assert spans(run(scheduler))[1] == (2, 4, 4, True)


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


def test_a_tenant_at_its_quota_waits_and_others_pass():
    scheduler = scheduler_of()
    scheduler.set_tenant_quota("t", 4)
    scheduler.add(list(range(12)), request_id=1, tenant="t")
    scheduler.add(list(range(100, 112)), request_id=2, tenant="t")
    scheduler.add(list(range(200, 212)), request_id=3, tenant="u")
    assert [s.request_id for s in run(scheduler).spans] == [1, 3]
    with pytest.raises(InvalidArgument, match="takes 6 blocks .* quota of tenant 't' is 4"):
        scheduler.add(list(range(20)), request_id=4, tenant="t")


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


def prefix_hits_of_next_step(scheduler):
    before = scheduler.stats()
    run(scheduler)
    after = scheduler.stats()
    return (
        after.prompt_tokens_queried - before.prompt_tokens_queried,
        after.prompt_tokens_hit - before.prompt_tokens_hit,
    )


def test_prefix_hits_count_what_the_cache_had_at_admission():
    scheduler = scheduler_of()
    scheduler.add(list(range(10)), request_id=1)
    assert prefix_hits_of_next_step(scheduler) == (10, 0)
    scheduler.add([*range(8), 90, 91, 92], request_id=2)
    assert prefix_hits_of_next_step(scheduler) == (11, 8)
    assert prefix_hits_of_next_step(scheduler) == (0, 0)


def test_prefix_hits_do_not_count_what_a_fork_or_a_load_brought():
    scheduler = scheduler_of(num_blocks=32)
    parent = scheduler.add(list(range(8)), request_id=1)
    run(scheduler)
    scheduler.add([*range(8), *range(50, 54), 1], request_id=2)  # leaves 50 to 53 in the cache
    run(scheduler)
    scheduler.fork_request(parent.id, 8, [], request_id=3)
    assert prefix_hits_of_next_step(scheduler) == (1, 0)
    scheduler.fork_request(parent.id, 8, [*range(50, 54), 2, 3], request_id=4)
    assert prefix_hits_of_next_step(scheduler) == (6, 4)
    scheduler.restore([100], list(range(100, 111)), 10, request_id=5)
    assert prefix_hits_of_next_step(scheduler) == (1, 0)


def test_prefix_hits_count_those_of_a_prompt_that_is_admitted_in_part():
    scheduler = scheduler_of(num_blocks=8)
    scheduler.add(list(range(10)), request_id=1)
    run(scheduler)
    sequence = scheduler.add([*range(8), *range(100, 123)], request_id=2)
    assert prefix_hits_of_next_step(scheduler) == (31, 8)
    assert sequence.num_computed < sequence.num_tokens == 31


@pytest.mark.parametrize("headroom_tokens, num_blocks_found", [(0, 3), (1, 2)])
def test_a_prompt_admitted_in_part_takes_as_many_cached_blocks_as_are_spare(
    headroom_tokens, num_blocks_found
):
    scheduler = scheduler_of(num_blocks=8, headroom_tokens=headroom_tokens)
    first = scheduler.add(list(range(12)), request_id=1)
    run(scheduler)
    cached = first.table
    scheduler.finish(first.id)
    scheduler.add(list(range(100, 117)), request_id=2)
    run(scheduler)
    late = scheduler.add([*range(12), *range(200, 212)], request_id=3)
    plan = run(scheduler)
    assert [s.request_id for s in plan.spans] == [2]  # no block is left to compute in
    assert late.table == cached[:num_blocks_found]
    assert late.num_computed == 4 * num_blocks_found


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
