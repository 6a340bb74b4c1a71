"""What the model computes next, for all requests at once: continuous batching over a paged cache.

Knows token ids, lengths and blocks; nothing of tensors, text, sampling or stop rules. Not thread-safe: one
owner calls `schedule`, runs the step, calls `complete`, and so on; `add` and `cancel` may come at any point
between these calls, also while a step is in flight.

The rules, in the order they are applied in a step:

1. Order. Sequences are ordered by (arrival - priority x ageing_steps, id), arrival counted in steps: FIFO
   within a priority, and one level of priority is worth `ageing_steps` steps of waiting, so that nothing
   waits for ever. The same order admits requests and, from its end, chooses who gives up blocks.
2. Decode first. Every running sequence past its prompt gets its next token in every step. When blocks run
   out, the last sequence of the order is preempted: its blocks are released (they stay cached until somebody
   needs them) and it waits again, at the place its old arrival gives it, to be computed anew.
3. Admission, strictly in order, while there are places (max_running) and blocks for the whole prompt on top
   of what running prompts still need and a block of growth for each sequence that may grow; none in a step
   that preempted. What runs is not preempted to admit something else.
4. Prefill shares what is left of max_step_tokens, in turns of at most `chunk_tokens`, round robin; every
   other turn goes to the highest priority present. A prompt no longer than a turn is read at once, and a
   long one lets each of the others have a turn between two of its own. A prompt whose next block another
   row of this step is computing waits for it and then shares it.
5. Drafts take what budget and blocks remain, evenly; at most half of the budget left after (2) is kept
   back for them while prompts are waiting, all of it otherwise. They never preempt.

Progress: the first of the order is never preempted by another, a lone sequence always fits (admission
refuses the others), and a step that could compute nothing preempts from the end until it can.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from qwenkit.core.errors import QwenkitError, RequestError
from qwenkit.engine.blocks import BlockCopy, BlockIntegrityError, BlockManager, BlockTable, CacheKey

MAX_PRIORITY = 100
"""Priorities go from minus this to this, 0 being usual, so that ageing overtakes them in bounded time."""


class QueueFullError(QwenkitError):
    """So many requests wait that no more are taken; `waiting` of them."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        super().__init__(
            f"{waiting} requests are waiting, as many as the queue holds.",
            "Try again later, or let the queue be longer (max_waiting).",
        )


@dataclass(frozen=True)
class Row:
    """Compute `token_ids` at the positions `start`, start + 1, ... of one sequence.

    block_table: its blocks in order; position p is slot p % block_size of block_table[p // block_size].
    drafts: so many of the last tokens are guesses. samples: the sequences which draw their next token from
    this row: none within a prompt, itself as a rule, all n of a request at the end of their common prompt.
    """

    sequence_id: int
    start: int
    token_ids: tuple[int, ...]
    block_table: tuple[int, ...]
    samples: tuple[int, ...]
    drafts: int
    ntk_alpha: float
    adapter: str | None

    @property
    def count(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Step:
    """First carry out `copies`, then compute `rows` together; `preempted` sequences were put back."""

    rows: tuple[Row, ...]
    copies: tuple[BlockCopy, ...] = ()
    preempted: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)


class SchedulerStats(NamedTuple):
    """Sequences waiting (a request waits as one) and holding blocks; preemptions since the start."""

    waiting: int
    running: int
    preemptions: int


@dataclass(eq=False)
class _Sequence:
    """followers share the prompt and fork off when it is computed; until then they only know their leader."""

    id: int
    order: tuple[int, int]
    priority: int
    key: CacheKey
    tokens: list[int]  # prompt and reply
    limit: int  # tokens it may grow to
    leader: _Sequence | None = None
    followers: list[_Sequence] = field(default_factory=list)
    table: BlockTable | None = None
    turn: int = 0  # prompt tokens left of its turn

    @property
    def held(self) -> BlockTable:
        if self.table is None:
            raise BlockIntegrityError(f"Sequence {self.id} runs without blocks.")
        return self.table

    @property
    def left(self) -> int:
        """Tokens still to compute before the next can be drawn; 1 while decoding."""
        return len(self.tokens) - self.held.length


@dataclass(eq=False)
class _Planned:
    """A row in the making."""

    sequence: _Sequence
    start: int
    count: int = 0
    drafts: tuple[int, ...] = ()


class Scheduler:
    """Decides over `blocks`, of which it must be the only user.

    max_step_tokens: most tokens of a step, over all rows; at least max_running, so that every running
    sequence can advance in every step. max_waiting: requests in the queue; preempted ones are always let in.
    chunk_tokens: longest turn of a prompt, half of max_step_tokens unless told otherwise.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_step_tokens: int = 512,
        max_running: int = 32,
        max_waiting: int = 1024,
        chunk_tokens: int | None = None,
        ageing_steps: int = 256,
    ) -> None:
        chunk_tokens = max(1, max_step_tokens // 2) if chunk_tokens is None else chunk_tokens
        if min(max_running, max_waiting, chunk_tokens, ageing_steps) < 1 or max_step_tokens < max_running:
            raise ValueError(
                f"max_running {max_running}, max_waiting {max_waiting}, chunk_tokens {chunk_tokens} and "
                f"ageing_steps {ageing_steps} must be at least 1, max_step_tokens {max_step_tokens} at least "
                "max_running."
            )
        self.blocks = blocks
        self.max_step_tokens = max_step_tokens
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.chunk_tokens = chunk_tokens
        self.ageing_steps = ageing_steps
        self._sequences: dict[int, _Sequence] = {}
        self._waiting: list[_Sequence] = []  # in order
        self._running: list[_Sequence] = []  # in order
        self._prompts: list[_Sequence] = []  # of the running those within their prompt, next turn first
        self._in_flight: Step | None = None
        self._computing: dict[int, _Sequence] = {}  # by the id in its row, who gets what is in flight
        self._favour_priority = True
        self._steps = self._next_id = self._preemptions = 0

    def __contains__(self, sequence_id: int) -> bool:
        """Whether it is unfinished."""
        return sequence_id in self._sequences

    @property
    def unfinished(self) -> int:
        """Sequences that are not finished."""
        return len(self._sequences)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(len(self._waiting), len(self._running), self._preemptions)

    def decoding(self) -> dict[int, Sequence[int]]:
        """Prompt and reply, not to be kept, of those that draw in the next step if blocks suffice."""
        return {s.id: s.tokens for s in self._running if s.left == 1 and not s.followers}

    def reading(self) -> int:
        """Prompt tokens that the running have still to read, at most those of one step."""
        return min(self.max_step_tokens, sum(sequence.left for sequence in self._prompts))

    def add(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        n: int = 1,
        ntk_alpha: float = 1.0,
        adapter: str | None = None,
        priority: int = 0,
    ) -> list[int]:
        """Queue a prompt for n replies of at most `max_tokens` tokens each; returns the n sequence ids.

        Raises RequestError for values that can never run, QueueFullError when too many wait.
        """
        if not prompt_ids:
            raise RequestError("The prompt is empty.", "Give at least one token to continue from.")
        if max_tokens < 1 or n < 1:
            raise RequestError(f"max_tokens is {max_tokens} and n is {n}.", "Both must be at least 1.")
        if n > self.max_running:
            problem = f"n is {n}; at most {self.max_running} sequences run at once."
            raise RequestError(problem, f"Ask for n={self.max_running} or less.")
        if abs(priority) > MAX_PRIORITY:
            raise RequestError(
                f"priority is {priority}.", f"Choose one of -{MAX_PRIORITY} to {MAX_PRIORITY}."
            )
        if not (math.isfinite(ntk_alpha) and ntk_alpha > 0):
            raise RequestError(f"ntk_alpha is {ntk_alpha}.", "It must be positive and finite.")
        # The last token of a reply is never fed back, so it needs no slot.
        needed = self.blocks.blocks_for(len(prompt_ids) + max_tokens - 1)
        if needed > self.blocks.num_blocks:
            size, total = self.blocks.block_size, self.blocks.num_blocks
            raise RequestError(
                f"The prompt has {len(prompt_ids)} tokens and max_tokens is {max_tokens}, together {needed} "
                f"cache blocks of {size} tokens; the whole cache is {total} blocks, {total * size} tokens.",
                "Shorten the prompt, lower max_tokens, or give the cache more memory.",
            )
        if len(self._waiting) >= self.max_waiting:
            raise QueueFullError(len(self._waiting))
        rank = self._steps - priority * self.ageing_steps
        key = CacheKey(ntk_alpha, adapter)
        group = []
        for i in range(n):
            id_ = self._next_id + i
            limit = len(prompt_ids) + max_tokens
            group.append(_Sequence(id_, (rank, id_), priority, key, list(prompt_ids), limit))
        self._next_id += n
        self._sequences.update((sequence.id, sequence) for sequence in group)
        self._lead(group)
        insort(self._waiting, group[0], key=_order)
        return [sequence.id for sequence in group]

    def cancel(self, sequence_id: int) -> bool:
        """Forget it and free its blocks now; False if it had ended already. What else its request asked for
        goes on. In flight, the row is still computed, into blocks nobody gets before `complete`."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        if sequence.followers:
            self._bequeath(sequence)
        else:
            self._computing = {id_: s for id_, s in self._computing.items() if s is not sequence}
            self._end(sequence)
        return True

    def schedule(self, drafts: Mapping[int, Sequence[int]] | None = None) -> Step:
        """The next step; without rows, and then not to be completed, only when nothing is unfinished.

        drafts: guesses of what follows, by sequence; as many are checked as fit, those of others ignored.
        Raises RuntimeError while the last step is neither completed nor abandoned.
        """
        if self._in_flight is not None:
            raise RuntimeError("The last step has neither been completed nor abandoned.")
        self._steps += 1
        copies: list[BlockCopy] = []
        preempted: list[int] = []
        plan: dict[int, _Planned] = {}
        self._decode(plan, copies, preempted)
        self._prompts = [sequence for sequence in self._prompts if sequence.left]  # or decoding took the rest
        while True:
            if not preempted or not self._running:
                self._admit()
            budget = self.max_step_tokens - len(plan)
            wanted = self._wanted(plan, drafts or {})
            kept = min(sum(map(len, wanted.values())), budget // 2)  # and what prompts leave
            budget = kept + self._prefill(plan, budget - kept, copies)
            self._speculate(plan, wanted, budget)
            if plan or not self._running:
                break
            self._preempt(self._running[-1], preempted)
        step = Step(tuple(map(self._row, plan.values())), tuple(copies), tuple(preempted))
        self._in_flight = step if step.rows else None
        self._computing = {id_: planned.sequence for id_, planned in plan.items()}
        return step

    def complete(
        self, step: Step, drawn: Mapping[int, Sequence[int]], finished: Collection[int] = ()
    ) -> list[int]:
        """The step has been computed; returns the sequences that have ended, their blocks being free.

        drawn: the new tokens of every sequence in the `samples` of a row: the drafts that were accepted,
        from the first, and then one token more. finished: those among them that stop here; reaching
        max_tokens ends them anyway. Sequences cancelled meanwhile may be in both or not.
        Raises RuntimeError for another step than the last, ValueError for tokens that cannot be.
        """
        self._expect(step)
        for row in step.rows:
            for id_ in row.samples:
                if id_ in self._sequences:
                    _check_drawn(row, id_, drawn.get(id_, ()))
        computing, self._computing, self._in_flight = self._computing, {}, None
        ended = []
        for row in step.rows:
            sequence = computing.get(row.sequence_id)
            if sequence is None:  # cancelled
                continue
            for member in self._commit(sequence, row, drawn):
                if member.id in finished or len(member.tokens) >= member.limit:
                    ended.append(member.id)
                    self._end(member)
        return ended

    def abandon(self, step: Step) -> None:
        """The step failed; its sequences wait again and are computed anew from the blocks that are full."""
        self._expect(step)
        computing, self._computing, self._in_flight = self._computing, {}, None
        for sequence in computing.values():
            self._preempt(sequence, [])

    def check_integrity(self) -> None:
        """Raises BlockIntegrityError if the bookkeeping contradicts itself."""
        self.blocks.check_integrity()
        listed = [*self._waiting, *self._running]
        listed += [follower for sequence in listed for follower in sequence.followers]
        for wrong, what in (
            (sorted(s.id for s in listed) != sorted(self._sequences), "a sequence is lost or listed twice"),
            (self._waiting != sorted(self._waiting, key=_order), "the queue is out of order"),
            (self._running != sorted(self._running, key=_order), "the running are out of order"),
            (any(s.table is not None for s in listed if s not in self._running), "one that waits has blocks"),
            (any(s.table is None for s in self._running), "a running one has no table"),
            (any(f.leader is not s for s in listed for f in s.followers), "a follower has another leader"),
            (any(s.leader is not None for s in self._running + self._waiting), "a follower is on its own"),
            (not set(self._prompts) <= set(self._running), "a prompt is read that does not run"),
            (not all(s.left for s in self._prompts), "a prompt is read that has been read"),
            (self._places() > self.max_running, "too many run"),
            ({s.table for s in self._running} != self.blocks.tables, "blocks belong to nobody"),
            (any(len(s.tokens) >= s.limit for s in listed), "a finished sequence was kept"),
        ):
            if wrong:
                raise BlockIntegrityError(f"Scheduler: {what}.")

    # A step in the making

    def _decode(self, plan: dict[int, _Planned], copies: list[BlockCopy], preempted: list[int]) -> None:
        for sequence in list(self._running):
            if sequence.table is None or sequence.left != 1:
                continue
            while sequence.table is not None and not self.blocks.room(sequence.table, 1):
                self._preempt(self._running[-1], preempted)  # comes later in the order, so is not planned yet
            if sequence.table is not None:
                self._extend(plan, sequence, 1, copies)

    def _admit(self) -> None:
        while self._waiting:
            head = self._waiting[0]
            if self._places() + 1 + len(head.followers) > self.max_running:
                return
            cost = self.blocks.cost(head.tokens, head.key)
            if self._running:  # else it is sure to get through
                cost += self._growth(head)
                for other in self._running:
                    present = len(other.held.blocks)
                    cost += self.blocks.blocks_for(len(other.tokens)) - present + self._growth(other)
            if cost > self.blocks.available:
                return
            del self._waiting[0]
            head.table = self.blocks.open(head.tokens, head.key)
            head.turn = self.chunk_tokens
            insort(self._running, head, key=_order)
            self._prompts.append(head)

    def _growth(self, sequence: _Sequence) -> int:
        """Blocks it may soon need beyond those of its tokens: the next, and a copy for each follower."""
        more = self.blocks.blocks_for(sequence.limit - 1) > self.blocks.blocks_for(len(sequence.tokens))
        return int(more) + len(sequence.followers)

    def _prefill(self, plan: dict[int, _Planned], budget: int, copies: list[BlockCopy]) -> int:
        """Give turns until budget, prompts or blocks are used up; returns the budget left."""
        coming: set[object] = set()  # where the blocks will be filed that this step computes
        resting: set[_Sequence] = set()
        while budget > 0:
            ready = [s for s in self._prompts if s not in resting]
            fresh = [s for s in ready if s.id not in plan]
            if not (ready := fresh or ready):
                break
            sequence = max(ready, key=lambda s: s.priority) if self._favour_priority else ready[0]
            if sequence.id not in plan:
                self.blocks.adopt(sequence.held, sequence.tokens)
                if self.blocks.awaited(sequence.held, sequence.tokens) in coming:
                    resting.add(sequence)
                    continue
            count = self.blocks.room(sequence.held, min(sequence.left, sequence.turn, budget))
            if not count:
                resting.add(sequence)
                continue
            self._extend(plan, sequence, count, copies)
            if (promised := self.blocks.promised(sequence.held, sequence.tokens)) is not None:
                coming.add(promised)
            budget -= count
            sequence.turn -= count
            if sequence.left and sequence.turn:
                continue  # budget or blocks ended within the turn; it goes on in the next step
            self._favour_priority = not self._favour_priority
            self._prompts.remove(sequence)
            if sequence.left:
                sequence.turn = self.chunk_tokens
                self._prompts.append(sequence)
        return budget

    def _wanted(
        self, plan: dict[int, _Planned], drafts: Mapping[int, Sequence[int]]
    ) -> dict[int, Sequence[int]]:
        """Drafts of decoding sequences, cut to what they may still say."""
        wanted = {}
        for planned in plan.values():
            sequence = planned.sequence
            if not sequence.followers and (offered := drafts.get(sequence.id)):
                wanted[sequence.id] = offered[: sequence.limit - len(sequence.tokens) - 1]
        return wanted

    def _speculate(self, plan: dict[int, _Planned], wanted: Mapping[int, Sequence[int]], budget: int) -> None:
        for taken, (id_, tokens) in enumerate(sorted(wanted.items(), key=lambda item: len(item[1]))):
            share = budget // (len(wanted) - taken)
            table = plan[id_].sequence.held
            count = self.blocks.room(table, min(share, len(tokens)))
            self.blocks.append_slots(table, count)  # written in this step already, so nothing to copy
            plan[id_].drafts = tuple(tokens[:count])
            budget -= count

    def _extend(
        self, plan: dict[int, _Planned], sequence: _Sequence, count: int, copies: list[BlockCopy]
    ) -> None:
        planned = plan.setdefault(sequence.id, _Planned(sequence, sequence.held.length))
        copies.extend(self.blocks.append_slots(sequence.held, count))
        planned.count += count

    def _row(self, planned: _Planned) -> Row:
        sequence, end = planned.sequence, planned.start + planned.count
        members = [sequence, *sequence.followers] if end == len(sequence.tokens) else []
        return Row(
            sequence_id=sequence.id,
            start=planned.start,
            token_ids=(*sequence.tokens[planned.start : end], *planned.drafts),
            block_table=tuple(sequence.held.blocks),
            samples=tuple(member.id for member in members),
            drafts=len(planned.drafts),
            ntk_alpha=sequence.key.ntk_alpha,
            adapter=sequence.key.adapter,
        )

    # Changes of state

    def _commit(self, sequence: _Sequence, row: Row, drawn: Mapping[int, Sequence[int]]) -> list[_Sequence]:
        """Keep what the row computed; returns the sequences that get new tokens, forked if need be."""
        computed = row.start + row.count - row.drafts
        if row.samples:
            computed += len(drawn[sequence.id]) - 1
            for member in (sequence, *sequence.followers):
                member.tokens.extend(drawn[member.id])
        self.blocks.truncate(sequence.held, computed)
        self.blocks.commit(sequence.held, sequence.tokens, computed)
        if not row.samples:
            return []
        members = [sequence, *sequence.followers]
        for follower in sequence.followers:
            follower.leader = None
            follower.table = self.blocks.fork(sequence.held)
            insort(self._running, follower, key=_order)
        sequence.followers = []
        return members

    def _preempt(self, sequence: _Sequence, preempted: list[int]) -> None:
        self._leave(sequence)
        insort(self._waiting, sequence, key=_order)
        preempted.append(sequence.id)
        self._preemptions += 1

    def _leave(self, sequence: _Sequence) -> None:
        """Out of the running."""
        del self._running[_place(self._running, sequence)]
        if sequence in self._prompts:
            self._prompts.remove(sequence)
        self.blocks.free(sequence.held)
        sequence.table = None

    def _bequeath(self, sequence: _Sequence) -> None:
        """Give up a leader; its first follower takes over the prompt, what is in flight included."""
        heir = sequence.followers[0]
        self._lead(sequence.followers)
        ordered = self._waiting if sequence.table is None else self._running
        del ordered[_place(ordered, sequence)]
        insort(ordered, heir, key=_order)
        heir.table, heir.turn = sequence.table, sequence.turn
        self._prompts = [heir if s is sequence else s for s in self._prompts]
        self._computing = {id_: heir if s is sequence else s for id_, s in self._computing.items()}
        del self._sequences[sequence.id]

    def _lead(self, group: list[_Sequence]) -> None:
        leader, *followers = group
        leader.leader = None
        leader.followers = followers
        for follower in followers:
            follower.leader = leader

    def _end(self, sequence: _Sequence) -> None:
        del self._sequences[sequence.id]
        if sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
        elif sequence.table is not None:
            self._leave(sequence)
        else:
            del self._waiting[_place(self._waiting, sequence)]

    def _places(self) -> int:
        return sum(1 + len(sequence.followers) for sequence in self._running)

    def _expect(self, step: Step) -> None:
        if step is not self._in_flight:
            raise RuntimeError("This step is not the one in flight.")


def _order(sequence: _Sequence) -> tuple[int, int]:
    return sequence.order


def _place(ordered: list[_Sequence], sequence: _Sequence) -> int:
    return bisect_left(ordered, sequence.order, key=_order)


def _check_drawn(row: Row, id_: int, tokens: Sequence[int]) -> None:
    guesses = row.token_ids[row.count - row.drafts :]
    if not 1 <= len(tokens) <= row.drafts + 1:
        raise ValueError(
            f"Sequence {id_} drew {len(tokens)} tokens; with {row.drafts} drafts it is 1 to that + 1."
        )
    if tuple(tokens[:-1]) != guesses[: len(tokens) - 1]:
        raise ValueError(f"Sequence {id_} drew {list(tokens)}, which does not begin with drafts {guesses}.")
