"""What moves to host blocks and back, and when that is cheaper than computing again."""

import pytest
from support.plans import (
    group_under_pressure,
    kinds_of_preemptions,
    run,
    run_until_abreast,
    run_until_preempted,
    scheduler_of,
    spans,
)

from pagedcore._core import GroupState, PreemptionKind, PreemptionMode


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


def test_a_swapped_tail_stays_on_the_host_while_others_need_the_blocks_to_grow():
    scheduler = scheduler_of(
        num_host_blocks=16,
        preemption_mode=PreemptionMode.SWAP,
        headroom_tokens=4,
        max_num_batched_tokens=64,
    )
    scheduler.add(list(range(100, 124)), request_id=1)
    held = scheduler.add([1, 2, 3], request_id=2)
    scheduler.add(list(range(22)), request_id=3)
    run(scheduler)
    scheduler.hold(held.id)
    plan = run_until_preempted(scheduler)
    assert plan.preempted == [3] and scheduler.stats().host_blocks_used == 1
    scheduler.release(held.id)  # a block, which the older request may need
    assert run(scheduler).swap_in == [] and scheduler.stats().host_blocks_used == 1


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


def test_a_fork_of_a_request_whose_blocks_are_on_the_host_computes_its_tokens_itself():
    scheduler = scheduler_of(
        num_blocks=6, num_host_blocks=8, preemption_mode=PreemptionMode.SWAP, tail_preemption=False
    )
    scheduler.add(list(range(500, 509)), request_id=1)
    parent = scheduler.add(list(range(10)), request_id=2)
    run_until_preempted(scheduler)
    assert parent.state == GroupState.SWAPPED and parent.num_computed >= 10
    child = scheduler.fork_request(parent.id, 10, [], request_id=3)
    assert (child.num_computed, child.table) == (0, [])
    assert scheduler.check_invariants() == []
