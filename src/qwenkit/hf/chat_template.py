"""apply_chat_template by qwenkit's own ChatML, in which text of a message never becomes control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenkit.core import Message, RequestError
from qwenkit.text import Tokenizer, chatml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer as _Base
else:
    _Base = object

_NATIVE = {
    "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "tokenizer_kwargs", "sanitize_control_tokens",
}  # fmt: skip


class ChatTemplateMixin(_Base):
    """ChatML for conversations given as dicts of role and content."""

    core: Tokenizer

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, tools: Any = None, documents: Any = None, chat_template: str | None = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Prompt of a conversation, or of several, as transformers returns it.

        With the default template the ids come from qwenkit.text.chatml: contents are encoded as plain text.
        Another `chat_template`, in the call or from the folder, is rendered and parsed by transformers.

        Raises RequestError for tools, documents, other roles, and keywords that the template does not know.
        """
        if chat_template is not None or self.chat_template != chatml.jinja_template():
            return super().apply_chat_template(conversation, tools, documents, chat_template, **kwargs)
        foreign = sorted({name for name, value in kwargs.items() if value} - _NATIVE)
        if tools is not None or documents is not None or foreign:
            what = ", ".join([*(["tools"] if tools else []), *(["documents"] if documents else []), *foreign])
            raise RequestError(
                f"apply_chat_template got {what}, which ChatML cannot express.",
                "Put tools into the text (qwenkit.text.react), or pass a chat_template of your own.",
            )
        several = bool(conversation) and isinstance(conversation[0], (list, tuple))
        chats = [_messages(chat) for chat in (conversation if several else [conversation])]
        ask, go_on = bool(kwargs.get("add_generation_prompt")), bool(kwargs.get("continue_final_message"))
        if ask and go_on:
            raise RequestError(
                "add_generation_prompt and continue_final_message are both true.", "Choose one."
            )
        closing = "" if ask or go_on else "\n"  # a finished conversation ends in a newline, as in training
        if not kwargs.get("tokenize", True):
            texts = [
                chatml.render(chat, add_generation_prompt=ask, continue_last=go_on) + closing
                for chat in chats
            ]
            return texts if several else texts[0]
        rows = [
            chatml.encode(self.core, chat, add_generation_prompt=ask, continue_last=go_on)
            + self.core.encode(closing)
            for chat in chats
        ]
        options = {name: kwargs[name] for name in ("padding", "truncation", "max_length") if name in kwargs}
        encoded = self(
            rows if several else rows[0],
            add_special_tokens=False,
            return_tensors=kwargs.get("return_tensors"),
            **options,
            **(kwargs.get("tokenizer_kwargs") or {}),
        )
        return encoded if kwargs.get("return_dict", True) else encoded["input_ids"]


def _messages(chat: Sequence[Mapping[str, Any]]) -> list[Message]:
    found = []
    for at, message in enumerate(chat):
        foreign = sorted(key for key, value in message.items() if value and key not in ("role", "content"))
        content = message.get("content")
        if foreign or not isinstance(content, str):
            raise RequestError(
                f"Message {at} has {', '.join(foreign) or f'content of type {type(content).__name__}'}.",
                "ChatML takes a role and a text.",
            )
        found.append(Message(message.get("role"), content))  # type: ignore[arg-type]
    return found
