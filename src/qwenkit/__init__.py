"""qwenkit: the maintained home of Qwen checkpoints.

    from qwenkit import Qwen
    model = Qwen.load()                      # the small demo model; or a path or hub name
    reply, history = model.chat("你好")

Names are imported when first used, so `import qwenkit` stays quick and torch-free.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOMES = {
    "Qwen": "qwenkit.engine",
    "Tokenizer": "qwenkit.text",
    "SamplingParams": "qwenkit.core",
    "Grammar": "qwenkit.core",
    "Completion": "qwenkit.core",
    "Delta": "qwenkit.core",
    "Message": "qwenkit.core",
    "QwenkitError": "qwenkit.core",
    "Tool": "qwenkit.core",
    "ToolCall": "qwenkit.core",
    "ToolChoice": "qwenkit.core",
}

__all__ = [
    "Completion",
    "Delta",
    "Grammar",
    "Message",
    "Qwen",
    "QwenkitError",
    "SamplingParams",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "ToolChoice",
]

if TYPE_CHECKING:
    from qwenkit.core import (
        Completion,
        Delta,
        Grammar,
        Message,
        QwenkitError,
        SamplingParams,
        Tool,
        ToolCall,
        ToolChoice,
    )
    from qwenkit.engine import Qwen
    from qwenkit.text import Tokenizer


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'qwenkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
