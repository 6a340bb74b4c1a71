"""`qwenkit run-batch` as a user starts it: killed and started again, against a running server, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletion
from running_server import RunningServer, eventually

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_PROGRAM = "from qwenkit.cli.main import main; main()"


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "run-batch", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | variables,
    )  # fmt: skip


def finish(*arguments: object, **variables: str) -> tuple[int, str]:
    process = start(*arguments, **variables)
    _, said = process.communicate(timeout=240)
    return process.returncode, said


def requests(path: Path, count: int, **more: Any) -> Path:
    lines = [
        {"custom_id": f"chat {i}", "method": "POST", "url": CHAT,
         "body": {"messages": [{"role": "user", "content": f"say {i}"}], "seed": i, **more}}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_and_started_again_every_request_is_answered_once(tiny_chat: Path, tmp_path: Path) -> None:
    source = requests(tmp_path / "in.jsonl", 60, max_tokens=120, ignore_eos=True)
    target = tmp_path / "out.jsonl"
    process = start(source, target, tiny_chat, "--max-running", 2, "--in-flight", 4)
    eventually(lambda: target.exists() and target.read_bytes().count(b"\n") >= 5)
    process.kill()
    process.wait()
    before = target.read_bytes().split(b"\n")[:-1]
    assert 5 <= len(before) < 60
    code, said = finish(source, target, tiny_chat)
    assert code == 0, said
    assert f"{60 - len(before)} answered · {len(before)} before" in said
    assert target.read_bytes().split(b"\n")[: len(before)] == before
    found = answers(target)
    assert sorted(one["custom_id"] for one in found) == sorted(f"chat {i}" for i in range(60))
    for one in found:
        ChatCompletion.model_validate(one["response"]["body"])


def test_an_interrupt_ends_with_130_and_what_was_under_way_is_kept(tiny_chat: Path, tmp_path: Path) -> None:
    source = requests(tmp_path / "in.jsonl", 60, max_tokens=120, ignore_eos=True)
    target = tmp_path / "out.jsonl"
    process = start(source, target, tiny_chat, "--max-running", 2, "--in-flight", 4)
    eventually(lambda: target.exists() and target.read_bytes().count(b"\n") >= 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Finishing 4 requests" in said
    assert "Traceback" not in said
    assert 6 <= len(answers(target)) < 60


def test_a_running_server_answers_the_same(server: RunningServer, tiny_chat: Path, tmp_path: Path) -> None:
    source = requests(tmp_path / "in.jsonl", 5)
    with source.open("a") as out:
        for body in ({"prompt": "one two", "seed": 3, "max_tokens": 5}, {"prompt": "x", "nonsense": 1}):
            line = {"custom_id": str(body), "method": "POST", "url": TEXT, "body": body}
            out.write("\n" + json.dumps(line))
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    codes = [finish(source, here, tiny_chat)[0], finish(source, there, "--url", f"{server.url}/v1")[0]]
    assert codes == [3, 3]
    texts = []
    for path in (here, there):
        bodies = {one["custom_id"]: one["response"]["body"] for one in answers(path)}
        texts.append({name: body.get("choices", body.get("error")) for name, body in bodies.items()})
    assert texts[0] == texts[1]
    assert len(texts[0]) == 7


def test_what_makes_no_sense_is_said_before_a_model_is_loaded(tiny_chat: Path, tmp_path: Path) -> None:
    source = requests(tmp_path / "in.jsonl", 1)
    target = tmp_path / "out.jsonl"
    for code, words, arguments in (
        (2, "leave MODEL", (source, target, tiny_chat, "--url", "http://127.0.0.1:1")),
        (1, "is no URL", (source, target, "--url", "there")),
        (1, "does not answer", (source, target, "--url", "http://127.0.0.1:1")),
        (1, "Cannot read", (tmp_path / "nothing", target, tiny_chat)),
        (1, "is no answer of a batch", (source, source, tiny_chat)),
    ):
        found, said = finish(*arguments)
        assert (found, "Traceback" in said) == (code, False), said
        assert words in " ".join(said.split())
    assert not (tmp_path / "nothing").exists()
    assert answers(target) == []
