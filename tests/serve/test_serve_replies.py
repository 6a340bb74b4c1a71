"""The shapes of replies and streams, and what surrounds them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from running_server import events
from standin_engine import StandInEngine, ask, post

from qwenkit.core import Delta, TokenLogprob
from qwenkit.serve.engine.messages import Accepted, Piece, PromptToken
from qwenkit.serve.engine.reply import Reply, ReplyGroup
from qwenkit.serve.engine.supervisor import Health
from qwenkit.serve.errors import ServeError
from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http import logs
from qwenkit.serve.openai.completion import Envelope
from qwenkit.serve.openai.text_format import TextFormat
from qwenkit.serve.replies.logprobs import TextLogprobs, chat_logprobs
from qwenkit.serve.replies.written import Written, best

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def test_a_chat_completion() -> None:
    body = post(CHAT, messages=HI, n=2, model="tiny").json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "tiny"
    assert body["system_fingerprint"].startswith("qk-")
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    for index, choice in enumerate(body["choices"]):
        message = {"role": "assistant", "content": "Hello 中", "refusal": None}
        assert choice == {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}


def test_a_chat_stream() -> None:
    answer = post(CHAT, messages=HI, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert len({(c["id"], c["created"], c["object"]) for c in parsed}) == 1
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in parsed[:-1]) == "Hello 中"
    assert [c["choices"][0]["finish_reason"] for c in parsed[:-1]] == [None] * (len(parsed) - 2) + ["stop"]
    assert parsed[-1]["choices"] == []
    assert parsed[-1]["usage"]["total_tokens"] == 6
    assert all(c["usage"] is None for c in parsed[:-1])


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_counts_in_every_chunk(path: str) -> None:
    asked: dict[str, Any] = {"messages": HI} if path == CHAT else {"prompt": "a"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = events(post(path, **asked, n=2, stream=True, stream_options=options).text)
    counts = [json.loads(chunk)["usage"] for chunk in chunks]
    written = [count["completion_tokens"] for count in counts]
    assert written == sorted(written)
    assert written[0] < written[-2] == written[-1] == 6  # the last is told by the engine, the others counted
    assert all(c["total_tokens"] == c["prompt_tokens"] + c["completion_tokens"] for c in counts)
    assert {count["prompt_tokens"] for count in counts} == {3}
    answer = post(path, **asked, stream=True, stream_options={"continuous_usage_stats": True})
    assert answer.json()["error"]["param"] == "stream_options.continuous_usage_stats"


def test_a_text_completion_of_several_prompts() -> None:
    body = post(TEXT, prompt=["a", "b"], n=2, echo=True).json()
    assert body["object"] == "text_completion"
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert {c["text"] for c in body["choices"]} == {"promptHello 中"}
    assert body["usage"]["completion_tokens"] == 12


def test_the_best_of_several_are_those_with_the_likeliest_tokens() -> None:
    def written(text: str, *values: float) -> Written:
        return Written(text, [TokenLogprob(0, b"", value) for value in values])

    choices = {
        (0, 0): written("even", -2.0, -2.0),
        (0, 1): written("short", -3.0),
        (0, 2): written("long", -1.0, -1.0, -1.0, -1.0, -1.0),
        (0, 3): written("empty"),
        (1, 0): written("impossible", -float("inf")),
        (1, 1): written("other", -9.0),
    }
    kept = best(choices, 2)
    assert {key: one.text for key, one in kept.items()} == {
        (0, 0): "long", (0, 1): "even", (1, 0): "other", (1, 1): "impossible",
    }  # fmt: skip


def test_an_error_in_a_stream_is_an_event_and_there_is_no_done() -> None:
    engine = StandInEngine(silent=True)
    answer = post(CHAT, engine, messages=HI, stream=True, settings={"limits": Limits(request_s=0.05)})
    assert answer.status_code == 200
    assert json.loads(events(answer.text)[-1])["error"]["code"] == "request_timeout"
    assert engine.cancelled == 1


def test_a_reply_that_takes_too_long_is_a_504() -> None:
    engine = StandInEngine(silent=True)
    answer = post(CHAT, engine, messages=HI, settings={"limits": Limits(request_s=0.05)})
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    assert engine.cancelled == 1


def test_a_full_house_is_a_429_that_says_when_to_come_back() -> None:
    engine = StandInEngine(silent=True)

    async def what(client: httpx.AsyncClient) -> httpx.Response:
        waiting = [asyncio.create_task(client.post(CHAT, json={"messages": HI})) for _ in range(5)]
        while len(engine.wishes) < 5:
            await asyncio.sleep(0)
        refused = await client.post(CHAT, json={"messages": HI})
        for answer in await asyncio.gather(*waiting):
            assert answer.status_code == 504
        engine.silent = False
        assert (await client.post(CHAT, json={"messages": HI})).status_code == 200
        return refused

    answer = ask(what, engine, limits=Limits(max_queue=1, request_s=1.0))  # and 4 that run
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize("state", ["loading", "restarting", "failed", "stalled"])
def test_an_engine_that_is_away_is_a_503_with_the_reason(state: Any) -> None:
    engine = StandInEngine()
    engine.now = Health(state, "because")

    async def what(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = await client.post(CHAT, json={"messages": HI})
        return [asked, await client.get("/health"), await client.get("/ready")]

    asked, health, ready = ask(what, engine)
    assert (asked.status_code, health.status_code, ready.status_code) == (503, 503, 503)
    assert asked.json()["error"]["code"] == f"engine_{state}"
    assert "retry-after" in asked.headers
    assert (health.json()["status"], health.json()["reason"]) == (state, "because")


def test_keys_open_everything_and_health_is_open() -> None:
    async def what(client: httpx.AsyncClient) -> list[int]:
        good = {"Authorization": "Bearer second-key-2"}
        statuses = [
            (await client.get(path)).status_code for path in ("/health", "/ready", "/metrics", "/nowhere")
        ]
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "Basic second-key-2"},
                        {"Authorization": "Bearer sécond-key-2".encode()}, good):  # fmt: skip
            statuses.append((await client.get("/v1/models", headers=headers)).status_code)
        return statuses

    keys = Keys(["first-key-1", "second-key-2"])
    assert ask(what, keys=keys) == [200, 200, 401, 401, 401, 401, 401, 200]
    assert "first" not in repr(keys)


def test_other_origins_are_let_in_only_when_asked() -> None:
    async def what(client: httpx.AsyncClient) -> Any:
        headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        preflight = await client.options(CHAT, headers=headers)
        return preflight.status_code, preflight.headers.get("access-control-allow-origin")

    assert ask(what, keys=Keys(["first-key-1"])) == (401, None)
    allowed = ask(what, keys=Keys(["first-key-1"]), cors_origins=("https://a.example",))
    assert allowed == (200, "https://a.example")


def test_request_ids_are_kept_if_harmless() -> None:
    async def what(client: httpx.AsyncClient) -> list[str]:
        return [
            (await client.get("/health", headers={"X-Request-ID": given})).headers["x-request-id"]
            for given in ("abc-1", "a b", "x" * 65)
        ]

    kept, spaced, long = ask(what)
    assert kept == "abc-1"
    assert len(spaced) == len(long) == 32


def test_a_log_line_cannot_be_forged_and_tells_no_content() -> None:
    record = logging.LogRecord("qwenkit.serve", 20, "", 0, "request", (), None)
    record.facts = {"path": "/a\n2026 error fake=1\x1b[31m", "status": 404}
    for formatter in (logs.TextFormatter(), logs.JSONFormatter()):
        line = formatter.format(record)
        assert "\n" not in line
        assert "\x1b" not in line
    assert "prompt" not in logs.where(ValueError("the prompt"))


def test_metrics_count_what_happened() -> None:
    async def what(client: httpx.AsyncClient) -> str:
        await client.post(CHAT, json={"messages": HI})
        await client.post(CHAT, json={"messages": HI, "nonsense": 1})
        await client.get("/made/up/path")
        return (await client.get("/metrics")).text

    text = ask(what)
    for line in (
        'qwenkit_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'qwenkit_requests_total{route="other",status="404"} 1.0',
        'qwenkit_rejections_total{code="unknown_parameter"} 1.0',
        "qwenkit_prompt_tokens_total 3.0",
        "qwenkit_completion_tokens_total 3.0",
        "qwenkit_time_to_first_token_seconds_count 1.0",
        "qwenkit_engine_running 1.0",
    ):
        assert line in text


def test_a_slow_reader_gets_joined_deltas_and_then_the_error() -> None:
    async def run() -> None:
        arrived = asyncio.Event()
        cancelled: list[int] = []
        reply = Reply(arrived, lambda: cancelled.append(1))
        group = ReplyGroup([reply], arrived)
        reply.put(Accepted(1, 2, ""))
        for i in range(1000):
            reply.put(Piece(1, Delta(str(i % 10), i % 2, (i,), (TokenLogprob(i, b"", -1.0),))))
        reply.fail(ServeError("gone", status=503))
        reply.put(Piece(1, Delta("late", 0)))
        got = []

        async def read() -> None:
            async for _, delta in group.deltas():
                got.append(delta)

        with pytest.raises(ServeError, match="gone"):
            await read()
        assert [d.text for d in got] == ["02468" * 100, "13579" * 100]
        assert [t for d in got for t in d.token_ids] == [*range(0, 1000, 2), *range(1, 1000, 2)]
        assert all(len(d.logprobs or ()) == 500 for d in got)
        assert cancelled == [1]
        group.close()
        assert cancelled == [1]

    asyncio.run(run())


def test_logprobs_of_parts_of_characters_and_of_the_impossible() -> None:
    token = TokenLogprob(5, "中".encode()[:2], -float("inf"), ((5, "中".encode()[:2], -1.0),))
    (entry,) = chat_logprobs([token])["content"]
    assert entry["bytes"] == [0xE4, 0xB8]
    assert entry["logprob"] == -9999.0
    writer = TextLogprobs()
    first = writer.add([PromptToken(b"ab", None), token])  # type: ignore[list-item]
    second = writer.add([TokenLogprob(6, "中".encode()[2:], -1.0)])
    assert first["tokens"] == ["ab", "bytes:\\xe4\\xb8"]
    assert first["token_logprobs"] == [None, -9999.0]
    assert first["text_offset"] + second["text_offset"] == [0, 2, 2]


@pytest.mark.parametrize("echo", [True, False])
def test_what_ended_a_text_is_scored_beside_an_echo(echo: bool) -> None:
    """Who scores a prompt asks for a token after it, and counts on its place in the lists."""
    end = TokenLogprob(9, b"<|endoftext|>", -0.25, ((9, b"<|endoftext|>", -0.25),))
    score = (PromptToken(b"a", None), PromptToken(b"b", -1.0))
    accepted = [Accepted(1, 2, "ab", score)]
    expected = ["a", "b", "<|endoftext|>"] if echo else []

    def form() -> TextFormat:
        return TextFormat(Envelope("m", 1, "f", "text", "cmpl"), 1, echo=echo, logprobs=True, usage="none")

    written = {(0, 0): Written("", [], "stop", 9, end)}
    (choice,) = form().whole(accepted, written)["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("ab" if echo else "", expected)
    assert choice["logprobs"]["token_logprobs"] == ([None, -1.0, -0.25] if echo else [])
    streamed = form()
    chunks = [
        *streamed.opening(accepted),
        *streamed.chunk(0, Delta("", finish_reason="stop", end_logprob=end)),
    ]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [name for one in told if one for name in one["tokens"]] == expected
