"""From a request's tools, in OpenAI's words, to what may be called; errors name the field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from qwenkit.core import RequestError, Tool, ToolChoice, ToolUse
from qwenkit.serve.chat.tool_schemas import (
    AllowedToolChoice,
    FunctionCallField,
    FunctionTool,
    LegacyFunction,
    NamedTool,
    ToolChoiceField,
)
from qwenkit.serve.errors import invalid_field
from qwenkit.serve.guard.limits import Limits
from qwenkit.text.tool_schema import arguments_schema


class ToolFields(Protocol):
    """The fields of a request that are about tools."""

    tools: list[FunctionTool] | None
    tool_choice: ToolChoiceField | None
    parallel_tool_calls: bool | None
    functions: list[LegacyFunction] | None
    function_call: FunctionCallField | None


def tools_of(body: ToolFields, limits: Limits) -> ToolUse:
    """What the request allows to be called. Raises ServeError naming the field that is wrong."""
    if body.functions and body.tools:
        raise invalid_field("functions", "functions and tools are two names of one thing.", "Give tools.")
    if body.functions is not None and not body.tools:
        return use_of(
            _functions(body.functions), _function_choice(body), limits, "functions", "function_call"
        )
    if body.function_call not in (None, "none", "auto"):
        raise invalid_field(
            "function_call", "function_call needs functions.", "Give functions, or tool_choice."
        )
    return use_of(function_tools(body.tools or ()), _tool_choice(body), limits, "tools", "tool_choice")


def use_of(
    tools: Sequence[tuple[Tool, str]], choice: ToolChoice, limits: Limits, field: str, choice_field: str
) -> ToolUse:
    """The tools, each with the name of the field of its schema, once they are known to be enforceable as far
    as that can be seen. Raises ServeError."""
    limits.check(field, len(tools), limits.tools, "tools")
    size = sum(len(json.dumps(t.parameters, ensure_ascii=False)) + len(t.description) for t, _ in tools)
    limits.check(field, size, limits.schema_characters, "characters of tools")
    for tool, where in tools:
        try:
            arguments_schema(tool)
        except RequestError as error:
            raise invalid_field(where, error.problem, error.remedy) from error
    try:
        ToolUse(tuple(tool for tool, _ in tools))
    except RequestError as error:
        raise invalid_field(field, error.problem, error.remedy) from error
    try:
        return ToolUse(tuple(tool for tool, _ in tools), choice)
    except RequestError as error:
        raise invalid_field(choice_field, error.problem, error.remedy) from error


def function_tools(tools: Sequence[FunctionTool]) -> list[tuple[Tool, str]]:
    """Our tools of theirs."""
    return [
        (
            tool_of(f"tools.{i}.function.name", given.name, given.description, given.parameters),
            f"tools.{i}.function.parameters",
        )
        for i, given in enumerate(tool.function for tool in tools)
    ]


def _functions(functions: Sequence[LegacyFunction]) -> list[tuple[Tool, str]]:
    return [
        (
            tool_of(
                f"functions.{i}.name",
                given.name_for_model or given.name or "",
                given.description_for_model or given.description,
                given.parameters,
                given.name_for_human or given.name or "",
            ),
            f"functions.{i}.parameters",
        )
        for i, given in enumerate(functions)
    ]


def tool_of(field: str, name: str, description: str | None, parameters: Any, human_name: str = "") -> Tool:
    """A tool; `field` is what the request calls its name. Raises ServeError."""
    try:
        return Tool(name, description or "", parameters, human_name)
    except RequestError as error:
        raise invalid_field(field, error.problem, error.remedy) from error


def _tool_choice(body: ToolFields) -> ToolChoice:
    asked, parallel = body.tool_choice, body.parallel_tool_calls is not False
    if isinstance(asked, NamedTool):
        return ToolChoice.named(asked.function.name)
    if isinstance(asked, AllowedToolChoice):
        allowed = asked.allowed_tools
        return ToolChoice(allowed.mode, tuple(tool.function.name for tool in allowed.tools), parallel)
    return ToolChoice(asked or "auto", parallel=parallel)


def _function_choice(body: ToolFields) -> ToolChoice:
    asked = body.function_call
    if asked is None or isinstance(asked, str):
        return ToolChoice(asked or "auto", parallel=False)
    return ToolChoice.named(asked.name)
