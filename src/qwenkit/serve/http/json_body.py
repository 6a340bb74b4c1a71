"""The JSON of a request's body: read in bounded time, and refused where parsers would quietly differ.

Knows what JSON is and nothing of fields. A key given twice, NaN, bytes that are no UTF-8 and half characters
are errors: what would be kept of them is anybody's guess.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.serve.errors import ServeError

DEEPEST = 128
"""Levels of objects and arrays; a schema may have 100 of them."""

MOST_KEYS = 10_000
"""Of one object; each that is not known is an error of its own."""

MOST_PARTS = 20_000
"""Objects and arrays together: reading more holds up the other clients."""

_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


def parse(body: bytes) -> Any:
    """The value of a body. Raises ServeError saying what is wrong with it."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_json(f"The body is not UTF-8, at byte {error.start}.") from None
    collecting = gc.isenabled()
    gc.disable()  # it would look through a million empty lists again and again: a second and a half
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise _no_json(f"The body is not valid JSON, at character {error.pos}.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # Python's own guard: reading a number takes the square of its digits
        raise _no_json("The body has a whole number of thousands of digits.") from None
    finally:
        if collecting:
            gc.enable()
    if body.count(b"[") + body.count(b"{") > DEEPEST:  # else there is nothing to find
        _check_nesting(value)
    if _HALF_ESCAPED.search(body):
        _check_characters(value)
    return value


class JSONRoute(APIRoute):
    """A route whose body is read by `parse`. Any other Content-Type than JSON's is a 415: a web page may send
    text to other sites without asking, but no JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_and_handle(request: Request) -> Response:
            body = await request.body()
            if body:
                _check_type(request.headers.get("content-type", ""))
            return await handle(_Parsed(request, parse(body) if body else None))

        return read_and_handle


class _Parsed(Request):
    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = request._body  # it has been received, and comes no second time
        self._value = value

    async def json(self) -> Any:
        return self._value


def _check_type(given: str) -> None:
    header = Message()
    header["content-type"] = given or "none/none"
    kind = header.get_content_subtype()
    if header.get_content_maintype() != "application" or not (kind == "json" or kind.endswith("+json")):
        raise ServeError(
            f"The body's Content-Type is {given[:100]!r}.",
            "Send application/json.",
            status=415,
            code="unsupported_media_type",
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ServeError(f"The body has {twice[:100]!r} twice in one object.", "Give it once.",
                         code="invalid_json")  # fmt: skip
    if len(found) > MOST_KEYS:
        raise ServeError(f"The body has an object of {len(found)} keys.", f"At most {MOST_KEYS} are read.",
                         code="limit_exceeded")  # fmt: skip
    return found


def _constant(name: str) -> NoReturn:
    raise _no_json(f"The body has {name}, which is not JSON.")


def _check_nesting(value: Any) -> None:
    level, depth, count = [value], 0, 1
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
        insides = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inside for one in insides for inside in one if isinstance(inside, (dict, list))]
        count += len(level)
        if count > MOST_PARTS:
            raise ServeError("The body has too many objects and arrays.", f"At most {MOST_PARTS} are read.",
                             code="limit_exceeded")  # fmt: skip


def _check_characters(value: Any) -> None:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str) and _HALF.search(one):
            raise ServeError("The body has half a character (a lone surrogate).", "Write whole characters.",
                             code="invalid_value")  # fmt: skip


def _no_json(problem: str) -> ServeError:
    return ServeError(problem, "Send one JSON object.", code="invalid_json")


def _too_deep() -> ServeError:
    return ServeError("The body is nested too deep.", f"At most {DEEPEST} levels are read.",
                      code="limit_exceeded")  # fmt: skip
