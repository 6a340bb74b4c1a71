"""lm-eval, unmodified, with the tasks of examples/lm_eval: its likelihoods are those of a forward pass here.

Needs `lm_eval[api]`, transformers for its tokenizer, and no hub.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from client_python import client_python

from qwenkit.checkpoint import open_checkpoint
from qwenkit.model import Batch

pytestmark = pytest.mark.peer

TASKS = Path(__file__).parents[2] / "examples/lm_eval"


@pytest.fixture
def samples(tiny_server: Any, tiny_chat: Path, tmp_path: Path) -> Any:
    """Runs a task and returns what lm-eval logged of each question, in order."""
    python = client_python("lm_eval", "'lm_eval[api]' transformers")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    for path in TASKS.iterdir():
        shutil.copy(path, tmp_path)
    tokenizer = open_checkpoint(tiny_chat).tokenizer()
    tokenizer.save_tokenizer_json(tmp_path / "tokenizer", chat_template="chatml")

    def run(task: str, *options: str, model: str, path: str, **more: str) -> list[dict[str, Any]]:
        given = {"model": "Qwen-7B-Chat", "base_url": f"{tiny_server.url}{path}", "max_retries": "1", **more}
        arguments = ",".join(f"{name}={value}" for name, value in given.items())
        out = subprocess.run(
            [python, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", task,
             "--include_path", ".", "--output_path", "out", "--log_samples", *options],
            capture_output=True, text=True, timeout=280, cwd=tmp_path, env=os.environ | offline,
        )  # fmt: skip
        assert out.returncode == 0, out.stderr[-3000:]
        (logged,) = tmp_path.glob(f"out/**/samples_{task}_*.jsonl")
        found = [json.loads(line) for line in logged.read_text().splitlines()]
        return sorted(found, key=lambda sample: sample["doc_id"])

    return run


@pytest.mark.parametrize("tokens", ["True", "False"])
def test_likelihoods_are_those_of_a_forward_pass(samples: Any, tiny_chat: Path, tokens: str) -> None:
    """Prompts go as token ids, or as texts."""
    more = {"tokenizer": "tokenizer", "tokenized_requests": tokens, "num_concurrent": "4"}
    found = samples("capitals", model="local-completions", path="/v1/completions", **more)
    checkpoint = open_checkpoint(tiny_chat)
    tokenizer, model = checkpoint.tokenizer(), checkpoint.load_model(dtype=torch.float32)
    assert len(found) == 10
    for sample in found:
        question, expected = f"The capital of {sample['doc']['country']} is", []
        for choice in sample["doc"]["choices"]:
            before, ids = tokenizer.encode(question), tokenizer.encode(f"{question} {choice}")
            assert ids[: len(before)] == before
            with torch.inference_mode():
                rows = model(torch.tensor([ids]), Batch.make(1, len(ids)))[0].float().log_softmax(-1)
            own = range(len(before), len(ids))
            greedy = all(int(rows[at - 1].argmax()) == ids[at] for at in own)
            expected.append((sum(float(rows[at - 1, ids[at]]) for at in own), greedy))
        for ((value, is_greedy),), (ours, best) in zip(sample["resps"], expected, strict=True):
            assert float(value) == pytest.approx(ours, rel=1e-3)  # the server's cache is of 16 bits
            assert str(is_greedy) == str(best)
        likeliest = max(range(4), key=lambda i: expected[i][0])
        assert sample["acc"] == (likeliest == sample["doc"]["answer"])


def test_answers_in_chat_are_the_servers(samples: Any, tiny_server: Any) -> None:
    found = samples(
        "capitals_chat", "--apply_chat_template", model="local-chat-completions", path="/v1/chat/completions"
    )
    assert len(found) == 10
    with tiny_server.client() as client:
        for sample in found:
            question = f"What is the capital of {sample['doc']['country']}? Answer with its name alone."
            body = {"messages": [{"role": "user", "content": question}], "temperature": 0,
                    "max_tokens": 16, "stop": ["\n"]}  # fmt: skip
            reply = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
            assert sample["resps"] == [[reply["content"]]]
