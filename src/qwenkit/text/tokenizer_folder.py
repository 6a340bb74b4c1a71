"""Which tokenizer files a checkpoint folder has, and what they mean together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qwenkit.core import TokenizerError
from qwenkit.text.files import read_json, read_text
from qwenkit.text.gguf_vocabulary import split_merges
from qwenkit.text.merges import prove_merges
from qwenkit.text.tokenizer import Tokenizer
from qwenkit.text.tokenizer_json import ranks_of_letters, read_added_tokens, read_tokenizer_json

RANK_FILE = "qwen.tiktoken"
EXTRA_RANK_FILE = "qwen_extra.tiktoken"
"""Tokens added to the vocabulary; read beside `qwen.tiktoken` when a folder has it."""


def read_folder(folder: Path) -> Tokenizer:
    """As Tokenizer.from_folder. Special tokens come from tokenizer_config.json where it lists them."""
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    if (folder / RANK_FILE).exists():
        extra = folder / EXTRA_RANK_FILE
        special_tokens, visible = _listed_specials(config_path, config)
        tokenizer = Tokenizer.from_tiktoken(
            folder / RANK_FILE,
            extra_vocab=extra if extra.exists() else None,
            special_tokens=special_tokens or None,
        )
        return tokenizer.with_visible(visible) if visible else tokenizer
    if (folder / "tokenizer.json").exists():
        return read_tokenizer_json(folder / "tokenizer.json")
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        special_tokens, visible = _listed_specials(config_path, config)
        return read_vocab_merges(folder / "vocab.json", folder / "merges.txt", special_tokens, visible)
    raise TokenizerError(
        f"{folder} has no tokenizer: neither {RANK_FILE} nor tokenizer.json nor vocab.json with merges.txt.",
        "Copy these files from the model the checkpoint was made from.",
    )


def read_vocab_merges(
    vocab: Path, merges: Path, special_tokens: Mapping[str, int], visible: Collection[str] = ()
) -> Tokenizer:
    """As Tokenizer.from_vocab_merges."""
    ranks = ranks_of_letters(vocab, read_json(vocab), special_tokens)
    lines = read_text(merges).split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    prove_merges(str(merges), ranks, split_merges(str(merges), [line for line in lines if line.strip()]))
    return Tokenizer(ranks, special_tokens=special_tokens, visible=visible, name=vocab.name)


def _listed_specials(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    listed = config.get("added_tokens_decoder") or {}
    try:
        entries = [{"id": int(i), **entry} for i, entry in listed.items()]
    except (TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(
            f"{path}: added_tokens_decoder is not as expected ({error}).", "Download the file again."
        ) from error
    return read_added_tokens(path, entries)
