"""Which blocks of the key-value cache belong to whom: counting, sharing, reuse, copy-on-write.

Knows token ids and block numbers. Does not know tensors, requests, priorities or time: whoever holds the
cache carries out the copies, whoever schedules decides who gives up blocks. Not thread-safe.

Full blocks are found again through a chain: a block is filed under (the block before it, its own token
ids), the first of a sequence under (its CacheKey, its token ids). A look-up hashes that pair and compares
it, and a block is withdrawn only after everything filed behind it, so by induction a hit has the whole
history in common: no collision and no reused block number can produce a false one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class CacheKey(NamedTuple):
    """What, besides the tokens before it, the keys and values of a token depend on."""

    ntk_alpha: float = 1.0
    adapter: str | None = None


class BlockCopy(NamedTuple):
    """The cache must copy block `source` to block `target` before the step that comes with it computes."""

    source: int
    target: int


class BlockStats(NamedTuple):
    """Blocks: total = free + cached + used; cached ones hold reusable tokens and nobody uses them.

    Since the start: looked_up_tokens were asked for at the opening of tables, hit_tokens were found then or
    later; blocks evicted from the cache; blocks copied on write.
    """

    total: int
    free: int
    cached: int
    used: int
    looked_up_tokens: int
    hit_tokens: int
    evictions: int
    copies: int


class BlockIntegrityError(AssertionError):
    """The bookkeeping contradicts itself: a mistake in qwenkit, never of a caller."""


class OutOfBlocksError(RuntimeError):
    """append_slots was called without asking `room` first."""


@dataclass(eq=False)
class BlockTable:
    """The blocks of one sequence, in order; made and changed by its BlockManager only.

    length: slots it has. computed: leading slots whose keys and values are written and final; the others
    belong to the step in flight. sealed: leading blocks that are full and filed for reuse, and so are
    never written again; always computed // block_size.
    """

    key: CacheKey
    blocks: list[int]
    length: int = 0
    computed: int = 0
    sealed: int = 0


_Node: TypeAlias = "tuple[int | CacheKey, tuple[int, ...]]"


class BlockManager:
    """`num_blocks` blocks of `block_size` token slots each.

    A block is free (holds nothing), cached (filed, nobody uses it; evicted least recently used first), or
    used (by one table or, if it is filed or was forked, by several).
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be at least 1.")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._nodes: list[_Node | None] = [None] * num_blocks  # what it is filed under
        self._index: dict[_Node, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        # Tables let go of their last block first, so a block always comes in here before its parent does,
        # and the oldest is never the parent of another.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._tables: set[BlockTable] = set()
        self._looked_up_tokens = self._hit_tokens = self._evictions = self._copies = 0

    @property
    def available(self) -> int:
        """Blocks that can be handed out now: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def tables(self) -> Set[BlockTable]:
        """All tables in use."""
        return frozenset(self._tables)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens of one sequence."""
        return -(-tokens // self.block_size)

    def open(self, token_ids: Sequence[int], key: CacheKey) -> BlockTable:
        """A table for a sequence of `token_ids`, with what is cached of it; table.computed says how much.

        At least one token is always left to compute, since nothing else gives logits. Cannot fail.
        """
        table = BlockTable(key, [])
        self._tables.add(table)
        self._looked_up_tokens += len(token_ids)
        self.adopt(table, token_ids)
        return table

    def adopt(self, table: BlockTable, token_ids: Sequence[int]) -> int:
        """Continue the table with blocks that others have computed meanwhile; returns the tokens gained."""
        before = table.length
        while (node := self.awaited(table, token_ids)) is not None:
            if (block := self._index.get(node)) is None:
                break
            self._hold(block)
            table.blocks.append(block)
            table.sealed += 1
            table.length = table.computed = table.sealed * self.block_size
        self._hit_tokens += table.length - before
        return table.length - before

    def awaited(self, table: BlockTable, token_ids: Sequence[int]) -> _Node | None:
        """Where the block would be filed that the table could adopt next; None if it could adopt none.

        That is so in the middle of a block, and when no token would be left to compute.
        """
        if table.length > table.sealed * self.block_size:
            return None
        return self._node(table, token_ids) if table.length + self.block_size < len(token_ids) else None

    def promised(self, table: BlockTable, token_ids: Sequence[int]) -> _Node | None:
        """Where the first block will be filed that the step in flight completes; None if there is none."""
        return self._node(table, token_ids) if table.length >= (table.sealed + 1) * self.block_size else None

    def cost(self, token_ids: Sequence[int], key: CacheKey) -> int:
        """By how much `available` falls when a table is opened for `token_ids` and filled; O(blocks)."""
        shared = 0
        parent: int | CacheKey = key
        for end in range(self.block_size, len(token_ids), self.block_size):
            block = self._index.get((parent, tuple(token_ids[end - self.block_size : end])))
            if block is None or not self._references[block]:  # whoever holds a block holds its parent
                break
            shared += 1
            parent = block
        return self.blocks_for(len(token_ids)) - shared

    def room(self, table: BlockTable, count: int) -> int:
        """How many of `count` more slots append_slots can give the table now."""
        slack = -table.length % self.block_size
        spare = self.available
        if slack and self._references[table.blocks[-1]] > 1:
            if not spare:
                return 0
            spare -= 1
        return min(count, slack + spare * self.block_size)

    def append_slots(self, table: BlockTable, count: int) -> list[BlockCopy]:
        """Give the table `count` more slots; returns the block copies to carry out before they are written.

        Raises OutOfBlocksError, changing nothing, unless room(table, count) == count.
        """
        if self.room(table, count) < count:
            raise OutOfBlocksError(f"{count} more slots were asked for; {self.available} blocks are left.")
        copies = []
        if count and table.length % self.block_size and self._references[table.blocks[-1]] > 1:
            source, table.blocks[-1] = table.blocks[-1], self._take()
            self._references[source] -= 1
            copies.append(BlockCopy(source, table.blocks[-1]))
            self._copies += 1
        table.length += count
        while len(table.blocks) < self.blocks_for(table.length):
            table.blocks.append(self._take())
        return copies

    def commit(self, table: BlockTable, token_ids: Sequence[int], computed: int) -> None:
        """The first `computed` slots now hold the keys and values of token_ids[:computed], for good.

        Blocks that became full are filed. Where the same block is on file already, computed twice at the
        same time, the table changes over to that one and its own becomes free.
        """
        if not table.computed <= computed <= min(table.length, len(token_ids)):
            raise ValueError(f"{computed} computed tokens; {table.computed} before, {table.length} slots.")
        table.computed = computed
        for i in range(table.sealed, computed // self.block_size):
            node, own = self._node(table, token_ids), table.blocks[i]
            known = self._index.get(node)
            if known is None:
                self._index[node] = own
                self._nodes[own] = node
            else:
                self._hold(known)
                table.blocks[i] = known
                self._release(own)
            table.sealed += 1

    def truncate(self, table: BlockTable, length: int) -> None:
        """Give back the slots from `length` on: rejected drafts, or a step that was given up.

        Raises ValueError if a sealed block would have to be cut.
        """
        if not table.sealed * self.block_size <= length <= table.length:
            low = table.sealed * self.block_size
            raise ValueError(f"A table can be cut to {low} to {table.length} slots, not {length}.")
        while len(table.blocks) > self.blocks_for(length):
            self._release(table.blocks.pop())
        table.length = length
        table.computed = min(table.computed, length)

    def fork(self, table: BlockTable) -> BlockTable:
        """A second table with the same content. A block half full is copied when the first of them writes.

        Raises ValueError while a step for the table is in flight.
        """
        if table.computed < table.length:
            raise ValueError(f"{table.length - table.computed} slots of the table are still being computed.")
        for block in table.blocks:
            self._hold(block)
        twin = BlockTable(table.key, list(table.blocks), table.length, table.computed, table.sealed)
        self._tables.add(twin)
        return twin

    def free(self, table: BlockTable) -> None:
        """Give up the table; what is filed stays cached. Raises KeyError if it was given up before."""
        self._tables.remove(table)
        for block in reversed(table.blocks):
            self._release(block)
        table.blocks = []
        table.length = table.computed = table.sealed = 0

    def stats(self) -> BlockStats:
        free, cached = len(self._free), len(self._cached)
        used = self.num_blocks - free - cached
        found = (self._looked_up_tokens, self._hit_tokens, self._evictions, self._copies)
        return BlockStats(self.num_blocks, free, cached, used, *found)

    def check_integrity(self) -> None:
        """Recount everything; raises BlockIntegrityError naming what is wrong. O(blocks + tables)."""
        counted = [0] * self.num_blocks
        for table in self._tables:
            self._check_table(table)
            for block in table.blocks:
                counted[block] += 1
        _require(counted == self._references, f"references are {self._references}, tables hold {counted}")
        used = [block for block, count in enumerate(counted) if count]
        _require(
            sorted([*self._free, *self._cached, *used]) == list(range(self.num_blocks)),
            f"free {self._free}, cached {list(self._cached)}, used {used} are not all blocks, each once",
        )
        filed = {block: node for block, node in enumerate(self._nodes) if node is not None}
        _require(filed == {block: node for node, block in self._index.items()}, "index and nodes differ")
        _require(not filed.keys() & set(self._free), "a free block is filed")
        _require(filed.keys() >= self._cached.keys(), "a cached block is not filed")
        age = {block: position for position, block in enumerate(self._cached)}
        for block, (parent, tokens) in filed.items():
            _require(len(tokens) == self.block_size, f"block {block} is filed with {len(tokens)} tokens")
            if isinstance(parent, int):
                _require(parent in filed, f"block {block} is filed behind {parent}, which is not")
                later = parent not in age or (block in age and age[block] < age[parent])
                _require(later, f"block {parent} would be evicted before {block} behind it")

    def _check_table(self, table: BlockTable) -> None:
        size = self.block_size
        _require(len(table.blocks) == self.blocks_for(table.length), f"{table} has too many or few blocks")
        _require(len(set(table.blocks)) == len(table.blocks), f"{table} has a block twice")
        _require(table.sealed == table.computed // size, f"{table} has full blocks that are not filed")
        _require(table.computed <= table.length, f"{table} has more content than slots")
        parent: int | CacheKey = table.key
        for block in table.blocks[: table.sealed]:
            node = self._nodes[block]
            _require(node is not None and node[0] == parent, f"{table} holds block {block}, filed elsewhere")
            parent = block
        for block in table.blocks[table.sealed :]:
            _require(self._nodes[block] is None, f"{table} may write block {block}, which is filed")
            in_flight = table.length > table.computed
            _require(
                self._references[block] == 1 or not in_flight, f"{table} writes the shared block {block}"
            )

    def _node(self, table: BlockTable, token_ids: Sequence[int]) -> _Node:
        """Where the first block after the sealed ones belongs."""
        start = table.sealed * self.block_size
        parent = table.blocks[table.sealed - 1] if table.sealed else table.key
        return parent, tuple(token_ids[start : start + self.block_size])

    def _hold(self, block: int) -> None:
        if not self._references[block]:
            del self._cached[block]
        self._references[block] += 1

    def _release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block]:
            return
        if self._nodes[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def _take(self) -> int:
        """An empty block for one user."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            node = self._nodes[block]
            if node is not None:
                del self._index[node]
            self._nodes[block] = None
            self._evictions += 1
        self._references[block] = 1
        return block


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise BlockIntegrityError(f"Cache blocks: {otherwise}.")
