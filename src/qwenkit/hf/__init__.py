"""The transformers face of Qwen: config, model and tokenizer classes known to the Auto classes.

    import qwenkit.hf                      # registers; nothing else is needed
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, bf16=True).eval()
    response, history = model.chat(tokenizer, "你好", history=None)

Knows transformers (5.5 and newer); holds no second copy of the mathematics, which is qwenkit.model.
Python files lying beside the weights are never run, also when the caller passes trust_remote_code=True.
"""

from __future__ import annotations

try:
    import transformers
except ImportError as missing:
    raise ImportError(
        "qwenkit.hf needs the package transformers, which is not installed. Run: pip install 'qwenkit[hf]'"
    ) from missing

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 5):
    # Before 5.5 a folder's own Python files win over registered classes when remote code is trusted.
    raise ImportError(
        f"qwenkit.hf needs transformers 5.5 or newer; {transformers.__version__} is installed. "
        "Run: pip install -U 'qwenkit[hf]'"
    )

from qwenkit.hf.config import QWenConfig
from qwenkit.hf.model import QWenLMHeadModel
from qwenkit.hf.registration import register
from qwenkit.hf.stop_words import StopWordsCriteria
from qwenkit.hf.tokenizer import QWenTokenizer

register()

__all__ = ["QWenConfig", "QWenLMHeadModel", "QWenTokenizer", "StopWordsCriteria", "register"]
