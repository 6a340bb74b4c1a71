"""Write a .safetensors file tensor by tensor, holding one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.checkpoint.safetensors_file import DTYPES
from qwenkit.core import CheckpointError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64  # bytes; data that starts on a cache line can be used where it is mapped


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: what it will be, and how to get it when its turn comes.

    release: called once it is written; gives back the memory through which it was read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    release: Callable[[], None] = lambda: None

    @property
    def form(self) -> str:
        """How its values are stored, in words."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> PlannedTensor:
        """A tensor at hand."""
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def write_safetensors(
    path: Path, tensors: Sequence[PlannedTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write and sync a new file; a failure leaves none. CheckpointError for a tensor not as planned."""
    # Widest elements first: each tensor is aligned to its own width; padding is forbidden.
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for tensor in tensors:
        if tensor.name in header:
            raise CheckpointError(
                f"Tensor {tensor.name!r} would be written twice.", "Give each tensor one name."
            )
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                value = tensor.read().detach()
                if tuple(value.shape) != tensor.shape or value.dtype != tensor.dtype:
                    raise CheckpointError(
                        f"Tensor {tensor.name!r} is {value.dtype} {list(value.shape)}, "
                        f"not {tensor.dtype} {list(tensor.shape)} as announced.",
                        "Report this as a bug of qwenkit.",
                    )
                raw = value.cpu().contiguous().reshape(-1).view(torch.uint8)
                file.write(raw.numpy().data)
                del value, raw
                tensor.release()
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
