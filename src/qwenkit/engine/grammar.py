"""Grammars at work: which ids may come next in a text, by llguidance (an Earley parser over derivatives of
regular expressions), for one vocabulary.

Knows ids and their bytes; nothing of logits, models or requests. llguidance is an extra, imported when the
first grammar is compiled.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qwenkit.core.errors import RequestError, UnsupportedError
from qwenkit.core.grammar import Grammar
from qwenkit.core.json_schema import places
from qwenkit.kernels.reference_sampling import Allowed
from qwenkit.text import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

COMPILE_SECONDS = 10.0
"""A grammar that takes longer is refused. The largest that core lets through took 1.5 s."""

MOST_COMPILING = 2
"""Grammars compiled at once: what was given up still takes a core until it ends."""

KEPT = 32
"""Compiled grammars kept for the next request that names them."""

STACK_BYTES = 64 * 2**20
"""Of the thread that compiles: rules are followed by recursion, 2000 deep in a usual stack of 8 MiB."""

LIMITS: Mapping[str, Any] = {
    "step_lexer_fuel": 200_000,  # 15 ms of a token
    "step_max_items": 50_000,  # 3 ms of a token
    "max_lexer_states": 50_000,  # 100 MB of a grammar
    "max_grammar_size": 200_000,
}

WHITESPACE = r"\x20|\n(\x20{0,32}|\t{0,8})"
"""Between the parts of JSON: a space, or a line break and indentation. Without an end to it, small models
that wanted to say something else go on with white space until max_tokens."""

_SCHEMA = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")


class GrammarCompiler:
    """Compiles grammars for one vocabulary of `size` ids; any thread may ask, and waits.

    Never to be called by the thread that computes: compiling takes from a millisecond to COMPILE_SECONDS, the
    first time half a second more.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._ll: LLTokenizer | None = None
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MOST_COMPILING)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises RequestError naming what is wrong and where, UnsupportedError without llguidance."""
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
            if self._ll is None:
                self._ll = _vocabulary(self._tokenizer, self._size)
            vocabulary = self._ll
        compiled = self._in_time(lambda: CompiledGrammar(grammar, vocabulary, self._size))
        with self._lock:
            self._kept[grammar] = compiled
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _in_time(self, work: Callable[[], CompiledGrammar]) -> CompiledGrammar:
        done: list[CompiledGrammar] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:  # noqa: BLE001  raised again to the one who waits
                failed.append(error)
            finally:
                self._places.release()

        if not self._places.acquire(timeout=COMPILE_SECONDS):
            raise RequestError(
                f"{MOST_COMPILING} grammars are being compiled for more than {COMPILE_SECONDS:g} s.",
                "Try again later.",
            )
        thread = threading.Thread(target=run, name="qwenkit-grammar", daemon=True)
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
        thread.join(COMPILE_SECONDS)
        if failed:
            raise failed[0]
        if not done:
            raise RequestError(
                f"The grammar could not be compiled in {COMPILE_SECONDS:g} s.", "Use a simpler one."
            )
        return done[0]


class CompiledGrammar:
    """A grammar of a vocabulary, at the beginning of a text."""

    def __init__(self, grammar: Grammar, vocabulary: LLTokenizer, size: int) -> None:
        from llguidance import LLMatcher

        self._size = size
        self._lock = threading.Lock()  # copying changes counters inside
        self._start = LLMatcher(vocabulary, _source(grammar), log_level=0, limits=_limits())
        if problem := self._start.get_error():
            raise _refusal(grammar, problem)
        first = Matcher(self._start.deep_copy(), size, ())
        if first.error is not None and "NoExtension" not in first.error.problem:
            raise _refusal(grammar, first.error.problem)
        if first.error is not None or first.finished:
            raise RequestError(f"{_what(grammar)} matches no text, or none but the empty one.", "Correct it.")

    def matcher(self, end_ids: Collection[int]) -> Matcher:
        """For one text, which any of end_ids ends."""
        with self._lock:
            return Matcher(self._start.deep_copy(), self._size, end_ids)


class Matcher:
    """How far one text has come in its grammar. `finished`: no token may follow; `error`: it was given up.

    The ids that end the text are allowed exactly where the grammar may end.
    """

    def __init__(self, state: LLMatcher, size: int, end_ids: Collection[int]) -> None:
        self._state = state
        self._size = size
        self._ends = np.array(sorted(end_ids), dtype=np.int64)
        self.error: RequestError | None = None
        self.finished = False
        self._allowed = self._look()
        self.finished = self._allowed is None
        self._ahead: deque[tuple[int, Allowed | None]] = (
            deque()
        )  # drafts that may follow, and what follows them

    def allowed(self, drafts: Sequence[int] = ()) -> list[Allowed | None]:
        """The ids that may come after 0, 1, ... drafts; None after one that cannot be or ends the text."""
        self._ahead.clear()
        allowed = [self._allowed]
        for token in drafts:
            if allowed[-1] is None or not _has(allowed[-1], token) or token in self._ends:
                break
            if not self._state.consume_token(token):
                break
            allowed.append(self._look())
            self._ahead.append((token, allowed[-1]))
        if self._ahead:
            self._state.rollback(len(self._ahead))
        return allowed + [None] * (len(drafts) + 1 - len(allowed))

    def valid(self, drafts: Sequence[int]) -> int:
        """How many of the drafts, from the first, the grammar lets through."""
        return 0 if self.finished or self.error else self._state.validate_tokens(list(drafts))

    def forced(self) -> list[int]:
        """Ids that spell what must come next, as the tokenizer would; often none."""
        return [] if self.finished or self.error else self._state.compute_ff_tokens()

    def accept(self, token: int) -> None:
        """The text has grown by this token, which is none that ends it."""
        if self.finished or self.error:
            return
        known = self._ahead.popleft() if self._ahead else None
        if not self._state.consume_token(token):
            self._give_up()
        elif known is not None and known[0] == token:
            self._allowed = known[1]
        else:
            self._ahead.clear()
            self._allowed = self._look()
        self.finished = self._allowed is None and self.error is None

    def _look(self) -> Allowed | None:
        """The ids that may come next, ends among them; None if the text can only end."""
        if self._state.is_stopped():
            if self._state.is_error():
                self._give_up()
            return None
        # One id more than there are: llguidance's own sign that the text may end.
        mask = np.zeros(self._size // 32 + 1, np.uint32)
        self._state.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._state.is_error():
            self._give_up()
            return None
        last, bit = divmod(self._size, 32)
        may_end = bool(mask[last] >> np.uint32(bit) & np.uint32(1))
        mask[last] &= np.uint32((1 << bit) - 1)
        if not mask.any():
            return None
        if may_end and len(self._ends):
            np.bitwise_or.at(mask, self._ends // 32, (1 << self._ends % 32).astype(np.uint32))
        return mask[: -(-self._size // 32)]

    def _give_up(self) -> None:
        problem = self._state.get_error().split("\n")[0]
        self.error = RequestError(
            f"The grammar cannot be followed any further: {problem}.", "Use one with fewer ways to go on."
        )
        self._allowed = None


def _has(allowed: Allowed, token: int) -> bool:
    return bool(allowed[token // 32] >> np.uint32(token % 32) & np.uint32(1))


class _Tokens:
    """A vocabulary as llguidance reads it, with one special token more: the end."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        holes = set(tokenizer.ids_without_text(size))
        self.tokens = [b"" if i in holes else tokenizer.token_bytes(i) for i in range(size)] + [
            b"<|qwenkit:end|>"
        ]
        self.eos_token_id = size
        self.bos_token_id = None
        self.special_token_ids = [*sorted(tokenizer.special_tokens.values()), size]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"))


def _vocabulary(tokenizer: Tokenizer, size: int) -> LLTokenizer:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise UnsupportedError(
            f"Grammars need the package llguidance, which cannot be imported ({error}).",
            "Install it: pip install 'qwenkit[grammar]'.",
        ) from error
    tokens = TokenizerWrapper(_Tokens(tokenizer, size))
    return LLTokenizer(tokens, n_vocab=size + 1, slices=LLTokenizer.json_slices())


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False, **LIMITS)


def _source(grammar: Grammar) -> str:
    """A grammar in llguidance's language."""
    from llguidance import LLMatcher, regex_to_lark

    if grammar.kind == "json_schema":
        _check_ranges(json.loads(grammar.text))
        overrides: Any = _SCHEMA
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=overrides)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(_with_options(grammar))
    if grammar.kind == "choice":
        choices = json.loads(grammar.text)
        return LLMatcher.grammar_from_regex("|".join(_SPECIAL.sub(r"\\\g<0>", choice) for choice in choices))
    return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(grammar.text, 'dw')}/")


def _with_options(grammar: Grammar) -> str:
    """A Lark grammar whose schemas are read as those that stand alone."""
    text, done = "", 0
    for start, end in grammar.schemas():
        schema = json.loads(grammar.text[start:end])
        _check_ranges(schema)
        text += grammar.text[done:start] + json.dumps({"x-guidance": _SCHEMA, **schema})
        done = end
    return text + grammar.text[done:]


def _check_ranges(schema: Any) -> None:
    """llguidance 1.9 lets a whole number through that such a range excludes."""
    for place, part in places(schema):
        if not isinstance(part, Mapping):
            continue
        excluded = [part.get("exclusiveMinimum"), part.get("exclusiveMaximum")]
        bounds = [*excluded, part.get("minimum"), part.get("maximum")]
        known = [bound for bound in bounds if isinstance(bound, (int, float))]
        if (
            len(known) > 1
            and max(known) - min(known) < 1
            and any(e is not None and e == int(e) for e in excluded)
        ):
            raise RequestError(
                f"The JSON schema cannot be enforced at {place}: "
                "a range narrower than 1 excludes a whole number.",
                "Use minimum and maximum.",
            )


def _what(grammar: Grammar) -> str:
    names = {
        "json_schema": "JSON schema",
        "regex": "regex",
        "choice": "list of choices",
        "lark": "Lark grammar",
    }
    return f"The {names[grammar.kind]}"


def _refusal(grammar: Grammar, problem: str) -> RequestError:
    """What llguidance said, as a sentence, with the place in a schema that it is about."""
    from llguidance import LLMatcher

    where = ""
    if grammar.kind == "json_schema":
        where = f" at {_place(json.loads(grammar.text), problem)}"
    elif grammar.kind == "lark":
        for start, end in grammar.schemas():
            schema = grammar.text[start:end]
            found = LLMatcher.validate_grammar(_source(Grammar("json_schema", schema)), limits=_limits())
            if found:
                where = f" {_context(grammar.text[:start])} at {_place(json.loads(schema), found)}"
                problem = found
                break
    errors = [line[7:] for line in problem.split("\n") if line.startswith("error: ")]
    reason = errors[-1] if errors else problem.split("\n")[0]
    return RequestError(
        f"{_what(grammar)} cannot be enforced{where}: {reason:.300}.",
        "See 'What can be enforced' in docs/structured.md.",
    )


def _context(before: str) -> str:
    """Which schema of a Lark grammar comes after this text: what the line above remarks, or its own line."""
    *above, line = before.split("\n")
    if above and above[-1].startswith("// "):
        return f"for {above[-1][3:]}"
    return f"after {line.removesuffix('%json').strip()[-80:]!r}"


def _place(schema: Any, problem: str, most: int = 300) -> str:
    """The innermost part of a schema that fails alike on its own, as a JSON pointer."""
    from llguidance import LLMatcher

    found = "#"
    shared = {
        key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, Mapping) and key in schema
    }
    inner = [place for place, value in places(schema) if isinstance(value, Mapping)]
    for place in sorted(inner, key=lambda place: place.count("/"))[:most]:
        if place.startswith(f"{found}/"):
            alone = {**shared, "whole": schema, "$ref": f"#/whole/{place[2:]}"}
            source = LLMatcher.grammar_from_json_schema(json.dumps(alone))
            if LLMatcher.validate_grammar(source, limits=_limits()) == problem:
                found = place
    return found
