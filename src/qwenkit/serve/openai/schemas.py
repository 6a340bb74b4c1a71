"""What requests look like. Unknown fields are errors, and types are not bent to fit.

A field of OpenAI's that is declared here either works, is documented as having no effect (user, metadata,
...), or stands in UNSUPPORTED and is refused by name unless its value asks for nothing.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field

from qwenkit.core import Grammar, RequestError, SamplingParams
from qwenkit.serve.chat.answers import JSONAnswer, TextAnswer, schema_grammar
from qwenkit.serve.chat.tool_schemas import (
    CalledFunction,
    FunctionCallField,
    FunctionTool,
    LegacyFunction,
    SentCall,
    ToolChoiceField,
)
from qwenkit.serve.errors import ServeError, invalid
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http.fields import Items, No, Strict, document_unsupported, documented, refuse_unsupported

UNSUPPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    # field: (what to say, values that ask for nothing and are let through)
    "modalities": ("The model writes text only.", (["text"],)),
    "audio": ("The model writes text only.", ()),
    "prediction": ("Predicted outputs are not used: guesses come from the text itself.", ()),
    "reasoning_effort": ("The model has no reasoning mode.", ("none",)),
    "verbosity": ("The model has no such control: say it in the prompt.", ("medium",)),
    "web_search_options": ("The server does not search the web.", ()),
    "service_tier": ("There is one tier.", ("auto", "default")),
    "store": ("The server keeps no replies.", (False,)),
}


StreamUsage: TypeAlias = Literal["none", "end", "chunks"]
"""Where a stream says how many tokens there are."""

_ID = re.compile("0|-?[1-9][0-9]{0,18}")


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # beyond OpenAI's: in every chunk
    include_obfuscation: No | None = None


class Sampling(Strict):
    """Fields of both kinds of completion. Null or absent means what the checkpoint says."""

    model_config = ConfigDict(json_schema_extra=document_unsupported(UNSUPPORTED))

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    temperature: float | None = documented(minimum=0, maximum=10_000)
    top_p: float | None = documented(exclusiveMinimum=0, maximum=1)
    max_tokens: int | None = documented(minimum=1)
    stop: str | Items[str] | None = None
    presence_penalty: float | None = documented(minimum=-2, maximum=2)
    frequency_penalty: float | None = documented(minimum=-2, maximum=2)
    logit_bias: dict[str, float] | None = None
    user: str | None = None  # no effect
    # Beyond OpenAI's
    top_k: int | None = documented(minimum=0)
    min_p: float | None = documented(minimum=0, maximum=1)
    repetition_penalty: float | None = documented(exclusiveMinimum=0, maximum=10_000)
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None

    def refuse_unsupported(self) -> None:
        """Raises ServeError naming the first field that asks for something the server does not do."""
        refuse_unsupported(self, UNSUPPORTED)
        if self.stream_options is not None and not self.stream:
            raise ServeError(
                "stream_options needs stream.", "Set stream to true.", code="invalid_value",
                param="stream_options",
            )  # fmt: skip

    def usage(self) -> StreamUsage:
        """Raises ServeError where the counts of every chunk are wanted without those of the last."""
        options = self.stream_options or StreamOptions()
        if options.continuous_usage_stats and not options.include_usage:
            raise ServeError(
                "continuous_usage_stats needs include_usage.", "Set it to true.", code="invalid_value",
                param="stream_options.continuous_usage_stats",
            )  # fmt: skip
        if not options.include_usage:
            return "none"
        return "chunks" if options.continuous_usage_stats else "end"

    def sampling(self, limits: Limits, **more: Any) -> SamplingParams:
        """SamplingParams of these fields and `more`. Raises ServeError for a value out of range."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        limits.check("n", self.n or 1, limits.n, "choices")
        limits.check("stop", len(stops), limits.stops, "stop strings")
        limits.check("stop", max(map(len, stops), default=0), limits.stop_characters, "characters")
        limits.check("stop_token_ids", len(self.stop_token_ids or ()), limits.biases, "tokens")
        limits.check("logit_bias", len(self.logit_bias or ()), limits.biases, "tokens")
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "n": self.n,
            "ignore_eos": self.ignore_eos,
            "stop": tuple(stops),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "logit_bias": self._biases(),
            **more,
        }
        try:
            return SamplingParams(**{name: value for name, value in given.items() if value is not None})
        except RequestError as error:
            raise invalid(error) from error

    def _biases(self) -> dict[int, float] | None:
        if self.logit_bias is None:
            return None
        if not all(map(_ID.fullmatch, self.logit_bias)):  # int() would take " 1", "1_0" and "\u0661" for ids
            raise ServeError(
                "logit_bias has a key that is no token id.", "Keys are whole numbers, as strings.",
                code="invalid_value", param="logit_bias",
            )  # fmt: skip
        return {int(token): bias for token, bias in self.logit_bias.items()}


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Extra(Strict):
    """What Qwen-Agent keeps of a result's call, and sends along."""

    function_id: str | None = None


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Items[TextPart] | None = None
    # Of messages that clients send back as they got them; only null says nothing.
    name: str | None = None
    refusal: str | None = documented(maxLength=0)
    tool_calls: Items[SentCall] | None = None
    tool_call_id: str | None = None
    id: str | None = None  # Qwen-Agent's name for tool_call_id
    extra: Extra | None = None
    function_call: CalledFunction | None = None
    audio: Any = documented(enum=[None])
    annotations: Items[Any] | None = documented(maxItems=0)
    parsed: Any = None  # of openai-python's own reading; no effect


class JSONSchema(Strict):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # no effect: the schema always holds


class SchemaAnswer(Strict):
    type: Literal["json_schema"]
    json_schema: JSONSchema


ResponseFormat = Annotated[TextAnswer | JSONAnswer | SchemaAnswer, Field(discriminator="type")]


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Items[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = documented(minimum=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    metadata: dict[str, str] | None = None  # no effect
    prompt_cache_key: str | None = None  # no effect: prompts that begin alike share their cache anyway
    safety_identifier: str | None = None  # no effect
    tools: Items[FunctionTool] | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    functions: Items[LegacyFunction] | None = None
    function_call: FunctionCallField | None = None
    response_format: ResponseFormat | None = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    service_tier: Any = None
    store: Any = None

    def grammar(self, limits: Limits) -> Grammar | None:
        """What response_format demands. Raises ServeError for a schema that cannot be enforced."""
        if isinstance(self.response_format, JSONAnswer):
            return Grammar.json_object()
        if isinstance(self.response_format, SchemaAnswer):
            return schema_grammar(self.response_format.json_schema.schema_, limits, "response_format")
        return None


Id = Annotated[int, Field(json_schema_extra={"minimum": 0})]
Ids = Annotated[Items[Id], Field(min_length=1)]
Texts = str | Ids | Annotated[Items[str], Field(min_length=1)] | Annotated[Items[Ids], Field(min_length=1)]


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Texts
    max_tokens: int | None = documented(minimum=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1)


class EmbeddingRequest(Strict):
    """POST /v1/embeddings. `pooling` is beyond OpenAI's."""

    model: str | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    pooling: Literal["mean", "last"] | None = None
    user: str | None = None  # no effect


class TokenizeRequest(Strict):
    """POST /tokenize: a text, or messages as a chat would render them."""

    model: str | None = None
    prompt: str | None = None
    messages: Items[ChatMessage] | None = None
    tools: Items[FunctionTool] | None = None
    parse_special: bool = False


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: Items[Id]
