"""Text and tokens: tokenizer, streaming decoder, stop strings, ChatML, ReAct. Imports no torch."""

from qwenkit.text import chatml, extend, infill, react
from qwenkit.text.detokenize import StreamDecoder
from qwenkit.text.stops import StopMatcher
from qwenkit.text.tokenizer import Tokenizer

__all__ = ["StopMatcher", "StreamDecoder", "Tokenizer", "chatml", "extend", "infill", "react"]
