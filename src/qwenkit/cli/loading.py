"""How a command gets its model: the loader is injected, so that commands are tested without weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import typer

if TYPE_CHECKING:
    from qwenkit.checkpoint import Checkpoint
    from qwenkit.core import Completion, Delta, GenerationConfig, SamplingParams
    from qwenkit.model import ModelConfig
    from qwenkit.text import Tokenizer


class ChatModel(Protocol):
    """What the commands use of `qwenkit.Qwen`."""

    @property
    def name(self) -> str: ...
    @property
    def is_chat(self) -> bool: ...
    @property
    def notice(self) -> str | None: ...
    @property
    def generation(self) -> GenerationConfig: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def tokenizer(self) -> Tokenizer: ...

    def chat_stream(
        self,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        system: str | None = None,
        *,
        max_window_size: int | None = None,
        params: SamplingParams | None = None,
    ) -> Iterator[Delta]: ...

    def generate(
        self, prompt: str, params: SamplingParams | None = None, *, parse_special: bool = False
    ) -> Completion: ...

    def generate_stream(
        self, prompt: str, params: SamplingParams | None = None, *, parse_special: bool = False
    ) -> Iterator[Delta]: ...


Loader: TypeAlias = Callable[..., Any]
"""Brings a model or opens a checkpoint by name, path or None. Raises QwenkitError."""


def load_qwen(model: str | None, *, device: str, dtype: str, offline: bool, **engine: Any) -> ChatModel:
    """The real loader; torch is imported here and not before. engine: the rest of Qwen.load's arguments."""
    # All that comes now stays until the end: looking for garbage among it would take 0.4 s.
    gc.disable()
    try:
        from qwenkit.engine import Qwen

        return Qwen.load(model, device=device, dtype=dtype, offline=offline, progress=None, **engine)
    finally:
        gc.freeze()
        gc.enable()


def open_located(model: str | None, *, offline: bool) -> Checkpoint:
    """Find a checkpoint as `load_qwen` does, and read its headers only."""
    from qwenkit.checkpoint import locate, open_checkpoint

    found = locate(model, offline=offline)
    return open_checkpoint(found.path, content_hash=found.content_hash)


@dataclass
class State:
    """What one run of the command line shares: how models come, and whether tracebacks are shown.

    load: (model, *, device, dtype, offline, ...) -> ChatModel; open: (model, *, offline) -> Checkpoint.
    """

    load: Loader = field(default=load_qwen)
    open: Loader = field(default=open_located)
    debug: bool = False


def chosen_model(argument: str | None, option: str | None) -> str | None:
    """MODEL and --model mean the same; naming two different ones is a usage error (exit 2)."""
    if argument is not None and option is not None and argument != option:
        raise typer.BadParameter(f"MODEL is {argument!r} but --model is {option!r}; give one of them.")
    return option if argument is None else argument
