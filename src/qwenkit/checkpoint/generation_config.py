"""Generation defaults that travel with the weights: generation_config.json and the chat template.

Where a file is silent the published values of the family apply (reference: chat section 7), and they are
all written down here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenkit.core import DEFAULT_SYSTEM, CheckpointError, GenerationConfig, RequestError, SamplingParams

END_OF_TEXT, IM_START, IM_END = 151643, 151644, 151645
"""Ids of <|endoftext|>, <|im_start|> and <|im_end|> in every published Qwen vocabulary."""

V1_CHAT: Mapping[str, Any] = {
    "chat_format": "chatml",
    "do_sample": True,
    "top_k": 0,
    "top_p": 0.8,
    "repetition_penalty": 1.1,
    "max_new_tokens": 512,
    "max_window_size": 6144,
}
"""What applies to a v1 checkpoint without generation_config.json: it is taken for a Chat model."""

QWEN2_CHAT: Mapping[str, Any] = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "max_new_tokens": 2048,
    "eos_token_id": [IM_END, END_OF_TEXT],
}
"""The same for a Qwen2-family chat model (values published with Qwen2.5-Instruct)."""

QWEN2_BASE: Mapping[str, Any] = {"do_sample": False, "max_new_tokens": 2048, "eos_token_id": END_OF_TEXT}
"""The same for a Qwen2-family base model."""

_TEMPLATE_SYSTEM = re.compile(
    r"""(?P<quote>['"])<\|im_start\|>system(?:\\n|\n)(?P<text>(?:(?!(?P=quote))[^\\]|\\.)*?)<\|im_end\|>""",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def v1_generation(
    raw: Mapping[str, Any] | None, vocab_size: int, file: Path, template: str | None = None
) -> GenerationConfig:
    """From the generation_config.json of a v1 checkpoint; `raw` None applies V1_CHAT.

    A Chat model stops at <|im_end|>, <|im_start|> and <|endoftext|>, a base model at <|endoftext|>.
    """
    values = V1_CHAT if raw is None else raw
    chat_format = values.get("chat_format", "chatml")
    if chat_format not in ("chatml", "raw"):
        raise CheckpointError(f"{file}: chat_format is {chat_format!r}.", "It must be 'chatml' or 'raw'.")
    chat = chat_format == "chatml"
    stops = (IM_END, IM_START, END_OF_TEXT) if chat else (END_OF_TEXT,)
    window = _window(values, V1_CHAT["max_window_size"] if chat else None, file)
    return GenerationConfig(
        # max_generate_size is the name of August 2023.
        sampling=_sampling(values, values.get("max_generate_size", 512), file),
        stop_token_ids=_stops(stops, values, vocab_size, file),
        chat_format="chatml" if chat else "raw",
        max_window_size=window,
        default_system=template_system(template),
    )


def qwen2_generation(
    raw: Mapping[str, Any] | None, *, chat: bool, template: str | None, vocab_size: int, file: Path
) -> GenerationConfig:
    """From generation_config.json and the chat template of a Qwen2 or GGUF checkpoint.

    `raw` None applies QWEN2_CHAT or QWEN2_BASE. The default system prompt is the one spelled out in the
    template.
    """
    values = (QWEN2_CHAT if chat else QWEN2_BASE) if raw is None else raw
    stops = (IM_END, END_OF_TEXT) if chat else (END_OF_TEXT,)
    return GenerationConfig(
        sampling=_sampling(values, 2048, file),
        stop_token_ids=_stops(stops, values, vocab_size, file),
        chat_format="chatml" if chat else "raw",
        max_window_size=_window(values, None, file),
        default_system=template_system(template),
    )


def guest_generation(forms: Sequence[str], end: int, template: str | None, file: Path) -> GenerationConfig:
    """For a GGUF file of another family: its own end token, and greedy, as nothing says how to sample.

    forms: the surface form of each token id; a model that ends at <|im_end|> is a chat model.
    """
    if not 0 <= end < len(forms):
        raise CheckpointError(
            f"{file}: eos_token_id is {end}, the vocabulary has {len(forms)} tokens.", "Download it again."
        )
    return GenerationConfig(
        sampling=_sampling({}, 2048, file),
        stop_token_ids=(end,),
        chat_format="chatml" if forms[end] == "<|im_end|>" else "raw",
        default_system=template_system(template),
    )


def template_system(template: str | None) -> str:
    """The system prompt that a Jinja chat template spells out for conversations without one.

    DEFAULT_SYSTEM where there is no template, or none in it: ChatML as trained always has a system turn.
    """
    found = _TEMPLATE_SYSTEM.search(template or "")
    if found is None:
        return DEFAULT_SYSTEM
    return re.sub(
        r"\\(.)", lambda escaped: _ESCAPES.get(escaped[1], escaped[1]), found["text"], flags=re.DOTALL
    )


def is_qwen2_chat(generation: Mapping[str, Any] | None, tokenizer: Mapping[str, Any] | None) -> bool:
    """True if the model ends its turns: Instruct models stop at <|im_end|>, base models at <|endoftext|>.

    A chat template proves nothing: base models of the family ship one too. A file that qwenkit wrote says it.
    """
    if generation is not None and generation.get("chat_format") in ("chatml", "raw"):
        return bool(generation["chat_format"] == "chatml")
    if generation is not None and "eos_token_id" in generation:
        eos = generation["eos_token_id"]
        return IM_END in (eos if isinstance(eos, list) else [eos])
    eos = (tokenizer or {}).get("eos_token")
    return (eos.get("content") if isinstance(eos, Mapping) else eos) == "<|im_end|>"


def generation_dict(generation: GenerationConfig) -> dict[str, Any]:
    """generation_config.json for a written checkpoint, read alike by qwenkit and by transformers."""
    sampling = generation.sampling
    stops = list(generation.stop_token_ids)
    written: dict[str, Any] = {
        "chat_format": generation.chat_format,
        "do_sample": sampling.temperature != 0,
        "max_new_tokens": sampling.max_tokens,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.temperature:  # transformers warns about these in a greedy config
        written |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        if sampling.min_p:
            written["min_p"] = sampling.min_p
    if generation.max_window_size is not None:
        written["max_window_size"] = generation.max_window_size
    if stops:
        written |= {"eos_token_id": stops, "pad_token_id": END_OF_TEXT if END_OF_TEXT in stops else stops[-1]}
    return written


def _sampling(values: Mapping[str, Any], max_tokens: Any, file: Path) -> SamplingParams:
    def value(key: str, default: float) -> Any:
        found = values.get(key)
        return default if found is None else found

    # In this file format an absent do_sample means greedy, and an absent top_k means 50.
    greedy = not value("do_sample", False)
    try:
        return SamplingParams(
            temperature=0.0 if greedy else value("temperature", 1.0),
            top_p=value("top_p", 1.0),
            top_k=value("top_k", 0 if greedy else 50),
            min_p=value("min_p", 0.0),
            repetition_penalty=value("repetition_penalty", 1.0),
            max_tokens=value("max_new_tokens", max_tokens),
        )
    except RequestError as error:
        raise CheckpointError(f"{file}: {error.problem}", error.remedy) from error


def _window(values: Mapping[str, Any], default: int | None, file: Path) -> int | None:
    window = values.get("max_window_size", default)
    if window is not None and (type(window) is not int or window < 1):
        raise CheckpointError(f"{file}: max_window_size is {window!r}.", "It must be a whole number above 0.")
    return window


def _stops(
    family: tuple[int, ...], values: Mapping[str, Any], vocab_size: int, file: Path
) -> tuple[int, ...]:
    """The family's own end tokens and those the file lists, without repeats and inside the vocabulary."""
    listed = values.get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise CheckpointError(
            f"{file}: eos_token_id is {listed!r}.", "It must be a token id or a list of them."
        )
    return tuple(dict.fromkeys(token for token in (*family, *ids) if token < vocab_size))
