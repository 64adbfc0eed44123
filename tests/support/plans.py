"""Schedulers on small pools, their steps, and groups under pressure."""

from pagedcore._core import Scheduler, SchedulerConfig


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
