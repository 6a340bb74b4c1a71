"""The mathematics of Qwen: no files, no devices, no quantization, no parallelism."""

from qwenkit.model.batch import Batch, TokenBatch
from qwenkit.model.cache import DenseCache, KVCache, OriginalInt8Cache
from qwenkit.model.config import SIZES, ModelConfig
from qwenkit.model.model import Block, CausalLM, Transformer, causal_loss, output_logits
from qwenkit.model.rope import ntk_alpha

__all__ = [
    "SIZES",
    "Batch",
    "Block",
    "CausalLM",
    "DenseCache",
    "KVCache",
    "ModelConfig",
    "OriginalInt8Cache",
    "TokenBatch",
    "Transformer",
    "causal_loss",
    "ntk_alpha",
    "output_logits",
]
