"""GuideLLM, unmodified: no request of a short run fails, and it counts the tokens that the server counts.

Needs guidellm, which brings torch and transformers, but no hub: a folder has the tokenizer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from client_python import client_python

from qwenkit.checkpoint import open_checkpoint

pytestmark = pytest.mark.peer

REQUESTS = 6


def counters(server: Any) -> tuple[float, float]:
    """Tokens of prompts and of replies so far."""
    with server.client() as client:
        text = client.get("/metrics").text
    prompts, replies = (
        float(re.findall(rf"^qwenkit_{kind}_tokens_total (\S+)$", text, re.MULTILINE)[0])
        for kind in ("prompt", "completion")
    )
    return prompts, replies


def test_a_short_run(tiny_server: Any, tiny_chat: Path, tmp_path: Path) -> None:
    python = client_python("guidellm", "guidellm")
    open_checkpoint(tiny_chat).tokenizer().save_tokenizer_json(tmp_path, chat_template="chatml")
    before = counters(tiny_server)
    out = subprocess.run(
        [python, "-m", "guidellm", "run", "--backend", f"kind=openai_http,target={tiny_server.url}",
         "--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}",
         "--tokenizer", f"kind=huggingface_auto,model={tmp_path}",
         "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
         "--output", "kind=json,path=report.json", "--disable-console-interactive"],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    (found,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    asked = found["requests"]
    assert [len(asked[kind]) for kind in ("successful", "errored", "incomplete")] == [REQUESTS, 0, 0]
    assert {one["output_tokens"] for one in asked["successful"]} == {16}
    told = [sum(one[kind] for one in asked["successful"]) for kind in ("prompt_tokens", "output_tokens")]
    assert told == [after - first for after, first in zip(counters(tiny_server), before, strict=True)]
