"""Files: find, fetch, open, check, read and write checkpoints of every layout. Does not know the engine.

Names are imported when first used: finding and fetching a model needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenkit.checkpoint.adapter import Adapter, read_adapter
    from qwenkit.checkpoint.checkpoint import open_checkpoint
    from qwenkit.checkpoint.checkpoint_base import Checkpoint
    from qwenkit.checkpoint.conversion import Conversion, plan_conversion
    from qwenkit.checkpoint.layout import to_v1
    from qwenkit.checkpoint.merged_checkpoint import MergedCheckpoint, plan_merge
    from qwenkit.checkpoint.safetensors_writer import PlannedTensor
    from qwenkit.checkpoint.sources.demo import DEMOS
    from qwenkit.checkpoint.sources.hub import pull
    from qwenkit.checkpoint.sources.locate import Located, locate
    from qwenkit.checkpoint.store import DerivedStore, cache_root
    from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
    from qwenkit.checkpoint.vocabulary_resize import resize_vocabulary
    from qwenkit.checkpoint.write import write_checkpoint

_HOMES = {
    "Adapter": "adapter",
    "read_adapter": "adapter",
    "open_checkpoint": "checkpoint",
    "Checkpoint": "checkpoint_base",
    "Conversion": "conversion",
    "plan_conversion": "conversion",
    "to_v1": "layout",
    "MergedCheckpoint": "merged_checkpoint",
    "plan_merge": "merged_checkpoint",
    "PlannedTensor": "safetensors_writer",
    "DEMOS": "sources.demo",
    "pull": "sources.hub",
    "Located": "sources.locate",
    "locate": "sources.locate",
    "DerivedStore": "store",
    "cache_root": "store",
    "TensorEntry": "tensor_source",
    "TensorSource": "tensor_source",
    "resize_vocabulary": "vocabulary_resize",
    "write_checkpoint": "write",
}

__all__ = [
    "DEMOS",
    "Adapter",
    "Checkpoint",
    "Conversion",
    "DerivedStore",
    "Located",
    "MergedCheckpoint",
    "PlannedTensor",
    "TensorEntry",
    "TensorSource",
    "cache_root",
    "locate",
    "open_checkpoint",
    "plan_conversion",
    "plan_merge",
    "pull",
    "read_adapter",
    "resize_vocabulary",
    "to_v1",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
