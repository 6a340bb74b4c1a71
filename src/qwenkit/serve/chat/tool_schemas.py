"""What tools and calls look like in requests; names of OpenAI's fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from qwenkit.serve.http.fields import Items, Strict


class Function(Strict):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # no effect: the schema always holds


class FunctionTool(Strict):
    type: Literal["function"]
    function: Function


class LegacyFunction(Strict):
    """An entry of `functions`, with the names that the 2023 server read besides."""

    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | Items[dict[str, Any]] | None = None
    name_for_model: str | None = None
    name_for_human: str | None = None
    description_for_model: str | None = None


class CalledFunction(Strict):
    name: str
    arguments: str
    parsed_arguments: Any = None  # of openai-python's own reading; no effect


class SentCall(Strict):
    """A call in a message of the assistant's, as a reply had it; `index` comes from streams."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[Items[NamedTool], Field(min_length=1)]


class AllowedToolChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoiceObject = Annotated[NamedTool | AllowedToolChoice, Field(discriminator="type")]
ToolChoiceField: TypeAlias = Literal["none", "auto", "required"] | ToolChoiceObject
FunctionCallField: TypeAlias = Literal["none", "auto"] | NamedFunction
