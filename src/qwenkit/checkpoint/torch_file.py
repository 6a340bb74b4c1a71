"""One pytorch_model*.bin file: tensors only, mapped; a pickle that would run code is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.checkpoint.safetensors_file import DTYPES
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.checkpoint.verify import DOWNLOAD_AGAIN, check_file, check_finite
from qwenkit.core import CheckpointError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TorchFile(TensorSource):
    """Raises CheckpointError if the file is missing, corrupt, not all tensors, or wants to run code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _load(path)
        self._entries = {
            name: TensorEntry(
                name,
                tuple(tensor.shape),
                _NAMES.get(tensor.dtype, str(tensor.dtype)),
                tensor.numel() * tensor.element_size(),
                path,
            )
            for name, tensor in self._tensors.items()
        }

    def entries(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        self.entry(name)
        tensor = self._tensors[name]
        check_finite(tensor, name, self.path, dtype)
        return tensor if dtype is None else tensor.to(dtype)


def _load(path: Path) -> dict[str, Tensor]:
    check_file(path)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # torch >= 1.6; older pickles cannot be mapped
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain file of tensors: loading it could run code, so it was refused.",
            "Use the safetensors version of this checkpoint, or convert the file on a machine you can lose.",
        ) from error
    except (
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise CheckpointError(f"{path} cannot be read by torch.load: {error}.", DOWNLOAD_AGAIN) from error
    if not isinstance(held, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in held.items()
    ):
        raise CheckpointError(
            f"{path} does not hold tensors by name.", "Only state dicts saved by save_pretrained are read."
        )
    return {name: tensor.detach() for name, tensor in held.items()}
