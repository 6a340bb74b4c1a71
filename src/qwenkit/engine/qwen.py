"""The public face: load a model, chat with it, complete text with it."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor
from tqdm import tqdm

from qwenkit.checkpoint import locate, open_checkpoint
from qwenkit.core import (
    Completion,
    Delta,
    GenerationConfig,
    History,
    Infill,
    Message,
    RequestError,
    SamplingParams,
    Tool,
    ToolChoice,
    ToolUse,
)
from qwenkit.engine.conversation import chat_context, check_messages, messages_prompt, warn_base_model
from qwenkit.engine.device import Placement, choose_dtype, find_device, parse_dtype
from qwenkit.engine.draft_model import check_same_vocabulary
from qwenkit.engine.embed import Pooling, embed, read_inputs
from qwenkit.engine.engine import Engine
from qwenkit.engine.explain import describe
from qwenkit.engine.options import ENGINE_OPTIONS, EngineOptions, make_cache, make_speculator
from qwenkit.engine.prompt import Prompt, check_length, is_conversation, prompt_ids
from qwenkit.engine.request import Request
from qwenkit.engine.runner import Runner
from qwenkit.engine.score import distributions, log_likelihoods
from qwenkit.engine.stream import Stream
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.model import CausalLM, ModelConfig, ntk_alpha
from qwenkit.quant import Packing
from qwenkit.text import Tokenizer, chatml, infill
from qwenkit.text.tools import Calling, ToolFormatName, about_calls
from qwenkit.text.tools import tool_format as choose_format

_SAMPLING_NAMES = tuple(field.name for field in fields(SamplingParams))


class Qwen:
    """A loaded model. Every method may be called from any thread; requests made meanwhile run together.

    Keyword arguments named **sampling are the fields of SamplingParams; given beside `params` they win.
    What neither sets comes from the checkpoint (`generation`). An unknown name raises TypeError.

    All methods raise RequestError for input that makes no sense, its subclass ContextLengthError when
    prompt and reply cannot fit `config.context_length`, both before any work is done, and QwenkitError
    when the model produces NaN. A text streamed is the same, character for character, as the same text
    returned whole.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        generation: GenerationConfig | None = None,
        name: str = "model",
        is_chat: bool = True,
        notice: str | None = None,
        placement: Placement | None = None,
        quantization: str = "none",
        unpacked: str | None = "the model came as it is",
        draft: Qwen | None = None,
        **engine: Any,
    ) -> None:
        """Wrap a model already in memory; `Qwen.load` is the usual way. engine: fields of EngineOptions.

        draft: a smaller model of the same vocabulary that guesses tokens for this one to check; its own
        requests are not touched. Raises RequestError if the vocabularies differ.
        """
        unknown = [name for name in engine if name not in ENGINE_OPTIONS]
        if unknown:
            raise TypeError(f"Unknown option {unknown[0]!r}; known are {', '.join(ENGINE_OPTIONS)}.")
        weight = model.transformer.wte.weight
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.generation = generation or GenerationConfig()
        self.config: ModelConfig = model.shape
        self.name = name
        self.is_chat = is_chat
        self.notice = notice
        self.placement = placement or Placement(weight.device, weight.dtype)
        self.quantization = quantization
        self.unpacked = unpacked  # why torch runs some linear layers; None if kernels run all
        self.options = EngineOptions(**engine)
        self.draft = draft
        if draft is not None:
            check_same_vocabulary(draft.tokenizer, tokenizer)
        cache = make_cache(model, self.options)
        self.engine = Engine(
            model,
            Vocabulary(tokenizer, self.config.vocab_size),
            cache,
            max_running=self.options.max_running,
            step_tokens=self.options.step_tokens,
            max_waiting=self.options.max_waiting,
            speculator=make_speculator(
                model, self.options, cache, None if draft is None else draft.model, len(tokenizer)
            ),
        )
        self._warned_base = False

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        weights: str = "auto",
        head: str = "auto",
        offline: bool = False,
        progress: bool | None = None,
        draft_model: str | Path | None = None,
        **engine: Any,
    ) -> Qwen:
        """Load a checkpoint folder, a GGUF file, a hub name (org/name), or, with None, the small demo model.

        device: auto (CUDA, else Apple GPU, else CPU), cpu, cuda, cuda:N, mps. dtype: auto, bfloat16,
        float16, float32; `explain()` says what auto chose and why. weights: auto (as stored, in the form
        that runs fastest), exact, bf16, int8, int4 (the last two round a 16-bit checkpoint); head: auto,
        bf16, int8, int4, the same for the output projection (quant.Packing has the details). offline: never
        touch the network. progress: show a bar on stderr; None shows it on a terminal. draft_model: a
        smaller checkpoint of the same vocabulary that guesses tokens for this one to check: faster, the same
        text. engine: fields of EngineOptions, as kv_cache="int8".

        Raises RequestError for a device, dtype or weights that cannot be had, CheckpointError,
        ConfigError, TokenizerError or UnsupportedError for a folder that cannot be read, DownloadError. Warns
        of a folder whose own measurement failed (Checkpoint.warning).
        """
        where, device_reason = find_device(device)  # before anything is downloaded
        packing = Packing.parse(weights, head)
        number_format, dtype_reason = parse_dtype(packing.dtype_for(dtype)), "as asked"
        located = locate(model, offline=offline)
        checkpoint = open_checkpoint(located.path, content_hash=located.content_hash)
        if checkpoint.warning:
            warnings.warn(checkpoint.warning, stacklevel=2)
        if number_format is None:
            quantized = not checkpoint.quantization.startswith("none")
            number_format, dtype_reason = choose_dtype(where, checkpoint.dtype, quantized=quantized)
        shown = sys.stderr.isatty() if progress is None else progress
        draft = None
        if draft_model is not None:
            draft = cls.load(
                draft_model, device=where, dtype=dtype, offline=offline, progress=shown, cache_tokens=1
            )
        with ThreadPoolExecutor(1) as beside:
            tokenizer = cache(lambda: beside.submit(checkpoint.tokenizer))
            loaded = checkpoint.load_packed(
                packing, device=where, dtype=number_format, progress=shown, idle=tokenizer
            )
        return cls(
            loaded.model,
            tokenizer().result(),
            generation=checkpoint.generation,
            name=located.display_name,
            is_chat=checkpoint.is_chat,
            notice=located.notice,
            placement=Placement(where, number_format, device_reason, dtype_reason),
            quantization=checkpoint.quantization,
            unpacked=loaded.unpacked,
            draft=draft,
            **engine,
        )

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.placement.dtype

    def explain(self) -> str:
        """What runs, where, in which number format and why, in lines of text."""
        return describe(self)

    # Chatting: the original's `chat` and `chat_stream` (reference: chat sections 5 and 6)

    def chat(
        self,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        system: str | None = None,
        *,
        max_window_size: int | None = None,
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> tuple[str, History]:
        """Answer `query`; returns the reply and a new history with this turn appended.

        history: earlier (query, reply) pairs, oldest first; never modified. system: None takes the
        checkpoint's default, "" an empty one. max_window_size: tokens that system prompt and history
        may take, default from the checkpoint; older turns are left out, with a warning.
        """
        asked = _merge(params, sampling)
        if asked.n != 1:
            raise RequestError(f"chat returns one reply, n is {asked.n}.", "Use complete_chat for several.")
        request = self._chat_request(query, history, system, max_window_size, asked)
        reply = self.engine.submit(request, wait=True).result().text
        return reply, [*copy.deepcopy(list(history or [])), (query, reply)]

    def chat_stream(
        self,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        system: str | None = None,
        *,
        max_window_size: int | None = None,
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> Iterator[Delta]:
        """As `chat`, in pieces: each delta has new text only, the last also the whole completion.

        Closing the iterator stops generating. `completion.dropped_turns` tells what was left out.
        """
        asked = _merge(params, sampling)
        return self._deltas(self._chat_request(query, history, system, max_window_size, asked))

    def complete_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice | None = None,
        tool_format: ToolFormatName = "auto",
        **sampling: Any,
    ) -> Completion:
        """The assistant's next turn after `messages`; nothing is trimmed.

        tools: what it may ask to be called (Choice.tool_calls), with arguments that follow their schemas;
        tool_choice: whether it must. tool_format: auto is what the model was trained on.
        """
        asked = _merge(params, sampling)
        check_messages(messages)
        if not tools and tool_choice is None and not any(map(about_calls, messages)):
            request = self._messages_request(messages, asked)
            return self.engine.submit(request, wait=True).result()
        self._warn_base()
        calling = Calling(
            choose_format(tool_format, self.tokenizer),
            ToolUse(tuple(tools), tool_choice or ToolChoice()),
            asked.grammar,
        )
        turns = calling.turns(messages, self.generation.default_system)
        request = self.prepare(turns, replace(asked, grammar=calling.grammar()))
        return calling.read(self.engine.submit(request, wait=True).result())

    def stream_messages(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **sampling: Any
    ) -> Iterator[Delta]:
        """As `complete_chat`, in pieces; with n > 1 `delta.index` tells the choices apart."""
        return self._deltas(self._messages_request(messages, _merge(params, sampling)))

    # Completing text

    @overload
    def generate(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        **sampling: Any,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        **sampling: Any,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        **sampling: Any,
    ) -> Completion | list[Completion]:
        """Continue one text, or many at once, as they stand: no template is applied.

        A list runs in batches of bounded memory and gives what each prompt would give alone.
        parse_special: read `<|im_start|>` and the like as control tokens instead of plain text.
        """
        asked = _merge(params, sampling)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = [self._encode(text, parse_special) for text in prompts]
        completions = self.generate_ids(ids, asked)
        return completions[0] if isinstance(prompt, str) else completions

    def generate_stream(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        **sampling: Any,
    ) -> Iterator[Delta]:
        """As `generate` with one text, in pieces; the last delta has the whole completion."""
        asked = _merge(params, sampling)
        return self._deltas(self._request(self._encode(prompt, parse_special), asked))

    def generate_ids(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | None = None, **sampling: Any
    ) -> list[Completion]:
        """Continue prompts given as token ids; the completions come in the same order."""
        asked = _merge(params, sampling)
        many = len(prompts) > 1
        requests = [
            self._request(ids, asked, name=f"Prompt {i} of {len(prompts)}" if many else "The prompt")
            for i, ids in enumerate(prompts, start=1)
        ]
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(self.engine.submit(request, wait=True))
            return [stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    def score(
        self, text: str | Sequence[int], *, chunk: int | None = None, progress: bool = False
    ) -> list[float]:
        """Natural-log probability of each token of `text` after the first, given all before it.

        text: a string, or token ids; at most config.context_length tokens. exp of minus the mean is the
        perplexity. chunk: tokens of one pass, default step_tokens; it changes nothing but memory and speed.
        Uses the kernels and the kind of cache that requests use, and takes turns with them.
        """
        ids = self._encode(text, parse_special=False) if isinstance(text, str) else list(text)
        rows = self.distributions(ids, chunk=chunk, progress=progress)
        found: list[float] = log_likelihoods(ids, rows).tolist()
        return found

    def distributions(
        self, text: str | Sequence[int], *, chunk: int | None = None, progress: bool = False
    ) -> Iterator[Tensor]:
        """Natural-log probabilities of every token after each of `text` but the last, as in `score`.

        Yields float32 [up to 64, rows of the vocabulary] in order; 39 MB at a time for 151,936 rows.
        """
        ids = self._encode(text, parse_special=False) if isinstance(text, str) else list(text)
        vocabulary, limit = self.engine.vocabulary, self.config.context_length
        vocabulary.check(ids, "The text")
        if not 2 <= len(ids) <= limit:
            raise RequestError(f"The text has {len(ids)} tokens.", f"2 to {limit} can be scored at once.")
        return self._distributions(ids, chunk or self.options.step_tokens, progress)

    def _distributions(self, ids: Sequence[int], chunk: int, progress: bool) -> Iterator[Tensor]:
        options = replace(self.options, cache_tokens=len(ids))
        runner = Runner(self.model, make_cache(self.model, options))
        alpha = ntk_alpha(len(ids), self.config.seq_length) if self.config.dynamic_ntk else 1.0
        with tqdm(total=len(ids), unit="token", disable=not progress) as bar:
            yield from distributions(
                runner,
                self.engine.vocabulary,
                ids,
                ntk_alpha=alpha,
                chunk=chunk,
                exclusively=self.engine.exclusively,
                progress=bar.update,
            )

    def embed(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        pooling: Pooling = "mean",
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Vectors of length 1, float32 [n, hidden size]: last hidden states, their mean or the last token's.

        texts: one or several, each a string or token ids, of at most `embedding_limit` tokens. A model that
        was trained to chat was not trained for this: one made for embeddings finds better. Takes turns with
        requests. progress: told how many tokens each pass read; what it raises ends the work.
        """
        one = isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], int))
        several = cast("Sequence[str | Sequence[int]]", [texts] if one else texts)
        return embed(
            self.model,
            read_inputs(several, self.engine.vocabulary, self.embedding_limit),
            self.options,
            pooling=pooling,
            exclusively=self.engine.exclusively,
            progress=progress,
        )

    @property
    def embedding_limit(self) -> int:
        """Tokens of the longest text that has a vector: no more than requests may have."""
        return min(self.config.context_length, self.engine.cache.tokens)

    # From words to requests

    def prompt_ids(self, prompt: Prompt, *, parse_special: bool = False) -> list[int]:
        """Its tokens. parse_special: read `<|im_start|>` and the like in a text as control tokens."""
        return prompt_ids(self.tokenizer, self.generation, prompt, parse_special=parse_special)

    def prepare(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """A checked request for `engine.submit`, for who runs streams of its own (the server)."""
        asked, chat = params or SamplingParams(), is_conversation(prompt)
        if isinstance(prompt, Infill):
            ends = asked.stop_token_ids + infill.stop_token_ids(self.tokenizer)
            asked = replace(asked, stop_token_ids=ends)
        name = "The conversation" if chat else "The prompt"
        check_length(self.tokenizer, prompt, name, self.config.context_length)
        return self._request(self.prompt_ids(prompt), asked, chat=chat, name=name)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        return iter(self.engine.submit(request, wait=True))

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        if not isinstance(text, str):
            raise RequestError(f"A prompt is {type(text).__name__}.", "Give a string or a list of strings.")
        return self.tokenizer.encode(text, allow_special=parse_special)

    def _chat_request(
        self,
        query: str,
        history: Sequence[tuple[str, str]] | None,
        system: str | None,
        max_window_size: int | None,
        params: SamplingParams,
    ) -> Request:
        self._warn_base()
        context = chat_context(
            self.tokenizer, self.generation, query, history, system, max_window_size, stacklevel=3
        )
        return self._request(
            context.token_ids, params, chat=True, name="The conversation", dropped_turns=context.dropped_turns
        )

    def _messages_request(self, messages: Sequence[Message], params: SamplingParams) -> Request:
        self._warn_base()
        ids = messages_prompt(self.tokenizer, self.generation, messages)
        return self._request(ids, params, chat=True, name="The conversation")

    def _request(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        chat: bool = False,
        name: str = "The prompt",
        dropped_turns: int = 0,
    ) -> Request:
        chat_format = "chatml" if chat else self.generation.chat_format
        return Request(
            ids,
            params,
            config=self.config,
            vocabulary=self.engine.vocabulary,
            defaults=self.generation.sampling,
            end_ids={*self.generation.stop_token_ids, *chatml.stop_token_ids(self.tokenizer, chat_format)},
            name=name,
            dropped_turns=dropped_turns,
            cache_tokens=self.engine.cache.tokens,
        )

    def _warn_base(self) -> None:
        if not self.is_chat and not self._warned_base:
            self._warned_base = True
            warn_base_model(self.name, stacklevel=4)


def _merge(params: SamplingParams | None, sampling: Mapping[str, Any]) -> SamplingParams:
    unknown = [name for name in sampling if name not in _SAMPLING_NAMES]
    if unknown:
        raise TypeError(f"Unknown sampling parameter {unknown[0]!r}; known are {', '.join(_SAMPLING_NAMES)}.")
    return replace(SamplingParams() if params is None else params, **sampling)
