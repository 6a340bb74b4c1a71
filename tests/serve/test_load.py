"""Many clients at once that give up, and an engine killed under them: with the tiny model, and in the model
tier with the demo model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import WAIT_S, RunningServer, events, eventually

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Count to a million."}]


@pytest.fixture(params=["tiny", pytest.param("demo", marks=pytest.mark.model)], scope="module")
def busy(request: pytest.FixtureRequest, tiny_chat: Path) -> Iterator[RunningServer]:
    model = tiny_chat if request.param == "tiny" else "demo"
    running = RunningServer(model, "--max-queue", "200")
    yield running.ready()
    running.stop()


def longest(server: RunningServer) -> int:
    """Tokens of a reply that leaves room for a short prompt; 10,000 if there is so much room."""
    with server.client() as client:
        context = client.get("/v1/models").json()["data"][0]["max_model_len"]
    return min(10_000, int(context) - 100)


def together(server: RunningServer, *works: Callable[[httpx.AsyncClient], Any]) -> list[Any]:
    """What all of `works` return, run at once with a connection each."""

    async def run() -> list[Any]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S, limits=limits) as client:
            return await asyncio.gather(*(work(client) for work in works))

    return asyncio.run(run())


def test_200_long_requests_given_up_leave_nothing_behind(busy: RunningServer) -> None:
    tokens = longest(busy)

    async def give_up(client: httpx.AsyncClient) -> str:
        body = {"messages": HI, "max_tokens": tokens, "ignore_eos": True}
        try:
            answer = await asyncio.wait_for(client.post(CHAT, json=body), 0.5)
        except (asyncio.TimeoutError, httpx.TransportError):
            return "gone"
        return str(answer.status_code)

    assert set(together(busy, *[give_up] * 200)) == {"gone"}
    began = time.monotonic()
    with busy.client() as client:
        answer = client.post(CHAT, json={"messages": HI, "max_tokens": 4})
    took = time.monotonic() - began
    assert answer.status_code == 200
    eventually(lambda: busy.engine_numbers()["requests"] == 0)
    numbers = busy.engine_numbers()
    assert numbers["cache_blocks_used"] == numbers["running"] == numbers["waiting"] == 0
    assert numbers["restarts"] == 0
    print(f"the next request was answered in {took:.2f} s")
    if os.environ.get("QWENKIT_TEST_MODEL"):
        assert took < 5


def how_it_ended(answer: httpx.Response) -> str:
    """ "done", or the code of the error that came instead of the end."""
    if answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"):
        last = events(answer.text)[-1]
    else:
        last = answer.text
    return (
        "done" if last == "[DONE]" or "error" not in json.loads(last) else json.loads(last)["error"]["code"]
    )


def test_every_client_of_a_killed_engine_gets_an_answer_or_an_error(busy: RunningServer) -> None:
    before = busy.engine_numbers()["restarts"]
    ended = Counter[str]()

    def client(number: int) -> Callable[[httpx.AsyncClient], Any]:
        stream = number % 2 == 0
        body = {"messages": HI, "max_tokens": 20 + 2 * number, "ignore_eos": True, "seed": number}

        async def work(client: httpx.AsyncClient) -> None:
            how = ""
            while not over.is_set() or how != "done":
                answer = await client.post(CHAT, json={**body, "stream": stream})
                how = how_it_ended(answer)
                ended[how] += 1
                if answer.status_code != 200:
                    await asyncio.sleep(0.3)

        return work

    over = asyncio.Event()

    async def kill(_: httpx.AsyncClient) -> None:
        def back() -> bool:
            numbers = busy.engine_numbers()
            return numbers["restarts"] == before + 1 and bool(numbers["alive"])

        await asyncio.to_thread(eventually, lambda: busy.engine_numbers()["running"] >= 8)
        os.kill(busy.engine_pid(), signal.SIGKILL)
        await asyncio.to_thread(eventually, back)
        over.set()

    together(busy, kill, *(client(number) for number in range(16)))
    assert ended["done"] >= 16
    assert ended["engine_died"] >= 8
    assert ended.keys() <= {"done", "engine_died", "engine_restarting", "engine_loading"}
    assert busy.engine_numbers()["restarts"] == before + 1
    with busy.client() as client_after:
        assert client_after.post(CHAT, json={"messages": HI, "max_tokens": 4}).status_code == 200
