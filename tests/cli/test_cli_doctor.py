"""`qwenkit doctor`: what it finds in machines and installations that the test makes up."""

from __future__ import annotations

import json
import socket
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from standin_model import StandInCheckpoint
from typer.testing import CliRunner

from qwenkit.checkpoint import open_checkpoint
from qwenkit.cli import checks, machine
from qwenkit.cli.loading import State
from qwenkit.cli.main import app
from qwenkit.core import CheckpointError

DATA = Path(__file__).parents[1] / "data"


def absent(model: str | None, *, offline: bool) -> StandInCheckpoint:
    assert offline  # a doctor downloads nothing
    raise CheckpointError(f"{model} is not here.", "Pull it.")


def doctor(*arguments: str, opener: Any = absent, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments], obj=State(open=opener), env=env)


def test_a_sound_installation() -> None:
    done = doctor("--json")
    findings = {f["topic"]: f for f in json.loads(done.stdout)}
    assert done.exit_code == 0
    assert findings["torch"]["status"] == "ok"
    assert findings["torch"]["text"].startswith(version("torch"))
    assert findings["demo model"]["status"] == "note"
    assert {"python", "cpu", "instructions", "device", "dtype", "kernels", "cache"} <= set(findings)
    assert ("SLOW" in findings["kernels"]["text"]) == (findings["kernels"]["status"] == "warning")


def test_a_named_model_that_is_not_here_is_a_problem() -> None:
    done = doctor("org/name")
    assert done.exit_code == 1
    assert "org/name is not here." in done.stdout
    assert "Pull it." in done.stdout


def test_a_chosen_default_that_is_not_here_is_a_problem() -> None:
    assert doctor(env={"QWENKIT_MODEL": "/my/model"}).exit_code == 1


def test_a_truncated_model_is_a_problem(tmp_path: Path) -> None:
    for file in (DATA / "tiny_v1").iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    done = doctor(str(tmp_path), opener=lambda model, offline: open_checkpoint(Path(model)))
    assert done.exit_code == 1
    assert "safetensors" in done.stdout


@pytest.mark.parametrize(
    ("requirement", "status"),
    [
        ("torch>=2.6", "ok"),
        ("torch>=99", "problem"),
        ("no-such-package>=1.0", "problem"),
        ('no-such-package>=1.0; extra == "hf"', "note"),
        ('torch>=99; extra == "hf"', "warning"),
        ("torch", "ok"),
    ],
)
def test_packages(requirement: str, status: str) -> None:
    (finding,) = checks.packages([requirement])
    assert finding.status == status
    assert finding.remedy or status in ("ok", "note")


def test_a_package_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brokenpackage.py").write_text("raise OSError('libwhatever.so: cannot open')")
    (tmp_path / "brokenpackage-1.0.dist-info").mkdir()
    (tmp_path / "brokenpackage-1.0.dist-info" / "METADATA").write_text("Name: brokenpackage\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = checks.packages(["brokenpackage>=0.5"])
    assert finding.status == "problem"
    assert "libwhatever.so" in finding.text


def test_development_tools_and_self_references_are_skipped() -> None:
    assert list(checks.packages(['pytest>=99; extra == "dev"', 'qwenkit[hf]; extra == "dev"'])) == []


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("1", (1,)), ("0.30.0rc1", (0, 30, 0)), ("x", ())]
)
def test_version_tuple(text: str, numbers: tuple[int, ...]) -> None:
    assert checks.version_tuple(text) == numbers


def test_cpu(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    first = "model name\t: Some CPU @ 2GHz\nflags\t\t: fpu avx2 avx512f avx_vnni amx_tile\n"
    info.write_text(f"{first}\nmodel name\t: other\n")
    fields = machine.cpu_fields(info)
    assert machine.cpu_name(fields) == "Some CPU @ 2GHz"
    assert machine.cpu_features(fields) == ["AVX2", "AVX-512", "VNNI"]
    assert machine.cpu_fields(tmp_path / "absent") == {}
    assert machine.cpu_features({"Features": "asimd asimddp bf16"}) == ["NEON", "ARM dot product", "ARM bf16"]


def test_secrets_stay_hidden() -> None:
    shown = machine.environment(
        {
            "HF_TOKEN": "hf_abc",
            "MODELSCOPE_API_KEY": "k",
            "https_proxy": "http://user:pass@proxy:3128/",
            "HF_ENDPOINT": "https://mirror.example",
            "PATH": "/bin",
        }
    )
    assert shown == {
        "HF_TOKEN": "(set, not shown)",
        "MODELSCOPE_API_KEY": "(set, not shown)",
        "https_proxy": "http://***@proxy:3128/",
        "HF_ENDPOINT": "https://mirror.example",
    }


def test_a_hub_that_never_answers_does_not_hold_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        silent, refused = checks.hubs(0.3, {"A": address, "B": "http://127.0.0.1:1"})
        assert time.monotonic() - began < 20  # not the minutes a default timeout takes
    assert silent.status == refused.status == "warning"
    assert "A" in silent.topic
    assert "cannot be reached" in refused.text


def test_network_is_asked_only_on_request() -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:1", "MODELSCOPE_ENDPOINT": "http://127.0.0.1:1"}
    assert "hub Hugging" not in doctor(env=env).stdout
    asked = doctor("--network", "--timeout", "1", env=env)
    assert asked.stdout.count("cannot be reached") == 2
    assert asked.exit_code == 0  # offline use is fine
