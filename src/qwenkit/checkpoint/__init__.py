"""Files: find, fetch, open, check, read and write checkpoints of every layout. Does not know the engine."""

from qwenkit.checkpoint.checkpoint import open_checkpoint
from qwenkit.checkpoint.checkpoint_base import Checkpoint
from qwenkit.checkpoint.demo import DEMOS
from qwenkit.checkpoint.hub import pull
from qwenkit.checkpoint.layout import to_v1
from qwenkit.checkpoint.locate import Located, locate
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.checkpoint.store import DerivedStore, cache_root
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.checkpoint.vocabulary_resize import resize_vocabulary
from qwenkit.checkpoint.write import write_checkpoint

__all__ = [
    "DEMOS",
    "Checkpoint",
    "DerivedStore",
    "Located",
    "PlannedTensor",
    "TensorEntry",
    "TensorSource",
    "cache_root",
    "locate",
    "open_checkpoint",
    "pull",
    "resize_vocabulary",
    "to_v1",
    "write_checkpoint",
]
