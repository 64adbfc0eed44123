"""A fake engine drives the scheduler at random and checks what every span would read.

The engine's memory holds, for each slot, the whole prefix that its KV stands for. So a wrong block,
a copy too late, a block shared that should not be, or a swap that mixes blocks up is seen at once.
"""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedcore._core import (
    GroupState,
    HeadroomPolicy,
    InvalidArgument,
    PreemptionMode,
    Scheduler,
    SchedulerConfig,
)

LENGTH = 40


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(6, 16),
        block_size=st.sampled_from([1, 2, 4, 8]),
        budget=st.sampled_from([4, 7, 64]),
        caching=st.booleans(),
        mode=st.sampled_from(list(PreemptionMode)),
        num_host_blocks=st.sampled_from([0, 3, 16]),
        tail=st.booleans(),
        partial=st.booleans(),
        headroom=st.sampled_from(list(HeadroomPolicy)),
        headroom_tokens=st.integers(0, 6),
        min_step_s=st.sampled_from([0.0, 1.0]),
    )
    def start(
        self,
        num_blocks,
        block_size,
        budget,
        caching,
        mode,
        num_host_blocks,
        tail,
        partial,
        headroom,
        headroom_tokens,
        min_step_s,
    ):
        self.size = block_size
        self.scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=num_blocks,
                block_size=block_size,
                max_num_seqs=6,
                max_num_batched_tokens=budget,
                max_model_len=LENGTH,
                enable_prefix_caching=caching,
                num_host_blocks=num_host_blocks,
                preemption_mode=mode,
                tail_preemption=tail,
                partial_admission=partial,
                headroom=headroom,
                headroom_tokens=headroom_tokens,
            )
        )
        self.quota = num_blocks // 2
        self.scheduler.set_tenant_quota("poor", self.quota)
        self.scheduler.set_costs(
            prefill_tokens_per_s=8.0, swap_blocks_per_s=2.0 * block_size, min_step_s=min_step_s
        )
        self.poor = set()
        self.memory = {}
        self.host = {}
        self.next_request = 0
        self.held = []

    def spec(self, data):
        self.next_request += 1
        tenant = data.draw(st.sampled_from(["rich", "rich", "poor"]))
        if tenant == "poor":
            self.poor.add(self.next_request)
        return {
            "request_id": self.next_request,
            "num_sequences": data.draw(st.integers(1, 3)),
            "priority": data.draw(st.sampled_from([0, 0, 0, -1])),
            "tenant": tenant,
            "cache_salt": data.draw(st.sampled_from(["", "", "salt"])),
            "read_prefix_cache": data.draw(st.sampled_from([True, True, False])),
        }

    @rule(data=st.data(), prompt=st.lists(st.integers(0, 1), min_size=1, max_size=16))
    def add(self, data, prompt):
        try:
            self.scheduler.add(prompt, **self.spec(data))
        except InvalidArgument as error:
            assert "can never fit" in str(error)

    @rule(data=st.data(), prompt=st.lists(st.integers(0, 1), min_size=2, max_size=16))
    def restore(self, data, prompt):
        num_computed = data.draw(st.integers(0, len(prompt) - 1))
        try:
            sequence = self.scheduler.restore(prompt, prompt, num_computed, **self.spec(data))
        except InvalidArgument as error:
            assert "can never fit" in str(error)
            return
        for position in range(sequence.num_computed):
            self.memory[self.slot(sequence.table, position)] = prompt[: position + 1]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), prompt=st.lists(st.integers(0, 1), max_size=4))
    def fork_held(self, data, prompt):
        parent = self.scheduler.sequence(data.draw(st.sampled_from(self.held)))
        num_tokens = data.draw(st.integers(1, parent.num_tokens))
        try:
            self.scheduler.fork_request(parent.id, num_tokens, prompt, **self.spec(data))
        except InvalidArgument as error:
            assert "can never fit" in str(error) or "max_model_len" in str(error)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self.scheduler.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(data=st.data())
    def abort(self, data):
        self.scheduler.abort(data.draw(st.integers(0, self.next_request)))

    @rule()
    def fail(self):
        plan = self.scheduler.schedule()
        self.scheduler.abandon()
        for request in plan.capacity_exceeded:
            self.scheduler.abort(request)

    @rule(data=st.data(), num_steps=st.integers(1, 8))
    def steps(self, data, num_steps):
        random = data.draw(st.randoms(use_true_random=False))
        for _ in range(num_steps):
            self.step(random)

    def slot(self, table, position):
        return table[position // self.size], position % self.size

    def move(self, plan):
        assert not (plan.swap_in and plan.swap_out)
        for moves, source, target in [
            (plan.swap_out, self.memory, self.host),
            (plan.swap_in, self.host, self.memory),
            (plan.copies, self.memory, self.memory),
        ]:
            assert len({dst for _, dst in moves}) == len(moves)
            assert source is not target or not {s for s, _ in moves} & {d for _, d in moves}
            for src, dst in moves:
                for offset in range(self.size):
                    target[dst, offset] = source.get((src, offset))

    def step(self, random):
        plan = self.scheduler.schedule()
        assert self.scheduler.check_invariants() == []
        self.check_quota()
        self.move(plan)
        assert sum(s.query_len for s in plan.spans) == plan.num_tokens
        written = set()
        for span in plan.spans:
            sequence = self.scheduler.sequence(span.sequence_id)
            table, tokens = sequence.table, sequence.tokens
            assert 0 <= sequence.index < 6
            for position in range(span.context_len):
                assert self.memory[self.slot(table, position)] == tokens[: position + 1]
            end = span.context_len + span.query_len
            assert span.reaches_end == (end == len(tokens))
            for position in range(span.context_len, end):
                slot = self.slot(table, position)
                assert slot not in written
                written.add(slot)
                self.memory[slot] = tokens[: position + 1]
        self.scheduler.commit()
        assert self.scheduler.check_invariants() == []
        for span in plan.spans:
            if span.reaches_end:
                self.sample(span, random)
        for request in plan.capacity_exceeded:
            self.scheduler.abort(request)

    def check_quota(self):
        blocks = {
            block
            for info in self.scheduler.kv_map().sequences
            if info.request_id in self.poor and info.state == GroupState.RUNNING
            for block in info.table
        }
        assert len(blocks) <= self.quota

    def sample(self, span, random):
        sequence = self.scheduler.sequence(span.sequence_id)
        if len(sequence.siblings) < 3 and random.random() < 0.3:
            num_tokens = random.randint(1, sequence.num_tokens)
            try:
                child = self.scheduler.fork(sequence.id, num_tokens)
            except InvalidArgument as error:
                assert "was added for" in str(error)
            else:
                self.scheduler.append_token(child.id, random.randint(0, 1))
        self.scheduler.append_token(sequence.id, random.randint(0, 1))
        if sequence.num_tokens < LENGTH and random.random() < 0.85:
            return
        if len(self.held) < 2 and random.random() < 0.3:
            self.held.append(sequence.id)
            self.scheduler.hold(sequence.id)
        else:
            self.scheduler.finish(sequence.id)

    @invariant()
    def is_sound(self):
        assert self.scheduler.check_invariants() == []
        sequences = self.scheduler.kv_map().sequences
        swapped = {s.request_id for s in sequences if s.state == GroupState.SWAPPED}
        assert swapped <= {s.request_id for s in sequences if s.host_table}
        for info in sequences:
            assert info.state != GroupState.SWAPPED or info.table == []
            if info.host_table:
                self.check_swapped(info)

    def check_swapped(self, info):
        """A sequence's tokens lie in its table and go on in its host table."""
        assert info.state in (GroupState.RUNNING, GroupState.SWAPPED)
        tokens = self.scheduler.sequence(info.id).tokens
        num_here = len(info.table) * self.size
        for position in range(info.num_computed):
            if position < num_here:
                stored = self.memory[self.slot(info.table, position)]
            else:
                stored = self.host[self.slot(info.host_table, position - num_here)]
            assert stored == tokens[: position + 1]

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        random = Random(self.next_request)
        for _ in range(2000):
            while self.held:
                self.scheduler.release(self.held.pop())
            if not self.scheduler.has_unfinished:
                break
            self.step(random)
        stats = self.scheduler.stats()
        assert not self.scheduler.has_unfinished
        assert (stats.used_slots, stats.reserved_slots, stats.host_blocks_used) == (0, 0, 0)
        assert self.scheduler.check_invariants() == []


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
