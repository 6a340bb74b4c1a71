"""Is this file what it claims to be? Checks shared by every reader, each naming file and remedy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qwenkit.core import CheckpointError, UnsupportedError

DOWNLOAD_AGAIN = "The file is damaged or incomplete: download it again."

_LFS_MARK = b"version https://git-lfs.github.com/spec/"


def check_file(path: Path) -> int:
    """Size in bytes of a file that exists and is more than a git-lfs pointer. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file.", "Give a checkpoint folder or a .gguf file.")
        with path.open("rb") as file:
            start = file.read(len(_LFS_MARK))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist.", "Download the checkpoint again; this file is part of it."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    if start == _LFS_MARK:
        raise CheckpointError(
            f"{path} is a git-lfs pointer of {size} bytes, not the file itself.",
            "Run `git lfs install && git lfs pull` in that folder, or download it with `qwenkit pull`.",
        )
    return size


def check_finite(tensor: Tensor, name: str, file: Path, target: torch.dtype | None = None) -> None:
    """Raise CheckpointError if a float tensor holds NaN or infinity, or values that `target` cannot hold.

    One pass: aminmax propagates NaN, so the two ends tell about every element.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    low, high = (float(end) for end in torch.aminmax(tensor))
    if not (low > -torch.inf and high < torch.inf):  # also false for NaN
        raise CheckpointError(f"{file}: tensor {name!r} contains NaN or infinity.", DOWNLOAD_AGAIN)
    if target is not None and target != tensor.dtype and max(-low, high) > torch.finfo(target).max:
        words = str(target).removeprefix("torch.")
        limit = torch.finfo(target).max
        raise UnsupportedError(
            f"{file}: tensor {name!r} holds {max(-low, high):g}, more than {words} can ({limit:g}).",
            "Load with dtype bfloat16 or float32.",
        )
