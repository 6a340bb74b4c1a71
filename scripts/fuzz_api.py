"""Send a server what its own OpenAPI document allows and forbids: schemathesis, all phases.

    python scripts/fuzz_api.py [MODEL] [--examples 500] [-- OPTION ...]

Starts `qwenkit serve MODEL` on a free port, runs schemathesis (extra `fuzz`) against it with NUL bytes and
all, and ends with exit code 1 if there was a 5xx, a reply that the document does not tell of, or a dead
engine. What the server says goes to stderr, a crash with its stack. Options after `--` go to schemathesis.
A small model is best: replies may be as long as it likes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

PROGRAM = "from qwenkit.cli.main import main; main()"
# What a schema cannot say (a prompt that fits, a model that is there) makes its own positive examples wrong.
LEFT_OUT = "positive_data_acceptance"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--examples", type=int, default=500, help="of each operation, at most")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    chosen, more = parser.parse_known_args()
    serving = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", chosen.model, "--port", "0", "--log-level", "error"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip
    try:
        assert serving.stderr is not None
        url = ""
        for line in serving.stderr:
            if "Listening on" in line:
                url = line.split("Listening on ")[1].split(",")[0]
            if line.startswith("Ready: "):
                break
        else:
            raise SystemExit("The server did not start.")
        Thread(target=shutil.copyfileobj, args=(serving.stderr, sys.stderr), daemon=True).start()
        run = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
             "--max-examples", str(chosen.examples), "--phases", chosen.phases,
             "--exclude-checks", LEFT_OUT, "--request-timeout", "120", "--suppress-health-check", "all",
             "--no-color", *(option for option in more if option != "--")],
            env=os.environ | {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)},
        )  # fmt: skip
        with urlopen(f"{url}/health") as answer:
            health = json.load(answer)
    finally:
        serving.terminate()
        serving.wait()
    print(f"The engine is {health['status']}, after {health['restarts']} restarts.")
    if run.returncode or health["restarts"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
