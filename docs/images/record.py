"""Record docs/images/chat.svg: a real conversation with the demo model, as a terminal shows it.

usage: python docs/images/record.py [OUT.svg]     (needs tmux; takes a minute)
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 92, 34
QUESTIONS = ("Write a Python function that tells whether a year is a leap year.", "用一句话介绍一下你自己。")
SESSION = "qwenkit-recording"


def tmux(*arguments: str) -> str:
    return subprocess.run(["tmux", *arguments], check=True, capture_output=True, text=True).stdout


def wait_for(text: str, count: int, seconds: float = 300) -> None:
    """Until `text` stands `count` times on the screen."""
    end = time.monotonic() + seconds
    while tmux("capture-pane", "-p", "-S", "-", "-t", SESSION).count(text) < count:
        if time.monotonic() > end:
            raise SystemExit(f"The screen never showed {text!r} {count} times.")
        time.sleep(0.5)


def main(out: Path) -> None:
    program = shutil.which("qwenkit", path=str(Path(sys.executable).parent)) or "qwenkit"
    command = f"env QWENKIT_HISTORY= TERM=xterm-256color COLORTERM=truecolor {program} chat --seed 4"
    tmux("new-session", "-d", "-s", SESSION, "-x", str(COLUMNS), "-y", str(ROWS), command)
    try:
        wait_for(":help shows the commands", 1)
        for i, question in enumerate(QUESTIONS, start=1):
            time.sleep(1)
            tmux("send-keys", "-t", SESSION, "-l", question)
            tmux("send-keys", "-t", SESSION, "Enter")
            wait_for("tok/s", i)
        time.sleep(1)
        screen = tmux("capture-pane", "-p", "-e", "-S", "-", "-t", SESSION)
    finally:
        tmux("kill-session", "-t", SESSION)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ qwenkit chat", style="bold"))
    console.print(Text.from_ansi(screen.rstrip()))
    console.save_svg(str(out), title="qwenkit chat")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("chat.svg"))
