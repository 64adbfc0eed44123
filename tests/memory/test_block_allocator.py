"""BlockAllocator alone: states, order of reuse, and a random machine against a naive model."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedcore._core import BlockAllocator, InvalidArgument


def test_released_block_is_reused_before_eviction():
    allocator = BlockAllocator(3)
    cached = allocator.try_allocate()
    allocator.set_reusable(cached, True)
    allocator.release(cached)
    free = allocator.try_allocate()
    allocator.release(free)
    assert allocator.try_allocate() == free
    assert allocator.is_reusable(cached)


def test_least_recently_released_block_is_evicted_first():
    allocator = BlockAllocator(3)
    blocks = [allocator.try_allocate() for _ in range(3)]
    for block in blocks:
        allocator.set_reusable(block, True)
    for block in (1, 0, 2):
        allocator.release(blocks[block])
    assert [allocator.try_allocate() for _ in range(3)] == [blocks[1], blocks[0], blocks[2]]
    assert allocator.try_allocate() is None


def test_cached_block_is_revived_by_a_reference():
    allocator = BlockAllocator(1)
    block = allocator.try_allocate()
    allocator.set_reusable(block, True)
    allocator.release(block)
    assert (allocator.num_held, allocator.num_cached) == (0, 1)
    allocator.retain(block)
    assert (allocator.num_held, allocator.num_cached) == (1, 0)
    assert allocator.is_reusable(block)


def test_pinned_block_is_not_allocated_though_nobody_refers_to_it():
    allocator = BlockAllocator(1)
    block = allocator.try_allocate()
    allocator.pin(block)
    allocator.release(block)
    assert allocator.try_allocate() is None
    allocator.unpin(block)
    assert allocator.try_allocate() == block


def test_a_given_block_is_taken_only_while_nobody_holds_it():
    allocator = BlockAllocator(4)
    assert allocator.try_allocate_block(2)
    assert not allocator.try_allocate_block(2)
    assert sorted(allocator.try_allocate() for _ in range(3)) == [0, 1, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.release(0), "has no reference to drop"),
        (lambda a: a.retain(0), "is free"),
        (lambda a: a.unpin(0), "is not pinned"),
        (lambda a: a.retain(7), r"must be in \[0, 2\), got 7"),
        (lambda a: a.ref_count(-1), r"must be in \[0, 2\), got -1"),
        (lambda a: BlockAllocator(0), "num_blocks must be at least 1, got 0"),
    ],
)
def test_misuse_names_the_block_and_changes_nothing(call, message):
    allocator = BlockAllocator(2)
    with pytest.raises(InvalidArgument, match=message):
        call(allocator)
    assert allocator.num_free == 2
    assert allocator.check_invariants() == []


class AllocatorMachine(RuleBasedStateMachine):
    """The model is two lists: who may be allocated next, in order, and counts of references."""

    @initialize(num_blocks=st.integers(1, 9))
    def start(self, num_blocks):
        self.allocator = BlockAllocator(num_blocks)
        self.free = list(range(num_blocks))
        self.cached = []
        self.refs = [0] * num_blocks
        self.reusable = [False] * num_blocks

    def available_again(self, block):
        if self.reusable[block]:
            self.cached.append(block)
        else:
            self.free.insert(0, block)

    @rule()
    def allocate(self):
        expected = (self.free or self.cached or [None])[0]
        assert self.allocator.try_allocate() == expected
        if expected is not None:
            (self.free or self.cached).pop(0)
            self.refs[expected] = 1
            self.reusable[expected] = False

    @precondition(lambda self: any(self.refs))
    @rule(data=st.data())
    def release(self, data):
        block = data.draw(st.sampled_from([b for b, n in enumerate(self.refs) if n]))
        self.allocator.release(block)
        self.refs[block] -= 1
        if not self.refs[block]:
            self.available_again(block)

    @precondition(lambda self: any(self.refs) or self.cached)
    @rule(data=st.data())
    def retain(self, data):
        held = [b for b, n in enumerate(self.refs) if n]
        block = data.draw(st.sampled_from(held + self.cached))
        self.allocator.retain(block)
        if not self.refs[block]:
            self.cached.remove(block)
        self.refs[block] += 1

    @rule(data=st.data(), reusable=st.booleans())
    def mark(self, data, reusable):
        block = data.draw(st.integers(0, len(self.refs) - 1))
        self.allocator.set_reusable(block, reusable)
        changes = self.reusable[block] != reusable
        self.reusable[block] = reusable
        if changes and not self.refs[block]:
            (self.free if reusable else self.cached).remove(block)
            self.available_again(block)

    @invariant()
    def agrees_with_the_model(self):
        assert self.allocator.check_invariants() == []
        assert self.allocator.num_free == len(self.free)
        assert self.allocator.num_cached == len(self.cached)
        assert [self.allocator.ref_count(b) for b in range(len(self.refs))] == self.refs


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
