"""Guesses change how fast a text comes, nothing else: every loop here is compared with a token a step."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.engine.blocks import BlockManager
from qwenkit.engine.draft_length import CostTable, DraftLength, share_rows
from qwenkit.engine.ngrams import NgramLookup, NgramProposer
from qwenkit.engine.proposer import DraftRequest, Proposer
from qwenkit.engine.scheduler import Scheduler
from qwenkit.engine.speculate import Speculator, verify

CPU = CostTable({1: 1.0, 4: 1.2, 8: 1.35, 32: 2.1})
FEW = st.lists(st.integers(0, 3), max_size=60)  # so few words that everything was said before


# Checking


class Text:
    """What a model says: a function of everything before and of the place in a random stream."""

    def __init__(self, seed: int, words: int, end: int | None, max_tokens: int) -> None:
        self.stream = random.Random(seed)
        self.words, self.end, self.max_tokens = words, end, max_tokens
        self.tokens: list[int] = []
        self.drawn = 0

    def draw(self, history: Sequence[int]) -> int:
        self.drawn += 1
        return hash((tuple(history[-3:]), self.stream.randrange(2))) % self.words

    def ended(self, token: int) -> bool:
        assert not self.finished
        self.tokens.append(token)
        return self.finished

    @property
    def finished(self) -> bool:
        return bool(self.tokens) and (self.tokens[-1] == self.end or len(self.tokens) >= self.max_tokens)


def alone(text: Text) -> list[int]:
    while not text.finished:
        text.ended(text.draw(text.tokens))
    return text.tokens


texts = st.builds(
    lambda *fields: lambda: Text(*fields),
    st.integers(0, 1000), st.integers(1, 5), st.sampled_from([None, 0, 1]), st.integers(1, 40),
)  # fmt: skip


@given(texts, st.data())
def test_a_text_is_the_same_with_any_drafts(make: Callable[[], Text], data: st.DataObject) -> None:
    expected = make()
    alone(expected)
    text = make()
    while not text.finished:
        right = expected.tokens[len(text.tokens) :]
        drafts = right[: data.draw(st.integers(0, 8))]
        for i in range(len(drafts)):  # some right, some wrong, some beyond the end
            if data.draw(st.integers(0, 3)) == 0:
                drafts[i] = data.draw(st.integers(0, 4))
        drafts += data.draw(st.lists(st.integers(0, 4), max_size=3))
        before = len(text.tokens)
        new = verify(drafts, lambda _: text.draw(text.tokens), text.ended)
        assert text.tokens[before:] == new
        assert 1 <= len(new) <= len(drafts) + 1
        assert new[:-1] == drafts[: len(new) - 1]
    assert text.tokens == expected.tokens
    assert text.drawn == expected.drawn  # the random stream stands where it would


def test_drawing_goes_by_place_and_stops_at_the_first_difference():
    asked = []

    def draw(i: int) -> int:
        asked.append(i)
        return [5, 6, 9, 8][i]

    assert verify([5, 6, 7, 8], draw) == [5, 6, 9]
    assert asked == [0, 1, 2]
    assert verify([5, 6], draw) == [5, 6, 9]
    assert verify([], draw) == [5]
    assert verify([5, 6, 9], draw, lambda token: token == 6) == [5, 6]


# N-grams


def searched(tokens: list[int], count: int, longest: int = 4, shortest: int = 2) -> tuple[int, ...]:
    """By looking everywhere."""
    for n in range(longest, shortest - 1, -1):
        for place in range(len(tokens) - 1, n - 1, -1):
            if tokens[place - n : place] == tokens[len(tokens) - n :]:
                said = list(tokens)
                for i in range(count):
                    said.append(said[place + i])
                return tuple(said[len(tokens) :])
    return ()


@given(st.lists(FEW, max_size=6), st.integers(1, 12), st.sampled_from([(4, 2), (3, 3), (2, 1)]))
def test_ngrams_find_what_a_search_finds(parts: list[list[int]], count: int, bounds: tuple[int, int]) -> None:
    proposer, tokens = NgramProposer(*bounds), []
    for part in parts:
        proposer.add(part)
        tokens += part
        assert len(proposer) == len(tokens)
        assert proposer.propose(count) == searched(tokens, count, *bounds)
    assert proposer.propose(count) == searched(tokens, count, *bounds)
    assert proposer.propose(0) == ()


def test_the_longest_suffix_wins_then_the_latest_place():
    proposer = NgramProposer()
    proposer.add([1, 2, 3, 4, 50, 9, 3, 4, 60, 9, 3, 4, 70, 1, 2, 3, 4])
    assert proposer.propose(1) == (50,)
    proposer.add([3, 4])
    assert proposer.propose(2) == (3, 4)  # "3 4 3 4" now repeats itself
    assert NgramProposer().propose(4) == ()
    large = NgramProposer()
    large.add([2**31, 0, 2**31, 0, 7, 2**31, 0])
    assert large.propose(1) == (7,)  # ids of any size do not run into each other


@pytest.mark.parametrize("bounds", [(1, 2), (3, 0)])
def test_impossible_ngrams_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="N-grams"):
        NgramProposer(*bounds)


@given(st.lists(st.tuples(st.integers(0, 2), FEW, st.integers(1, 5)), max_size=12))
def test_lookup_keeps_texts_apart(steps: list[tuple[int, list[int], int]]) -> None:
    lookup, said = NgramLookup(), {0: [1], 1: [2], 2: [3]}
    for id_, more, count in steps:
        said[id_] += more
        asked = [i for i in said if (i + count) % 3]
        got = lookup.propose([DraftRequest(i, said[i], count) for i in asked])
        assert got == [searched(said[i], count) for i in asked]
        if count == 5:
            lookup.forget(id_)
            lookup.forget(99)


# How many


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=4),
    st.integers(0, 30),
    st.lists(st.floats(0, 2), min_size=3, max_size=3),
)
def test_shared_rows_are_the_best_of_all_ways(
    sequences: list[tuple[float, int]], more: int, slopes: list[float]
) -> None:
    chances, offered = [chance for chance, _ in sequences], [count for _, count in sequences]
    rows = len(sequences) + more
    cost = CostTable({1: 1.0, 4: 1 + slopes[0], 8: 1 + sum(slopes[:2]), 33: 1 + sum(slopes)})

    def worth(counts: Sequence[int]) -> float:
        gained = sum(sum(p**j for j in range(1, n + 1)) for p, n in zip(chances, counts, strict=True))
        return (rows + gained) / cost(rows + sum(counts))

    ours = share_rows(chances, offered, rows, cost)
    assert all(0 <= n <= most for n, most in zip(ours, offered, strict=True))
    best = max(worth(counts) for counts in itertools.product(*(range(n + 1) for n in offered)))
    assert worth(ours) == pytest.approx(best, rel=1e-9)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 64), st.integers(0, 16)), max_size=60))
def test_lengths_stay_within_their_limits(limit: int, steps: list[tuple[int, int]]) -> None:
    length = DraftLength(CPU, limit)
    for rows, right in steps:
        count = length.ask(rows)
        assert 0 <= count <= limit
        assert 0 <= length.chance <= 1
        length.record(count, min(right, count))


def run(length: DraftLength, right: Callable[[int], int], tokens: int) -> tuple[int, float]:
    """Steps and cost of so many tokens, of which right(place) follow as a proposer of copies would guess."""
    done = steps = 0
    cost = 0.0
    while done < tokens:
        count = length.ask()
        accepted = min(count, right(done))
        length.record(count, accepted)
        done, steps, cost = done + accepted + 1, steps + 1, cost + CPU(1 + count)
    return steps, cost


def test_text_that_is_never_guessed_costs_next_to_nothing():
    steps, cost = run(DraftLength(CPU), lambda _: 0, 1000)
    assert steps == 1000
    assert cost < 1015


def test_text_that_is_copied_gets_long_drafts():
    steps, cost = run(DraftLength(CPU), lambda _: 16, 1000)
    assert cost < 130
    assert steps < 80


def test_a_copy_after_much_else_is_found():
    length = DraftLength(CPU)
    run(length, lambda _: 0, 1000)
    steps, _ = run(length, lambda _: 16, 1000)
    assert steps < 64 + 80


def test_guesses_are_fewer_the_more_they_cost():
    cheap, dear = DraftLength(lambda _: 1.0), DraftLength(lambda rows: float(rows))
    for length in (cheap, dear):
        length.record(10, 8)
    assert cheap.ask() == 16
    assert dear.ask() == 2  # a row costs as much as a step: only to look whether anything changed
    dear.postpone()
    assert [dear.ask() for _ in range(8)] == [0] * 8
    assert dear.ask() == 2


@pytest.mark.parametrize("points", [{}, {1: 1.0}, {2: 1.0, 4: 2.0}, {1: 0.0, 2: 1.0}, {1: 2.0, 4: 1.0}])
def test_a_cost_table_needs_sense(points: dict[int, float]) -> None:
    with pytest.raises(ValueError):
        CostTable(points)


def test_costs_lie_on_lines():
    assert [CPU(n) for n in (1, 2, 4, 6, 32)] == pytest.approx([1.0, 1 + 0.2 / 3, 1.2, 1.275, 2.1])
    assert CPU(56) == pytest.approx(2.1 + 0.75)
    with pytest.raises(ValueError, match="limit"):
        DraftLength(CPU, 0)


# All of it


class Scripted(Proposer):
    """Knows what will be said and is wrong as often as it is told; a model stands here in earnest."""

    def __init__(self, scripts: dict[int, list[int]], wrong: float, seed: int) -> None:
        self.scripts, self.wrong = scripts, wrong
        self.random = random.Random(seed)
        self.forgotten: list[int] = []

    def propose(self, requests: Sequence[DraftRequest]) -> list[tuple[int, ...]]:
        guesses = []
        for request in requests:
            script = self.scripts[request.sequence_id]
            assert script[: len(request.tokens)] == list(request.tokens)
            coming = script[len(request.tokens) :][: self.random.randint(0, request.count)]
            guesses.append(tuple(-1 if self.random.random() < self.wrong else token for token in coming))
        return guesses

    def forget(self, sequence_id: int) -> None:
        self.forgotten.append(sequence_id)


@given(
    st.lists(st.tuples(FEW.filter(bool), texts), min_size=1, max_size=5),
    st.sampled_from(["ngrams", 0.0, 0.3, 1.0]),
    st.integers(5, 40),
    st.integers(0, 99),
)
def test_through_the_scheduler_every_reply_is_the_one_without_drafts(
    requests: list[tuple[list[int], Callable[[], Text]]], source: str | float, step_tokens: int, seed: int
) -> None:
    """Preemption, short budgets and prompts beside: drafts are cut at will, replies stay."""
    blocks = BlockManager(24, 4)
    scheduler = Scheduler(blocks, max_step_tokens=step_tokens, max_running=5)
    said, running, expected = {}, {}, {}
    for prompt, make in requests:
        text = make()
        (id_,) = scheduler.add(prompt[:50], text.max_tokens)
        said[id_], running[id_], expected[id_] = prompt[:50], text, alone(make())
    scripts = {id_: said[id_] + expected[id_] for id_ in said}
    proposer = NgramLookup() if source == "ngrams" else Scripted(scripts, float(source), seed)
    speculator = Speculator(proposer, CPU, limit=8)
    replies = {}
    while scheduler.unfinished:
        step = scheduler.schedule(speculator.drafts(said, rows=len(said)))
        drawn, finished = {}, []
        for row in step.rows:
            for id_ in row.samples:
                text, drafts = running[id_], row.token_ids[row.count - row.drafts :]
                drawn[id_] = verify(drafts, lambda _, text=text: text.draw(text.tokens), text.ended)
                speculator.record(id_, len(drafts), len(drawn[id_]) - 1)
                said[id_] += drawn[id_]
                if text.finished:
                    finished.append(id_)
        scheduler.complete(step, drawn, finished)
        scheduler.check_integrity()
        for id_ in finished:
            speculator.forget(id_)
            speculator.record(id_, 1, 1)
            replies[id_] = running.pop(id_).tokens
            del said[id_]
    assert replies == expected
    if isinstance(proposer, Scripted):
        assert sorted(proposer.forgotten) == sorted(expected)


def test_a_full_batch_checks_only_good_guesses():
    """On 32 rows another must be right nearly every other time; alone, one time in fifteen will do."""
    scripts = {id_: list(range(100)) for id_ in range(32)}
    poor, good = Speculator(Scripted(scripts, 0.0, 1), CPU), Speculator(Scripted(scripts, 0.0, 1), CPU)
    for speculator, right in ((poor, 1), (good, 4)):
        speculator.drafts({id_: [0] for id_ in scripts})
        for id_ in scripts:
            for _ in range(6):
                speculator.record(id_, 4, right)
    alone, _ = poor.drafts({0: [0]}), good.drafts({0: [0]})
    assert len(alone.get(0, ())) >= 1
    counts = [sum(map(len, s.drafts({id_: [0] for id_ in scripts}).values())) for s in (poor, good)]
    assert counts[1] > 2 * counts[0]
