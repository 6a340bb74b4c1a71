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
from qwenkit.core.messages import History, Message, Role, ToolCall
from qwenkit.core.sampling import SamplingParams

__all__ = [
    "DEFAULT_SYSTEM",
    "CheckpointError",
    "Choice",
    "Completion",
    "ConfigError",
    "ContextLengthError",
    "Delta",
    "DownloadError",
    "FinishReason",
    "GenerationConfig",
    "Grammar",
    "History",
    "Message",
    "QwenkitError",
    "RequestError",
    "Role",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "TokenizerError",
    "ToolCall",
    "UnsupportedError",
    "Usage",
]
