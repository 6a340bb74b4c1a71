"""Texts that are on every machine: Python's own documentation and sources, and a little Chinese of ours.

Deterministic for one version of Python, and offline. What is kept to measure with is never calibrated on.
"""

from __future__ import annotations

import itertools
import sysconfig
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from qwenkit.core import UnsupportedError
from qwenkit.quantize.passages import Passage

_LENGTH = 2400  # characters of a passage
_QUOTED = 80  # characters of a paragraph, from which on it counts as the same
_HELD_OUT_TOPICS = 5  # every fifth topic is kept to measure with
_HELD_OUT_CHINESE = 5  # so many, the last ones
_MODULES = (
    "argparse", "ast", "asyncio.tasks", "bisect", "calendar", "collections", "concurrent.futures.thread",
    "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "difflib", "email.message",
    "enum",
    "fractions", "functools", "gettext", "gzip", "heapq", "html.parser", "http.client", "http.server",
    "importlib.util", "inspect", "ipaddress", "json.decoder", "logging", "mailbox", "multiprocessing.pool",
    "optparse", "pathlib", "pickle", "pprint", "queue", "random", "selectors", "shutil", "smtplib",
    "socketserver", "sqlite3.dump", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "timeit", "tokenize", "traceback", "types", "typing", "unittest.mock", "urllib.parse",
    "uuid", "weakref", "xml.dom.minidom", "zipfile",
)  # fmt: skip
_HELD_OUT_MODULES = ("cmd", "codecs", "decimal", "fileinput", "graphlib", "plistlib", "shlex", "wave")


def calibration_passages() -> Iterator[Passage]:
    """English, code and Chinese in turn, until English or code runs out; the Chinese begins again."""
    chinese = itertools.cycle(_chinese()[:-_HELD_OUT_CHINESE])
    topics = [topic for at, topic in enumerate(_topics()) if at % _HELD_OUT_TOPICS]
    kept = set(held_out_texts()["english"].split("\n\n"))  # topics quote each other
    english = (p for topic in topics for p in topic if not _shares(p.answer, kept))
    for one in zip(english, _code(_MODULES), chinese, strict=False):
        yield from one


def held_out_texts() -> dict[str, str]:
    """What no calibration has seen: a name and a plain text each."""
    english = [p.answer for topic in list(_topics())[::_HELD_OUT_TOPICS] for p in topic]
    return {
        "english": "\n\n".join(english),
        "chinese": "\n\n".join(f"{p.question}\n{p.answer}" for p in _chinese()[-_HELD_OUT_CHINESE:]),
        "code": "\n\n".join(p.answer for p in _code(_HELD_OUT_MODULES)),
    }


def _shares(text: str, paragraphs: set[str]) -> bool:
    """Whether a paragraph worth the name is among `paragraphs`."""
    return any(len(part) >= _QUOTED and part in paragraphs for part in text.split("\n\n"))


def _topics() -> Iterator[list[Passage]]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield [
            Passage(f"What does Python's language reference say about {name}? ({number})", part)
            for number, part in enumerate(_parts(text), 1)
        ]


def _code(modules: tuple[str, ...]) -> Iterator[Passage]:
    """The parts of all modules, the first ones of each first."""
    found = ((name, _source(name)) for name in modules)
    sources = [(name, list(_parts(text))) for name, text in found if text is not None]
    if not sources:
        raise UnsupportedError(
            "This Python comes without the sources of its library, which are part of the built-in texts.",
            "Name a file or a folder of texts: --calibration FILE --eval-text FILE.",
        )
    for number in range(max(len(parts) for _, parts in sources)):
        for name, parts in sources:
            if number < len(parts):
                question = f"Show me part {number + 1} of the source of Python's module {name}."
                yield Passage(question, f"```python\n{parts[number]}\n```")


def _source(name: str) -> str | None:
    """The text of a module of the standard library, None where this version of Python has no such file."""
    place = Path(sysconfig.get_path("stdlib"), *name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.exists():
            return path.read_text(encoding="utf-8")
    return None


def _chinese() -> list[Passage]:
    text = resources.files("qwenkit.quantize").joinpath("chinese.txt").read_text(encoding="utf-8")
    pairs = (passage.strip().split("\n", 1) for passage in text.split("\n---\n"))
    return [Passage(question, answer) for question, answer in pairs]


def _parts(text: str) -> Iterator[str]:
    """Pieces of about _LENGTH characters that end where a paragraph does."""
    held = ""
    for paragraph in text.strip("\n").split("\n\n"):
        if held and len(held) + len(paragraph) > _LENGTH:
            yield held
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph
    if held:
        yield held
