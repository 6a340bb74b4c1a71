"""Guesses by a smaller model of the same vocabulary: 1.8B for 72B, a small Qwen2.5 for a larger one.

Leviathan et al. 2023, arXiv:2211.17192, but for the check (see speculate.py). It says its likeliest token at
every place, also for sampled requests. Knows token ids and a model; nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwenkit.core.errors import RequestError
from qwenkit.engine.blocks import BlockManager, BlockTable, CacheKey
from qwenkit.engine.paged_cache import PagedCache
from qwenkit.engine.proposer import DraftRequest, Proposer
from qwenkit.engine.runner import Runner
from qwenkit.engine.scheduler import Row, Step
from qwenkit.model import CausalLM, ntk_alpha
from qwenkit.text import Tokenizer


@dataclass(eq=False)
class _Text:
    """A sequence as the small model has read it. table: blocks of `read`, never shared and never filed."""

    table: BlockTable
    ntk_alpha: float
    read: list[int] = field(default_factory=list)


class DraftModel(Proposer):
    """`model` guesses; its keys and values lie in `cache`, which nobody else uses.

    vocabulary: ids below it may be guessed. chunk: most tokens of a sequence that one pass reads. A sequence
    gets no guesses while the cache has no room for it, or past the small model's context.
    """

    def __init__(self, model: CausalLM, cache: PagedCache, vocabulary: int, *, chunk: int = 512) -> None:
        self._runner = Runner(model, cache)
        self._blocks = BlockManager(cache.shape.blocks, cache.shape.block_size)
        self._vocabulary = vocabulary
        self._chunk = chunk
        self._texts: dict[int, _Text] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[tuple[int, ...]]:
        guesses: dict[int, list[int]] = {}
        asked: dict[int, DraftRequest] = {}
        free = self._blocks.available
        for request in requests:
            needed = self._needed(request)
            if needed is not None and needed <= free:
                free -= needed
                asked[request.sequence_id] = request
        for id_, request in asked.items():
            self._catch_up(self._text(request), request.tokens)
            guesses[id_] = []
        while asked:
            for id_, guess in self._next(
                {id_: (*r.tokens, *guesses[id_]) for id_, r in asked.items()}
            ).items():
                guesses[id_].append(guess)
            asked = {id_: r for id_, r in asked.items() if len(guesses[id_]) < r.count}
        return [tuple(guesses.get(request.sequence_id, ())) for request in requests]

    def forget(self, sequence_id: int) -> None:
        if (text := self._texts.pop(sequence_id, None)) is not None:
            self._blocks.free(text.table)

    def _needed(self, request: DraftRequest) -> int | None:
        """Blocks to take for the tokens and the guesses but the last; None past the context."""
        slots = len(request.tokens) + request.count - 1
        if slots > self._runner.model.shape.context_length:
            return None
        text = self._texts.get(request.sequence_id)
        return max(0, self._blocks.blocks_for(slots) - (len(text.table.blocks) if text else 0))

    def _text(self, request: DraftRequest) -> _Text:
        text = self._texts.get(request.sequence_id)
        if text is None:
            shape = self._runner.model.shape
            alpha = ntk_alpha(len(request.tokens), shape.seq_length) if shape.dynamic_ntk else 1.0
            text = _Text(self._blocks.open((), CacheKey(alpha)), alpha)
            self._texts[request.sequence_id] = text
        return text

    def _catch_up(self, text: _Text, tokens: Sequence[int]) -> None:
        """Forget guesses that turned out wrong; read all but the last chunk of what is new."""
        same = 0
        for a, b in zip(text.read, tokens, strict=False):
            if a != b:
                break
            same += 1
        same = min(same, len(tokens) - 1)  # the last token is read again: it gives the logits
        del text.read[same:]
        self._blocks.truncate(text.table, same)
        while len(tokens) - len(text.read) > self._chunk:
            end = len(text.read) + self._chunk
            self._runner.hidden(Step((self._row(0, text, tokens[len(text.read) : end]),)))

    def _next(self, texts: dict[int, tuple[int, ...]]) -> dict[int, int]:
        """The likeliest next token of each text, all in one pass."""
        rows = [
            self._row(id_, self._texts[id_], tokens[len(self._texts[id_].read) :])
            for id_, tokens in texts.items()
        ]
        logits = self._runner.compute(Step(tuple(rows)))[:, : self._vocabulary]
        return dict(zip(texts, logits.argmax(-1).tolist(), strict=True))

    def _row(self, id_: int, text: _Text, tokens: Sequence[int]) -> Row:
        start = len(text.read)
        self._blocks.append_slots(text.table, len(tokens))
        text.read.extend(tokens)
        return Row(id_, start, tuple(tokens), tuple(text.table.blocks), (id_,), 0, text.ntk_alpha, None)


def check_same_vocabulary(draft: Tokenizer, target: Tokenizer) -> None:
    """Raise RequestError unless every id of `target` spells the same in `draft`, or nothing."""
    if draft is target:
        return
    missing = set(draft.ids_without_text(len(draft)))
    for id_ in set(range(len(target))).difference(target.ids_without_text(len(target))):
        if id_ < len(draft) and id_ not in missing and draft.token_bytes(id_) != target.token_bytes(id_):
            raise RequestError(
                f"The draft model spells token {id_} as {draft.token_bytes(id_)!r}, "
                f"the model as {target.token_bytes(id_)!r}.",
                "A draft model must have the same vocabulary.",
            )
