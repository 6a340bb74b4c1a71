"""An assistant of Qwen-Agent with a tool of ours: pip install qwen-agent numpy soundfile tqdm python-dateutil

use_raw_api hands the tools to the server; without it Qwen-Agent writes them into the prompt itself and reads
the calls out of the text, which works, too, but enforces no schema. The demo model makes the same call again
and again: after $QWEN_AGENT_MAX_LLM_CALL_PER_RUN of them, 2 if that is not set (Qwen-Agent's own is 20), the
answer is asked for without tools.
Start a server first: qwenkit serve
usage: python examples/qwen_agent_tools.py [URL]
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("QWEN_AGENT_MAX_LLM_CALL_PER_RUN", "2")  # read when it is imported

from openai import OpenAI
from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool, register_tool


@register_tool("stock_of")
class Stock(BaseTool):
    description = "How many pieces of an article are in stock."
    parameters = {  # noqa: RUF012  as Qwen-Agent declares it
        "type": "object",
        "properties": {"article": {"type": "string", "description": "its name"}},
        "required": ["article"],
    }

    def call(self, params: str | dict[str, Any], **_: Any) -> str:
        article = (json.loads(params) if isinstance(params, str) else params)["article"]
        return json.dumps({"article": article, "pieces": 7})


def main(url: str) -> None:
    model = OpenAI(base_url=url, api_key="none").models.list().data[0].id
    server = {"model": model, "model_server": url, "api_key": "none"}
    for raw in (True, False):
        settings = {"use_raw_api": raw, "temperature": 0, "max_tokens": 200}
        llm = {**server, "generate_cfg": settings}
        agent = Assistant(llm=llm, function_list=["stock_of"])
        asked = [{"role": "user", "content": "How many lamps are in stock? Use the tool."}]
        *_, replies = agent.run(messages=asked)  # each time all that was said so far
        if replies[-1]["role"] == "function":
            more = [*asked, *replies, {"role": "user", "content": "Say that in a sentence."}]
            *_, answer = Assistant(llm=llm).run(messages=more)
            replies += answer
        print("by the server:" if raw else "by Qwen-Agent:")
        for reply in replies:
            call = reply.get("function_call")
            print(
                f"  {reply['role']}: {call['name']}({call['arguments']})"
                if call
                else f"  {reply['role']}: {reply['content']}"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1")
