"""What came out: quantize_report.json in the folder, and the sentence that decides."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import qwenkit
from qwenkit.checkpoint.json_file import read_json_if_any

FILE = "quantize_report.json"


@dataclass(frozen=True)
class TextLoss:
    """A held-out text: its tokens that were predicted, and the sums of their -log p."""

    name: str
    tokens: int
    original: float
    quantized: float = math.nan

    @property
    def change(self) -> float:
        """Of the perplexity, as a share of the original's."""
        return math.expm1((self.quantized - self.original) / self.tokens)


@dataclass(frozen=True, kw_only=True)
class Report:
    """state: "unverified" until the written folder was loaded and measured, then "passed" or "failed".

    command: what was computed from what (see quantizing.quantize); layers: for each block the error of its
    linear layers, as a share of the square of their (corrected) weights' outputs; nbytes and
    seconds_per_token: of source and result, where they could be measured. mixture: with a budget, what each
    unit is worth and the bits it got.
    """

    state: Literal["unverified", "passed", "failed"] = "unverified"
    command: Mapping[str, Any]
    calibration: Mapping[str, Any]
    layers: Sequence[Mapping[str, float]]
    texts: Sequence[TextLoss]
    max_increase: float
    nbytes: Mapping[str, int]
    seconds_per_token: Mapping[str, float] = field(default_factory=dict)
    mixture: Mapping[str, Any] = field(default_factory=dict)
    version: str = qwenkit.__version__

    @property
    def increase(self) -> float:
        """Of the perplexity over all held-out tokens, in percent."""
        tokens = sum(text.tokens for text in self.texts)
        return 100 * math.expm1(sum(text.quantized - text.original for text in self.texts) / tokens)

    def judged(self, quantized: Sequence[float], seconds_per_token: Mapping[str, float]) -> Report:
        """With the losses of the written folder, one a text, and the state that follows."""
        texts = [replace(text, quantized=loss) for text, loss in zip(self.texts, quantized, strict=True)]
        found = replace(self, texts=texts, seconds_per_token=dict(seconds_per_token))
        # A loss that is no number fails every comparison.
        return replace(found, state="passed" if found.increase <= self.max_increase else "failed")

    def write(self, folder: Path) -> None:
        """Put it into the folder in place of an earlier one."""
        value = asdict(self)
        for text, words in zip(self.texts, value["texts"], strict=True):
            measured = not math.isnan(text.quantized)
            words["quantized"] = text.quantized if measured else None
            words["perplexity"] = {
                "original": math.exp(text.original / text.tokens),
                "quantized": math.exp(text.quantized / text.tokens) if measured else None,
            }
        value["increase"] = None if self.state == "unverified" else self.increase
        fresh = folder / f".{FILE}.{secrets.token_hex(4)}.tmp"
        fresh.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Report | None:
        """Of a folder written earlier; None where there is none, or not one of this version."""
        value = read_json_if_any(folder / FILE)
        if value is None or value.get("version") != qwenkit.__version__:
            return None
        texts = [
            TextLoss(
                text["name"],
                text["tokens"],
                text["original"],
                math.nan if text["quantized"] is None else text["quantized"],
            )
            for text in value["texts"]
        ]
        value.pop("increase")
        return cls(**{**value, "texts": texts})
