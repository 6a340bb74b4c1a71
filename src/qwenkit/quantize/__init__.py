"""Quantizing a checkpoint: GPTQ or rounding to nearest, calibrated, resumable, and measured at the end."""

from qwenkit.quantize.budget import Budget
from qwenkit.quantize.quantizing import quantize
from qwenkit.quantize.report import Report
from qwenkit.quantize.requantized import settings_like
from qwenkit.quantize.settings import Settings
from qwenkit.quantize.watch import Watch

__all__ = ["Budget", "Report", "Settings", "Watch", "quantize", "settings_like"]
