"""pull() against a hub on loopback: what is fetched, what is checked, and what every failure says."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from hub_server import COMMIT, Hub, Repo, sha256
from typer.testing import CliRunner

from qwenkit.checkpoint import pull
from qwenkit.checkpoint.progress import Progress
from qwenkit.checkpoint.sources import huggingface, transfer
from qwenkit.checkpoint.sources.repository import HubName, RepositoryFile, choose_files, missing_files
from qwenkit.cli.pull import pull as cli_pull
from qwenkit.core import DownloadError, RequestError

pytest_plugins = ["isolation"]

NAME = "org/model"
_RANDOM = random.Random(7)
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
WHOLE = {
    "config.json": b'{"model_type": "qwen"}',
    "generation_config.json": b"{}",
    "qwen.tiktoken": b"IQ== 0\n",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: _RANDOM.randbytes(3_000_001),
    SHARDS[1]: _RANDOM.randbytes(70_000),
    "LICENSE": b"terms",
}
UNWANTED = {
    "modeling_qwen.py": b"import os",
    "cache_autogptq_cuda_256.cpp": b"//",
    "cache_autogptq_cuda_kernel_256.cu": b"//",
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "README.md": b"card",
    "assets/logo.jpg": b"picture",
    "original/consolidated.safetensors": b"again",
}


@pytest.fixture
def model(hub: Hub) -> Repo:
    hub.repos[NAME] = Repo({**WHOLE, **UNWANTED})
    return hub.repos[NAME]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and ".cache" not in p.relative_to(folder).parts
    }


def test_fetches_weights_configuration_tokenizer_and_nothing_else(model: Repo, hub: Hub) -> None:
    folder = pull(NAME)
    assert contents(folder) == WHOLE
    assert folder.name == COMMIT
    assert hub.leaked == []


def test_plain_folder(model: Repo, tmp_path: Path) -> None:
    folder = pull(NAME, local_dir=tmp_path / "plain")
    assert folder == tmp_path / "plain"
    assert contents(folder) == WHOLE
    assert not any(p.is_symlink() for p in folder.rglob("*"))


@pytest.mark.parametrize("plain", [False, True])
def test_second_pull_fetches_no_content(model: Repo, hub: Hub, tmp_path: Path, plain: bool) -> None:
    where = tmp_path / "plain" if plain else None
    first = pull(NAME, local_dir=where)
    hub.log.clear()
    assert pull(NAME, local_dir=where) == first
    assert [path for _, path, _ in hub.log if "/cdn/" in path or "/resolve/" in path] == []


def test_offline_uses_the_cache_only(model: Repo, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull(NAME)
    hub.log.clear()
    assert pull(NAME, offline=True) == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull(NAME) == folder
    assert hub.log == []


def test_offline_says_what_is_missing(model: Repo) -> None:
    with pytest.raises(DownloadError, match=r"nothing of it is in the hub caches.*qwenkit pull org/model"):
        pull(NAME, offline=True)
    folder = pull(NAME)
    (folder / SHARDS[1]).resolve().unlink()
    (folder / "qwen.tiktoken").unlink()
    with pytest.raises(DownloadError, match=rf"lacks {SHARDS[1]}, tokenizer"):
        pull(NAME, offline=True)


def test_unreachable_hub_is_named_with_its_reason(
    alone: Path, closed_port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DownloadError) as caught:
        pull(NAME)
    assert closed_port in caught.value.problem
    assert "refused" in caught.value.problem
    assert "ModelScope" in caught.value.problem
    assert "path" in caught.value.remedy
    assert 'pip install "qwenkit[modelscope]"' in capsys.readouterr().err


def test_silent_hub_is_given_up(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setattr(transfer, "REACH_SECONDS", 0.2)
        why = transfer.unreachable(f"http://127.0.0.1:{mute.getsockname()[1]}")
    assert why is not None
    assert "timed out" in why or "no answer" in why


def test_cached_copy_serves_when_no_hub_answers(
    model: Repo, monkeypatch: pytest.MonkeyPatch, closed_port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pull(NAME)
    monkeypatch.setenv("HF_ENDPOINT", closed_port)
    assert pull(NAME) == folder
    assert "Using the copy on the disk" in capsys.readouterr().err


def test_modelscope_asked_for_without_its_library(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenkit.checkpoint.sources import modelscope

    monkeypatch.setattr(modelscope.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError) as caught:
        pull(NAME, source="modelscope")
    assert 'pip install "qwenkit[modelscope]"' in caught.value.remedy


@pytest.mark.parametrize("name", ["org/absent", "other/absent"])
def test_absent_repository(hub: Hub, name: str) -> None:
    with pytest.raises(DownloadError, match=rf"no model {name}.*private.*40[14]"):
        pull(name, source="huggingface")


def test_absent_revision(model: Repo) -> None:
    with pytest.raises(DownloadError, match=r"no revision 'v9'"):
        pull(NAME, source="huggingface", revision="v9")


def test_revision_in_the_name_or_beside_it(model: Repo) -> None:
    model.revisions = ("v1", COMMIT)
    assert pull(f"{NAME}@v1") == pull(NAME, revision="v1") == pull(f"{NAME}@{COMMIT}")
    with pytest.raises(RequestError, match="as well"):
        pull(f"{NAME}@v1", revision="v2")


def test_gated_repository(model: Repo) -> None:
    model.gated = True
    with pytest.raises(DownloadError, match=r"gated.*Accept.*hf auth login"):
        pull(NAME, source="huggingface")


def test_private_repository_with_token_that_stays_with_the_hub(model: Repo, hub: Hub) -> None:
    model.token = "hf_secret"
    with pytest.raises(DownloadError, match="private"):
        pull(NAME, source="huggingface")
    assert contents(pull(NAME, token="hf_secret")) == WHOLE
    assert hub.leaked == []


@pytest.mark.parametrize("broken", [SHARDS[0], "config.json"])
@pytest.mark.parametrize("plain", [False, True])
def test_altered_file_is_deleted_and_named(
    model: Repo, hub: Hub, tmp_path: Path, broken: str, plain: bool
) -> None:
    where = tmp_path / "plain" if plain else None
    hub.corrupt = {broken}
    with pytest.raises(DownloadError) as caught:
        pull(NAME, source="huggingface", local_dir=where)
    assert broken in caught.value.problem
    assert "deleted" in caught.value.problem
    held = [
        p.read_bytes()
        for root in (tmp_path / "hub", tmp_path / "plain")
        for p in root.rglob("*")
        if p.is_file()
    ]
    altered = WHOLE[broken][:-1] + bytes([WHOLE[broken][-1] ^ 1])
    assert altered not in held
    hub.corrupt = set()
    assert contents(pull(NAME, local_dir=where)) == WHOLE


@pytest.mark.parametrize("plain", [False, True])
def test_file_that_rotted_on_the_disk_is_fetched_anew(
    model: Repo, tmp_path: Path, plain: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "plain" if plain else None
    folder = pull(NAME, local_dir=where)
    shard = (folder / SHARDS[0]).resolve()
    shard.write_bytes(b"\0" + WHOLE[SHARDS[0]][1:])
    assert contents(pull(NAME, local_dir=where)) == WHOLE
    assert SHARDS[0] in capsys.readouterr().err


def test_broken_connection_is_continued_not_restarted(model: Repo, hub: Hub) -> None:
    hub.cut[SHARDS[0]] = 1_200_000
    assert contents(pull(NAME)) == WHOLE
    assert hub.asked(SHARDS[0]) == [None, "bytes=1200000-", "bytes=2400000-"]


def test_server_that_cannot_continue(model: Repo, hub: Hub) -> None:
    hub.cut[SHARDS[0]] = 1_200_000
    hub.ignores_range = True
    with pytest.raises(DownloadError, match=r"broke off|without a byte"):
        pull(NAME, source="huggingface")
    hub.cut.clear()
    assert contents(pull(NAME)) == WHOLE


def test_given_up_transfer_continues_next_time(model: Repo, hub: Hub) -> None:
    hub.cut[SHARDS[0]] = 0
    with pytest.raises(DownloadError, match=r"kept; run the same command again"):
        pull(NAME, source="huggingface")
    hub.cut[SHARDS[0]] = 2_000_000
    hub.log.clear()
    assert contents(pull(NAME)) == WHOLE
    assert hub.asked(SHARDS[0]) == [None, "bytes=2000000-"]


def test_foreign_partial_file_is_replaced(
    model: Repo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = sha256(WHOLE[SHARDS[0]])
    partial = tmp_path / "hub" / "models--org--model" / "blobs" / f".{digest}.{digest[:16]}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"something else")
    assert contents(pull(NAME)) == WHOLE
    assert "does not fit" in capsys.readouterr().err


# Forked, not spawned: a real process that can be killed, without importing everything anew.
_PROCESSES = multiprocessing.get_context("fork")


def _pull_there(mode: str, answers: Any) -> None:
    if mode == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
    if mode == "slow":
        # Pause at each step, so that the parent can interrupt at a known place.
        read = transfer._read

        def slowly(response: Any) -> bytes:
            time.sleep(0.02)
            return read(response)

        transfer._CHUNK = 65536  # type: ignore[attr-defined]
        transfer._read = slowly
    try:
        answers.put(str(pull(NAME, source="huggingface")))
    except DownloadError as error:
        answers.put(f"DownloadError: {error}")
    except KeyboardInterrupt:
        answers.put("interrupted")


def start(mode: str) -> tuple[Any, Any]:
    """A process that pulls, and the queue on which it tells the outcome."""
    answers = _PROCESSES.SimpleQueue()
    process = _PROCESSES.Process(target=_pull_there, args=(mode, answers))
    process.start()
    return process, answers


def test_full_disk_while_fetching(model: Repo) -> None:
    process, answers = start("limit")
    out = answers.get()
    process.join()
    assert "DownloadError: No room while fetching" in out
    assert "free" in out
    assert contents(pull(NAME)) == WHOLE


def test_full_disk_before_fetching(model: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))
    with pytest.raises(DownloadError, match=r"HF_HUB_CACHE.* needs 3\.1 MB in .* only 1\.0 MB are free"):
        pull(NAME)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupt_leaves_what_arrived(model: Repo, hub: Hub, tmp_path: Path, how: int) -> None:
    process, answers = start("slow")
    blobs = tmp_path / "hub" / "models--org--model" / "blobs"
    digest = sha256(WHOLE[SHARDS[0]])
    partial = blobs / f".{digest}.{digest[:16]}.part"
    while not (partial.exists() and partial.stat().st_size > 200_000):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, how)
    process.join()
    if how == signal.SIGINT:
        assert answers.get() == "interrupted"
    kept = partial.stat().st_size
    assert kept > 200_000
    hub.log.clear()
    assert contents(pull(NAME)) == WHOLE
    assert hub.asked(SHARDS[0]) == [f"bytes={kept}-"]


def test_two_processes_at_once_fetch_once(model: Repo, hub: Hub) -> None:
    both = [start("slow"), start("slow")]
    assert {answers.get() for _, answers in both} == {str(pull(NAME))}
    for process, _ in both:
        process.join()
    assert contents(pull(NAME)) == WHOLE
    assert len(hub.asked(SHARDS[0])) == 1


def test_one_gguf_of_several(hub: Hub) -> None:
    files = {f"m-{q}.gguf": q.encode() * 100 for q in ("q4_0", "q4_k_m", "q8_0")}
    hub.repos["org/quants"] = Repo({**files, "README.md": b"", "LICENSE": b"terms", "config.json": b"{}"})
    with pytest.raises(DownloadError, match=r"3 GGUF files: m-q4_0, m-q4_k_m, m-q8_0.*org/quants:q4_k_m"):
        pull("org/quants")
    path = pull("org/quants:Q4_K_M")
    assert path.read_bytes() == files["m-q4_k_m.gguf"]
    assert set(contents(path.parent)) == {"m-q4_k_m.gguf", "LICENSE"}
    assert pull("org/quants:q4_k_m", offline=True) == path
    with pytest.raises(DownloadError, match="q8_0"):
        pull("org/quants:q8_0", offline=True)
    with pytest.raises(DownloadError, match="fits 0"):
        pull("org/quants:k_m_l")


def test_repository_without_weights(hub: Hub) -> None:
    hub.repos["org/text"] = Repo({"README.md": b"x"})
    with pytest.raises(DownloadError, match=r"no weights qwenkit reads.*README\.md"):
        pull("org/text")


def test_unknown_source_and_name(alone: Path) -> None:
    with pytest.raises(RequestError, match="auto, huggingface, modelscope"):
        pull(NAME, source="github")  # type: ignore[arg-type]
    for name in ("model", "a/b/c", "../etc", "org/model@", "org /m", "org/m:x:y"):
        with pytest.raises(DownloadError, match="not the name"):
            HubName.parse(name)


def test_pickled_weights_only_where_there_is_nothing_better() -> None:
    names = ["config.json", "pytorch_model-00001-of-00001.bin", "training_args.bin", "optimizer.bin"]
    chosen = choose_files([RepositoryFile(n) for n in names], None, NAME)
    assert [f.path for f in chosen] == ["config.json", "pytorch_model-00001-of-00001.bin"]


def test_split_gguf_counts_as_one() -> None:
    names = [f"big-q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    files = [RepositoryFile(n) for n in ["small-q4_0.gguf", *reversed(names)]]
    assert [f.path for f in choose_files(files, "q8_0", NAME)] == names
    assert missing_files(names[:2]) == [names[2]]


def test_endpoint_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert huggingface.endpoint() == "https://mirror.example"


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(cli_pull)
    return app


def test_command_prints_the_path(model: Repo, command: typer.Typer, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(command, [NAME, "--to", str(tmp_path / "to")])
    assert outcome.stdout == f"{tmp_path / 'to'}\n"
    assert contents(tmp_path / "to") == WHOLE
    outcome = CliRunner().invoke(command, [NAME, "--offline", "--source", "huggingface"])
    assert "not complete on this machine" in str(outcome.exception)
    outcome = CliRunner().invoke(command, [NAME, "--source", "ftp"])
    assert isinstance(outcome.exception, RequestError)


def test_command_refuses_options_that_a_demo_has_not(alone: Path, command: typer.Typer) -> None:
    outcome = CliRunner().invoke(command, ["demo", "--revision", "v1", "--to", "x"])
    assert isinstance(outcome.exception, RequestError)
    assert "--revision, --to cannot be used with demo" in str(outcome.exception)


def test_bar_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, seen in ((Terminal(), "org/model"), (io.StringIO(), "org/model (1.0 kB)\n")):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("org/model", 1000) as progress:
            progress.advance(1000)
        assert seen in stream.getvalue()
        assert ("1.0/1.0 kB" in stream.getvalue()) == stream.isatty()
