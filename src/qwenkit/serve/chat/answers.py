"""The form that a request demands of its answer, whatever the endpoint calls it."""

from __future__ import annotations

import json
from typing import Any, Literal

from qwenkit.core import Grammar, RequestError
from qwenkit.serve.errors import invalid_field
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http.fields import Strict


class TextAnswer(Strict):
    type: Literal["text"]


class JSONAnswer(Strict):
    type: Literal["json_object"]


def schema_grammar(schema: dict[str, Any], limits: Limits, field: str) -> Grammar:
    """What enforces it. Raises ServeError naming `field` for a schema that is too large or none."""
    size = len(json.dumps(schema, ensure_ascii=False))
    limits.check(field, size, limits.schema_characters, "characters of a schema")
    try:
        return Grammar.json_schema(schema)
    except RequestError as error:
        raise invalid_field(field, error.problem, error.remedy) from error
