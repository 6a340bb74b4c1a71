"""Spans of requests: what they tell, whose they are, that they tell no words, and that they arrive."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import RunningServer
from standin_engine import StandInEngine
from typer.testing import CliRunner

from qwenkit.cli import serve as command
from qwenkit.cli.main import app as cli
from qwenkit.serve.app import create_app
from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.service import Service
from qwenkit.serve.settings import ServeSettings

pytest.importorskip("opentelemetry.sdk")

CHAT = "/v1/chat/completions"
SAID = {"messages": [{"role": "user", "content": "a secret word"}]}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def spans(
    path: str,
    engine: StandInEngine | None = None,
    *,
    headers: dict[str, str] | None = None,
    settings: Any = None,
    method: str = "POST",
    **body: Any,
) -> list[Any]:
    """Those of one request."""
    import asyncio

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Service(ServeSettings(**(settings or {})), engine or StandInEngine()), provider)

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.request(method, path, json=body or None, headers=headers)

    asyncio.run(run())
    return list(exporter.get_finished_spans())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_without_a_word_of_it(stream: bool) -> None:
    asked: dict[str, Any] = {
        "max_tokens": 9,
        "temperature": 0.5,
        "n": 2,
        "seed": 7,
        "stop": ["a secret stop"],
    }
    (span,) = spans(CHAT, stream=stream, headers={"x-request-id": "mine"}, **asked, **SAID)
    told = dict(span.attributes)
    assert span.name == "chat tiny"
    assert span.kind.name == "SERVER"
    assert span.status.status_code.name == "UNSET"
    assert span.end_time >= span.start_time
    for name in ("gen_ai.response.time_to_first_chunk", "qwenkit.queue_seconds", "qwenkit.prefill_seconds"):
        assert told.pop(name) >= 0
    assert told == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "qwenkit.request.id": "mine",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "qwenkit",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": stream,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
    }
    whole = span.to_json() + repr(span.events)
    assert not any(word in whole for word in ("secret", "Hello", "Hel"))


def test_a_seed_that_no_attribute_can_hold_is_left_out() -> None:
    (span,) = spans(CHAT, seed=2**64 - 1, **SAID)
    assert "gen_ai.request.seed" not in span.attributes


def test_a_clients_span_is_the_parent_and_nonsense_is_none() -> None:
    (span,) = spans(CHAT, headers={"traceparent": PARENT}, **SAID)
    assert format(span.parent.trace_id, "032x") == format(span.context.trace_id, "032x") == PARENT[3:35]
    assert format(span.parent.span_id, "016x") == PARENT[36:52]
    (span,) = spans(CHAT, headers={"traceparent": "00-secret", "tracestate": "a=b"}, **SAID)
    assert span.parent is None
    assert spans(CHAT, headers={"traceparent": PARENT[:-1] + "0"}, **SAID) == []  # who traces wants no sample


def test_errors() -> None:
    (span,) = spans(CHAT, nonsense="a secret word", **SAID)  # the client's mistake
    assert (span.status.status_code.name, span.attributes["error.type"]) == ("UNSET", "unknown_parameter")
    assert span.attributes["http.response.status_code"] == 400
    assert "secret" not in span.to_json()

    soon = {"limits": Limits(request_s=0.05)}
    for stream in (False, True):
        (span,) = spans(CHAT, StandInEngine(silent=True), settings=soon, stream=stream, **SAID)
        assert (span.status.status_code.name, span.status.description) == ("ERROR", "request_timeout")
        assert span.attributes["http.response.status_code"] == (200 if stream else 504)

    broken = StandInEngine()
    broken.break_with = ValueError("a secret word")
    (span,) = spans(CHAT, broken, **SAID)
    assert (span.status.status_code.name, span.attributes["error.type"]) == ("ERROR", "500")
    assert "secret" not in span.to_json()

    (span,) = spans(CHAT, settings={"keys": Keys(["a" * 8])}, **SAID)
    assert (span.name, span.attributes["error.type"]) == ("POST", "invalid_api_key")


@pytest.mark.parametrize(
    ("method", "path", "name", "operation", "body"),
    [
        ("POST", "/v1/completions", "text_completion tiny", "text_completion", {"prompt": "a"}),
        ("POST", "/v1/responses", "chat tiny", "chat", {"input": "a"}),
        ("POST", "/v1/messages", "chat tiny", "chat", {"max_tokens": 5, **SAID}),
        ("POST", "/v1/embeddings", "embeddings tiny", "embeddings", {"input": "a"}),
        ("POST", "/tokenize", "POST /tokenize", None, {"prompt": "a"}),
        ("GET", "/v1/models/tiny", "GET /v1/models/{name:path}", None, {}),
    ],
)
def test_each_endpoint(method: str, path: str, name: str, operation: str | None, body: Any) -> None:
    (span,) = spans(path, method=method, **body)
    assert (span.name, span.attributes.get("gen_ai.operation.name")) == (name, operation)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_who_watches_over_the_server_is_not_traced(path: str) -> None:
    assert spans(path, method="GET") == []


def test_nothing_is_imported_unless_it_is_asked_for() -> None:
    """Of what sends; FastAPI imports OpenTelemetry's API where there is one."""
    program = (
        "import sys, qwenkit.serve.server, qwenkit.serve.app as a, qwenkit.serve.service as s;"
        "from qwenkit.serve.settings import ServeSettings; a.create_app(s.Service(ServeSettings(), None));"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exp'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = command.find_spec

    def without(name: str) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(command, "find_spec", without)
    result = CliRunner().invoke(cli, ["serve", "--otel"])
    assert result.exit_code == 1
    assert "qwenkit[otel]" in result.output + str(result.exception)


class Collector:
    """Takes what an OTLP exporter sends over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces" and self.headers["x-team"] == "us":
                    bodies.append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.shutdown()


def test_spans_arrive_at_a_collector(
    tiny_chat: Path, start: Callable[..., RunningServer], collector: Collector
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=us",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=mine",
        "NO_PROXY": "127.0.0.1",
    }
    server = start(tiny_chat, "--otel", variables=variables).ready()
    with server.client() as client:
        answer = client.post(CHAT, json={**SAID, "max_tokens": 5}, headers={"traceparent": PARENT})
        assert answer.status_code == 200
    assert server.stop() == 0
    received = [ExportTraceServiceRequest.FromString(body) for body in collector.bodies]
    (group,) = (group for one in received for group in one.resource_spans)
    about = {one.key: one.value.string_value for one in group.resource.attributes}
    assert about["service.name"] == "mine"
    (span,) = group.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("chat Qwen-7B-Chat", PARENT[3:35])
    told = {one.key: one.value.int_value for one in span.attributes}
    usage = json.loads(answer.text)["usage"]
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert b"secret" not in b"".join(collector.bodies)
