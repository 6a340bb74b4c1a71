"""What has been said: the system prompt and the finished turns, and their file on disk."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenkit.core import History, RequestError


@dataclass
class Conversation:
    """`system` None means the checkpoint's default system prompt."""

    system: str | None = None
    turns: History = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat-completion messages."""
        spoken = [{"role": "system", "content": self.system}] if self.system is not None else []
        for query, reply in self.turns:
            spoken += [{"role": "user", "content": query}, {"role": "assistant", "content": reply}]
        return spoken

    @classmethod
    def from_messages(cls, messages: Any) -> Conversation:
        """Read an optional system message and pairs of user and assistant.

        Raises RequestError naming the first message that does not fit.
        """
        if not isinstance(messages, list):
            raise RequestError(f"Messages are {type(messages).__name__}.", "Give a JSON list of messages.")
        entries = [_role_and_content(message, at) for at, message in enumerate(messages)]
        system = entries[0][1] if entries and entries[0][0] == "system" else None
        spoken = entries if system is None else entries[1:]
        first = len(entries) - len(spoken)
        for at, (role, _) in enumerate(spoken):
            expected = ("user", "assistant")[at % 2]
            if role != expected:
                raise RequestError(
                    f"Message {first + at} has role {role!r} where {expected!r} is expected.",
                    "A conversation is one optional system message, then user and assistant in turn.",
                )
        if len(spoken) % 2:
            raise RequestError(
                "The last message is a question without an answer.",
                "Remove it and ask it again after loading.",
            )
        contents = [content for _, content in spoken]
        return cls(system, list(zip(contents[::2], contents[1::2], strict=True)))

    def save(self, path: Path, *, replace: bool) -> None:
        """Write {"messages": [...]} as UTF-8 JSON, whole or not at all.

        Raises RequestError if the file exists (unless `replace`) or cannot be written.
        """
        if path.exists() and not replace:
            raise RequestError(f"{path} exists already.", "Choose another name, or :save! to replace it.")
        text = json.dumps({"messages": self.messages()}, ensure_ascii=False, indent=2) + "\n"
        staged = ""
        try:
            handle, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.replace(staged, path)
        except OSError as error:
            if staged:
                Path(staged).unlink(missing_ok=True)
            raise RequestError(
                f"Cannot write {path}: {error.strerror}.",
                "Choose a folder you may write to, with space left.",
            ) from error

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote, or a bare list of messages. Raises RequestError naming the file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"Cannot read {path}: {error.strerror}.", "Check the name.") from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RequestError(
                f"{path} is not JSON: {error}.", "Load a file that :save has written."
            ) from error
        try:
            return cls.from_messages(content["messages"] if isinstance(content, dict) else content)
        except KeyError as error:
            raise RequestError(f'{path} has no "messages".', "Load a file that :save has written.") from error
        except RequestError as error:
            raise RequestError(f"{path}: {error.problem}", error.remedy) from error


def _role_and_content(message: Any, at: int) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"Message {at} has no role.", 'Each message is {"role": ..., "content": ...}.')
    if not isinstance(message.get("content"), str):
        raise RequestError(f"Message {at} has no text content.", "Only text messages can be loaded here.")
    return message["role"], message["content"]
