"""What requests to /v1/responses look like; names of OpenAI's fields. Unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, Field, Tag

from qwenkit.serve.chat.answers import JSONAnswer, TextAnswer
from qwenkit.serve.http.fields import Items, No, Strict, document_unsupported, documented

UNSUPPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    # field: (what to say, values that ask for nothing and are let through)
    "store": ("The server keeps no responses: send the whole conversation.", (False,)),
    "previous_response_id": ("The server keeps no responses: send the whole conversation.", ()),
    "conversation": ("The server keeps no conversations: send the whole one.", ()),
    "background": ("The server answers while the client waits; for more there is run-batch.", (False,)),
    "background_options": ("The server answers while the client waits.", ()),
    "prompt": ("The server keeps no prompts.", ()),
    "reasoning": ("The model has no reasoning mode.", ({}, {"effort": "none"})),
    "truncation": ("A conversation that is too long is refused, not cut.", ("disabled",)),
    "max_tool_calls": ("The server runs no tools.", ()),
    "context_management": ("A conversation that is too long is refused, not cut.", ([],)),
    "moderation": ("The server does not judge what is said.", ()),
    "image": ("The model writes text only.", ()),
    "access_programs": ("There are none.", ()),
    "service_tier": ("There is one tier.", ("auto", "default")),
}

LOGPROBS = "message.output_text.logprobs"


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    """Of a reply that is sent back; the rest of it has no effect."""

    type: Literal["output_text"]
    text: str
    annotations: Items[Any] | None = Field(None, max_length=0)
    logprobs: Items[Any] | None = None


TextPart: TypeAlias = Annotated[InputText | OutputText, Field(discriminator="type")]
Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Items[TextPart]
    # Of messages that come back as a reply had them; no effect.
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class CallItem(Strict):
    """A call of the assistant's, as a reply had it."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    parsed_arguments: Any = None  # of openai-python's own reading; no effect


class ResultItem(Strict):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Items[InputText]
    id: str | None = None
    status: Status | None = None


def _kind(item: Any) -> str | None:
    """Items without a type are messages."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class Tool(Strict):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # no effect: the schema always holds


class NamedTool(Strict):
    type: Literal["function"]
    name: str


class AllowedTools(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Items[NamedTool], Field(min_length=1)]


ChoiceField: TypeAlias = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
)


class SchemaAnswer(Strict):
    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None  # no effect: the schema always holds


class TextConfig(Strict):
    format: Annotated[TextAnswer | JSONAnswer | SchemaAnswer, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class StreamOptions(Strict):
    include_obfuscation: No | None = None


class ResponsesRequest(Strict):
    """POST /v1/responses."""

    model_config = ConfigDict(json_schema_extra=document_unsupported(UNSUPPORTED))

    model: str | None = None
    input: str | Annotated[Items[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = documented(minimum=1)
    temperature: float | None = documented(minimum=0, maximum=10_000)
    top_p: float | None = documented(exclusiveMinimum=0, maximum=1)
    top_logprobs: int | None = Field(None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextConfig | None = None
    tools: Items[Tool] | None = None
    tool_choice: ChoiceField | None = None
    parallel_tool_calls: bool | None = None
    # There is no reasoning, so there is none to include.
    include: Items[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    metadata: dict[str, str] | None = None  # comes back, and has no other effect
    user: str | None = None  # no effect
    safety_identifier: str | None = None  # no effect
    prompt_cache_key: str | None = None  # no effect: prompts that begin alike share their cache anyway
    prompt_cache_options: Any = None  # no effect, as the key
    prompt_cache_retention: Any = None  # no effect, as the key
    store: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    background_options: Any = None
    prompt: Any = None
    reasoning: Any = None
    truncation: Any = None
    max_tool_calls: Any = None
    context_management: Any = None
    moderation: Any = None
    image: Any = None
    access_programs: Any = None
    service_tier: Any = None
