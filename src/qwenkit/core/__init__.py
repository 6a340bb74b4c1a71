"""The nouns every room speaks of. Nothing here imports torch or does I/O."""

from qwenkit.core.completion import (
    Choice,
    Completion,
    Delta,
    FinishReason,
    Timings,
    TokenLogprob,
    Usage,
)
from qwenkit.core.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DownloadError,
    QwenkitError,
    RequestError,
    TokenizerError,
    UnsupportedError,
)
from qwenkit.core.generation import DEFAULT_SYSTEM, GenerationConfig
from qwenkit.core.grammar import Grammar
from qwenkit.core.infill import Infill
from qwenkit.core.messages import Control, History, Message, Role, ToolCall, Turn
from qwenkit.core.sampling import SamplingParams
from qwenkit.core.tools import Tool, ToolChoice, ToolUse

__all__ = [
    "DEFAULT_SYSTEM",
    "CheckpointError",
    "Choice",
    "Completion",
    "ConfigError",
    "ContextLengthError",
    "Control",
    "Delta",
    "DownloadError",
    "FinishReason",
    "GenerationConfig",
    "Grammar",
    "History",
    "Infill",
    "Message",
    "QwenkitError",
    "RequestError",
    "Role",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "TokenizerError",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "ToolUse",
    "Turn",
    "UnsupportedError",
    "Usage",
]
