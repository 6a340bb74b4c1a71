"""Calls in the Hermes format without its tags: a reply that begins with their JSON, bare or in a code block.

Qwen2.5-Coder writes them so most of the time, though its template asks for tags. They count where the name is
that of a tool and the keys are those of a call.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

_SPACE = r"[ \n]*"
_BETWEEN = " \n,]}`"
"""What stands between two of them, and after the last."""


def bare_rules(names: Sequence[str]) -> list[str]:
    """Rules of a Lark grammar for `bare0`, `bare1` ...: a call up to its arguments, of each name in turn,
    which wins over any text as soon as it matches; for what is `between` calls, for `space` before arguments,
    and for other text `after` calls."""
    return [
        rf'LEAD: /{_SPACE}(```)?(json)?{_SPACE}(\[{_SPACE})?\{{{_SPACE}"name":{_SPACE}"/',
        f'LINK: /",{_SPACE}"arguments":/',
        *(f"bare{i}[lazy]: LEAD {json.dumps(name, ensure_ascii=False)} LINK" for i, name in enumerate(names)),
        r"between: /[ \n,\]}`]{1,40}/",
        r"space: /[ \n]{1,20}/",
        r"after: /[^ \n,\]}`{\[](.|\n){0,30}/",
    ]


def bare_head(text: str, names: Collection[str], *, first: bool) -> tuple[str, int] | None:
    """The name of the call that a text begins with, and where its arguments begin; None: it takes more text
    to tell; ("", 0): it is none. first: nothing was called before."""
    reader = _Reader(text)
    try:
        reader.skip(" \n" if first else _BETWEEN)
        reader.maybe("```")
        reader.maybe("json")
        reader.skip(" \n")
        reader.maybe("[")
        reader.skip(" \n")
        reader.take("{")
        reader.skip(" \n")
        reader.take('"name":')
        reader.skip(" \n")
        reader.take('"')
        name = reader.one_of(names)
        reader.take('",')
        reader.skip(" \n")
        reader.take('"arguments":')
        reader.skip(" \n")
        start = reader.at
        reader.take("{")
    except _Short:
        return None
    except _Other:
        return "", 0
    return name, start


class _Short(Exception):  # noqa: N818  no error: the text ends here
    pass


class _Other(Exception):  # noqa: N818  no error: the text says something else
    pass


class _Reader:
    """Walks over a text that may go on later."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def skip(self, letters: str) -> None:
        while self.at < len(self._text) and self._text[self.at] in letters:
            self.at += 1

    def maybe(self, literal: str) -> None:
        """Take it if it is there."""
        rest = self._text[self.at : self.at + len(literal)]
        if rest == literal:
            self.at += len(literal)
        elif literal.startswith(rest) and self.at + len(rest) == len(self._text):
            raise _Short

    def take(self, literal: str) -> None:
        before = self.at
        self.maybe(literal)
        if self.at == before:
            raise _Other

    def one_of(self, names: Collection[str]) -> str:
        """The name before the next quotation mark."""
        end = self._text.find('"', self.at)
        rest = self._text[self.at : None if end < 0 else end]
        if end < 0 and any(name.startswith(rest) for name in names):
            raise _Short
        if end < 0 or rest not in names:
            raise _Other
        self.at = end
        return rest
