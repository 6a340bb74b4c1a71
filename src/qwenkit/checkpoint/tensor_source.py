"""What every weight file offers: a list of its tensors, and verified tensors by name.

Knows nothing of layouts, models or configurations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.core import CheckpointError
from qwenkit.quant import Codes


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor as its header describes it; `dtype` in the file's own words (BF16, I32, Q4_K)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path


class TensorSource(ABC):
    """Tensors by name, read one at a time.

    Contract: `entries` costs no more than reading headers. `read` returns a CPU tensor that has been
    checked for NaN and infinity; it may be a view of the mapped file and must not be written to.
    """

    @abstractmethod
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor, by its stored name. Raises CheckpointError for a corrupt file."""

    @abstractmethod
    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, cast to `dtype` if given; mapped, not copied, when the stored dtype is the wanted one.

        Raises CheckpointError for an unknown name or values that are not finite.
        """

    def read_codes(self, name: str) -> Codes | None:
        """The weight [out, in] as the integer codes it is stored in, None for one stored as floats."""
        return None

    def release(self, name: str) -> None:  # noqa: B027 - nothing to give back unless the file is mapped
        """Give back the memory through which `name` was read. No tensor read from it may be in use."""

    def entry(self, name: str) -> TensorEntry:
        """The header of one tensor. Raises CheckpointError when there is none."""
        found = self.entries().get(name)
        if found is None:
            raise CheckpointError(
                f"The checkpoint has no tensor {name!r}.", "Download the checkpoint's weight files again."
            )
        return found
