"""The file of packed weights: what went in comes out, and what was touched is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwenkit.checkpoint import packed_file
from qwenkit.checkpoint.packed_file import PackedFile, PackedWriter
from qwenkit.core import CheckpointError
from qwenkit.kernels import native

pytestmark = pytest.mark.skipif(not native.built(), reason=native.explain())

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "embedding": torch.randn(50, 33, generator=GENERATOR).bfloat16(),
    "packed": torch.randint(0, 256, (5_000_001,), generator=GENERATOR, dtype=torch.uint8),
    "gather": torch.arange(77, dtype=torch.int32),
    "empty": torch.empty(0, 3),
    "bias": torch.randn(3, generator=GENERATOR),
}


def write(path: Path) -> Path:
    with PackedWriter(path) as file:
        for name, tensor in TENSORS.items():
            file.add(name, tensor, mapped=name == "embedding")
        file.finish({"key": "a"})
    return path


@pytest.mark.parametrize("huge", [0, 1 << 30])
def test_tensors_come_back_mapped_or_copied(tmp_path, monkeypatch, huge):
    answers = iter([0, huge])
    monkeypatch.setattr(packed_file, "_file_bytes_on_huge_pages", lambda: next(answers))
    file = PackedFile(write(tmp_path / "file"))
    assert file.about == {"key": "a"}
    found = file.read()
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
        assert found[name].data_ptr() % 64 == 0 or not tensor.numel()


def test_any_changed_byte_is_noticed(tmp_path):
    path = write(tmp_path / "file")
    whole = path.read_bytes()
    for at in (
        3,
        20,
        64,
        700,
        5_000_000,
        len(whole) - 9_000,
        len(whole) - 100,
        len(whole) - 20,
        len(whole) - 1,
    ):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            PackedFile(path).read()


@pytest.mark.parametrize("size", [0, 1, 15, 16, 40, 4_000_000, -1, -16, -2000])
def test_a_file_that_ends_early_is_noticed(tmp_path, size):
    path = write(tmp_path / "file")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="truncated"):
        PackedFile(path)


def test_a_failure_while_writing_leaves_no_file(tmp_path):
    path = tmp_path / "file"

    def break_off() -> None:
        with PackedWriter(path) as file:
            file.add("bias", TENSORS["bias"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_off()
    assert not path.exists()
