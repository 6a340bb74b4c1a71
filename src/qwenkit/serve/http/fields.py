"""What the fields of all requests have in common: unknown ones are errors, and types are not bent to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from qwenkit.serve.errors import ServeError

T = TypeVar("T")

Items: TypeAlias = Annotated[list[T], Field(fail_fast=True)]
"""A list whose first wrong item is the end: a million findings take half a minute and gigabytes."""


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("must be a boolean")  # noqa: TRY004  # pydantic reads no other kind
    return value


No: TypeAlias = Annotated[Literal[False], BeforeValidator(_boolean)]
"""false only. A literal alone compares with ==, and so takes 0 for it."""


class Strict(BaseModel):
    """Unknown fields are errors, and types are not bent to fit."""

    model_config = ConfigDict(extra="forbid", strict=True)


def documented(**schema: Any) -> Any:
    """A field, null if left out, of which the OpenAPI document says more than is checked here: the engine
    checks it, and says better what is wrong."""
    return Field(None, json_schema_extra=schema)


def document_unsupported(
    fields: Mapping[str, tuple[str, tuple[Any, ...]]],
) -> Callable[[dict[str, Any]], None]:
    """For `json_schema_extra` of a model: the document says what `refuse_unsupported` lets through."""

    def add(schema: dict[str, Any]) -> None:
        for name, (why, neutral) in fields.items():
            if name in schema["properties"]:
                told = {"description": f"Not supported. {why}", "enum": [None, *neutral]}
                schema["properties"][name].update(told)

    return add


def refuse_unsupported(body: Strict, fields: Mapping[str, tuple[str, tuple[Any, ...]]]) -> None:
    """fields: why each is not supported, and values that ask for nothing and are let through. Raises
    ServeError naming the first that asks for something."""
    for name, (why, neutral) in fields.items():
        value = getattr(body, name, None)
        if value is not None and not any(_same(value, allowed) for allowed in neutral):
            raise ServeError(f"{name} is not supported. {why}", code="unsupported_parameter", param=name)


def _same(value: Any, allowed: Any) -> bool:
    return type(value) is type(allowed) and bool(value == allowed)
