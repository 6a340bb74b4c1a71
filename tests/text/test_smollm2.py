"""A vocabulary that is not Qwen's, from its own file, against the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from qwenkit.checkpoint.gguf_header import GGUFHeader
from qwenkit.core import TokenizerError
from qwenkit.text import Tokenizer

pytestmark = pytest.mark.model

SAMPLES = [
    "", " ", "a", "it's  THEY'LL we'Ve", "1234 5.6e7  89", "  12\n\n 3", "x   1\t\ty \n\n  z  ",
    "def f(a):\n\treturn a", "café naïve — “quotes”", "你好，世界", "Привет",
    "\u00a0 2. \u00a0x", "🙂 ok", "e\u0301",
]  # fmt: skip


@pytest.fixture(scope="module")
def header(smollm2: Path) -> GGUFHeader:
    return GGUFHeader(smollm2)


@pytest.fixture(scope="module")
def ours(header: GGUFHeader) -> Tokenizer:
    kinds = header.get("tokenizer.ggml.token_type")
    assert isinstance(kinds, list)
    fields = [header.strings(f"tokenizer.ggml.{name}") for name in ("tokens", "merges")]
    return Tokenizer.from_gguf(fields[0], kinds, fields[1], header.text("tokenizer.ggml.pre"))


@pytest.fixture(scope="module")
def theirs(header: GGUFHeader) -> tokenizers.Tokenizer:
    """Put together as the model's publishers did: digits apart, then GPT-2's own way."""
    vocabulary = {token: i for i, token in enumerate(header.strings("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in header.strings("tokenizer.ggml.merges")]
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    steps = tokenizers.pre_tokenizers
    built.pre_tokenizer = steps.Sequence([steps.Digits(True), steps.ByteLevel(add_prefix_space=False)])
    return built


def test_ids_are_those_of_the_library(ours, theirs, debian_reference):
    for text in [*SAMPLES, debian_reference]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text


def test_special_tokens_stand_before_all_others(ours):
    assert (ours.end_of_text_id, ours.im_start_id, ours.im_end_id) == (0, 1, 2)
    assert len(ours.special_tokens) == 17
    assert min(ours.ranks.values()) == 17
    assert len(ours) == 49152
    assert ours.encode("<|im_end|>\n", allow_special=True)[0] == 2
    assert 2 not in ours.encode("<|im_end|>")


def test_a_byte_without_a_token_is_named(ours):
    with pytest.raises(TokenizerError, match=r"byte b'\\x04'"):
        ours.encode("a\x04")
