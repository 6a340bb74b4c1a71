"""Is this file what it claims to be? Checks shared by every reader, each naming file and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.core import CheckpointError, UnsupportedError

DOWNLOAD_AGAIN = "The file is damaged or incomplete: download it again."

_PIECE = 2**18  # elements
_INTEGERS: Mapping[torch.dtype, torch.dtype] = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
}

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
    """Raise CheckpointError for NaN or infinity in a float tensor, UnsupportedError if `target` overflows.

    Costs about one reading of the memory.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    low, high = _ends(tensor)
    if not (low > -torch.inf and high < torch.inf):  # also false for NaN
        raise CheckpointError(f"{file}: tensor {name!r} contains NaN or infinity.", DOWNLOAD_AGAIN)
    if target is not None and target != tensor.dtype and max(-low, high) > torch.finfo(target).max:
        words = str(target).removeprefix("torch.")
        limit = torch.finfo(target).max
        raise UnsupportedError(
            f"{file}: tensor {name!r} holds {max(-low, high):g}, more than {words} can ({limit:g}).",
            "Load with dtype bfloat16 or float32.",
        )


def _ends(tensor: Tensor) -> tuple[float, float]:
    """The lowest and highest value, or 0 where all are of the other sign; NaN or infinite if any element is.

    Floats of one sign are ordered like their bits, with infinity and NaN above all numbers. The largest
    bits read as signed integers are therefore the positive end, read as unsigned ones the negative end:
    two integer maxima, over pieces that stay in the cache, which is several times faster than comparing
    floats and needs no thread pool that others may occupy.
    """
    width = _INTEGERS.get(tensor.dtype)
    if width is None or not tensor.is_contiguous():
        ends = torch.aminmax(tensor)
        return float(ends.min), float(ends.max)
    signed = tensor.view(-1).view(width).numpy()
    unsigned = signed.view(f"u{signed.dtype.itemsize}")
    starts = range(0, signed.size, _PIECE)

    def largest(start: int) -> tuple[int, int]:
        piece = slice(start, start + _PIECE)
        return int(signed[piece].max()), int(unsigned[piece].max())

    if len(starts) > 4:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            found = list(threads.map(largest, starts))
    else:
        found = [largest(start) for start in starts]
    positive = max(0, max(ends[0] for ends in found))
    negative = max(ends[1] for ends in found)
    sign = 1 << (8 * signed.dtype.itemsize - 1)
    low = _from_bits(negative - 2 * sign, width, tensor.dtype) if negative >= sign else 0.0
    return low, _from_bits(positive, width, tensor.dtype)


def _from_bits(bits: int, width: torch.dtype, dtype: torch.dtype) -> float:
    return float(torch.tensor(bits, dtype=width).view(dtype))
