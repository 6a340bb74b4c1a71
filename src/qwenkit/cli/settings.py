"""The settings of an interactive chat: what :conf, :seed and :reset-conf change."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from qwenkit.core import GenerationConfig, RequestError, SamplingParams

WINDOW = "max_window_size"
_NOT_IN_CHAT = {"n", "logprobs", "grammar"}  # a conversation goes on from one answer and shows its text
KEYS = (*(f.name for f in fields(SamplingParams) if f.name not in _NOT_IN_CHAT), WINDOW)

# What users of the original type, and what it is called here.
_FORMER = {
    "max_new_tokens": "Here it is max_tokens.",
    "max_length": "Here it is max_tokens, which does not count the prompt.",
    "do_sample": "Here temperature=0 takes the likeliest token, anything above samples.",
    "chat_format": "It belongs to the checkpoint and cannot change in a conversation.",
    "stop_words_ids": "Here it is stop (texts) or stop_token_ids (numbers).",
    "eos_token_id": "Here it is stop_token_ids, beside the checkpoint's own.",
}
_ASSIGNMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")


@dataclass
class Settings:
    """`initial` is what the command line gave and :reset-conf restores; `changed` wins over it."""

    initial: SamplingParams = field(default_factory=SamplingParams)
    changed: dict[str, Any] = field(default_factory=dict)

    def params(self) -> SamplingParams:
        """The parameters of the next request."""
        values = {f.name: getattr(self.initial, f.name) for f in fields(SamplingParams)}
        values.update({key: value for key, value in self.changed.items() if key != WINDOW})
        return SamplingParams(**values)

    @property
    def max_window_size(self) -> int | None:
        """Tokens of history kept, or None for what the checkpoint says."""
        value: int | None = self.changed.get(WINDOW)
        return value

    def assign(self, text: str) -> list[str]:
        """Apply "key=value ...", all of it or, on any error, nothing; returns the keys set.

        Values are JSON (0.7, 20, "text", ["a", "b"], null to undo a change); a bare word is a string
        where the setting takes text. Nothing is evaluated. Raises RequestError.
        """
        values = _read_assignments(text)
        merged = {**self.changed, **values}
        trial = Settings(self.initial, {key: value for key, value in merged.items() if value is not None})
        trial.params()
        window = trial.max_window_size
        if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
            raise RequestError(f"{WINDOW}={window!r} is out of range.", "Give a whole number of tokens >= 1.")
        self.changed = trial.changed
        return list(values)

    def reset(self) -> None:
        """Forget every change since the start."""
        self.changed = {}

    def rows(self, generation: GenerationConfig) -> list[tuple[str, str, str]]:
        """(key, effective value, where it comes from) of every setting."""
        own = self.params()
        effective = own.with_defaults(generation.sampling)
        found = []
        for key in KEYS:
            if key == WINDOW:
                value = (
                    self.max_window_size if self.max_window_size is not None else generation.max_window_size
                )
                given = self.max_window_size is not None
            else:
                value = getattr(effective, key)
                given = getattr(own, key) not in (None, getattr(SamplingParams(), key))
            source = ":conf" if key in self.changed else "command line" if given else "checkpoint"
            if source == "checkpoint" and key != WINDOW and getattr(own, key) is not None:
                source = "default"
            found.append((key, _shown(value), source))
        return found


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    if isinstance(value, dict):
        return json.dumps({str(key): bias for key, bias in value.items()})
    return json.dumps(value)


def _read_assignments(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    at = 0
    while text[at:].strip():
        found = _ASSIGNMENT.match(text, at)
        if found is None:
            raise RequestError(
                f"{text[at:].strip()!r} is no setting.", "Write key=value, as in :conf top_p=0.8"
            )
        key = found[1]
        if key not in KEYS:
            raise RequestError(f"There is no setting {key!r}.", _advice(key))
        raw, at = _read_value(text, found.end())
        values[key] = _typed(key, raw)
    return values


def _read_value(text: str, at: int) -> tuple[Any, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError:
        pass
    else:
        if end == len(text) or text[end].isspace():
            return value, end
    word = text[at:].partition(" ")[0].strip()
    if not word:
        raise RequestError("A setting has no value.", "Write key=value; key=null undoes a change.")
    named = {"none": None, "true": True, "false": False}  # as Python spells what JSON has in lower case
    return named.get(word.lower(), word), at + len(word)


def _typed(key: str, value: Any) -> Any:
    if value is None:
        return None
    if key in ("stop", "stop_token_ids"):
        return tuple(value) if isinstance(value, list) else (value,)
    if key == "logit_bias":
        if not isinstance(value, dict) or not all(token.isdecimal() for token in value):
            raise RequestError(f"logit_bias={value!r}.", 'Write {"token id": bias}, as in {"198": -5}')
        return {int(token): bias for token, bias in value.items()}
    if key == "ignore_eos" and not isinstance(value, bool):
        raise RequestError(f"{key}={value!r}.", "Write true or false.")
    return value


def _advice(key: str) -> str:
    if key in _FORMER:
        return _FORMER[key]
    near = get_close_matches(key, KEYS, n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    return f"{meant}Settings: {', '.join(KEYS)}."
