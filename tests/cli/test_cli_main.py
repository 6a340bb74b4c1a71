"""The frame around the commands: imports, exit codes, messages, pipes, interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from standin_model import StandIn
from typer.testing import CliRunner

import qwenkit
from qwenkit.cli.loading import State
from qwenkit.cli.main import app
from qwenkit.core import CheckpointError

STANDIN = Path(__file__).with_name("standin_model.py")
HEAVY = ("torch", "transformers", "prompt_toolkit", "huggingface_hub", "numpy", "rich", "tiktoken", "gguf")


def run_failing(error: BaseException, *arguments: str, env: dict[str, str] | None = None) -> object:
    def load(model: str | None, **_: object) -> StandIn:
        raise error

    return CliRunner().invoke(app, [*arguments, "chat", "-p", "hi"], obj=State(load=load), env=env)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, json\n"
        "from qwenkit.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "chat" in done.stdout
    loaded = set(json.loads(done.stderr))
    assert "typer" in loaded  # the list is real
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["info", "/no/such"], 1), (["nothing"], 2)]
)
def test_the_process_ends_with_its_code_after_all_threads_and_farewells(
    arguments: list[str], code: int
) -> None:
    program = (
        "import atexit, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from qwenkit.cli.main import main\n"
        "atexit.register(print, 'farewell')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "idle = ThreadPoolExecutor(1)\n"
        "idle.submit(print).result()\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert done.stdout.splitlines()[-2:] == ["thread", "farewell"]


@pytest.mark.parametrize("command", ["chat", "generate", "pull", "info", "tokenize", "doctor"])
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert f"qwenkit {command}" in done.output or f"root {command}" in done.output
    assert "Options:" in done.output


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"qwenkit {qwenkit.__version__}\n")


def test_an_error_is_one_message_on_stderr() -> None:
    done = run_failing(CheckpointError("model.safetensors is a git-lfs pointer.", "Download it again."))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == "error: model.safetensors is a git-lfs pointer.\nDownload it again.\n"


@pytest.mark.parametrize(("arguments", "env"), [(["--debug"], {}), ([], {"QWENKIT_DEBUG": "1"})])
def test_debug_shows_the_traceback(arguments: list[str], env: dict[str, str]) -> None:
    done = run_failing(CheckpointError("It broke.", "Mend it."), *arguments, env=env)
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "error: It broke." in done.stderr


def test_a_programming_mistake_is_not_hidden() -> None:
    assert isinstance(run_failing(ZeroDivisionError("a bug")).exception, ZeroDivisionError)


def test_interrupt_while_loading_exits_130() -> None:
    done = run_failing(KeyboardInterrupt())
    assert done.exit_code == 130
    assert "Traceback" not in done.output


def test_wrong_usage_exits_2_and_names_the_nearest_command() -> None:
    done = CliRunner().invoke(app, ["chta"])
    assert done.exit_code == 2
    assert "Did you mean 'chat'?" in done.stderr


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    talking = subprocess.Popen(
        [sys.executable, str(STANDIN), "chat", "-p", "hi"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert talking.stdout is not None
    assert talking.stderr is not None
    assert talking.stdout.readline() == "line\n"
    talking.stdout.close()  # what head -1 does
    assert talking.wait(timeout=60) == 141
    assert talking.stderr.read() == "ready\n"
    talking.stderr.close()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_in_one_shot_exits_130_without_traceback() -> None:
    talking = subprocess.Popen(
        [sys.executable, str(STANDIN), "chat", "-p", "hi"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert talking.stdout is not None
    assert talking.stdout.readline() == "line\n"
    talking.send_signal(signal.SIGINT)
    out, err = talking.communicate(timeout=60)
    assert talking.returncode == 130
    assert err == "ready\n"
    assert set(out.splitlines()) <= {"line"}
