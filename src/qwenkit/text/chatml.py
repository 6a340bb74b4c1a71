"""ChatML, the one chat template: for chat, server, training, evaluation and export alike.

A turn is `<|im_start|>{role}\\n{content}<|im_end|>`, turns are joined by a newline (reference: chat
section 1). Role and content are encoded apart and content never as control tokens. Tool messages are
turned into these three roles elsewhere (tools).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from qwenkit.core import DEFAULT_SYSTEM, Control, History, Message, RequestError, Turn
from qwenkit.text.tokenizer import Tokenizer

ChatFormat = Literal["chatml", "raw"]
IGNORED = -100
"""Label of a token that training does not learn to predict; the value cross entropy skips."""

_ROLES = ("system", "user", "assistant")
_START, _END, _NEWLINE = "<|im_start|>", "<|im_end|>", "\n"


def render(
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    default_system: str = DEFAULT_SYSTEM,
    continue_last: bool = False,
) -> str:
    """The prompt as text, for people to read; `encode` gives the model's tokens.

    A system turn is always there: `default_system` unless the first message is one, empty or not.
    add_generation_prompt: end with an opened assistant turn.
    continue_last: leave the last turn, which must be the assistant's, open for the model to go on.

    Raises RequestError for no messages, other roles, tool calls, or a system message that is not first.
    """
    turns = _turns(messages, default_system, continue_last)
    return render_turns(turns, add_generation_prompt=add_generation_prompt)


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    default_system: str = DEFAULT_SYSTEM,
    continue_last: bool = False,
) -> list[int]:
    """The prompt as token ids; arguments and errors as in `render`."""
    turns = _turns(messages, default_system, continue_last)
    return encode_turns(tokenizer, turns, add_generation_prompt=add_generation_prompt)


def render_turns(turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> str:
    """As `render`, of turns that need no template any more."""
    texts = ["".join(p if isinstance(p, str) else p.text for p in turn.parts) for turn in turns]
    text = _NEWLINE.join(
        f"{_START}{turn.role}\n{said}{_END}" for turn, said in zip(turns, texts, strict=True)
    )
    if turns[-1].open:
        return text.removesuffix(_END)
    return f"{text}\n{_START}assistant\n" if add_generation_prompt else text


def encode_turns(
    tokenizer: Tokenizer, turns: Sequence[Turn], *, add_generation_prompt: bool = True
) -> list[int]:
    """As `encode`, of turns that need no template any more."""
    newline = tokenizer.encode(_NEWLINE)
    ids: list[int] = []
    for turn in turns:
        ids += (newline if ids else []) + _turn_ids(tokenizer, turn.role, *turn.parts)
    if turns[-1].open:
        return ids[:-1]
    if add_generation_prompt:
        ids += [*newline, tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline]
    return ids


@dataclass(frozen=True)
class Context:
    """A prompt built from a conversation, and how many of its oldest turns did not fit."""

    text: str
    token_ids: list[int]
    dropped_turns: int = 0


def make_context(
    tokenizer: Tokenizer,
    query: str,
    history: History | None = None,
    system: str | None = None,
    max_window_size: int | None = 6144,
    chat_format: ChatFormat = "chatml",
    *,
    default_system: str = DEFAULT_SYSTEM,
) -> Context:
    """The prompt for `query` after `history`, leaving out the oldest turns that exceed the window.

    chatml: going back from the newest, a turn (question and answer) is kept while system, kept turns and
    it together have fewer than `max_window_size` tokens; then it and all older ones are dropped. The query
    is neither counted nor cut (reference: chat section 2). None keeps all.
    raw: the query is the prompt, for base models, with surface forms of special tokens parsed; it takes
    no history or system (RequestError).
    """
    if chat_format == "raw":
        if history or system:
            raise RequestError(
                "The raw format of base models has no history and no system prompt.",
                "Put everything into the prompt, or load a chat model.",
            )
        return Context(query, tokenizer.encode(query, allow_special=True))
    if chat_format != "chatml":
        raise RequestError(f"chat_format={chat_format!r} is unknown.", 'Use "chatml" or "raw".')
    turns = list(history or ())
    start = Message("system", default_system if system is None else system)
    kept = 0
    used = len(_turn_ids(tokenizer, "system", start.content))
    newlines = 2 * len(tokenizer.encode(_NEWLINE))
    for asked, answered in reversed(turns):
        used += newlines
        used += len(_turn_ids(tokenizer, "user", asked)) + len(_turn_ids(tokenizer, "assistant", answered))
        if max_window_size is not None and used >= max_window_size:
            break
        kept += 1
    messages = [start]
    for asked, answered in turns[len(turns) - kept :]:
        messages += [Message("user", asked), Message("assistant", answered)]
    messages.append(Message("user", query))
    return Context(render(messages), encode(tokenizer, messages), len(turns) - kept)


def stop_token_ids(tokenizer: Tokenizer, chat_format: ChatFormat = "chatml") -> tuple[int, ...]:
    """Ids that end a reply: the end of text, and in chatml the borders of turns."""
    if chat_format == "raw":
        return (tokenizer.end_of_text_id,)
    return (tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.end_of_text_id)


def encode_training(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    default_system: str = DEFAULT_SYSTEM,
    original: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids of a whole conversation and the labels to train on (IGNORED where nothing is learned).

    Every turn ends in `<|im_end|>\\n`, the last one too. Labels are aligned with the ids, not shifted.
    Learned are the assistant's content and its `<|im_end|>`; text of the data never becomes control.

    original: the layout of the 2023 script instead (reference: finetune section 2): surface forms in the
    data are parsed, the control tokens of every turn are learned, a first message that is not the user's
    is dropped, and the system prompt is always `default_system`.
    """
    if original:
        return _encode_training_original(tokenizer, messages, default_system)
    newline = tokenizer.encode(_NEWLINE)
    ids: list[int] = []
    labels: list[int] = []
    for turn in _turns(messages, default_system):
        head = [tokenizer.im_start_id, *tokenizer.encode(turn.role), *newline]
        body = [*_content_ids(tokenizer, turn.parts), tokenizer.im_end_id]
        ids += head + body + newline
        learned = body if turn.role == "assistant" else [IGNORED] * len(body)
        labels += [IGNORED] * len(head) + learned + [IGNORED] * len(newline)
    return ids, labels


def _encode_training_original(
    tokenizer: Tokenizer, messages: Sequence[Message], system: str
) -> tuple[list[int], list[int]]:
    if messages and messages[0].role != "user":
        messages = messages[1:]
    newline = tokenizer.encode(_NEWLINE)
    ids: list[int] = []
    labels: list[int] = []
    for turn in [Message("system", system), *messages]:
        if turn.role not in _ROLES or (turn.role == "system" and ids):
            raise RequestError(f"Role {turn.role!r} in training data.", "Use user and assistant.")
        role = [*tokenizer.encode(turn.role), *newline]
        content = tokenizer.encode(turn.content, allow_special=True)
        learned = content if turn.role == "assistant" else [IGNORED] * len(content)
        start, end = [tokenizer.im_start_id], [tokenizer.im_end_id, *newline]
        ids += start + role + content + end
        labels += start + [IGNORED] * len(role) + learned + end
    return ids, labels


def jinja_template(default_system: str = DEFAULT_SYSTEM) -> str:
    """The same format as a Jinja chat template, for engines that read it from tokenizer_config.json.

    Each turn ends in a newline, so with a generation prompt the text equals that of `render`.
    """
    quoted = (
        default_system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    )
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}"
        f"{{{{ '{_START}system\\n{quoted}{_END}\\n' }}}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        f"{{{{ '{_START}' + message['role'] + '\\n' + message['content'] + '{_END}\\n' }}}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        f"{{{{ '{_START}assistant\\n' }}}}"
        "{%- endif -%}"
    )


def _turn_ids(tokenizer: Tokenizer, role: str, *parts: str | Control) -> list[int]:
    return [
        tokenizer.im_start_id,
        *tokenizer.encode(role),
        *tokenizer.encode(_NEWLINE),
        *_content_ids(tokenizer, parts),
        tokenizer.im_end_id,
    ]


def _content_ids(tokenizer: Tokenizer, parts: Sequence[str | Control]) -> list[int]:
    """Text between control tokens is encoded in one, as it is when a template was rendered first."""
    ids: list[int] = []
    text = ""
    for part in parts:
        if isinstance(part, Control) and part.text in tokenizer.special_tokens:
            ids += [*tokenizer.encode(text), tokenizer.special_id(part.text)]
            text = ""
        else:
            text += part if isinstance(part, str) else part.text
    return ids + tokenizer.encode(text)


def _turns(messages: Sequence[Message], default_system: str, continue_last: bool = False) -> list[Turn]:
    if not messages:
        raise RequestError("The conversation has no messages.", "Give at least one user message.")
    for i, message in enumerate(messages):
        if message.role not in _ROLES or message.tool_calls:
            what = "tool calls" if message.tool_calls else f"role {message.role!r}"
            raise RequestError(
                f"Message {i} has {what}, which chatml cannot express.",
                "Convert tool messages to user and assistant turns first (qwenkit.text.tools).",
            )
        if message.role == "system" and i:
            raise RequestError(f"Message {i} has role 'system'.", "Only the first message may have it.")
    if continue_last and messages[-1].role != "assistant":
        raise RequestError(
            f"The last message has role {messages[-1].role!r} and cannot be continued.",
            "Only an assistant message can.",
        )
    turns = [] if messages[0].role == "system" else [Turn("system", (default_system,))]
    last = len(messages) - 1 if continue_last else -1
    for i, message in enumerate(messages):
        role = cast(Literal["system", "user", "assistant"], message.role)
        turns.append(Turn(role, (message.content,), open=i == last))
    return turns
