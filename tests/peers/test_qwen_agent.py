"""Qwen-Agent, unmodified, over the server's own tools: calls come, and their results are taken back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from client_python import client_python

pytestmark = pytest.mark.peer


def test_calls_and_results_go_round(tiny_server: Any, tmp_path: Path) -> None:
    python = client_python("qwen_agent", "qwen-agent numpy soundfile tqdm python-dateutil")
    out = subprocess.run(
        [python, str(Path(__file__).with_name("qwen_agent_round.py")), f"{tiny_server.url}/v1"],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env=os.environ | {"QWEN_AGENT_MAX_LLM_CALL_PER_RUN": "3"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    said = json.loads(out.stdout)
    calls = [one["function_call"] for one in said if "function_call" in one]
    results = [one for one in said if one["role"] == "function"]
    assert len(calls) == len(results) == 3
    for call, result in zip(calls, results, strict=True):
        assert call["name"] == result["name"] == "stock_of"
        assert result["content"] == f"7 pieces of {json.loads(call['arguments'])['article']}"
