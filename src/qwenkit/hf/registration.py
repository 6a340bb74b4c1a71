"""Telling transformers' Auto classes of ours, in the one way that keeps remote code from running."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto import tokenization_auto

from qwenkit.hf.config import QWenConfig
from qwenkit.hf.model import QWenLMHeadModel
from qwenkit.hf.tokenizer import QWenTokenizer


def register() -> None:
    """Make `model_type` "qwen" and tokenizer class "QWenTokenizer" known; safe to call again.

    With trust_remote_code=True transformers runs the folder's own files unless it finds an *explicitly
    registered local class*. For configurations and models that is any registered class from outside
    transformers. For tokenizers it is one known by its class name but not by the configuration's type, so
    AutoTokenizer.register, which does both, would let the folder's files win: only the name is entered.
    What remains to the caller: a tokenizer_config.json whose auto_map names code but whose
    tokenizer_class is not "QWenTokenizer" (no released Qwen has one) is left to AutoTokenizer.
    """
    AutoConfig.register("qwen", QWenConfig, exist_ok=True)
    AutoModelForCausalLM.register(QWenConfig, QWenLMHeadModel, exist_ok=True)
    tokenization_auto.REGISTERED_TOKENIZER_CLASSES[QWenTokenizer.__name__] = QWenTokenizer
