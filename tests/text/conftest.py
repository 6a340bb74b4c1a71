"""The real vocabulary and the answers of the original code, shared by the text tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenkit.core import Message, ToolCall
from qwenkit.text import Tokenizer


@pytest.fixture(scope="session")
def qwen(vocabulary: Path) -> Tokenizer:
    return Tokenizer.from_tiktoken(vocabulary)


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Outputs of the original's tokenizer, chat, fine-tuning and server code."""
    return json.loads((Path(__file__).parents[1] / "data" / "text.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def to_message():
    """OpenAI-style dict -> Message."""

    def convert(entry: dict[str, Any]) -> Message:
        call = entry.get("function_call")
        calls = (ToolCall(call["name"], call["arguments"]),) if call else ()
        return Message(entry["role"], entry["content"] or "", calls, entry.get("name", ""))

    return convert
