"""Tool calls of a running server on the Berkeley Function Calling Leaderboard's single-turn Python questions:
every call's arguments are validated against its schema, and calls are compared with the accepted answers.

The data is in the package bfcl-eval (Apache-2.0), which need not be installed: give its wheel or its folder
`data`. Names and values are compared by the leaderboard's rules; the score of a sample is none of its scores.

pip download --no-deps bfcl-eval==2026.3.23; qwenkit serve demo-0.5b --port 8000
python bench/tool_calls.py bfcl_eval-2026.3.23-py3-none-any.whl --cases 25 --choice auto required
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
from openai import AsyncOpenAI, BadRequestError

CATEGORIES = {"simple": "simple_python", "multiple": "multiple", "parallel": "parallel"}
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
KEPT = ("description", "enum", "default", "required")


@dataclass
class Case:
    messages: list[dict[str, str]]
    tools: list[dict[str, Any]]
    answers: list[dict[str, dict[str, list[Any]]]]  # {name: {parameter: accepted values}}


@dataclass
class Score:
    """Counts over the cases of a category and way of asking."""

    cases: int = 0
    right: int = 0
    refused: int = 0
    cut: int = 0
    calls: int = 0
    valid: int = 0
    same: int = 0
    ends: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the wheel of bfcl-eval, or its folder data")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--cases", type=int, default=25, help="of each category, drawn by --seed")
    parser.add_argument("--choice", nargs="+", choices=["auto", "required"], default=["auto"])
    parser.add_argument("--together", type=int, default=4, help="requests at once")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(run(parser.parse_args()))


async def run(asked: argparse.Namespace) -> None:
    client = AsyncOpenAI(base_url=asked.url, api_key="none", timeout=600, max_retries=0)
    model = (await client.models.list()).data[0].id
    places = asyncio.Semaphore(asked.together)
    print(f"{model}, {asked.cases} cases a category, temperature 0, at most {asked.max_tokens} tokens")
    print("category  choice    right     arguments valid  streamed = whole  cut  refused  finish reasons")
    for choice, (name, file) in itertools.product(asked.choice, CATEGORIES.items()):
        cases = read_cases(asked.data, file)
        drawn = random.Random(asked.seed).sample(cases, min(asked.cases, len(cases)))
        score = Score()

        async def one(case: Case, choice: str = choice, score: Score = score) -> None:
            body = {"model": model, "messages": case.messages, "tools": case.tools, "tool_choice": choice,
                    "temperature": 0, "max_tokens": asked.max_tokens}  # fmt: skip
            async with places:
                await judge(client, case, body, score)

        await asyncio.gather(*map(one, drawn))
        print(
            f"{name:9} {choice:9} {score.right:3}/{score.cases:<3}   {score.valid:4}/{score.calls:<4}"
            f"        {score.same:3}/{score.cases:<3}           {score.cut:3}  {score.refused:5}    "
            + ", ".join(f"{reason} {count}" for reason, count in score.ends.most_common()),
            flush=True,
        )


async def judge(client: AsyncOpenAI, case: Case, body: dict[str, Any], score: Score) -> None:
    """Ask whole and streamed, and count what came. A call cut by max_tokens is counted as cut, not judged."""
    try:
        whole = await ask(client, body)
        streamed = await ask_streamed(client, body)
    except BadRequestError as error:
        print(f"refused: {error}")
        score.refused += 1
        return
    score.cases += 1
    score.same += whole == streamed
    score.ends[whole[1]] += 1
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in case.tools}
    for calls, reason in (whole, streamed):
        complete = calls if reason != "length" else calls[:-1]
        score.cut += reason == "length"
        for name, arguments in complete:
            score.calls += 1
            score.valid += is_valid(schemas.get(name), arguments)
    calls, reason = whole
    score.right += reason != "length" and is_right(calls, case.answers)


async def ask(client: AsyncOpenAI, body: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    choice = (await client.chat.completions.create(**body)).choices[0]
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return calls, choice.finish_reason


async def ask_streamed(client: AsyncOpenAI, body: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    calls: list[list[str]] = []
    reason = ""
    async for chunk in await client.chat.completions.create(**body, stream=True):
        choice = chunk.choices[0]
        for piece in choice.delta.tool_calls or []:
            if piece.index == len(calls):
                calls.append([piece.function.name, ""])
            calls[piece.index][1] += piece.function.arguments or ""
        reason = choice.finish_reason or reason
    return [(name, arguments) for name, arguments in calls], reason


def is_valid(schema: dict[str, Any] | None, arguments: str) -> bool:
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(arguments))
    except (ValueError, jsonschema.ValidationError) as error:
        print(f"invalid: {arguments}: {error}")
        return False
    return schema is not None


def is_right(calls: list[tuple[str, str]], answers: list[dict[str, Any]]) -> bool:
    """Whether each call is one of the answers, in any order, and each answer was called."""
    if len(calls) != len(answers):
        return False
    left = list(answers)
    for name, arguments in calls:
        given = json.loads(arguments)
        match = next((a for a in left if name in a and accepted(given, a[name])), None)
        if match is None:
            return False
        left.remove(match)
    return True


def accepted(given: dict[str, Any], wanted: dict[str, list[Any]]) -> bool:
    """Each argument has an accepted value; one may be missing where "" is accepted."""
    if any(name not in wanted for name in given):
        return False
    return all(
        any(equal(given[name], value) for value in values) if name in given else "" in values
        for name, values in wanted.items()
    )


def equal(given: Any, value: Any) -> bool:
    if isinstance(given, bool) or isinstance(value, bool):
        return given is value
    if isinstance(given, str) and isinstance(value, str):
        return plain(given) == plain(value)
    if isinstance(given, list) and isinstance(value, list):
        return len(given) == len(value) and all(map(equal, given, value))
    if isinstance(given, dict) and isinstance(value, dict):
        return accepted(given, value)
    return bool(given == value)


def plain(text: str) -> str:
    """As the leaderboard compares strings: without case, spaces and punctuation."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def read_cases(data: Path, file: str) -> list[Case]:
    asked = read_lines(data, f"BFCL_v4_{file}.json")
    answers = {
        line["id"]: line["ground_truth"] for line in read_lines(data, f"possible_answer/BFCL_v4_{file}.json")
    }
    return [
        Case(line["question"][0], [tool(one) for one in line["function"]], answers[line["id"]])
        for line in asked
    ]


def read_lines(data: Path, name: str) -> list[dict[str, Any]]:
    if data.is_dir():
        text = (data / name).read_text("utf-8")
    else:
        with zipfile.ZipFile(data) as wheel:
            text = wheel.read(f"bfcl_eval/data/{name}").decode()
    return [json.loads(line) for line in text.splitlines() if line]


def tool(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {**function, "parameters": json_schema(function["parameters"])}}


def json_schema(written: dict[str, Any]) -> dict[str, Any]:
    """The data names types in Python's words, beside keys that mean nothing in JSON schema."""
    schema = {key: written[key] for key in KEPT if key in written}
    kind = TYPES.get(written.get("type", "any"), written.get("type"))
    if kind is not None:
        schema["type"] = kind
    if "properties" in written:
        schema["properties"] = {name: json_schema(part) for name, part in written["properties"].items()}
    if "items" in written:
        schema["items"] = json_schema(written["items"])
    return schema


if __name__ == "__main__":
    main()
