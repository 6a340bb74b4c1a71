"""What HTTP and the second process cost: the server against the engine alone, with the same requests.

    python bench/serve_overhead.py [MODEL] [--concurrent 32] [--requests 96] [--max-tokens 128]

Tokens a second of so many streams at once, and seconds to the first text when nothing else runs (median of
50, both sides warm). Texts are tokenized in both. The client's own work is on the same cores. Rounds
alternate between the two; the best of each is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from serve_soak import Server

Ask = Callable[[dict[str, Any]], AsyncIterator[str]]


def request(number: int, tokens: int) -> dict[str, Any]:
    said = f"Tell the story of bicycle number {number}."
    return {"messages": [{"role": "user", "content": said}], "seed": number, "max_tokens": tokens,
            "ignore_eos": True}  # fmt: skip


async def measure(ask: Ask, chosen: dict[str, int]) -> dict[str, float]:
    """Tokens a second under load, and milliseconds to the first text without."""
    waiting = iter(range(chosen["requests"]))

    async def client() -> None:
        for number in waiting:
            async for _ in ask(request(number, chosen["max_tokens"])):
                pass

    async def first(number: int) -> float:
        stream = ask(request(number, 2))
        began = time.perf_counter()
        await anext(stream)
        took = time.perf_counter() - began
        async for _ in stream:
            pass
        return took

    for _ in range(2):  # the first finds nothing in the cache
        times = [await first(number) for number in range(chosen["firsts"])]
    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(chosen["concurrent"])))
    seconds = time.perf_counter() - began
    return {
        "tokens a second": chosen["requests"] * chosen["max_tokens"] / seconds,
        "ms to the first text": statistics.median(times) * 1e3,
    }


def engine_alone(model: str | None, chosen: dict[str, int]) -> dict[str, float]:
    from qwenkit import Message, Qwen, SamplingParams

    loaded = Qwen.load(model, max_running=32)

    async def ask(body: dict[str, Any]) -> AsyncIterator[str]:
        messages = [Message(**message) for message in body["messages"]]
        params = SamplingParams(**{name: body[name] for name in ("seed", "max_tokens", "ignore_eos")})
        request = await asyncio.get_running_loop().run_in_executor(None, loaded.prepare, messages, params)
        async for delta in loaded.engine.submit(request):
            if delta.text or delta.finish_reason:
                yield delta.text

    return asyncio.run(measure(ask, chosen))


def served(model: str | None, chosen: dict[str, int]) -> dict[str, float]:
    server = Server(model, "--max-running", "32")
    try:
        return asyncio.run(measure(server.stream, chosen))
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--firsts", type=int, default=50, help="requests to measure the first text of")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    names = ("concurrent", "requests", "max_tokens", "firsts")
    chosen = {name: getattr(options, name) for name in names}
    found: dict[str, list[dict[str, float]]] = {"engine": [], "server": []}
    for _ in range(options.rounds):
        for side, rounds in found.items():
            run = subprocess.run(
                [sys.executable, __file__, "--child", side, json.dumps(options.model), json.dumps(chosen)],
                check=True, stdout=subprocess.PIPE,
            )  # fmt: skip
            rounds.append(json.loads(run.stdout))
    for what, best in (("tokens a second", max), ("ms to the first text", min)):
        alone, through = (best(one[what] for one in found[side]) for side in ("engine", "server"))
        difference = f"{through / alone:.1%} of it" if best is max else f"{through - alone:+.2f}"
        print(f"{what}: engine alone {alone:.2f}, server {through:.2f}, {difference}")
        print(
            "  all: "
            + "; ".join(f"{s} {', '.join(f'{one[what]:.2f}' for one in r)}" for s, r in found.items())
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        measured = engine_alone if sys.argv[2] == "engine" else served
        print(json.dumps(measured(json.loads(sys.argv[3]), json.loads(sys.argv[4]))))
    else:
        main()
