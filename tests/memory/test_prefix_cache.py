"""PrefixCache: what is found, what never is, and a random machine over simulated memory."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pagedcore._core import BlockAllocator, BlockTable, InvalidArgument, PrefixCache


def cache_of(num_blocks=16, block_size=4, hash_bits=64):
    allocator = BlockAllocator(num_blocks)
    return allocator, PrefixCache(allocator, block_size, hash_bits)


def put(allocator, cache, tokens, salt="", block_size=4):
    table = BlockTable(allocator, block_size)
    assert table.try_reserve(len(tokens))
    cache.insert(tokens, table, salt)
    return table


def test_full_blocks_and_then_single_tokens_are_found():
    allocator, cache = cache_of()
    table = put(allocator, cache, list(range(12)))
    match = cache.match([*range(10), 99, 98])
    assert match.blocks == table.blocks[:2]
    assert (match.partial_block, match.partial_tokens) == (table.blocks[2], 2)
    assert match.num_tokens == 10


def test_the_last_prompt_token_is_always_left_to_compute():
    allocator, cache = cache_of()
    put(allocator, cache, list(range(8)))
    assert cache.match(list(range(8))).num_tokens == 7
    assert cache.match([0]).num_tokens == 0


def test_prompts_whose_hashes_collide_find_their_own_blocks_only():
    allocator, cache = cache_of(num_blocks=32, block_size=2, hash_bits=1)
    second = [8, 9]  # the same tokens behind all others
    tables = {i: put(allocator, cache, [i, i + 1, *second], block_size=2) for i in range(8)}
    assert len({block for table in tables.values() for block in table.blocks}) == 16
    for i, table in tables.items():
        assert cache.match([i, i + 1, *second, 0]).blocks == table.blocks
    assert cache.match([20, 21, *second, 0]).num_tokens == 0


def test_salts_do_not_see_each_other():
    allocator, cache = cache_of()
    put(allocator, cache, list(range(8)), salt="a")
    assert cache.match(list(range(9)), "b").num_tokens == 0
    assert cache.match(list(range(9))).num_tokens == 0
    assert cache.match(list(range(9)), "a").num_tokens == 8


def test_content_stays_findable_after_release_until_the_block_is_needed():
    allocator, cache = cache_of(num_blocks=3)
    table = put(allocator, cache, list(range(8)))
    head, tail = table.blocks
    del table
    assert cache.match(list(range(9))).num_tokens == 8
    assert allocator.try_allocate() not in (head, tail)
    assert allocator.try_allocate() == tail  # the tail goes before the head
    assert cache.match(list(range(9))).blocks == [head]


def test_equal_content_is_kept_once():
    allocator, cache = cache_of()
    first = put(allocator, cache, list(range(8)))
    second = put(allocator, cache, list(range(8)))
    assert second.blocks == first.blocks
    assert allocator.num_held == 2


def test_partial_hit_copies_a_held_block_and_takes_over_an_idle_one():
    allocator, cache = cache_of()
    table = put(allocator, cache, list(range(6)))
    tail = table.blocks[1]
    taker = BlockTable(allocator, 4)
    copies = cache.try_acquire(cache.match([*range(6), 7]), taker)
    assert copies == [(tail, taker.blocks[1])]
    assert taker.blocks[0] == table.blocks[0]
    del table
    heir = BlockTable(allocator, 4)
    assert cache.try_acquire(cache.match([*range(6), 7]), heir) == []
    assert heir.blocks[1] == tail


def test_acquiring_changes_nothing_when_the_copy_finds_no_block():
    allocator, cache = cache_of(num_blocks=2)
    put_table = put(allocator, cache, list(range(6)))
    taker = BlockTable(allocator, 4)
    assert cache.try_acquire(cache.match([*range(6), 7]), taker) is None
    assert taker.num_blocks == 0
    assert [allocator.ref_count(b) for b in put_table.blocks] == [1, 1]


def test_writing_into_findable_tokens_forgets_them_and_what_follows():
    allocator, cache = cache_of()
    table = put(allocator, cache, list(range(12)))
    cache.before_write(table.blocks[1], 4)
    assert cache.num_entries == 3
    cache.before_write(table.blocks[1], 2)
    assert cache.match(list(range(13))).blocks == table.blocks[:1]
    assert cache.num_entries == 1


def test_a_prompt_of_32k_tokens_is_found_whole():
    allocator, cache = cache_of(num_blocks=2048, block_size=16)
    tokens = list(range(32768))
    put(allocator, cache, tokens, block_size=16)
    assert cache.match([*tokens, 0]).num_tokens == 32768


def test_bad_arguments_are_named():
    allocator, cache = cache_of()
    with pytest.raises(InvalidArgument, match=r"hash_bits must be in \[1, 64\], got 0"):
        PrefixCache(allocator, 4, 0)
    with pytest.raises(InvalidArgument, match=r"block must be in \[0, 16\), got 16"):
        cache.block_hash(16)
    with pytest.raises(InvalidArgument, match="5 tokens do not fit"):
        cache.insert([1, 2, 3, 4, 5], BlockTable(allocator, 4))


class CacheMachine(RuleBasedStateMachine):
    """Prompts over two tokens, so that they share prefixes, with a hash of few bits, so that it
    collides. A hit must lead to memory that holds exactly the tokens asked for."""

    @initialize(
        num_blocks=st.integers(2, 14),
        block_size=st.sampled_from([1, 2, 4]),
        hash_bits=st.sampled_from([1, 3, 64]),
    )
    def start(self, num_blocks, block_size, hash_bits):
        self.allocator = BlockAllocator(num_blocks)
        self.cache = PrefixCache(self.allocator, block_size, hash_bits)
        self.block_size = block_size
        self.memory = {}  # (block, offset) -> the tokens up to and with this one, and the salt
        self.tables = []

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=14),
        salt=st.sampled_from(["", "s"]),
    )
    def serve(self, prompt, salt):
        table = BlockTable(self.allocator, self.block_size)
        match = self.cache.match(prompt, salt)
        assert match.num_tokens < len(prompt)
        copies = self.cache.try_acquire(match, table)
        if copies is None:
            return
        self.tables.append(table)
        for source, destination in copies:
            for offset in range(self.block_size):
                self.memory[destination, offset] = self.memory.get((source, offset))
        for position in range(match.num_tokens):
            stored = self.memory[divmod(table.slot(position), self.block_size)]
            assert stored == (salt, prompt[: position + 1])
        if table.try_prepare_write(match.num_tokens, len(prompt)) is None:
            self.tables.pop().clear()
            return
        first = table.blocks[match.num_tokens // self.block_size]
        self.cache.before_write(first, match.num_tokens % self.block_size)
        for position in range(match.num_tokens, len(prompt)):
            slot = divmod(table.slot(position), self.block_size)
            self.memory[slot] = (salt, prompt[: position + 1])
        self.cache.insert(prompt, table, salt)

    @rule(data=st.data())
    def end(self, data):
        if self.tables:
            self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))).clear()

    @invariant()
    def is_sound(self):
        assert self.allocator.check_invariants() == []
        assert self.cache.check_invariants() == []
        assert self.allocator.num_held == len({b for t in self.tables for b in t.blocks})


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
