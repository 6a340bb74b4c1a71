"""Requests and tokens a minute, of each key or address."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from standin_engine import StandInEngine, ask

from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.guard.rates import Bucket, _who

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def test_a_bucket_refills_evenly_and_may_be_overdrawn() -> None:
    bucket = Bucket(60, now=0)
    assert bucket.level(1000) == 60
    bucket.take(90, now=1000)
    assert bucket.level(1000) == -30
    assert bucket.seconds_until(1, 1000) == pytest.approx(31)
    assert bucket.level(1031) == pytest.approx(1)
    assert bucket.level(2000) == 60
    assert dict(bucket.headers("tokens", 1030)) == {
        b"x-ratelimit-limit-tokens": b"60",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"60.000s",
    }


def test_each_key_has_its_own_requests() -> None:
    async def what(client: httpx.AsyncClient) -> list[httpx.Response]:
        first, second = ({"authorization": f"Bearer {key}"} for key in ("a" * 8, "b" * 8))
        free = [await client.get("/v1/models", headers=first) for _ in range(5)]
        assert {answer.status_code for answer in free} == {200}
        return [await client.post(CHAT, json=HI, headers=headers) for headers in (*[first] * 3, second)]

    limits = Limits(requests_a_minute=2)
    one, two, refused, other = ask(what, keys=Keys(["a" * 8, "b" * 8]), limits=limits)
    assert [answer.status_code for answer in (one, two, refused, other)] == [200, 200, 429, 200]
    assert one.headers["x-ratelimit-limit-requests"] == "2"
    assert one.headers["x-ratelimit-remaining-requests"] == "1"
    assert 29 < float(one.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_count_when_they_are_known(stream: bool) -> None:
    """A request of the stand-in has 3 tokens of prompt and 3 of reply."""

    async def what(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(CHAT, json={**HI, "stream": stream}) for _ in range(3)]

    answers = ask(what, StandInEngine(), limits=Limits(tokens_a_minute=10))
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers] == ["10", "4", "0"]


def test_the_unknown_spend_nothing_of_anybody() -> None:
    async def what(client: httpx.AsyncClient) -> list[httpx.Response]:
        known = {"authorization": "Bearer " + "a" * 8}
        for _ in range(5):
            assert (await client.post(CHAT, json=HI)).status_code == 401
        return [await client.post(CHAT, json=HI, headers=known)]

    (answer,) = ask(what, keys=Keys(["a" * 8]), limits=Limits(requests_a_minute=1))
    assert answer.status_code == 200


def test_without_limits_there_are_no_headers() -> None:
    async def what(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(CHAT, json=HI)

    assert not any(name.startswith("x-ratelimit") for name in ask(what).headers)


@pytest.mark.parametrize(
    ("client", "who"),
    [
        (("10.0.0.1", 5), "10.0.0.1"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (None, ""),
        (("testclient", 5), "testclient"),
    ],
)
def test_addresses_are_told_apart(client: Any, who: str) -> None:
    assert _who({"type": "http", "client": client}) == who
