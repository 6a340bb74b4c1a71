"""Clients that send nothing, or slowly, or nonsense: each is told and let go, and nobody else notices."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_server import WAIT_S, RunningServer, eventually

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def impatient(tiny_chat: Path) -> Iterator[RunningServer]:
    running = RunningServer(tiny_chat, "--idle-timeout", "1", "--max-body", "100000")
    yield running.ready()
    running.stop()


@pytest.fixture
def connect(impatient: RunningServer) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def begin() -> socket.socket:
        host, port = impatient.url.removeprefix("http://").split(":")
        opened.append(socket.create_connection((host, int(port)), timeout=WAIT_S))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_connection_without_a_request_is_closed(connect: Callable[[], socket.socket]) -> None:
    assert rest(connect()) == b""


def test_headers_that_trickle_in_are_a_408(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall(CHAT)
    began = time.monotonic()
    while time.monotonic() - began < WAIT_S:
        try:
            connection.sendall(b"X-A: b\r\n")
            connection.settimeout(0.2)
            if answer := connection.recv(1000):
                break
        except TimeoutError:
            continue
    connection.settimeout(WAIT_S)
    assert error(answer + rest(connection)) == (408, "header_timeout")  # head and body may come apart


@pytest.mark.parametrize("sent", [b"", b'{"mess'])
def test_a_body_that_does_not_come_is_a_408(connect: Callable[[], socket.socket], sent: bytes) -> None:
    connection = connect()
    connection.sendall(CHAT + b"Content-Length: 1000\r\n\r\n" + sent)
    assert error(rest(connection)) == (408, "body_timeout")


def test_a_connection_is_kept_between_requests_and_closed_when_idle(
    connect: Callable[[], socket.socket],
) -> None:
    connection = connect()
    for _ in range(3):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
    assert rest(connection) == b""


def test_a_reply_may_take_longer_than_a_connection_may_idle(
    impatient: RunningServer, connect: Callable[[], socket.socket]
) -> None:
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 8000,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    connection = connect()
    connection.sendall(CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    began = time.monotonic()
    while time.monotonic() - began < 2.5:
        assert connection.recv(65536)
    connection.close()
    eventually(lambda: impatient.engine_numbers()["requests"] == 0)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,  # a TLS client's hello
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\0\0\0\0\r\n\r\n",
        CHAT[:-2] + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ],
    ids=[
        "tls",
        "negative",
        "two lengths",
        "large header",
        "path",
        "nul",
        "long path",
        "chunk",
        "nuls",
        "smuggled",
    ],
)
def test_what_is_not_http_is_a_400(connect: Callable[[], socket.socket], nonsense: bytes) -> None:
    connection = connect()
    connection.sendall(nonsense)
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert error(answer)[0] in (400, 404)


def test_hundreds_of_idle_connections_shut_nobody_out(
    impatient: RunningServer, connect: Callable[[], socket.socket]
) -> None:
    for _ in range(300):
        connect().sendall(b"GET /health HTTP/1.1\r\n")
    with impatient.client() as client:
        assert client.get("/health").status_code == 200


def test_the_server_is_as_before(impatient: RunningServer) -> None:
    with impatient.client() as client:
        assert client.get("/health").json()["restarts"] == 0
    assert not any("Traceback" in line or "mistake" in line for line in impatient.lines)
