"""openai-node, unmodified: examples/openai_node says what the server says to anybody.

Needs Node.js 22 or later, here or as QWENKIT_PEER_NODE, and `npm install` in examples/openai_node or in the
folder that QWENKIT_PEER_OPENAI_NODE names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ARTICLES = ("lamp", "chair", "table")
EXAMPLE = Path(__file__).parents[2] / "examples/openai_node"

pytestmark = pytest.mark.peer


def node() -> str:
    found = os.environ.get("QWENKIT_PEER_NODE") or shutil.which("node")
    if found is None:
        pytest.skip("peer tier: install Node.js, or name it in QWENKIT_PEER_NODE")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if int(said.lstrip("v").split(".")[0]) < 22:
        pytest.skip(f"peer tier: openai-node needs Node.js 22, {found} is {said.strip()}")
    return found


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The script, beside the client's package."""
    folder = Path(os.environ.get("QWENKIT_PEER_OPENAI_NODE") or EXAMPLE)
    if not (folder / "node_modules/openai").is_dir():
        pytest.skip(
            "peer tier: npm install in examples/openai_node, or name a folder in QWENKIT_PEER_OPENAI_NODE"
        )
    installed = json.loads((folder / "node_modules/openai/package.json").read_text())["version"]
    wanted = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]["openai"]
    assert installed == wanted, "the example names another version"
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")
    return Path(shutil.copy(EXAMPLE / "client.mjs", tmp_path))


def test_example_says_what_the_server_says(example: Path, tiny_server: Any) -> None:
    out = subprocess.run(
        [node(), example, f"{tiny_server.url}/v1"], capture_output=True, text=True, timeout=240
    )
    assert out.returncode == 0, out.stderr[-2000:]
    said = dict(line.split(": ", 1) for line in out.stdout.splitlines())
    with tiny_server.client() as client:
        question = {"messages": [{"role": "user", "content": "Name three colours."}]}
        reply = client.post(
            "/v1/chat/completions", json={**question, "temperature": 0, "max_tokens": 40}
        ).json()
        asked = {"input": ["a lamp", "two lamps", "rain"], "encoding_format": "float"}
        vectors = [one["embedding"] for one in client.post("/v1/embeddings", json=asked).json()["data"]]
    assert said["model"] == "Qwen-7B-Chat"
    assert (
        json.loads(said["whole"]) == json.loads(said["streamed"]) == reply["choices"][0]["message"]["content"]
    )
    name, arguments = said["call"].split(" ", 1)
    assert name == "pieces_in_stock"
    assert json.loads(arguments)["article"] in ARTICLES
    assert said["finished"] == "tool_calls"
    result = json.loads(said["runner returns"])
    assert result["article"] in ARTICLES
    assert result["pieces"] == 7
    assert isinstance(json.loads(said["answer"]), str)
    length, *cosines = said["embeddings"].split()
    assert int(length) == len(vectors[0])
    for told, other in zip(cosines, vectors[1:], strict=True):
        product = sum(a * b for a, b in zip(vectors[0], other, strict=True))
        assert float(told) == pytest.approx(product, abs=6e-5)  # four decimals
    assert said["error"].startswith(
        "BadRequestError 400 invalid_value temperature 400 temperature=-1.0 is out of range."
    )
