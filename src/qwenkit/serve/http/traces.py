"""One OpenTelemetry span for each request: when, how long, how much, how it ended; never a prompt or a reply.

Imported only where traces were asked for. Where they go, how many and under which name is said by OTEL_*
variables, which OpenTelemetry reads itself. Attributes are those of its conventions for HTTP servers and for
generative AI, as far as they go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.types import Scope

import qwenkit
from qwenkit.serve.http.record import Record

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "presence_penalty", "frequency_penalty")
_LARGEST = 2**63 - 1  # that an attribute can be; a seed may be twice that


def exporting() -> TracerProvider:
    """Sends spans to a collector by OTLP over HTTP, in batches, from a thread of its own; to be shut down."""
    ours = Resource.create({"service.name": "qwenkit", "service.version": qwenkit.__version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces:
    """model: the name of what is served."""

    def __init__(self, provider: TracerProvider, model: Callable[[], str]) -> None:
        self._tracer = provider.get_tracer("qwenkit.serve", qwenkit.__version__)
        self._model = model

    def add(self, scope: Scope, about: Record, route: str | None, began_ns: int, ended_ns: int) -> None:
        """The span of a request that has ended, under its client's span if it named one (W3C traceparent)."""
        method, operation = scope["method"], _OPERATIONS.get(route or "")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            f"{operation} {self._model()}" if operation else f"{method} {route or ''}".strip(),
            extract(headers),
            SpanKind.SERVER,
            {name: value for name, value in self._told(about, method, route).items() if value is not None},
            start_time=began_ns,
        )
        if about.code is not None and not 400 <= about.status < 500:  # those are the client's mistakes
            span.set_status(Status(StatusCode.ERROR, about.code))
        span.end(ended_ns)

    def _told(self, about: Record, method: str, route: str | None) -> dict[str, Any]:
        found: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": about.status or None,
            "error.type": about.code,
            "qwenkit.request.id": about.id,
            "qwenkit.client_left": about.left or None,
        }
        operation = _OPERATIONS.get(route or "")
        if operation is None:
            return found
        found |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "qwenkit",
            "gen_ai.request.model": self._model(),
            "gen_ai.usage.input_tokens": about.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": about.cached_tokens,
            "gen_ai.usage.output_tokens": about.completion_tokens,
            "gen_ai.response.finish_reasons": tuple(about.finish_reasons) or None,
            "gen_ai.response.time_to_first_chunk": about.first_token_s,
            "qwenkit.queue_seconds": about.queue_s,
            "qwenkit.prefill_seconds": about.prefill_s,
        }
        if (params := about.params) is not None:
            found |= {f"gen_ai.request.{name}": getattr(params, name) for name in _SAMPLING}
            found |= {"gen_ai.request.choice.count": params.n, "gen_ai.request.stream": about.stream}
            if params.seed is not None and params.seed <= _LARGEST:
                found["gen_ai.request.seed"] = params.seed
        return found
