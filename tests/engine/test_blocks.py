"""The block manager alone: each rule by example, then random use against a naive one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwenkit.engine.blocks import (
    BlockCopy,
    BlockIntegrityError,
    BlockManager,
    BlockTable,
    CacheKey,
    OutOfBlocksError,
)

PLAIN = CacheKey()


def fill(manager: BlockManager, tokens: list[int], key: CacheKey = PLAIN) -> BlockTable:
    """A table whose every token is computed."""
    table = manager.open(tokens, key)
    manager.append_slots(table, len(tokens) - table.length)
    manager.commit(table, tokens, len(tokens))
    manager.check_integrity()
    return table


def test_blocks_are_handed_out_and_come_back() -> None:
    manager = BlockManager(4, 2)
    table = manager.open([1, 2, 3], PLAIN)
    assert manager.append_slots(table, 3) == []
    assert len(table.blocks) == 2
    assert manager.stats()[:4] == (4, 2, 0, 2)
    manager.append_slots(table, 1)
    assert len(table.blocks) == 2
    manager.free(table)
    assert manager.stats()[:4] == (4, 4, 0, 0)  # never committed, so nothing to keep
    with pytest.raises(KeyError):
        manager.free(table)
    manager.check_integrity()


def test_a_full_hit_leaves_the_last_block_to_compute() -> None:
    manager = BlockManager(10, 2)
    first = fill(manager, [1, 2, 3, 4, 5])
    manager.free(first)
    assert manager.stats()[:4] == (10, 8, 2, 0)  # the half block is not kept
    for tokens, found in (
        ([1, 2, 3, 4, 5], 4),
        ([1, 2, 3, 4], 2),
        ([1, 2], 0),
        ([1, 2, 3, 5, 5], 2),
        ([3, 4, 5], 0),
    ):
        table = manager.open(tokens, PLAIN)
        assert table.computed == table.length == found
        manager.free(table)
    assert manager.stats().hit_tokens == 8
    assert manager.stats().looked_up_tokens == 5 + 19


@pytest.mark.parametrize("key", [CacheKey(2.0), CacheKey(1.0, "law"), CacheKey(2.0, "law")])
def test_another_alpha_or_adapter_finds_nothing(key: CacheKey) -> None:
    manager = BlockManager(10, 2)
    manager.free(fill(manager, [1, 2, 3, 4, 5]))
    assert manager.open([1, 2, 3, 4, 5], key).computed == 0
    manager.check_integrity()


def test_equal_hashes_are_told_apart_by_their_tokens() -> None:
    manager = BlockManager(10, 1)
    assert hash(-1) == hash(-2)
    manager.free(fill(manager, [-1, -1, 7]))
    assert manager.open([-2, -1, 7], PLAIN).computed == 0
    assert manager.open([-1, -2, 7], PLAIN).computed == 1


def test_the_same_block_behind_another_history_is_another() -> None:
    manager = BlockManager(10, 1)
    manager.free(fill(manager, [1, 5, 6]))
    manager.free(fill(manager, [2, 8, 6]))
    assert manager.open([2, 5, 6], PLAIN).computed == 1


def test_what_was_used_least_recently_goes_first_and_children_before_parents() -> None:
    manager = BlockManager(6, 1)
    manager.free(fill(manager, [1, 2, 3]))
    manager.free(fill(manager, [4, 5, 6]))
    manager.free(manager.open([1, 2, 0], PLAIN))  # 1 and 2 are used again; 3 is the oldest now
    table = manager.open([7, 7], PLAIN)
    left = []
    for _ in range(6):
        manager.append_slots(table, 1)
        manager.check_integrity()
        left.append(sorted(token for _, (token,) in manager._index))
    assert left == [[1, 2, 4, 5, 6], [1, 2, 4, 5], [1, 2, 4], [1, 2], [1], []]
    assert manager.stats().evictions == 6


def test_a_fork_shares_until_somebody_writes() -> None:
    manager = BlockManager(6, 2)
    first = fill(manager, [1, 2, 3])
    second, third = manager.fork(first), manager.fork(first)
    assert manager.stats().used == 2
    whole, half = first.blocks
    assert manager.append_slots(second, 1) == [BlockCopy(half, second.blocks[1])]
    assert manager.append_slots(first, 2) == [BlockCopy(half, first.blocks[1])]
    assert manager.append_slots(third, 1) == []
    assert third.blocks == [whole, half]
    assert manager.stats().copies == 2
    assert first.blocks[0] == second.blocks[0] == whole
    manager.check_integrity()
    with pytest.raises(ValueError, match="1 slots"):
        manager.fork(third)
    manager.commit(second, [1, 2, 3, 9], 4)
    manager.commit(third, [1, 2, 3, 9], 4)
    assert second.blocks == third.blocks  # computed twice, kept once
    manager.check_integrity()
    for table in (first, second, third):
        manager.free(table)
    assert manager.available == 6


def test_a_fork_of_full_blocks_copies_nothing() -> None:
    manager = BlockManager(6, 2)
    first = fill(manager, [1, 2, 3, 4])
    second = manager.fork(first)
    assert manager.append_slots(first, 1) == manager.append_slots(second, 1) == []
    manager.check_integrity()


def test_room_counts_the_copy_and_a_refusal_changes_nothing() -> None:
    manager = BlockManager(2, 4)
    first = fill(manager, [1, 2])
    second = manager.fork(first)
    assert manager.room(first, 9) == 2  # one block is left, for the copy
    with pytest.raises(OutOfBlocksError):
        manager.append_slots(first, 3)
    assert (first.length, manager.available) == (2, 1)
    manager.append_slots(first, 1)
    assert manager.room(second, 9) == 2
    third = manager.open([5], PLAIN)
    assert manager.room(third, 1) == 0
    manager.check_integrity()


def test_rejected_drafts_are_cut_off() -> None:
    manager = BlockManager(6, 2)
    table = fill(manager, [1, 2, 3])
    manager.append_slots(table, 6)
    assert manager.available == 1
    manager.truncate(table, 4)
    manager.commit(table, [1, 2, 3, 4], 4)
    assert (manager.available, table.sealed) == (4, 2)
    for length in (3, 5):
        with pytest.raises(ValueError, match="4 to 4"):
            manager.truncate(table, length)
    for computed, tokens in ((5, [1, 2, 3, 4, 5]), (3, [1, 2, 3, 4])):
        with pytest.raises(ValueError, match=f"{computed} computed"):
            manager.commit(table, tokens, computed)
    manager.append_slots(table, 1)
    with pytest.raises(ValueError, match="5 computed"):  # one of them without a token
        manager.commit(table, [1, 2, 3, 4], 5)
    manager.commit(table, [1, 2, 3, 4, 5], 5)
    manager.truncate(table, 4)
    assert (table.computed, table.length) == (4, 4)
    manager.check_integrity()


def test_blocks_computed_meanwhile_are_adopted() -> None:
    manager = BlockManager(10, 2)
    tokens = [1, 2, 3, 4, 5, 6]
    slow = manager.open(tokens, PLAIN)
    fast = manager.open(tokens, PLAIN)
    manager.append_slots(fast, 1)
    assert manager.promised(fast, tokens) is None
    manager.append_slots(fast, 1)
    assert manager.promised(fast, tokens) is not None
    manager.append_slots(fast, 1)
    assert manager.promised(fast, tokens) == manager.awaited(slow, tokens) is not None
    manager.commit(fast, tokens, 3)
    assert manager.adopt(slow, tokens) == 2
    assert manager.promised(slow, tokens) is None
    assert manager.adopt(fast, tokens) == 0  # in the middle of a block
    manager.append_slots(fast, 3)
    manager.commit(fast, tokens, 6)
    assert manager.adopt(slow, tokens) == 2  # a token is left to compute
    assert manager.stats().hit_tokens == 4
    assert manager.awaited(slow, tokens) is None
    manager.check_integrity()


def test_cost_is_what_opening_and_filling_takes() -> None:
    manager = BlockManager(10, 2)
    kept = fill(manager, [1, 2, 3, 4])
    manager.free(fill(manager, [1, 2, 3, 4, 5, 6, 7]))
    for tokens, cost in (([1, 2, 3, 4], 1), ([1, 2, 3, 4, 9], 1), ([1, 2, 3, 4, 5, 6, 7], 2), ([9] * 5, 3)):
        assert manager.cost(tokens, PLAIN) == cost
        before = manager.available
        table = fill(manager, tokens)
        # One less where the last block turned out to be on file too.
        assert before - manager.available in (cost, cost - 1)
        manager.free(table)
    manager.free(kept)


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (-1, 4)])
def test_an_empty_cache_is_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockManager(*arguments)


def test_damage_is_noticed() -> None:
    def damaged() -> tuple[BlockManager, BlockTable]:
        manager = BlockManager(8, 2)
        manager.free(fill(manager, [8, 8, 8, 8, 8]))
        return manager, fill(manager, [1, 2, 3, 4, 5])

    manager, table = damaged()
    manager._references[table.blocks[0]] += 1
    with pytest.raises(BlockIntegrityError, match="references"):
        manager.check_integrity()
    manager, table = damaged()
    manager._free.append(table.blocks[0])
    with pytest.raises(BlockIntegrityError, match="each once"):
        manager.check_integrity()
    manager, table = damaged()
    manager._free.pop()
    with pytest.raises(BlockIntegrityError, match="each once"):
        manager.check_integrity()
    manager, table = damaged()
    manager._cached.move_to_end(next(iter(manager._cached)))
    with pytest.raises(BlockIntegrityError, match="evicted before"):
        manager.check_integrity()
    manager, table = damaged()
    manager._index.popitem()
    with pytest.raises(BlockIntegrityError, match="index"):
        manager.check_integrity()
    manager, table = damaged()
    table.sealed -= 1
    with pytest.raises(BlockIntegrityError, match="not filed"):
        manager.check_integrity()
    manager, table = damaged()
    table.blocks.reverse()
    with pytest.raises(BlockIntegrityError):
        manager.check_integrity()


class RandomUse(RuleBasedStateMachine):
    """Slots remember which history was written in them; a table must always read its own."""

    size = 2

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(7, self.size)
        self.slots: dict[tuple[int, int], tuple[object, ...]] = {}
        self.users: list[tuple[BlockTable, list[int]]] = []

    def slot(self, table: BlockTable, position: int) -> tuple[int, int]:
        return table.blocks[position // self.size], position % self.size

    def write(self, table: BlockTable, tokens: list[int], start: int) -> None:
        for position in range(start, table.length):
            self.slots[self.slot(table, position)] = (table.key, *tokens[: position + 1])

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9), alpha=st.sampled_from([1.0, 2.0]))
    def open(self, tokens: list[int], alpha: float) -> None:
        self.users.append((self.manager.open(tokens, CacheKey(alpha)), tokens))

    @precondition(lambda self: self.users)
    @rule(which=st.integers(0), new=st.lists(st.integers(0, 1), max_size=5), kept=st.integers(0, 5))
    def append(self, which: int, new: list[int], kept: int) -> None:
        """Compute what is there and some new tokens, of which only the first few are then accepted."""
        table, tokens = self.users[which % len(self.users)]
        start = table.length
        room = self.manager.room(table, len(tokens) + len(new) - start)
        before = self.manager.available
        copies = self.manager.append_slots(table, room)
        assert before - self.manager.available <= -(-room // self.size) + 1
        for source, target in copies:
            for offset in range(self.size):
                self.slots[target, offset] = self.slots.get((source, offset), ())
        text = tokens + new
        self.write(table, text, start)
        end = min(start + room, max(start, len(tokens) + min(kept, len(new))))
        self.manager.truncate(table, end)
        tokens[:] = text[: max(end, len(tokens))]
        self.manager.commit(table, tokens, end)

    @precondition(lambda self: self.users)
    @rule(which=st.integers(0))
    def adopt(self, which: int) -> None:
        self.manager.adopt(*self.users[which % len(self.users)])

    @precondition(lambda self: self.users)
    @rule(which=st.integers(0))
    def fork(self, which: int) -> None:
        table, tokens = self.users[which % len(self.users)]
        self.users.append((self.manager.fork(table), list(tokens)))

    @precondition(lambda self: self.users)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        self.manager.free(self.users.pop(which % len(self.users))[0])

    @invariant()
    def everyone_reads_their_own_history(self) -> None:
        self.manager.check_integrity()
        for table, tokens in self.users:
            for position in range(table.computed):
                assert self.slots[self.slot(table, position)] == (table.key, *tokens[: position + 1])

    @invariant()
    def numbers_add_up(self) -> None:
        stats = self.manager.stats()
        assert stats.total == stats.free + stats.cached + stats.used
        assert stats.used == len({block for table, _ in self.users for block in table.blocks})

    def teardown(self) -> None:
        for table, _ in self.users:
            self.manager.free(table)
        assert self.manager.available == self.manager.num_blocks
        self.manager.check_integrity()


RandomUse.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRandomUse = RandomUse.TestCase
