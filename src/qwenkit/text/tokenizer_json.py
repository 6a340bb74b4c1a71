"""Reading and writing `tokenizer.json`, the format of the `tokenizers` library.

Covers byte-level BPE as the Qwen models have it, and refuses everything else: a file that is read at all
gives the same ids as with that library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenkit.core import DEFAULT_SYSTEM, TokenizerError
from qwenkit.text import chatml
from qwenkit.text.files import read_json, write_whole
from qwenkit.text.merges import Pair, prove_merges, reconstruct_merges
from qwenkit.text.pretokenize import Pretokenizer, pretokenizer_of_pattern
from qwenkit.text.tokenizer import Tokenizer
from qwenkit.text.vocabulary import from_letters, to_letters

_DAMAGED = "The file is damaged: download it again."
_FOREIGN = "Only byte-level BPE as in the Qwen models can be read; load this model with transformers."


def read_tokenizer_json(path: Path) -> Tokenizer:
    """As Tokenizer.from_tokenizer_json."""
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"{path}: has no model with a vocabulary.", _DAMAGED)
    _require(path, "model.type", model.get("type", "BPE"), "BPE")
    for key in ("ignore_merges", "byte_fallback", "dropout", "unk_token"):
        _require(path, f"model.{key}", model.get(key) or None, None)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        _require(path, f"model.{key}", model.get(key) or "", "")
    normalizer = content.get("normalizer") or {"type": None}
    if normalizer.get("type") not in (None, "NFC"):
        raise TokenizerError(f"{path}: normalizer {normalizer.get('type')!r} is not supported.", _FOREIGN)
    special_tokens, visible = read_added_tokens(path, content.get("added_tokens") or [])
    ranks = ranks_of_letters(path, model["vocab"], special_tokens)
    prove_merges(str(path), ranks, _pairs(path, model.get("merges") or []))
    return Tokenizer(
        ranks,
        special_tokens=special_tokens,
        visible=visible,
        pretokenizer=_read_pretokenizer(path, content.get("pre_tokenizer")),
        nfc=normalizer["type"] == "NFC",
        name=path.name,
    )


def ranks_of_letters(
    path: Path, vocab: Mapping[str, Any], special_tokens: Mapping[str, int]
) -> dict[bytes, int]:
    """Token bytes -> id from a vocabulary in the byte alphabet; entries that are special are left out."""
    ranks: dict[bytes, int] = {}
    for letters, i in vocab.items():
        if special_tokens.get(letters) == i:
            continue
        if not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise TokenizerError(f"{path}: token {letters!r} has id {i!r}, not a whole number.", _DAMAGED)
        ranks[from_letters(letters)] = i
    return ranks


def read_added_tokens(path: Path, entries: Any) -> tuple[dict[str, int], list[str]]:
    """(surface form -> id, the forms that are not hidden by skip_special) of `added_tokens` entries."""
    special_tokens: dict[str, int] = {}
    visible = []
    try:
        for entry in entries:
            form, i = entry["content"], entry["id"]
            if not isinstance(form, str) or not form or not isinstance(i, int) or i < 0:
                raise TypeError(f"added token {entry!r}")
            if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word"):
                raise TokenizerError(
                    f"{path}: added token {form!r} needs spaces or word borders, which is not supported.",
                    _FOREIGN,
                )
            special_tokens[form] = i
            if not entry.get("special"):
                visible.append(form)
    except (TypeError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{path}: added tokens are not as expected ({error}).", _DAMAGED) from error
    return special_tokens, visible


def _pairs(path: Path, merges: Any) -> Iterator[Pair]:
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge  # older files join the two by a space
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise TokenizerError(f"{path}: merge {number} is {merge!r}, not two tokens.", _DAMAGED)
        yield from_letters(pair[0]), from_letters(pair[1])


def _read_pretokenizer(path: Path, content: Any) -> Pretokenizer:
    steps = content.get("pretokenizers", []) if isinstance(content, dict) else []
    if not (
        len(steps) == 2
        and content.get("type") == "Sequence"
        and steps[0].get("type") == "Split"
        and steps[0].get("behavior") == "Isolated"
        and not steps[0].get("invert")
        and isinstance(steps[0].get("pattern", {}).get("Regex"), str)
        and steps[1].get("type") == "ByteLevel"
        and not steps[1].get("add_prefix_space")
        and steps[1].get("use_regex") is False
    ):
        raise TokenizerError(f"{path}: the pre_tokenizer is not a split followed by bytes.", _FOREIGN)
    return pretokenizer_of_pattern(steps[0]["pattern"]["Regex"])


def _require(path: Path, key: str, value: object, wanted: object) -> None:
    if value != wanted:
        raise TokenizerError(f"{path}: {key} is {value!r}; only {wanted!r} is supported.", _FOREIGN)


def write_tokenizer_json(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    chat_template: str | None,
    model_max_length: int | None,
    default_system: str | None,
    ends_turns: bool,
) -> list[Path]:
    """As Tokenizer.save_tokenizer_json."""
    added = [
        {
            "id": i,
            "content": form,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": form not in tokenizer.visible,
        }
        for form, i in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    ]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": tokenizer.pretokenizer.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if tokenizer.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_only]},
        "post_processor": bytes_only,
        "decoder": bytes_only,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": _vocab(tokenizer),
            "merges": [
                f"{to_letters(left)} {to_letters(right)}"
                for left, right in reconstruct_merges(tokenizer.ranks)
            ],
        },
    }
    if chat_template == "chatml":
        chat_template = chatml.jinja_template(DEFAULT_SYSTEM if default_system is None else default_system)
    end_of_text = "<|endoftext|>" if "<|endoftext|>" in tokenizer.special_tokens else None
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        # A chat model ends its turn, a base model its document.
        "eos_token": "<|im_end|>" if ends_turns else end_of_text,
        "errors": "replace",
        "pad_token": end_of_text,
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    if chat_template is not None:
        config["chat_template"] = chat_template
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    for path, value, indent in zip(files, (content, config), (None, 2), strict=True):
        write_whole(path, (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode())
    return files


def _vocab(tokenizer: Tokenizer) -> dict[str, int]:
    """Letters -> id of the regular tokens, and of the special ones where their ids need saying."""
    vocab = {to_letters(token): i for token, i in tokenizer.ranks.items()}
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    # `tokenizers` ignores the ids of added tokens that the vocabulary does not list, and counts them on
    # from its size.
    if [i for _, i in special] != list(range(len(vocab), len(vocab) + len(special))):
        for form, i in special:
            if vocab.setdefault(form, i) != i:
                raise TokenizerError(
                    f"{form!r} is both a special and a regular token.", "Give the special token another name."
                )
    return dict(sorted(vocab.items(), key=lambda item: item[1]))
