"""Random schedules against a cache that remembers what was written where.

The model here is a function of the whole history of a token, read from the slots the step names: a slot
holds the fingerprint of everything the token in it depends on. A row that read a wrong, stale or foreign
slot, or wrote into one that somebody else reads, is found at once, and the text would differ from the one
generated alone.
"""

from __future__ import annotations

import ast
import itertools
import random
from collections import deque
from pathlib import Path
from types import ModuleType

import pytest

from qwenkit.core import RequestError
from qwenkit.engine import blocks, scheduler
from qwenkit.engine.blocks import BlockIntegrityError, BlockManager
from qwenkit.engine.scheduler import QueueFullError, Row, Scheduler, Step

WORDS = 3  # so few that random prompts and replies often begin alike


def follow(before: int, token: int) -> int:
    """Fingerprint of a history and one more token."""
    return hash((before, token))


def draw(history: int, index: int) -> int:
    """The next token of choice `index`: the first two choices often agree, later ones seldom."""
    return hash((history, index // 2, history % 4 == 0 and index)) % WORDS


def alone(prompt: list[int], alpha: float, adapter: str | None, index: int, count: int) -> list[int]:
    """What the choice says when nothing else runs."""
    history = hash((alpha, adapter))
    for token in prompt:
        history = follow(history, token)
    reply = []
    for _ in range(count):
        reply.append(draw(history, index))
        history = follow(history, reply[-1])
    return reply


class Client:
    """One sequence as the engine sees it."""

    def __init__(self, prompt: list[int], max_tokens: int, alpha: float, adapter: str | None, index: int):
        self.prompt, self.alpha, self.adapter, self.index = prompt, alpha, adapter, index
        self.reply: list[int] = []
        self.expected = alone(prompt, alpha, adapter, index, max_tokens)


class Machine:
    """An engine without a model: admits, runs and checks steps."""

    def __init__(self, num_blocks: int, block_size: int, **limits: int) -> None:
        self.blocks = BlockManager(num_blocks, block_size)
        self.scheduler = Scheduler(self.blocks, **limits)
        self.cache = [[0] * block_size for _ in range(num_blocks)]
        self.clients: dict[int, Client] = {}
        self.done: dict[int, Client] = {}
        self.preempted = 0

    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        n: int = 1,
        alpha: float = 1.0,
        adapter: str | None = None,
        priority: int = 0,
    ) -> list[int]:
        ids = self.scheduler.add(prompt, max_tokens, n=n, ntk_alpha=alpha, adapter=adapter, priority=priority)
        for index, id_ in enumerate(ids):
            self.clients[id_] = Client(prompt, max_tokens, alpha, adapter, index)
        return ids

    def cancel(self, id_: int) -> None:
        assert self.scheduler.cancel(id_)
        del self.clients[id_]

    def guesses(self, rng: random.Random, most: int) -> dict[int, list[int]]:
        """Drafts right for a while, then random; also for sequences that cannot use them."""
        drafts = {}
        for id_, client in self.clients.items():
            right = client.expected[len(client.reply) :][: rng.randint(0, most)]
            drafts[id_] = right + [rng.randrange(WORDS) for _ in range(rng.randint(0, most))]
        return drafts

    def begin(self, drafts: dict[int, list[int]] | None = None) -> Step:
        """Schedule a step and check all that is promised of it."""
        limits = self.scheduler
        decoding = {id_ for id_ in self.clients if self._decodes(id_)}
        running = {id_ for id_ in self.clients if self._runs(id_)}
        step = limits.schedule(drafts)
        if step.preempted:
            now = {id_ for id_ in self.clients if self._runs(id_)}
            assert now == running - set(step.preempted), "somebody was admitted in a step that preempted"
        self.preempted += len(step.preempted)
        assert bool(step.rows) == bool(self.clients)
        assert step.tokens <= limits.max_step_tokens
        assert len(step.rows) <= limits.max_running
        rows = {row.sequence_id: row for row in step.rows}
        assert len(rows) == len(step.rows)
        missing = decoding - rows.keys()
        assert missing <= set(step.preempted), "a running sequence past its prompt got no token"
        return step

    def _runs(self, id_: int) -> bool:
        return self.scheduler._sequences[id_].table is not None

    def _decodes(self, id_: int) -> bool:
        sequence = self.scheduler._sequences[id_]
        return sequence.table is not None and sequence.left == 1

    def compute(self, step: Step) -> dict[int, list[int]]:
        """Carry the step out; returns the tokens drawn."""
        contents = [list(self.cache[copy.source]) for copy in step.copies]  # none depends on another
        for copy, content in zip(step.copies, contents, strict=True):
            self.cache[copy.target] = content
        histories = {row.sequence_id: self._compute(row) for row in step.rows}
        drawn = {}
        for row in step.rows:
            guesses = row.token_ids[row.count - row.drafts :]
            for id_ in row.samples:
                client = self.clients.get(id_)
                if client is None:
                    continue
                tokens = []
                for history, guess in itertools.zip_longest(histories[row.sequence_id], guesses):
                    tokens.append(draw(history, client.index))
                    if tokens[-1] != guess:
                        break
                drawn[id_] = tokens
        return drawn

    def _compute(self, row: Row) -> list[int]:
        """Write the row, reading its history; the histories after its last given token and each draft."""
        size = self.blocks.block_size
        client = self.clients.get(row.sequence_id)
        if client is not None:
            text = client.prompt + client.reply
            end = row.start + row.count - row.drafts
            assert list(row.token_ids[: row.count - row.drafts]) == text[row.start : end]
            assert (row.ntk_alpha, row.adapter) == (client.alpha, client.adapter)
            assert bool(row.samples) == (end == len(text))
            assert len(row.block_table) == -(-(row.start + row.count) // size)
            history = hash((client.alpha, client.adapter))
            for position, token in enumerate(text[: row.start]):
                history = follow(history, token)
                read = self.cache[row.block_table[position // size]][position % size]
                assert read == history, f"sequence {row.sequence_id} reads a foreign slot at {position}"
        before = row.start - 1
        root = hash((row.ntk_alpha, row.adapter))
        history = root if before < 0 else self.cache[row.block_table[before // size]][before % size]
        histories = []
        for position, token in enumerate(row.token_ids, row.start):
            history = follow(history, token)
            self.cache[row.block_table[position // size]][position % size] = history
            histories.append(history)
        return histories[row.count - row.drafts - 1 :]

    def end(self, step: Step, drawn: dict[int, list[int]], stops: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        for id_ in self.clients.keys() & drawn.keys():
            self.clients[id_].reply += drawn[id_]
        for id_ in self.scheduler.complete(step, drawn, stops):
            self.done[id_] = client = self.clients.pop(id_)
            assert id_ in stops or len(client.reply) == len(client.expected)
            assert client.reply == client.expected[: len(client.reply)]
            assert id_ not in self.scheduler

    def step(self, drafts: dict[int, list[int]] | None = None) -> Step:
        step = self.begin(drafts)
        if step.rows:
            self.end(step, self.compute(step))
        self.scheduler.check_integrity()
        return step

    def drain(self, most: int = 100_000) -> None:
        for _ in range(most):
            if not self.clients:
                break
            self.step()
        self.check_empty()

    def check_empty(self) -> None:
        assert not self.clients
        assert self.scheduler.unfinished == 0
        assert self.blocks.available == self.blocks.num_blocks
        assert self.blocks.stats().used == 0


def prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(WORDS) for _ in range(length)]


def live(machine: Machine, rng: random.Random, requests: int) -> None:
    """Let `requests` random requests arrive, run, stop, fail and be cancelled; all others must finish."""
    slots = machine.blocks.num_blocks * machine.blocks.block_size
    system = prompt(rng, rng.randint(1, max(1, slots // 3)))  # many prompts begin with it
    while requests or machine.clients:
        for _ in range(min(requests, rng.choice([0, 0, 1, 1, 4]), 100 - len(machine.clients))):
            requests -= 1
            text = prompt(rng, rng.choice([1, 3, 8, slots // 2]))
            text = (system + text)[:slots] if rng.random() < 0.6 else text[:slots] or [0]
            most = rng.randint(1, max(1, min(slots - len(text) + 1, 12)))
            machine.add(
                text,
                most,
                n=min(rng.choice([1, 1, 1, 2, 3]), machine.scheduler.max_running),
                alpha=rng.choice([1.0, 1.0, 3.0]),
                adapter=rng.choice([None, None, "law"]),
                priority=rng.choice([0, 0, 0, 5, -3]),
            )
        if machine.clients and rng.random() < 0.1:
            machine.cancel(rng.choice(list(machine.clients)))
            machine.scheduler.check_integrity()
        step = machine.begin(machine.guesses(rng, 3) if rng.random() < 0.5 else None)
        machine.scheduler.check_integrity()
        if not step.rows:
            continue
        if rng.random() < 0.03:
            machine.scheduler.abandon(step)
            machine.scheduler.check_integrity()
            continue
        while machine.clients and rng.random() < 0.1:  # while the step is in flight
            machine.cancel(rng.choice(list(machine.clients)))
            machine.scheduler.check_integrity()
        drawn = machine.compute(step)
        machine.end(step, drawn, {id_ for id_ in drawn if rng.random() < 0.03})
        machine.scheduler.check_integrity()
    machine.check_empty()


@pytest.mark.parametrize("seed", range(60))
def test_random_schedules_say_what_each_would_say_alone(seed: int) -> None:
    rng = random.Random(seed)
    preempted = hits = copies = finished = 0
    for _ in range(20):
        size = rng.choice([1, 2, 3, 4, 8])
        running = rng.randint(1, 6)
        machine = Machine(
            rng.randint(max(1, 12 // size), 60 // size),
            size,
            max_running=running,
            max_step_tokens=running + rng.choice([0, 1, 5, 30]),
            chunk_tokens=rng.choice([1, 4, 16]),
            ageing_steps=rng.choice([1, 10, 1000]),
        )
        live(machine, rng, 12)
        stats = machine.blocks.stats()
        preempted += machine.preempted
        hits += stats.hit_tokens
        copies += stats.copies
        finished += len(machine.done)
    # The seeds are worth nothing unless all of this happens in them.
    assert preempted > 0
    assert hits > 50
    assert copies > 0
    assert finished > 100


def test_two_thousand_requests_pass_through_few_blocks() -> None:
    rng = random.Random(7)
    machine = Machine(64, 4, max_running=16, max_step_tokens=48, max_waiting=4000)
    live(machine, rng, 2000)
    assert len(machine.done) > 1000


@pytest.mark.parametrize("seed", range(20))
def test_everything_finishes_in_the_smallest_pool(seed: int) -> None:
    """Blocks for exactly one sequence; every one needs all of them."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 4])
    machine = Machine(6, size, max_running=4, max_step_tokens=8, max_waiting=100)
    for i in range(12):
        length = rng.randint(1, 6 * size)
        machine.add(prompt(rng, length), 6 * size - length + 1, n=rng.choice([1, 4]), priority=i % 3)
    machine.drain(20_000)


def test_decoding_goes_on_during_a_long_prefill() -> None:
    machine = Machine(200, 4, max_running=4, max_step_tokens=8)
    first = machine.add([1, 2], 60)
    machine.step()
    long = machine.add([0] * 200, 1)
    for said in range(2, 30):
        step = machine.step()
        assert len(machine.clients[first[0]].reply) == said
        assert {row.sequence_id: row.count for row in step.rows} == {first[0]: 1, long[0]: 7}


def test_a_long_prompt_takes_turns_with_short_ones() -> None:
    """Each short prompt that arrives behind it waits one turn of it, not its 1000 tokens."""
    machine = Machine(400, 4, max_running=8, max_step_tokens=16, chunk_tokens=8)
    rng = random.Random(0)
    machine.add(prompt(rng, 1000), 1)
    machine.step()
    for i in range(20):
        short = machine.add([WORDS + i] * 8, 1)  # like no other, so nothing is found in the cache
        machine.step()
        assert short[0] in machine.done
    assert machine.clients  # the long one, a turn further each time
    assert machine.scheduler._running[0].held.computed == 16 + 20 * 8
    machine.drain()


def test_long_prompts_take_turns_across_steps() -> None:
    machine = Machine(400, 4, max_running=8, max_step_tokens=8, chunk_tokens=8)
    ids = [machine.add([WORDS + i] * 100, 1)[0] for i in range(3)]
    served = [machine.step().rows[0].sequence_id for _ in range(9)]
    assert served == ids * 3
    machine.drain()


def test_equal_prompts_are_read_first_come_first_served() -> None:
    machine = Machine(400, 4, max_running=8, max_step_tokens=8, chunk_tokens=8)
    rng = random.Random(1)
    ids = [machine.add(prompt(rng, 8), 1)[0] for _ in range(8)]
    finished = []
    for _ in range(8):
        machine.step()
        finished += [id_ for id_ in machine.done if id_ not in finished]
    assert finished == ids


def test_priority_goes_first_and_age_overtakes_it() -> None:
    machine = Machine(100, 4, max_running=1, max_step_tokens=8, ageing_steps=10)
    low, old = machine.add([1], 1)[0], machine.add([2], 1)[0]
    high = machine.add([0], 1, priority=1)[0]
    machine.step()
    assert list(machine.done) == [high]
    for _ in range(9):  # a flood of important ones, each answered at once until the ten steps are over
        machine.add([0], 1, priority=1)
        machine.step()
    assert low not in machine.done
    for _ in range(2):
        machine.add([0], 1, priority=1)
        machine.step()
    assert {low, old} <= machine.done.keys()


def test_an_important_prompt_overtakes_prompts_being_read() -> None:
    rng = random.Random(3)
    machine = Machine(800, 4, max_running=12, max_step_tokens=12, chunk_tokens=12)
    for _ in range(10):
        machine.add(prompt(rng, 200), 1)
    machine.step()
    important = machine.add(prompt(rng, 12), 1, priority=1)
    machine.step()
    machine.step()
    assert important[0] in machine.done


def test_important_and_waiting_longest_take_turns() -> None:
    machine = Machine(400, 4, max_running=4, max_step_tokens=8, chunk_tokens=8)
    usual = machine.add([WORDS] * 100, 1)[0]
    important = machine.add([WORDS + 1] * 100, 1, priority=1)[0]
    served = [machine.step().rows[0].sequence_id for _ in range(6)]
    assert served == [important, usual] * 3
    machine.drain()


def test_nobody_has_two_turns_in_a_step_in_which_another_had_none() -> None:
    machine = Machine(400, 4, max_running=4, max_step_tokens=32, chunk_tokens=8)
    machine.add([WORDS] * 100, 1, priority=1)
    short = [machine.add([WORDS + i] * 8, 1)[0] for i in (1, 2, 3)]
    machine.step()
    assert list(machine.done) == short
    machine.drain()


def test_a_turn_that_the_budget_cut_short_goes_on_in_the_next_step() -> None:
    machine = Machine(400, 4, max_running=4, max_step_tokens=12, chunk_tokens=8)
    first, second = (machine.add([WORDS + i] * 100, 1)[0] for i in range(2))
    steps = [{row.sequence_id: row.count for row in machine.step().rows} for _ in range(3)]
    assert steps == [{first: 8, second: 4}, {second: 4, first: 8}, {second: 8, first: 4}]
    machine.drain()


@pytest.mark.parametrize(
    ("max_tokens", "n", "admitted"),
    [(4, 1, False), (2, 1, True), (2, 2, False)],
    ids=["grows", "fits its blocks", "forks"],
)
def test_admission_keeps_a_block_of_growth_for_each_that_may_grow(
    max_tokens: int, n: int, admitted: bool
) -> None:
    """Four of five blocks are left; the first may soon need two of them, the second's prompt takes two."""
    machine = Machine(5, 2, max_running=4, max_step_tokens=8)
    machine.add([0, 1], 9)
    machine.step()
    ids = machine.add([WORDS] * 3, max_tokens, n=n)
    assert (ids[0] in {row.sequence_id for row in machine.step().rows}) == admitted
    machine.drain()


def test_a_step_that_could_compute_nothing_preempts_until_it_can() -> None:
    """Admission leaves blocks for every prompt; here somebody else takes them."""
    machine = Machine(10, 2, max_running=4, max_step_tokens=4, chunk_tokens=4)
    first, last = (machine.add([WORDS + i] * 8, 1)[0] for i in range(2))
    machine.step()
    machine.step()
    stranger = machine.blocks.open([9] * 12, blocks.CacheKey())
    machine.blocks.append_slots(stranger, 12)
    step = machine.begin()
    assert [row.sequence_id for row in step.rows] == [first]
    assert step.preempted == (last,)
    machine.blocks.free(stranger)
    machine.end(step, machine.compute(step))
    machine.drain()


def test_a_group_decodes_when_it_has_forked_and_a_step_of_prompts_is_told_at_most() -> None:
    machine = Machine(400, 4, max_running=4, max_step_tokens=8, chunk_tokens=8)
    group = machine.add([WORDS] * 9, 5, n=2)
    machine.step()
    assert machine.scheduler.decoding() == {}  # a token of the prompt is left, then two will draw
    assert machine.scheduler.reading() == 1
    machine.add([WORDS + 1] * 100, 1)
    machine.step()
    assert machine.scheduler.decoding() == {
        id_: client.prompt + client.reply for id_, client in machine.clients.items() if id_ in group
    }
    assert machine.scheduler.reading() == 8
    machine.drain()


def test_drafts_leave_half_of_a_step_to_prompts_and_prompts_half_to_drafts() -> None:
    machine = Machine(400, 4, max_running=4, max_step_tokens=12)
    (speaks,) = machine.add([0, 1], 90)
    machine.step()
    (reads,) = machine.add([WORDS] * 100, 1)
    for offered, drafts in ((20, 5), (5, 5), (2, 2), (0, 0)):
        step = machine.step({speaks: [WORDS] * offered})
        assert {row.sequence_id: row.count for row in step.rows} == {speaks: 1 + drafts, reads: 11 - drafts}
    machine.cancel(reads)
    (other,) = machine.add([1, 0], 90)
    machine.step()
    step = machine.step({speaks: [WORDS] * 20, other: [WORDS]})  # what one leaves is the other's
    assert {row.sequence_id: row.count for row in step.rows} == {speaks: 10, other: 2}
    machine.drain()


def test_victims_are_the_least_important_then_the_latest_and_return_first() -> None:
    machine = Machine(6, 2, max_running=4, max_step_tokens=8)
    rng = random.Random(2)
    ids = [machine.add(prompt(rng, 2), 9, priority=p)[0] for p in (0, -1, 0)]
    seen: list[int] = []
    while not seen:
        seen += machine.step().preempted
    assert seen == [ids[1]]
    while len(seen) < 2:
        seen += machine.step().preempted
    assert seen == [ids[1], ids[2]]
    late = machine.add([1, 1], 1)[0]
    while late not in machine.done:
        machine.step()
    assert ids[2] in {sequence.id for sequence in machine.scheduler._running}
    assert list(machine.done) == [ids[0], late]
    assert machine.scheduler.stats() == (1, 1, 2)  # waiting, running, preemptions
    machine.drain()


def test_replies_share_their_prompt_and_copy_what_they_change() -> None:
    machine = Machine(40, 4, max_running=4, max_step_tokens=32)
    machine.add([0, 1, 2, 0, 1, 2], 5, n=3)
    step = machine.step()
    assert [(row.count, len(row.samples)) for row in step.rows] == [(6, 3)]
    assert machine.blocks.stats().used == 2
    step = machine.step()
    assert len(step.copies) == 2  # the third keeps the original
    assert len({row.block_table[0] for row in step.rows}) == 1
    assert len({row.block_table[1] for row in step.rows}) == 3
    machine.drain()


@pytest.mark.parametrize("when", ["waiting", "reading", "in flight"])
def test_cancelling_the_first_reply_leaves_the_others(when: str) -> None:
    machine = Machine(40, 4, max_running=4, max_step_tokens=8)
    ids = machine.add([0, 1, 2, 0, 1, 2, 2, 1, 0, 1], 5, n=3)
    if when != "waiting":
        machine.step()
    if when == "in flight":
        step = machine.begin()
        machine.cancel(ids[0])
        machine.cancel(ids[2])
        machine.end(step, machine.compute(step))
    else:
        machine.cancel(ids[0])
        machine.cancel(ids[2])
    machine.scheduler.check_integrity()
    machine.drain()
    assert list(machine.done) == [ids[1]]
    assert not machine.scheduler.cancel(ids[0])
    assert not machine.scheduler.cancel(ids[1])


def test_cancelling_frees_blocks_at_once_in_every_state() -> None:
    machine = Machine(10, 4, max_running=2, max_step_tokens=8)
    decoding, reading, waiting = (machine.add([i] * 9, 3)[0] for i in range(3))
    machine.step()
    machine.step()
    for id_ in (waiting, decoding, reading):
        step = machine.begin()
        machine.cancel(id_)
        machine.scheduler.check_integrity()
        machine.end(step, machine.compute(step))
    machine.check_empty()


def test_a_shared_prompt_is_computed_once_even_when_all_arrive_together() -> None:
    machine = Machine(400, 4, max_running=8, max_step_tokens=64, chunk_tokens=16)
    system = prompt(random.Random(4), 100)
    for i in range(8):
        machine.add([*system, i, i], 1)
    tokens = 0
    while machine.clients:
        tokens += machine.step().tokens
    assert tokens == 100 + 8 * 2


def test_prefixes_are_not_shared_across_ntk_alpha_or_adapter() -> None:
    machine = Machine(100, 4, max_running=4, max_step_tokens=64)
    counts = []
    for alpha, adapter in ((1.0, None), (3.0, None), (1.0, "law"), (3.0, "law"), (1.0, None), (3.0, "law")):
        machine.add([1] * 20, 1, alpha=alpha, adapter=adapter)
        counts.append(machine.step().tokens)
    assert counts == [20, 20, 20, 20, 4, 4]


def test_drafts_count_and_are_cut_to_budget_blocks_and_length() -> None:
    machine = Machine(10, 4, max_running=2, max_step_tokens=8)
    id_ = machine.add([0, 1], 6)[0]
    machine.step()
    right = machine.clients[id_].expected
    step = machine.begin({id_: right[1:] + [0] * 9, 999: [1]})
    assert step.rows[0].drafts == 4  # with the one drawn before them and one after them that is six
    machine.end(step, machine.compute(step))
    assert id_ in machine.done

    id_ = machine.add([0, 1], 30)[0]
    machine.step()
    assert machine.begin({id_: [0] * 20}).tokens == 8
    full = Machine(2, 4, max_running=2, max_step_tokens=16)
    a, b = full.add([0, 1], 3)[0], full.add([1, 1], 3)[0]
    full.step()
    step = full.step({a: [0] * 9, b: [0] * 9})
    assert [row.drafts for row in step.rows] == [1, 1]
    assert not step.preempted


def test_accepted_drafts_shorten_the_work_and_rejected_ones_leave_nothing() -> None:
    machine = Machine(50, 4, max_running=2, max_step_tokens=16)
    id_ = machine.add([0, 1, 2], 40)[0]
    steps = 0
    while machine.clients:
        client = machine.clients[id_]
        guess = client.expected[len(client.reply) :][:3]
        machine.step({id_: [*guess, *(2 - token for token in guess)]})
        steps += 1
    assert steps <= 12
    machine.check_empty()


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    queue = Scheduler(BlockManager(4, 8), max_running=3, max_step_tokens=8, max_waiting=2)
    queue.add([1] * 20, 13)
    with pytest.raises(RequestError, match=r"20 tokens and max_tokens is 14, together 5 .* 4 blocks, 32"):
        queue.add([1] * 20, 14)
    for arguments in (
        {"prompt_ids": []}, {"max_tokens": 0}, {"n": 0}, {"n": 4}, {"priority": 101}, {"priority": -101},
        {"ntk_alpha": float("nan")}, {"ntk_alpha": 0.0},
    ):  # fmt: skip
        with pytest.raises(RequestError):
            queue.add(**{"prompt_ids": [1], "max_tokens": 1, **arguments})  # type: ignore[arg-type]
    queue.add([1], 1)
    with pytest.raises(QueueFullError, match="2 requests are waiting") as caught:
        queue.add([1], 1)
    assert caught.value.waiting == 2
    assert queue.unfinished == 2
    queue.check_integrity()


def test_limits_that_would_starve_are_refused() -> None:
    assert Scheduler(BlockManager(4, 8), max_running=4, max_step_tokens=9).chunk_tokens == 4
    with pytest.raises(ValueError, match="max_step_tokens 3"):
        Scheduler(BlockManager(4, 8), max_running=4, max_step_tokens=3)


def test_steps_are_completed_in_order_with_possible_tokens() -> None:
    machine = Machine(10, 4, max_running=2, max_step_tokens=8)
    queue = machine.scheduler
    assert queue.schedule() == Step(())
    (id_,) = machine.add([0, 1], 3)
    step = queue.schedule()
    with pytest.raises(RuntimeError, match="neither"):
        queue.schedule()
    with pytest.raises(ValueError, match="drew 0 tokens"):
        queue.complete(step, {})
    with pytest.raises(ValueError, match="drew 2 tokens"):
        queue.complete(step, {id_: [1, 1]})
    queue.complete(step, {id_: [1]})
    with pytest.raises(RuntimeError, match="not the one in flight"):
        queue.complete(step, {id_: [1]})
    step = queue.schedule({id_: [2]})
    with pytest.raises(ValueError, match="does not begin"):
        queue.complete(step, {id_: [1, 1]})
    queue.check_integrity()
    assert queue.complete(step, {id_: [2, 1]}) == [id_]


def test_damage_is_noticed() -> None:
    machine = Machine(20, 4, max_running=3, max_step_tokens=8)
    machine.add([0, 1, 2] * 5, 3, n=2)
    machine.add([1], 3)
    machine.step()
    queue = machine.scheduler
    queue.check_integrity()
    queue._running.reverse()
    with pytest.raises(BlockIntegrityError, match="out of order"):
        queue.check_integrity()
    queue._running.reverse()
    machine.blocks.open([1, 2], blocks.CacheKey())
    with pytest.raises(BlockIntegrityError, match="belong to nobody"):
        queue.check_integrity()


@pytest.mark.parametrize("module", [blocks, scheduler])
def test_they_know_no_tensors(module: ModuleType) -> None:
    names: deque[str] = deque()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    rooms = ("qwenkit.core", "qwenkit.engine.blocks")
    assert all(name.startswith(rooms) for name in names if name.startswith(("qwenkit", "torch", "numpy")))
