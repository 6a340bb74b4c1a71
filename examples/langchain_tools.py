"""Tools with LangChain's ChatOpenAI: pip install langchain-openai

Start a server first: qwenkit serve
usage: python examples/langchain_tools.py [URL]
"""

from __future__ import annotations

import sys
from typing import Literal

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI


@tool
def length(text: str) -> int:
    """How many characters a text has."""
    return len(text)


@tool
def convert(degrees: float, to: Literal["celsius", "fahrenheit"]) -> float:
    """Convert a temperature to the other scale."""
    return (degrees - 32) / 1.8 if to == "celsius" else degrees * 1.8 + 32


TOOLS = {"length": length, "convert": convert}


def main(url: str) -> None:
    model = OpenAI(base_url=url, api_key="none").models.list().data[0].id
    chat = ChatOpenAI(base_url=url, api_key="none", model=model, temperature=0, max_tokens=200)
    with_tools = chat.bind_tools(list(TOOLS.values()))
    messages: list[BaseMessage] = [HumanMessage("Use the tool: how many degrees celsius are 100 fahrenheit?")]
    for _ in range(3):
        reply = with_tools.invoke(messages)
        messages.append(reply)
        for call in reply.tool_calls:
            result = TOOLS[call["name"]].invoke(call)
            print(f"{call['name']}({call['args']}) = {result.content}")
            messages.append(result)
        if not reply.tool_calls:
            break
    print(messages[-1].content)
    forced = chat.bind_tools(list(TOOLS.values()), tool_choice="convert", strict=True)
    print(forced.invoke("0 degrees celsius in fahrenheit").tool_calls)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1")
