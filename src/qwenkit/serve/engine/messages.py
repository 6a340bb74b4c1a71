"""What the HTTP process and the engine's process say to each other. Plain frozen data, no behaviour.

Every message about a request carries the `id` the HTTP process gave it. A request gets Accepted, then
Pieces, then Done; or, at any point, Refused and nothing more. After Cancel nothing more need come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from qwenkit.core import DEFAULT_SYSTEM, Delta, Infill, Message, SamplingParams, Timings, Turn, Usage

Prompt: TypeAlias = str | tuple[int, ...] | tuple[Message, ...] | tuple[Turn, ...] | Infill
"""Text as it stands, token ids, a conversation, before or after its tools got their template, or a text with
a gap."""

EmbeddingInput: TypeAlias = str | tuple[int, ...]
Pooling: TypeAlias = Literal["mean", "last"]

RefusalKind: TypeAlias = Literal["request", "unsupported", "context_length", "queue_full", "engine"]


# To the engine


@dataclass(frozen=True)
class EngineConfig:
    """The first message: what to load; `options` are keyword arguments of Qwen.load."""

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generate:
    """prompt_logprobs: also tell how likely the prompt's own tokens are, with so many alternatives.
    generate: False wants nothing but that."""

    id: int
    prompt: Prompt
    params: SamplingParams
    prompt_logprobs: int | None = None
    generate: bool = True


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class Tokenize:
    """parse_special: read `<|im_start|>` and the like in a text as control tokens."""

    id: int
    prompt: Prompt
    parse_special: bool = False


@dataclass(frozen=True)
class Detokenize:
    id: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Embed:
    """Vectors of texts or token ids; pooling as in Qwen.embed."""

    id: int
    inputs: tuple[EmbeddingInput, ...]
    pooling: Pooling


# From the engine


@dataclass(frozen=True)
class ModelCard:
    """What the HTTP process needs to know of a loaded model. `identity` names weights and number formats,
    `tool_format` how it was trained to call tools; call_tokens: whether its markers are control tokens."""

    name: str
    context_length: int
    is_chat: bool
    max_running: int
    identity: str
    notice: str | None = None
    hidden_size: int = 0  # of a vector
    infills: bool = False  # whether the vocabulary has tokens for a text with a gap
    default_system: str = DEFAULT_SYSTEM
    tool_format: str = "hermes"
    call_tokens: bool = True


@dataclass(frozen=True)
class Ready:
    card: ModelCard


@dataclass(frozen=True)
class NotLoaded:
    """The model cannot be loaded, for a reason that trying again does not change."""

    problem: str
    remedy: str


@dataclass(frozen=True)
class PromptToken:
    """`logprob` is None for the first, which nothing precedes; `top` as in TokenLogprob."""

    token_bytes: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Accepted:
    """The prompt was read and queued; `text` is how it reads."""

    id: int
    prompt_tokens: int
    text: str
    prompt_logprobs: tuple[PromptToken, ...] | None = None


@dataclass(frozen=True)
class Piece:
    id: int
    delta: Delta


@dataclass(frozen=True)
class Done:
    id: int
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class Refused:
    id: int
    kind: RefusalKind
    problem: str
    remedy: str = ""


@dataclass(frozen=True)
class Tokens:
    id: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    id: int
    text: str


@dataclass(frozen=True)
class Embedded:
    """One vector for each input, float32 as little-endian bytes; prompt_tokens: of all inputs."""

    id: int
    vectors: tuple[bytes, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class EngineNumbers:
    """Statistics: now waiting and running, blocks of the cache, and sums since the engine's start."""

    waiting: int = 0
    running: int = 0
    requests: int = 0  # that the process holds, those still being tokenized included
    preemptions: int = 0
    steps: int = 0
    tokens: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    prefix_lookup_tokens: int = 0
    prefix_hit_tokens: int = 0


@dataclass(frozen=True)
class Beat:
    """Sent every second, and when what is running changes to nothing."""

    numbers: EngineNumbers


ToEngine: TypeAlias = EngineConfig | Generate | Cancel | Tokenize | Detokenize | Embed
FromEngine: TypeAlias = (
    Ready | NotLoaded | Accepted | Piece | Done | Refused | Tokens | Text | Embedded | Beat
)
