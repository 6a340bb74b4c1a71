"""What requests to /v1/messages look like; names of Anthropic's fields. Unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field

from qwenkit.serve.http.fields import Items, Strict, document_unsupported, documented

UNSUPPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    # field: (what to say, values that ask for nothing and are let through)
    "thinking": ("The model has no reasoning mode.", ({"type": "disabled"},)),
    "container": ("The server runs no code.", ()),
    "mcp_servers": ("The server calls nobody.", ([],)),
    "context_management": ("A conversation that is too long is refused, not cut.", ()),
    "service_tier": ("There is one tier.", ("auto", "standard_only")),
    "speed": ("There is one speed.", ("standard",)),
    "inference_geo": ("The server is where it is.", ()),
    "diagnostics": ("The server has none.", ()),
    "user_profile_id": ("The server knows no users.", ()),
    "workspace_id": ("The server knows no workspaces.", ()),
}


class CacheControl(Strict):
    """No effect: prompts that begin alike share their cache anyway."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Items[Any] | None = Field(None, max_length=0)


class ToolUseBlock(Strict):
    """A call of the assistant's, as a reply had it."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(Strict):
    """is_error: told to the model in words."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Items[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


BlockField: TypeAlias = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class MessageField(Strict):
    role: Literal["user", "assistant"]
    content: str | Items[BlockField]


class ToolField(Strict):
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None  # no effect: the schema always holds
    cache_control: CacheControl | None = None


class FreeChoice(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class NoChoice(Strict):
    type: Literal["none"]


class NamedChoice(Strict):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


ChoiceField: TypeAlias = Annotated[FreeChoice | NoChoice | NamedChoice, Field(discriminator="type")]


class JSONOutput(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    format: JSONOutput | None = None


class Metadata(Strict):
    user_id: str | None = None  # no effect


class Conversation(Strict):
    """What a reply is made from."""

    model_config = ConfigDict(json_schema_extra=document_unsupported(UNSUPPORTED))

    model: str | None = None
    messages: Items[MessageField] = Field(min_length=1)
    system: str | Items[TextBlock] | None = None
    tools: Items[ToolField] | None = None
    tool_choice: ChoiceField | None = None
    cache_control: CacheControl | None = None
    output_config: OutputConfig | None = None
    thinking: Any = None
    mcp_servers: Any = None
    context_management: Any = None


class CountTokensRequest(Conversation):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(Conversation):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: Items[str] | None = None
    temperature: float | None = documented(minimum=0, maximum=10_000)
    top_p: float | None = documented(exclusiveMinimum=0, maximum=1)
    top_k: int | None = documented(minimum=0)
    metadata: Metadata | None = None  # no effect
    container: Any = None
    service_tier: Any = None
    speed: Any = None
    inference_geo: Any = None
    diagnostics: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
