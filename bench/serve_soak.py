"""Many clients of `qwenkit serve` for minutes: some leave in the middle, some send what might choke it.

    python bench/serve_soak.py [MODEL] [--clients 64] [--minutes 10] [--leave 0.2] [--hostile 0.1]

Every stream must be, byte for byte, the text that the same seed gives without streaming and alone; what a
client got before it left must be its beginning. /health is asked all the while from a process of its own.
Memory is the resident part of both processes that belongs to no file, averaged over the first tenth of the
time after a warm-up of a tenth, and over the last. Ends with exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

PROGRAM = "from qwenkit.cli.main import main; main()"
CHAT = "/v1/chat/completions"
PROMPTS = ("Write a poem about rivers.", "用中文介绍一下北京。", "def quicksort(items):", "😀 means what?")

HOSTILE: tuple[tuple[str, bytes], ...] = (
    (CHAT, b"{"),
    (CHAT, b"[" * 100_000),
    (CHAT, b'{"messages":[' + b"{}," * 50_000 + b"{}]}"),
    (CHAT, b'{"messages":[{"role":"user","content":"' + b" " * 1_000_000 + b'"}],"max_tokens":100000}'),
    (CHAT, b'{"messages":[{"role":"user","content":"\\u0000"}],"temperature":1e400}'),
    (CHAT, b'{"messages":[{"role":"user","content":"\\ud800"}]}'),
    (CHAT, b'{"messages":[{"role":"user","content":"a"}],"n":100000}'),
    (CHAT, b"\xff\xfe\x00"),
    ("/v1/completions", b'{"prompt":[' + b"9" * 4000 + b"]}"),
    ("/v1/completions", b'{"prompt":[' + b"[]," * 100_000 + b"[]]}"),
    ("/tokenize", b'{"prompt":"' + b"a" * 200_000 + b'","parse_special":1}'),
    ("/detokenize", b'{"tokens":[-1]}'),
    ("/v1/models/%00", b"{}"),
)


class Server:
    """`qwenkit serve` as a process; `url` is known at once, `ready()` waits for the model."""

    def __init__(self, model: str | None, *options: str) -> None:
        command = [sys.executable, "-c", PROGRAM, "serve", *([model] if model else []), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--log-level", "error", *options], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "Listening on" in line:
                self.url = line.split("Listening on ")[1].split(",")[0]
            if line.startswith("Ready: "):
                break
        else:
            raise SystemExit("The server did not start.")
        self.host, port = self.url.removeprefix("http://").split(":")
        self.port = int(port)

    def engine(self) -> int:
        """The process that this one started."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                return int(status.parent.name)
        raise SystemExit("The server has no engine.")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    async def lines(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The lines of a response, the status first. Closing the iterator leaves."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            length = f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + length).encode() + body)
            while line := await reader.readline():
                yield line.strip()
        finally:
            writer.transport.abort()

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """New text as it comes; the last is "[DONE]". Raises RuntimeError for any other end."""
        status = ""
        async for line in self.lines(CHAT, json.dumps({**body, "stream": True}).encode()):
            status = status or line.decode()
            if line.startswith(b"{"):
                raise RuntimeError(f"{status.split()[1]} {json.loads(line)['error']['code']}")
            if line == b"data: [DONE]":
                yield "[DONE]"
                return
            if line.startswith(b"data: "):
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise RuntimeError(f"event {event['error']['code']}")
                if event["choices"] and (text := event["choices"][0]["delta"].get("content")):
                    yield text
        raise RuntimeError(f"cut off: {status}")


def request(seed: int, tokens: int) -> dict[str, Any]:
    said = PROMPTS[seed % len(PROMPTS)]
    return {"messages": [{"role": "user", "content": said}], "seed": seed, "max_tokens": tokens,
            "temperature": 0.8}  # fmt: skip


async def whole(server: Server, body: dict[str, Any]) -> str:
    lines = [line async for line in server.lines(CHAT, json.dumps(body).encode())]
    return str(json.loads(lines[-1])["choices"][0]["message"]["content"])


class Soak:
    """The clients, and what became of their requests."""

    def __init__(self, server: Server, chosen: argparse.Namespace, texts: dict[int, str]) -> None:
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self._server = server
        self._chosen = chosen
        self._texts = texts

    async def client(self, number: int, end: float) -> None:
        luck = random.Random(number)
        while time.monotonic() < end:
            try:
                if luck.random() < self._chosen.hostile:
                    await self._hostile(luck)
                else:
                    await self._friendly(luck)
            except RuntimeError as error:
                if str(error) == "429 queue_full":
                    self.counts["turned away"] += 1
                    await asyncio.sleep(luck.random())
                else:
                    self.wrong.append(str(error))
            except ConnectionError as error:
                self.wrong.append(repr(error))

    async def _friendly(self, luck: random.Random) -> None:
        seed = luck.choice(list(self._texts))
        leaves_after = luck.randrange(1, 20) if luck.random() < self._chosen.leave else None
        got, parts = "", 0
        stream = self._server.stream(request(seed, self._chosen.max_tokens))
        async for text in stream:
            if text == "[DONE]":
                self._compare(seed, got, whole=True)
                self.counts["streams whole"] += 1
                return
            got, parts = got + text, parts + 1
            if parts == leaves_after:
                await stream.aclose()
                self._compare(seed, got, whole=False)
                self.counts["left in the middle"] += 1
                return

    def _compare(self, seed: int, got: str, *, whole: bool) -> None:
        text = self._texts[seed]
        if got != (text if whole else text[: len(got)]):
            self.wrong.append(f"seed {seed}: {got!r} is not {'' if whole else 'the beginning of '}{text!r}")

    async def _hostile(self, luck: random.Random) -> None:
        path, body = luck.choice(HOSTILE)
        lines = self._server.lines(path, body)
        try:
            status = (await anext(lines, b"")).decode()
        finally:
            await lines.aclose()
        self.counts["hostile"] += 1
        if not status.startswith("HTTP/1.1 4"):
            self.wrong.append(f"{path} {body[:40]!r}: {status or 'closed'}")


async def remember(pids: dict[str, int], kept: dict[str, list[float]]) -> None:
    """MB of each process every half second."""
    while True:
        for name, pid in pids.items():
            status = Path(f"/proc/{pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            kept.setdefault(name, []).append(int(line.split()[1]) / 1024)
        await asyncio.sleep(0.5)


def watch(url: str) -> None:
    """Ask /health until standard input ends; print the seconds that each answer took."""
    took = []
    os.set_blocking(0, False)
    while sys.stdin.buffer.read() != b"":
        began = time.perf_counter()
        with urlopen(f"{url}/health") as answer:
            answer.read()
        took.append(time.perf_counter() - began)
        time.sleep(0.02)
    print(json.dumps(took))


async def soak(server: Server, chosen: argparse.Namespace) -> tuple[Soak, dict[str, list[float]]]:
    bodies = {seed: request(seed, chosen.max_tokens) for seed in range(chosen.seeds)}
    texts = {seed: await whole(server, body) for seed, body in bodies.items()}
    found = Soak(server, chosen, texts)
    memory: dict[str, list[float]] = {}
    remembering = asyncio.create_task(
        remember({"http": server.process.pid, "engine": server.engine()}, memory)
    )
    end = time.monotonic() + chosen.minutes * 60
    await asyncio.gather(*(found.client(number, end) for number in range(chosen.clients)))
    remembering.cancel()
    if await whole(server, bodies[0]) != texts[0]:
        found.wrong.append("Afterwards seed 0 gives another text.")
    return found, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--leave", type=float, default=0.2, help="share of streams left in the middle")
    parser.add_argument("--hostile", type=float, default=0.1, help="share of requests that are hostile")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    chosen = parser.parse_args()
    server = Server(chosen.model, "--max-queue", str(chosen.clients))
    try:
        watching = subprocess.Popen(
            [sys.executable, __file__, "--watch", server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        found, memory = asyncio.run(soak(server, chosen))
        took = json.loads(watching.communicate()[0])
        with urlopen(f"{server.url}/health") as answer:
            health = json.load(answer)
    finally:
        server.stop()
    if health["restarts"] or health["running"] or health["waiting"]:
        found.wrong.append(f"/health afterwards: {health}")
    report(found, memory, took, chosen)
    if found.wrong:
        raise SystemExit(1)


def tenths(sizes: list[float]) -> list[float]:
    """The mean of each tenth."""
    cuts = [len(sizes) * part // 10 for part in range(11)]
    return [statistics.mean(sizes[a:b]) for a, b in itertools.pairwise(cuts) if b > a]


def report(
    found: Soak, memory: dict[str, list[float]], took: list[float], chosen: argparse.Namespace
) -> None:
    print(f"{chosen.clients} clients, {chosen.minutes:g} minutes: ", end="")
    print(", ".join(f"{count} {what}" for what, count in sorted(found.counts.items())))
    for name, sizes in memory.items():
        means = tenths(sizes)
        early, late = means[min(1, len(means) - 1)], means[-1]
        print(f"memory of {name}: {early:.0f} MB early, {late:.0f} MB late: {late / early - 1:+.1%}")
        print("  in tenths of the time: " + " ".join(f"{size:.0f}" for size in means))
    ranked = sorted(took)
    at = {share: ranked[min(len(ranked) - 1, int(share * len(ranked)))] * 1e3 for share in (0.5, 0.99)}
    print(f"/health asked {len(took)} times: median {at[0.5]:.1f} ms, p99 {at[0.99]:.1f} ms, "
          f"worst {ranked[-1] * 1e3:.0f} ms")  # fmt: skip
    print(f"wrong: {len(found.wrong)}")
    for problem in found.wrong[:10]:
        print(f"  {problem[:300]}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        watch(sys.argv[2])
    else:
        main()
