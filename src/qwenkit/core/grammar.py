"""What a text must look like, whatever the model would rather say. Knows nothing of how it is enforced."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from qwenkit.core.errors import RequestError
from qwenkit.core.json_schema import check_schema

GrammarKind: TypeAlias = Literal["json_schema", "regex", "choice", "lark"]

MOST_CHOICE_BYTES = 256 * 1024
"""Of all choices together."""

MOST_RULE_BYTES = 8 * 1024
"""Of a regex, or of a Lark grammar without its schemas: rules are followed by recursion, at most so deep, and
time can grow with the square of rules that may all begin alike."""

_JSON = re.compile(r"%json\s*(?=\{)")


@dataclass(frozen=True)
class Grammar:
    """The texts that may be generated; made by the functions below, which check what can be checked cheaply.

    text: what the kind says: a JSON schema, a regular expression, a JSON list of strings, a Lark grammar.
    All raise RequestError, naming what is wrong and where. Whether it can be enforced is found out when a
    request is made of it, before any work.
    """

    kind: GrammarKind
    text: str

    @staticmethod
    def json_object() -> Grammar:
        """Any JSON object."""
        return Grammar("json_schema", '{"type": "object"}')

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | bool) -> Grammar:
        """JSON that the schema (draft 2020-12) accepts; properties come in the order the schema gives them.

        References must stay inside the schema. Keywords that cannot be enforced are an error, not ignored.
        """
        return Grammar("json_schema", check_schema(schema))

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Text that the regular expression matches from end to end, in the syntax of Rust's regex crate: no
        look-around, no back references; a dot is no newline, \\d and \\w are ASCII as in JavaScript."""
        _check_text(pattern, "regex")
        _check_size(pattern, "regex", MOST_RULE_BYTES)
        return Grammar("regex", pattern)

    @staticmethod
    def choice(texts: Sequence[str]) -> Grammar:
        """One of these texts."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise RequestError(f"The choices are {texts!r:.60}.", "Give a list of strings.")
        for i, text in enumerate(texts):
            _check_text(text, f"choice {i}")
        _check_size("".join(texts), "choices", MOST_CHOICE_BYTES)
        return Grammar("choice", json.dumps(list(texts), ensure_ascii=False))

    @staticmethod
    def lark(grammar: str, *, rule_bytes: int = MOST_RULE_BYTES) -> Grammar:
        """Text that follows a Lark grammar as llguidance reads it: it begins with the rule `start`; `%json`
        and a schema stand for JSON, `<|im_end|>` and the like for control tokens.

        rule_bytes: what the rules without their schemas may take, for who knows that more are harmless.
        """
        _check_text(grammar, "Lark grammar")
        rules, at = [], 0
        for found in _JSON.finditer(grammar):
            if found.start() < at:
                continue  # in a string of the schema before
            line = grammar.count("\n", 0, found.start()) + 1
            try:
                schema, end = json.JSONDecoder().raw_decode(grammar, found.end())
            except (ValueError, RecursionError) as error:
                raise RequestError(
                    f"The schema in line {line} of the Lark grammar is not JSON: {error}.", "Correct it."
                ) from error
            try:
                check_schema(schema)
            except RequestError as error:
                raise RequestError(
                    f"Line {line} of the Lark grammar: {error.problem}", error.remedy
                ) from error
            rules.append(grammar[at : found.end()])
            at = end
        _check_size("".join(rules) + grammar[at:], "Lark grammar, without its schemas,", rule_bytes)
        _check_size(grammar, "Lark grammar", MOST_CHOICE_BYTES)
        return Grammar("lark", grammar)

    def schemas(self) -> Iterator[tuple[int, int]]:
        """Where the JSON schemas of a Lark grammar begin and end in its text."""
        end = 0
        for found in _JSON.finditer(self.text):
            if found.start() >= end:  # not in a string of the schema before
                _, end = json.JSONDecoder().raw_decode(self.text, found.end())
                yield found.end(), end


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not value:
        raise RequestError(f"The {what} is {value!r:.60}.", "Give a string that is not empty.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RequestError(f"The {what} has half a character (a lone surrogate).", "Write whole characters.")


def _check_size(text: str, what: str, most: int) -> None:
    if (size := len(text.encode())) > most:
        verb = "have" if what.endswith("s") else "has"
        raise RequestError(f"The {what} {verb} {size} bytes.", f"At most {most} are taken.")
