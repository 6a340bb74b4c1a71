"""Choosing number formats through the facade."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwenkit.core import RequestError
from qwenkit.engine import Qwen
from qwenkit.kernels import native

INT4 = Path(__file__).parents[1] / "data" / "tiny_v1_int4"


@pytest.mark.skipif(not native.ready(), reason=native.explain())
def test_a_rounded_model_answers_and_says_what_it_holds(tiny_chat):
    model = Qwen.load(tiny_chat, weights="int4", progress=False)
    said = model.explain()
    assert "10 x PackedLinear int4 in groups of 128" in said
    assert "1 x PackedLinear int8 in groups of 128 (output)" in said
    reply, _ = model.chat("hi", temperature=0, max_tokens=3)
    assert isinstance(reply, str)


def test_quantized_checkpoints_are_not_rounded_again(tmp_path, vocabulary):
    folder = tmp_path / "Qwen-Int4"
    shutil.copytree(INT4, folder)
    shutil.copy(vocabulary, folder / "qwen.tiktoken")
    with pytest.raises(RequestError, match="GPTQ int4 g32; its weights cannot become int8"):
        Qwen.load(folder, weights="int8", progress=False)


def test_unknown_formats_are_refused_before_anything_is_looked_for():
    with pytest.raises(RequestError, match="Choose one of auto, exact, bf16, int8, int4"):
        Qwen.load("./nowhere", weights="int3")
