"""The OpenAPI document: that it tells of every reply, and that the server keeps to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from standin_engine import StandInEngine, ask, post

from qwenkit.core import RequestError, SamplingParams
from qwenkit.serve.anthropic import schemas as messages
from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http.reply_schemas import EVENTS, REPLIES
from qwenkit.serve.openai import schemas as chat
from qwenkit.serve.responses import schemas as responses

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_api.py"


def document(**settings: Any) -> Any:
    async def what(client: httpx.AsyncClient) -> Any:
        return (await client.get("/openapi.json", headers={"authorization": "Bearer " + "a" * 8})).json()

    return ask(what, **settings)


def test_every_operation_tells_its_replies() -> None:
    found = document()
    assert REPLIES.keys() <= found["paths"].keys()
    for operations in found["paths"].values():
        for method, operation in operations.items():
            statuses = operation["responses"].keys()
            assert "422" not in statuses
            assert {"200", "500"} <= statuses
            assert "401" not in statuses
            if method == "post":
                assert {"400", "404", "408", "413", "415", "429", "503"} <= statuses
    assert "Error" in found["components"]["schemas"]
    assert "HTTPValidationError" not in str(found)


def examples() -> list[tuple[str, str, dict[str, Any]]]:
    """(path, name, body) of every example in the document."""
    return [
        (path, name, example["value"])
        for path, operations in document()["paths"].items()
        if "post" in operations
        for name, example in operations["post"]["requestBody"]["content"]["application/json"][
            "examples"
        ].items()
    ]


def test_every_endpoint_that_takes_a_body_has_examples() -> None:
    posts = {path for path, operations in document()["paths"].items() if "post" in operations}
    assert {path for path, _, _ in examples()} == posts
    assert len(posts) == 8


@pytest.mark.parametrize(("path", "name", "body"), examples())
def test_the_examples_are_answered_as_the_document_says(path: str, name: str, body: dict[str, Any]) -> None:
    answer = post(path, **body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        Draft202012Validator(REPLIES[path]).validate(answer.json())


class Failing(StandInEngine):
    """Says a word, and then nothing until the time is over."""

    def generate(self, wishes: Any) -> Any:
        self.finish = None  # type: ignore[assignment]
        group = super().generate(wishes)
        for reply in group.replies:
            reply.done = None
        return group


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("path", EVENTS)
def test_streams_are_of_events_as_the_document_says(path: str, fails: bool) -> None:
    body = next(body for where, _, body in examples() if where == path)
    engine = Failing() if fails else StandInEngine()
    answer = post(path, engine, settings={"limits": Limits(request_s=0.05)}, **{**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = [
        dict(line.split(": ", 1) for line in event.split("\n")) for event in answer.text.split("\n\n")[:-1]
    ]
    assert len(found) > 1
    assert ("0.05 s" in found[-1]["data"]) is fails
    whole = Draft202012Validator(EVENTS[path])
    data = EVENTS[path]["properties"]["data"]
    kinds = data.get("anyOf", [data])
    for event in found:
        whole.validate(event)
        if {"const": event["data"]} not in kinds:
            Draft202012Validator(kinds[-1]["contentSchema"]).validate(json.loads(event["data"]))


def test_the_ranges_are_the_engines() -> None:
    """Of numbers that the engine checks: the ends the document gives are taken, and nothing beyond."""
    properties = document()["components"]["schemas"]["ChatRequest"]["properties"]
    checked = set()
    for name, told in properties.items():
        for end, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0)):
            if end in told and name in SamplingParams.__dataclass_fields__:
                checked.add(name)
                whole = any(kind.get("type") == "integer" for kind in told["anyOf"])
                value: Any = int(told[end]) if whole else told[end]
                with pytest.raises(RequestError, match=name):
                    SamplingParams(**{name: value + step})
                if step:
                    SamplingParams(**{name: value})
    assert checked == {"temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty",
                       "presence_penalty", "frequency_penalty"}  # fmt: skip


def test_what_is_not_supported_says_so() -> None:
    found = document()["components"]["schemas"]
    for kind, fields in (
        ("ChatRequest", chat.UNSUPPORTED),
        ("ResponsesRequest", responses.UNSUPPORTED),
        ("MessagesRequest", messages.UNSUPPORTED),
    ):
        for name, (why, neutral) in fields.items():
            told = found[kind]["properties"][name]
            assert told["description"] == f"Not supported. {why}"
            assert told["enum"] == [None, *neutral]


def test_with_keys_it_asks_for_one() -> None:
    found = document(keys=Keys(["a" * 8]))
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    chat, health = (found["paths"][path] for path in ("/v1/chat/completions", "/health"))
    assert chat["post"]["security"] == [{"key": []}]
    assert "401" in chat["post"]["responses"]
    assert "security" not in health["get"]


def test_the_server_keeps_to_it_whatever_is_sent(tiny_chat: Path) -> None:
    """A few examples of each operation; `scripts/fuzz_api.py` sends as many as one likes."""
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [sys.executable, SCRIPT, str(tiny_chat), "--examples", "4", "--phases", "examples,fuzzing,stateful",
         "--", "--no-shrink"], capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 0 restarts" in done.stdout
