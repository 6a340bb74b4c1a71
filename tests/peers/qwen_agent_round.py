"""What Qwen-Agent says and hears when each reply must be a call; run by the Python that has qwen-agent.

usage: QWEN_AGENT_MAX_LLM_CALL_PER_RUN=N qwen_agent_round.py URL > messages.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool, register_tool


@register_tool("stock_of")
class Stock(BaseTool):
    description = "How many pieces of an article are in stock."
    parameters = {  # noqa: RUF012  as Qwen-Agent declares it
        "type": "object",
        "properties": {"article": {"type": "string", "enum": ["lamp", "chair"]}},
        "required": ["article"],
    }

    def call(self, params: str | dict[str, Any], **_: Any) -> str:
        article = (json.loads(params) if isinstance(params, str) else params)["article"]
        return f"7 pieces of {article}"


def main(url: str) -> None:
    settings = {"use_raw_api": True, "tool_choice": "required", "max_tokens": 400, "temperature": 0}
    llm = {"model": "Qwen-7B-Chat", "model_server": url, "api_key": "none", "generate_cfg": settings}
    agent = Assistant(llm=llm, function_list=["stock_of"])
    *_, replies = agent.run(messages=[{"role": "user", "content": "How many lamps are in stock?"}])
    json.dump([dict(reply) for reply in replies], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
