"""Files: find, fetch, open, check, read and write checkpoints of every layout. Does not know the engine."""

from qwenkit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource

__all__ = [
    "Checkpoint",
    "TensorEntry",
    "TensorSource",
    "open_checkpoint",
]
