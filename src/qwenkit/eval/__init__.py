"""Measuring models on text: perplexity, and how two checkpoints differ. Works through the `Qwen` facade."""

from qwenkit.eval.compare import Comparison, compare
from qwenkit.eval.perplexity import Perplexity, perplexity
from qwenkit.eval.windows import Window, read_windows

__all__ = ["Comparison", "Perplexity", "Window", "compare", "perplexity", "read_windows"]
