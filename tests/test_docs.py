"""The commands and programs printed in README and docs run; both READMEs say the same commands."""

from __future__ import annotations

import importlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qwenkit.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(bash|python)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Code of a page in one language; a block marked no-run is for reading."""
    found = _BLOCK.findall(page.read_text())
    return [code for kind, mark, code in found if kind == language and "no-run" not in mark]


def commands() -> list[str]:
    """Every line that runs qwenkit, after the lines of its block that prepare it."""
    found: set[str] = set()
    for page in PAGES:
        for code in blocks(page, "bash"):
            before = ""
            for line in (line.split("  #")[0].strip() for line in code.splitlines()):
                # The two installing commands make a virtual environment: CI runs one, a person the other.
                if not line or line.startswith("python3 -m venv"):
                    continue
                if "qwenkit" in line:
                    found.add(before + line)
                else:
                    before += line + "\n"
    return sorted(found)


def programs() -> list:
    return [
        pytest.param(code, id=f"{page.name}-{i}")
        for page in PAGES
        for i, code in enumerate(blocks(page, "python"))
    ]


@pytest.fixture
def workplace(tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ./Qwen-7B-Chat in it, where no model argument means that one, and no network is used."""
    (tmp_path / "Qwen-7B-Chat").symlink_to(tiny_chat)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QWENKIT_MODEL", str(tiny_chat))
    monkeypatch.setenv("QWENKIT_DEMO_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi")))
    return tmp_path


@pytest.mark.parametrize("line", commands())
def test_printed_commands_run(line: str, workplace: Path) -> None:
    if re.search(r"--(schema|regex|choice|json-object)\b", line):
        pytest.importorskip("llguidance", reason="the extra grammar has it")
    line = line.replace("--model demo ", f"--model {workplace / 'Qwen-7B-Chat'} ")
    if "|" in line or "\n" in line:
        subprocess.run(["bash", "-c", line], check=True, timeout=120)
        return
    program, *arguments = shlex.split(line)
    assert program == "qwenkit"
    network = any(re.fullmatch(r"[Qq]wen/\S+", argument) for argument in arguments)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--offline"] if network else arguments)
    # Without a network a hub name ends in the documented error, never in a usage error.
    assert ended.value.code in ((0, 1) if network or "doctor" in arguments else (0, None))


@pytest.mark.parametrize("code", programs())
def test_printed_programs_run(code: str, workplace: Path) -> None:
    if "Grammar" in code:
        pytest.importorskip("llguidance", reason="the extra grammar has it")
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})


def test_both_readmes_print_the_same_commands_and_programs() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README_CN.md"
    for language in ("bash", "python"):
        pair = [
            [re.sub(r"\s*#.*", "", line) for code in blocks(page, language) for line in code.splitlines()]
            for page in (english, chinese)
        ]
        assert pair[0] == pair[1]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README_CN.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OF_SERVER = {
    "openai_tools.py": "openai",
    "langchain_tools.py": "langchain_openai",
    "qwen_agent_tools.py": "qwen_agent",
}

A_SERVER = "gradio_demo.py"  # serves until it is ended; test_gradio_demo.py tries its parts
ALONE = [path for path in EXAMPLES if path.name not in (*OF_SERVER, A_SERVER)]


@pytest.mark.parametrize("example", ALONE, ids=lambda p: p.name)
def test_examples_run(example: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(example), str(workplace / "Qwen-7B-Chat")])
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("example", OF_SERVER)
def test_examples_that_need_a_server_run(
    example: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in (OF_SERVER[example], "fastapi", "uvicorn"):
        pytest.importorskip(needed, reason="no part of qwenkit")
    monkeypatch.syspath_prepend(ROOT / "tests" / "serve")
    running_server = importlib.import_module("running_server")
    server = running_server.RunningServer(workplace / "Qwen-7B-Chat").ready()
    try:
        monkeypatch.setattr(sys, "argv", [example, f"{server.url}/v1"])
        runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    finally:
        server.stop()
