"""The whole loop of tools with openai-python, streamed: the model asks for calls, we make them, it answers.

Start a server first: qwenkit serve
usage: python examples/openai_tools.py [URL]
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import OpenAI

PRICES = {"apple": 0.5, "pear": 0.75}
ROUNDS = 2  # of calls, before the model must answer


def price(fruit: str) -> float | str:
    return PRICES.get(fruit.lower(), "unknown")


def multiply(a: float, b: float) -> float:
    return a * b


FUNCTIONS = {"price": price, "multiply": multiply}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "price",
            "description": "The price of one fruit, in euros.",
            "parameters": {
                "type": "object",
                "properties": {"fruit": {"type": "string", "maxLength": 20}},
                "required": ["fruit"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "The product of two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            },
        },
    },
]


def main(url: str) -> None:
    client = OpenAI(base_url=url, api_key="none")
    model = client.models.list().data[0].id
    messages: list[Any] = [{"role": "user", "content": "What does one apple cost? Use the tool."}]
    for round_ in range(ROUNDS + 1):
        choice: Any = "none" if round_ == ROUNDS else "auto"
        # One call at a time: small models that may ask for several do not find an end.
        stream = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False,
            temperature=0, max_tokens=300, stream=True,
        )  # fmt: skip
        content, calls = "", {}
        for chunk in stream:
            delta = chunk.choices[0].delta
            if delta.content:
                content += delta.content
                print(delta.content, end="", flush=True)
            for piece in delta.tool_calls or []:
                assert piece.function is not None
                call = calls.setdefault(
                    piece.index, {"id": piece.id, "name": piece.function.name, "json": ""}
                )
                call["json"] += piece.function.arguments or ""
            ended = chunk.choices[0].finish_reason
        if ended != "tool_calls":
            print(f" (ended by {ended})" if ended != "stop" else "")
            return
        asked = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["json"]}}
            for c in calls.values()
        ]
        messages.append({"role": "assistant", "content": content or None, "tool_calls": asked})
        for call in calls.values():
            result = FUNCTIONS[call["name"]](**json.loads(call["json"]))
            print(f"{call['name']}({call['json']}) = {result}")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1")
