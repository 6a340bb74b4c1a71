"""model.chat and model.chat_stream of the original (reference: chat sections 5 and 6).

Knows prompts and replies; the template and the window are qwenkit.text's, the sampling transformers'.
What the original did wrong and this does not is listed with each method.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import GenerationConfig

from qwenkit.core import DEFAULT_SYSTEM, History, RequestError, UnsupportedError
from qwenkit.hf.stop_words import check_stop_words
from qwenkit.hf.streaming import stream_tokens
from qwenkit.text import StreamDecoder, Tokenizer
from qwenkit.text.chatml import make_context

_log = logging.getLogger(__name__)

_DEFAULT_WINDOW = 6144  # of the original's make_context, for configs that name none


class _Generates(Protocol):
    """What a conversation needs of a model."""

    config: Any
    generation_config: Any

    @property
    def device(self) -> torch.device: ...

    def generate(self, inputs: Tensor, **kwargs: Any) -> Any: ...


class ChatMixin:
    """Conversations on top of `generate`."""

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: History | None = None,
        system: str = DEFAULT_SYSTEM,
        stop_words_ids: list[list[int]] | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> tuple[str, History]:
        """Answer `query`; returns (response, history with this turn appended).

        history: finished (query, response) pairs, oldest first; the list passed in is not changed. Turns
            that do not fit max_window_size (keyword, else the generation config's) are left out, oldest
            first, and a warning says how many.
        stop_words_ids: token sequences that end the reply beside the end of turn; they stay in the text.
        kwargs: for `generate` (do_sample, top_p, max_new_tokens, ...).

        Unlike the original: the reply is cut by tokens, so no leading characters are lost after Unicode
        normalisation and no last token when max_new_tokens ends it; stop_words_ids is not extended in
        place; max_window_size is not passed on to `generate`.

        Raises RequestError for `stream` or a foreign tokenizer, UnsupportedError for a base model.
        """
        prompt, run = self._prepare_chat(
            tokenizer, query, history, system, stop_words_ids, generation_config, kwargs
        )
        output = cast(_Generates, self).generate(prompt, **run)
        core = core_tokenizer(tokenizer)
        reply = _until_end(output[0, prompt.shape[1] :].tolist(), core)
        response = core.decode(reply, skip_special=True).strip()
        return response, [*(history or []), (query, response)]

    def chat_stream(
        self,
        tokenizer: Any,
        query: str,
        history: History | None = None,
        system: str = DEFAULT_SYSTEM,
        stop_words_ids: list[list[int]] | None = None,
        logits_processor: Any = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Answer `query`, yielding the whole text so far each time it grows (at least once).

        Whole characters only; not stripped; the history is neither changed nor extended. Arguments are
        those of `chat`. Unlike the original, do_sample=False is honoured, and generation ends with the
        reader: closing the generator stops it. Arguments are checked at the call, before the first text.
        """
        if logits_processor is not None:
            kwargs["logits_processor"] = logits_processor
        prompt, run = self._prepare_chat(
            tokenizer, query, history, system, stop_words_ids, generation_config, kwargs
        )
        return self._stream_reply(core_tokenizer(tokenizer), prompt, run)

    def _stream_reply(self, core: Tokenizer, prompt: Tensor, run: dict[str, Any]) -> Iterator[str]:
        own_criteria = list(run.pop("stopping_criteria", None) or ())

        def generate(*, streamer: Any, stopping_criteria: list[Any]) -> Any:
            return cast(_Generates, self).generate(
                prompt, streamer=streamer, stopping_criteria=[*own_criteria, *stopping_criteria], **run
            )

        decoder = StreamDecoder(core, skip_special=True)
        text, said = "", False
        with closing(stream_tokens(generate)) as passes:
            for ids in passes:
                reply = _until_end(ids, core)
                new = "".join(decoder.push(token) for token in reply)
                if new:
                    text, said = text + new, True
                    yield text
                if len(reply) < len(ids):
                    break
        rest = decoder.finish()
        if rest or not said:
            yield text + rest

    def _prepare_chat(
        self,
        tokenizer: Any,
        query: str,
        history: History | None,
        system: str,
        stop_words_ids: list[list[int]] | None,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        """(prompt ids int64 [1, n], arguments for generate)."""
        if "stream" in kwargs:
            raise RequestError(
                "chat has no argument 'stream'.", "Use model.chat_stream(tokenizer, query, ...)."
            )
        model = cast(_Generates, self)
        config = model.generation_config if generation_config is None else generation_config
        chat_format = getattr(config, "chat_format", None)
        if chat_format != "chatml":
            raise UnsupportedError(
                f"chat needs a Chat model; this one's generation config has chat_format={chat_format!r}.",
                "Load the -Chat checkpoint; use model.generate with a base model; or set "
                "model.generation_config.chat_format = 'chatml' if this one was trained to chat.",
            )
        core = core_tokenizer(tokenizer)
        window = kwargs.pop("max_window_size", None) or getattr(config, "max_window_size", None)
        context = make_context(
            core,
            query,
            history or [],
            system,
            max_window_size=window or _DEFAULT_WINDOW,
            chat_format="chatml",
        )
        if context.dropped_turns:
            _log.warning(
                "chat left out the %d oldest turns: max_window_size=%d.",
                context.dropped_turns,
                window or _DEFAULT_WINDOW,
            )
        ends = [[core.im_end_id], [core.im_start_id]]
        more = [] if stop_words_ids is None else [list(ids) for ids in check_stop_words(stop_words_ids)]
        prompt = torch.tensor([context.token_ids], device=model.device)
        banned = kwargs.pop("suppress_tokens", None) or getattr(config, "suppress_tokens", None) or []
        banned = [*banned, *core.ids_without_text(model.config.vocab_size)]
        run = {
            **kwargs,
            "suppress_tokens": banned or None,
            "generation_config": config,
            "stop_words_ids": [*more, *ends],
            "attention_mask": torch.ones_like(prompt),
        }
        return prompt, run


def core_tokenizer(tokenizer: Any) -> Tokenizer:
    """The qwenkit tokenizer inside. Raises RequestError for a tokenizer of another kind."""
    core = getattr(tokenizer, "core", tokenizer)
    if not isinstance(core, Tokenizer):
        raise RequestError(
            f"chat got a {type(tokenizer).__name__}.",
            "Load the tokenizer after `import qwenkit.hf` with AutoTokenizer.from_pretrained(folder).",
        )
    return core


def _until_end(ids: list[int], core: Tokenizer) -> list[int]:
    """The ids before the first end of turn or of text."""
    ends = {core.im_end_id, core.im_start_id, core.end_of_text_id}
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
