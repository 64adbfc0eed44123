"""BlockTable: reserve, fork, copy-on-write, truncate; a random machine checks the contents."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedcore._core import BlockAllocator, BlockTable, InvalidArgument


def test_reserve_adds_only_the_blocks_that_are_missing():
    table = BlockTable(BlockAllocator(8), 4)
    for num_tokens, num_blocks in [(0, 0), (1, 1), (4, 1), (5, 2), (3, 2), (32, 8)]:
        assert table.try_reserve(num_tokens)
        assert table.num_blocks == num_blocks


def test_reserve_takes_nothing_when_it_cannot_have_all():
    allocator = BlockAllocator(3)
    table = BlockTable(allocator, 4)
    assert not table.try_reserve(13)
    assert allocator.num_free == 3


def test_fork_shares_blocks_and_allocates_none():
    allocator = BlockAllocator(3)
    table = BlockTable(allocator, 4)
    table.try_reserve(12)
    child = table.fork(5)
    assert child.blocks == table.blocks[:2]
    assert [allocator.ref_count(b) for b in table.blocks] == [2, 2, 1]
    assert allocator.num_free == 0


def test_every_writer_but_the_last_holder_copies_one_block():
    allocator = BlockAllocator(8)
    parent = BlockTable(allocator, 4)
    parent.try_reserve(6)
    tail = parent.blocks[1]
    children = [parent.fork(6) for _ in range(2)]
    assert [len(t.try_prepare_write(6, 7)) for t in (parent, *children)] == [1, 1, 0]
    assert children[1].blocks[1] == tail
    assert len({t.blocks[1] for t in (parent, *children)}) == 3
    assert len({t.blocks[0] for t in (parent, *children)}) == 1


def test_a_shared_block_written_from_its_start_is_replaced_without_a_copy():
    allocator = BlockAllocator(4)
    parent = BlockTable(allocator, 4)
    parent.try_reserve(8)
    child = parent.fork(8)
    assert child.try_prepare_write(4, 5) == []
    assert child.blocks[1] != parent.blocks[1]


def test_preparing_a_write_changes_nothing_when_blocks_run_out():
    allocator = BlockAllocator(2)
    parent = BlockTable(allocator, 4)
    parent.try_reserve(6)
    child = parent.fork(6)
    assert child.try_prepare_write(6, 7) is None
    assert child.blocks == parent.blocks


def test_a_table_gives_its_blocks_back_when_it_goes():
    allocator = BlockAllocator(4)
    table = BlockTable(allocator, 4)
    table.try_reserve(16)
    child = table.fork(9)
    del table
    assert allocator.num_held == 3
    del child
    assert allocator.num_free == 4


def test_slot_is_block_times_size_plus_offset():
    table = BlockTable(BlockAllocator(4), 4)
    table.try_reserve(9)
    assert [table.slot(p) for p in (0, 3, 4, 8)] == [
        4 * table.blocks[p // 4] + p % 4 for p in (0, 3, 4, 8)
    ]
    with pytest.raises(InvalidArgument, match=r"position must be in \[0, 12\), got 12"):
        table.slot(12)


class TableMachine(RuleBasedStateMachine):
    """Tables over simulated memory: each must read back what was written through it."""

    @initialize(num_blocks=st.integers(2, 12), block_size=st.sampled_from([1, 2, 4]))
    def start(self, num_blocks, block_size):
        self.allocator = BlockAllocator(num_blocks)
        self.block_size = block_size
        self.memory = {}
        self.tables = []  # (table, what it should read)
        self.next_value = 0

    @rule()
    def create(self):
        if len(self.tables) < 4:
            self.tables.append((BlockTable(self.allocator, self.block_size), []))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), num_tokens=st.integers(1, 6))
    def write(self, data, num_tokens):
        table, content = self.tables[data.draw(st.integers(0, len(self.tables) - 1))]
        begin, end = len(content), len(content) + num_tokens
        copies = table.try_prepare_write(begin, end)
        if copies is None:
            return
        for source, destination in copies:
            for offset in range(self.block_size):
                self.memory[destination, offset] = self.memory.get((source, offset))
        for position in range(begin, end):
            slot = table.slot(position)
            self.next_value += 1
            self.memory[slot // self.block_size, slot % self.block_size] = self.next_value
            content.append(self.next_value)

    @precondition(lambda self: 0 < len(self.tables) < 4)
    @rule(data=st.data())
    def fork(self, data):
        table, content = self.tables[data.draw(st.integers(0, len(self.tables) - 1))]
        num_tokens = data.draw(st.integers(0, len(content)))
        free = self.allocator.num_free
        self.tables.append((table.fork(num_tokens), content[:num_tokens]))
        assert self.allocator.num_free == free

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def truncate(self, data):
        table, content = self.tables[data.draw(st.integers(0, len(self.tables) - 1))]
        num_tokens = data.draw(st.integers(0, len(content)))
        table.truncate(num_tokens)
        del content[num_tokens:]

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def drop(self, data):
        table, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        table.clear()

    @invariant()
    def tables_read_what_was_written(self):
        assert self.allocator.check_invariants() == []
        for table, content in self.tables:
            slots = [divmod(table.slot(p), self.block_size) for p in range(len(content))]
            assert [self.memory[slot] for slot in slots] == content

    @invariant()
    def references_are_those_of_the_tables(self):
        entries = [b for table, _ in self.tables for b in table.blocks]
        for block in range(self.allocator.num_blocks):
            assert self.allocator.ref_count(block) == entries.count(block)


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
