"""What Prometheus reads at /metrics: counted here as requests come and go, and the engine's own numbers."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qwenkit.core import Timings, Usage
from qwenkit.serve.engine.supervisor import Health

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new: dict[str, Any] = {"registry": self.registry, "namespace": "qwenkit"}
        self.requests = Counter("requests", "Answered HTTP requests.", ["route", "status"], **new)
        self.seconds = Histogram(
            "request_seconds", "From arrival to the last byte.", ["route"], buckets=_SECONDS, **new
        )
        self.rejections = Counter("rejections", "Requests refused, by error code.", ["code"], **new)
        self.disconnects = Counter("disconnects", "Clients that left before the end.", **new)
        self.first_token = Histogram(
            "time_to_first_token_seconds", "From arrival to the first text.", buckets=_SECONDS, **new
        )
        self.inter_token = Histogram(
            "inter_token_seconds", "Between two texts of a choice, per token.", buckets=_TOKEN_SECONDS, **new
        )
        self.queued = Histogram(
            "queue_seconds", "Waiting in the engine's queue.", buckets=(0.001, *_SECONDS), **new
        )
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", **new)
        self.cached_tokens = Counter("prompt_tokens_cached", "Of these, found in the cache.", **new)
        self.completion_tokens = Counter("completion_tokens", "Tokens generated.", **new)
        self._gauges = {
            name: Gauge(f"engine_{name}", text, **new)
            for name, text in (
                ("alive", "1 while the engine takes requests."),
                ("restarts", "Times the engine was started again."),
                ("running", "Sequences holding cache."),
                ("waiting", "Requests in the engine's queue."),
                ("requests", "Requests the engine's process holds."),
                ("preemptions", "Sequences put back for lack of cache, since the engine's start."),
                ("steps", "Forward passes since the engine's start."),
                ("step_tokens", "Tokens computed since the engine's start."),
                ("cache_blocks", "Blocks of the KV cache."),
                ("cache_blocks_used", "Blocks that requests hold."),
                ("cache_blocks_reusable", "Blocks kept for prompts that begin alike."),
                ("prefix_lookup_tokens", "Prompt tokens looked up in the cache, since the engine's start."),
                ("prefix_hit_tokens", "Of these, found."),
            )
        }

    def finished(self, usage: Usage, timings: Timings) -> None:
        """A prompt's replies have ended."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.completion_tokens.inc(usage.completion_tokens)
        self.queued.observe(timings.queue_s)

    def text(self, health: Health) -> bytes:
        """Everything, in Prometheus' text format."""
        numbers = health.numbers
        values = {
            "alive": int(health.state == "alive"),
            "restarts": health.restarts,
            "running": numbers.running,
            "waiting": numbers.waiting,
            "requests": numbers.requests,
            "preemptions": numbers.preemptions,
            "steps": numbers.steps,
            "step_tokens": numbers.tokens,
            "cache_blocks": numbers.blocks_total,
            "cache_blocks_used": numbers.blocks_used,
            "cache_blocks_reusable": numbers.blocks_cached,
            "prefix_lookup_tokens": numbers.prefix_lookup_tokens,
            "prefix_hit_tokens": numbers.prefix_hit_tokens,
        }
        for name, gauge in self._gauges.items():
            gauge.set(values[name])
        return generate_latest(self.registry)
