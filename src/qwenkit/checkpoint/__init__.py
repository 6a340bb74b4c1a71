"""Files: find, fetch, open, check, read and write checkpoints of every layout. Does not know the engine."""

from qwenkit.checkpoint.checkpoint import open_checkpoint
from qwenkit.checkpoint.checkpoint_base import Checkpoint
from qwenkit.checkpoint.demo import DEMOS
from qwenkit.checkpoint.hub import pull
from qwenkit.checkpoint.locate import Located, locate
from qwenkit.checkpoint.store import DerivedStore, cache_root
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource

__all__ = [
    "DEMOS",
    "Checkpoint",
    "DerivedStore",
    "Located",
    "TensorEntry",
    "TensorSource",
    "cache_root",
    "locate",
    "open_checkpoint",
    "pull",
]
