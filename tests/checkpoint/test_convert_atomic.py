"""What a conversion leaves when it is killed, interrupted or out of disk: the old state, or all of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conversions import chat_folder, convert, stored
from safetensors.torch import save_file
from small_checkpoints import DATA

from qwenkit.checkpoint import open_checkpoint, plan_conversion
from qwenkit.checkpoint.output import appearing
from qwenkit.checkpoint.store import remove
from qwenkit.core import CheckpointError

_CONVERTER = """
import os, sys
from pathlib import Path
from qwenkit.checkpoint import open_checkpoint, plan_conversion
import torch, gguf, gguf.quants  # now, so that each conversion is over in a moment
source, to, out = sys.argv[1:]
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            plan_conversion(open_checkpoint(Path(source)), to).write(Path(out))
        finally:
            os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("to", ["qwen2", "gguf"])
def test_killed_at_any_moment_it_leaves_nothing_or_all(tmp_path, to):
    source = chat_folder(tmp_path / "source", num_layers=4, hidden_size=128, ffn_size=256, head_dim=32,
                         rotary_dim=32)  # fmt: skip
    ending = ".gguf" if to == "gguf" else ""
    out, whole = tmp_path / "outputs" / f"m{ending}", tmp_path / f"whole{ending}"
    started = time.perf_counter()
    convert(source, to, whole)
    took = time.perf_counter() - started
    ended, left_over = [], 0
    with subprocess.Popen(
        [sys.executable, "-c", _CONVERTER, str(source), to, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as converter:  # fmt: skip
        assert converter.stdin is not None
        assert converter.stdout is not None
        for n in range(30):
            converter.stdin.write("again\n")
            child = int(converter.stdout.readline())
            if n < 29:  # the last one may finish
                time.sleep(2 * took * n / 29)
                with contextlib.suppress(ProcessLookupError):  # it was quicker
                    os.kill(child, signal.SIGKILL)
            ended.append(int(converter.stdout.readline()))
            found = sorted(out.parent.iterdir()) if out.parent.exists() else []
            assert {path for path in found if not path.name.startswith(".")} <= {out}
            assert len(found) <= 1  # each run removes what the last one left
            if out.exists():
                assert content(out) == content(whole)
                remove(out)
            left_over += len(found) - (out in found)
        converter.stdin.close()
    assert {0, -signal.SIGKILL} <= set(ended)
    assert left_over
    convert(source, to, out)
    assert list(out.parent.iterdir()) == [out]


def content(path: Path) -> list[bytes]:
    """Of a file, or of every file of a folder in order of their names."""
    return [file.read_bytes() for file in ([path] if path.is_file() else sorted(path.iterdir()))]


def test_an_interrupt_leaves_nothing(tmp_path):
    source = chat_folder(tmp_path / "source", num_layers=6, hidden_size=256, ffn_size=512, head_dim=64,
                         rotary_dim=64)  # fmt: skip
    conversion = plan_conversion(open_checkpoint(source), "qwen2")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    conversion.meter.advance = stop
    with pytest.raises(KeyboardInterrupt):
        conversion.write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("to", ["v1", "gguf"])
def test_a_disk_that_fills_up(tmp_path, to):
    source = chat_folder(tmp_path / "source")
    conversion = plan_conversion(open_checkpoint(source), to)
    conversion.meter.advance = full
    out = tmp_path / ("m.gguf" if to == "gguf" else "m")
    with pytest.raises(
        CheckpointError, match=r"No room while writing .*No space left.* free.*another folder"
    ):
        conversion.write(out)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_too_little_room_is_known_before_anything_is_written(tmp_path, monkeypatch):
    source = chat_folder(tmp_path / "source")
    conversion = plan_conversion(open_checkpoint(source), "v1")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match=r"m needs \d+\.\d kB in .*only 1\.0 kB are free"):
        conversion.write(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_existing_outputs_are_never_written_over(tmp_path):
    source = chat_folder(tmp_path / "source")
    convert(source, "v1", tmp_path / "m")
    convert(source, "gguf", tmp_path / "m.gguf")
    before = (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert(source, "qwen2", tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"m\.gguf exists"):
        convert(source, "gguf", tmp_path / "m.gguf", form="q8_0")
    assert (tmp_path / "m.gguf").read_bytes() == before
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert(source, "v1", source)
    (tmp_path / "link.gguf").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"link\.gguf exists"):
        convert(source, "gguf", tmp_path / "link.gguf")
    (tmp_path / "empty").mkdir()
    convert(source, "v1", tmp_path / "empty")
    assert stored(tmp_path / "empty")


def overtaken(place: Path, dead: Path) -> None:
    """Write to `place` while another writer does, and finishes first."""
    with appearing(place, folder=True) as first:
        assert not dead.exists()
        with appearing(place, folder=True) as second:
            assert first.exists()
            (second / "a").write_text("second")


def test_a_living_writer_is_left_alone_and_a_dead_one_swept(tmp_path):
    place = tmp_path / "m"
    dead = tmp_path / ".m.0123.tmp"
    dead.mkdir()
    (dead / "half").write_text("x")
    other = tmp_path / ".mm.0123.tmp"
    other.mkdir()
    with pytest.raises(CheckpointError, match="not an empty folder"):
        overtaken(place, dead)
    assert (place / "a").read_text() == "second"
    assert other.exists()
    assert sorted(tmp_path.iterdir()) == sorted([place, other])


def test_nothing_is_read_from_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        convert(tmp_path, "v1", tmp_path / "out")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        convert(text, "v1", tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(DATA / "tiny_v1", broken)
    (broken / "golden.safetensors").unlink()
    tensors = stored(broken)
    tensors["lm_head.weight"][5, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight' contains NaN"):
        convert(broken, "qwen2", tmp_path / "out")
    assert not (tmp_path / "out").exists()
