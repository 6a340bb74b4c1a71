"""The derived cache and file stamps, with real processes that race and die."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.checkpoint import DerivedStore, cache_root, stamps, store
from qwenkit.checkpoint.progress import gigabytes
from qwenkit.core import CheckpointError, DownloadError

pytest_plugins = ["isolation"]

# Forked, not spawned: the child is a real process that can be killed, without importing everything anew.
_PROCESSES = multiprocessing.get_context("fork")


def _work(tally: Path, pause: float, answers: Any) -> None:
    def make(path: Path) -> None:
        with tally.open("a") as made:
            made.write("made\n")
        with path.open("wb") as out:
            for _ in range(20):
                out.write(b"x" * 50_000)
                out.flush()
                time.sleep(pause)

    answers.put(DerivedStore().get_or_make("entry", make).stat().st_size)


def start(tally: Path, pause: float) -> tuple[Any, Any]:
    """A process that makes the entry, and the queue on which it answers the size it found."""
    answers = _PROCESSES.SimpleQueue()
    process = _PROCESSES.Process(target=_work, args=(tally, pause, answers))
    process.start()
    return process, answers


def _make_entry(key: str, size: int) -> None:
    DerivedStore().get_or_make(key, lambda path: path.write_bytes(b"x" * size) and None)


def test_what_was_not_used_for_longest_makes_room(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_CACHE_LIMIT", "0.000003")
    root = DerivedStore().root
    for age, key in enumerate(("old", "older", "oldest")):
        _make_entry(key, 900)
        os.utime(root / key, (1000 - age, 1000 - age))
    _make_entry("oldest", 900)  # used now
    _make_entry("new", 900)
    assert {p.name for p in root.iterdir()} == {"old", "oldest", "new"}
    (root / ".being-written.tmp").write_bytes(b"x" * 5000)
    _make_entry("large", 9000)  # alone above the limit: it is kept until the next
    assert {p.name for p in root.iterdir()} == {"large", ".being-written.tmp"}
    _make_entry("small", 10)
    assert {p.name for p in root.iterdir()} == {"small", ".being-written.tmp"}


@pytest.mark.parametrize("value", ["much", "-1", "nan"])
def test_a_limit_must_be_a_number(alone: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("QWENKIT_CACHE_LIMIT", value)
    with pytest.raises(CheckpointError, match="QWENKIT_CACHE_LIMIT"):
        DerivedStore()


def test_made_once_and_found_again(alone: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("result")

    derived = DerivedStore()
    first = derived.get_or_make("key-1", make)
    assert derived.get_or_make("key-1", make) == first == alone / "cache" / "derived" / "key-1"
    assert first.read_text() == "result"
    assert len(made) == 1


def test_folder_as_entry(alone: Path) -> None:
    def make(path: Path) -> None:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text("result")

    assert (DerivedStore().get_or_make("folder", make) / "inner" / "file").read_text() == "result"


def test_failure_leaves_nothing(alone: Path) -> None:
    def make(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("the computation failed")

    derived = DerivedStore()
    with pytest.raises(RuntimeError, match="computation"):
        derived.get_or_make("key", make)
    assert list(derived.root.iterdir()) == []
    with pytest.raises(CheckpointError, match="Nothing was computed"):
        derived.get_or_make("key", lambda path: None)


@pytest.mark.parametrize("key", ["", "../key", "a/b", ".hidden", "k" * 201, "a b"])
def test_key_is_a_plain_name(alone: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be a key"):
        DerivedStore().get_or_make(key, lambda path: None)


def test_processes_at_once_compute_once(alone: Path) -> None:
    workers = [start(alone / "tally", 0.01) for _ in range(4)]
    assert [answers.get() for _, answers in workers] == [1_000_000] * 4
    for worker, _ in workers:
        worker.join()
    assert (alone / "tally").read_text() == "made\n"


def test_killed_process_leaves_no_half_entry_and_no_lock(alone: Path) -> None:
    derived = DerivedStore()
    doomed, _ = start(alone / "tally", 60)
    while not (derived.root.exists() and any(derived.root.glob(".entry.*.tmp"))):
        assert doomed.is_alive()
        time.sleep(0.01)
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join()
    assert not (derived.root / "entry").exists()
    assert len(list(derived.root.glob(".entry.*.tmp"))) == 1
    next_one, answers = start(alone / "tally", 0)
    assert answers.get() == 1_000_000
    next_one.join()
    assert [p.name for p in derived.root.iterdir()] == ["entry"]


def test_full_disk(alone: Path) -> None:
    def make(path: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as out:
            out.write(b"x")

    with pytest.raises(CheckpointError, match=r"No room while keeping .*key.*QWENKIT_CACHE"):
        DerivedStore().get_or_make("key", make)
    assert not any(DerivedStore().root.glob("*key*"))


def test_folder_that_cannot_be_made(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "file").write_text("")
    monkeypatch.setenv("QWENKIT_CACHE", str(alone / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"Cannot write.*writable.*QWENKIT_CACHE"):
        DerivedStore().get_or_make("key", lambda path: None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(alone: Path) -> None:
    root = cache_root()
    root.mkdir()
    root.chmod(0o500)
    with pytest.raises(CheckpointError, match=r"Cannot write.*writable.*QWENKIT_CACHE"):
        DerivedStore().get_or_make("key", lambda path: None)


def test_errors_about_other_files_pass_unchanged(alone: Path) -> None:
    def make(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(alone / "source" / "weights"))

    with pytest.raises(PermissionError):
        DerivedStore().get_or_make("key", make)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENKIT_CACHE", "~/here")
    assert cache_root() == Path.home() / "here"
    monkeypatch.delenv("QWENKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/qwenkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "qwenkit"


def test_space_is_asked_before_starting(alone: Path) -> None:
    with pytest.raises(DownloadError, match=r"The model needs 1000000000000\.00 GB in .*only .* free"):
        store.require_space(alone / "not" / "yet", 10**21, "The model")
    store.require_space(alone / "not" / "yet", 1, "The model")


def test_hash_is_read_once(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = alone / "weights"
    file.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert stamps.content_hash(file) == expected
    monkeypatch.setattr(stamps, "hash_file", lambda path: pytest.fail("hashed again"))
    assert stamps.content_hash(file) == expected
    assert stamps.is_intact(file, expected, 7)
    assert not stamps.is_intact(file, expected, 8)


def test_changed_file_is_hashed_again(alone: Path) -> None:
    file = alone / "weights"
    file.write_bytes(b"weights")
    stamps.content_hash(file)
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(1, 1))
    assert stamps.content_hash(file) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_damaged_stamp_is_ignored(alone: Path) -> None:
    file = alone / "weights"
    file.write_bytes(b"weights")
    stamps.content_hash(file)
    for text in ("", "[]", "null", '{"sha256": 1}'):
        for note in (cache_root() / "verified").iterdir():
            note.write_text(text)
        assert stamps.content_hash(file) == hashlib.sha256(b"weights").hexdigest()


@given(st.integers(0, 10**15))
def test_sizes_for_people_are_within_a_unit_in_the_last_place(count: int) -> None:
    number, unit = gigabytes(count).split()
    scale = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[unit]
    assert abs(float(number) * scale - count) <= 0.051 * scale
