"""The original's tokenizer interface on transformers' Python backend; the work is qwenkit.text.Tokenizer's.

Unlike everywhere else in qwenkit, surface forms such as `<|im_start|>` in plain text become control tokens
by default, because the original's interface promises it (`allowed_special="all"`); pass
allowed_special=set() for text of others. `apply_chat_template` and `model.chat` never parse them.
"""

from __future__ import annotations

# mypy: allow-untyped-calls
# transformers annotates only part of what it asks to be called and overridden.
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from qwenkit.core import TokenizerError
from qwenkit.hf.chat_template import ChatTemplateMixin
from qwenkit.text import Tokenizer, chatml

VOCABULARY_FILE = "qwen.tiktoken"

# What transformers hands through to `tokenize` whether or not the caller asked for it; false by default.
_HANDED_DOWN = {"is_split_into_words", "return_offsets_mapping", "sanitize_control_tokens"}


class QWenTokenizer(ChatTemplateMixin, PreTrainedTokenizer):
    """Tokenizer of the 2023 models (reference: tokenizer sections 3 to 5).

    bos, eos, pad and unk are unset unless given; any of the 208 control tokens may serve:
    `from_pretrained(folder, pad_token="<|extra_0|>", eos_token="<|endoftext|>", padding_side="left")`.
    A call returns input_ids and attention_mask; the all-zero token_type_ids of transformers 4 are gone, no
    Qwen uses them. Nothing is added at either end of a text.

    core: the qwenkit.text.Tokenizer; special_tokens: form -> id; mergeable_ranks: bytes -> id.
    errors: what decode does with bytes that are no text, as in bytes.decode.

    Raises TokenizerError for a damaged vocabulary, ValueError for control tokens that are not known.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012  (transformers' own declarations)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | None = None,
        errors: str = "replace",
        extra_vocab_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        if vocab_file is None:
            raise TokenizerError(
                f"There is no {VOCABULARY_FILE} in the folder.", "Download it from the model's page again."
            )
        self.core = Tokenizer.from_tiktoken(
            Path(vocab_file), extra_vocab=None if extra_vocab_file is None else Path(extra_vocab_file)
        )
        self.errors = errors
        self.special_tokens: dict[str, int] = dict(self.core.special_tokens)
        self.mergeable_ranks: dict[bytes, int] = dict(self.core.ranks)
        self._form_of_id = {i: form for form, i in self.special_tokens.items()}
        for i, token in (kwargs.pop("added_tokens_decoder", None) or {}).items():
            if self.special_tokens.get(str(token)) != int(i):
                raise ValueError(
                    f"Adding unknown special tokens is not supported: {str(token)!r} as id {i} in "
                    "added_tokens_decoder. The spare ones <|extra_0|> to <|extra_204|> may be used."
                )
        kwargs.pop("auto_map", None)  # names the remote code; what we save must not
        kwargs.setdefault("chat_template", chatml.jinja_template())
        super().__init__(errors=errors, **kwargs)
        # The extra tokens go into the saved rank file, so the saved settings must not name the file again.
        self.init_kwargs.pop("extra_vocab_file", None)
        self.init_kwargs.pop("auto_map", None)

    # -- what it holds -------------------------------------------------------------------------------

    @property
    def eod_id(self) -> int:
        """Id of `<|endoftext|>`."""
        return self.core.end_of_text_id

    @property
    def im_start_id(self) -> int:
        return self.core.im_start_id

    @property
    def im_end_id(self) -> int:
        return self.core.im_end_id

    @property
    def vocab_size(self) -> int:
        """Ids with text, control tokens included: 151851 for the released vocabulary."""
        return len(self.core)

    def __len__(self) -> int:
        return len(self.core)

    def get_vocab(self) -> dict[bytes, int]:  # type: ignore[override]
        """Regular tokens only, by their bytes, as in the original."""
        return dict(self.mergeable_ranks)

    def _add_tokens(self, new_tokens: Iterable[str | AddedToken], special_tokens: bool = False) -> int:
        tokens = [str(token) for token in new_tokens or ()]
        if tokens and not special_tokens:
            raise ValueError("Adding regular tokens is not supported: the vocabulary is a closed rank file.")
        for form in tokens:
            if form not in self.special_tokens:
                raise ValueError(
                    f"Adding unknown special tokens is not supported: {form!r}. "
                    "Use one of the spare ones, <|extra_0|> to <|extra_204|>."
                )
        return 0

    # -- text to ids ---------------------------------------------------------------------------------

    def tokenize(  # type: ignore[override]
        self,
        text: str,
        allowed_special: str | Collection[str] = "all",
        disallowed_special: str | Collection[str] = (),
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> list[bytes | str]:
        """Tokens of `text`: bytes of regular ones, surface forms of control tokens.

        allowed_special: forms that become control tokens, "all" or a collection; split_special_tokens=True
        is transformers' word for none. disallowed_special: forms that raise ValueError when they occur and
        are not allowed; "all" means every control token not allowed.
        """
        unknown = {name for name, value in kwargs.items() if value or name not in _HANDED_DOWN}
        if unknown:
            raise TypeError(f"tokenize got unexpected keyword arguments: {', '.join(sorted(unknown))}")
        if split_special_tokens or (split_special_tokens is None and self.split_special_tokens):
            allowed_special = ()
        allowed = self.special_tokens if allowed_special == "all" else set(allowed_special)
        refused = set(self.special_tokens if disallowed_special == "all" else disallowed_special) - set(
            allowed
        )
        if refused:
            found = re.search("|".join(map(re.escape, sorted(refused))), text)
            if found:
                raise ValueError(
                    f"Encountered text corresponding to disallowed special token {found.group()!r}. "
                    "Add it to allowed_special to parse it, or pass disallowed_special=() for plain text."
                )
        ids = self.core.encode(text, allow_special=True if allowed_special == "all" else set(allowed))
        return [self._token(i) for i in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of one token (bytes or str) or of several; None for what is no token."""
        if isinstance(tokens, (str, bytes)):
            return self._convert_token_to_id(tokens)
        return [self._convert_token_to_id(token) for token in tokens]

    def _convert_token_to_id(self, token: str | bytes) -> int | None:
        return self.special_tokens.get(token) if isinstance(token, str) else self.mergeable_ranks.get(token)

    # -- ids to text ---------------------------------------------------------------------------------

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """bytes for a regular id, str for a control token; a list for several ids."""
        if isinstance(ids, int):
            return self._token(ids)
        return [
            self._token(i) for i in map(int, ids) if not (skip_special_tokens and self.core.is_skipped(i))
        ]

    def _convert_id_to_token(self, index: int) -> Any:
        return self._token(index)

    def _token(self, token_id: int) -> bytes | str:
        form = self._form_of_id.get(token_id)
        return self.core.token_bytes(token_id) if form is None else form

    def convert_tokens_to_string(self, tokens: Iterable[bytes | str]) -> str:
        """The text of tokens as `tokenize` returns them."""
        parts = [token.encode() if isinstance(token, str) else token for token in tokens]
        return b"".join(parts).decode("utf-8", self.errors)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: str | None = None,
        **kwargs: Any,
    ) -> str:
        """`errors` overrides the constructor's. clean_up_tokenization_spaces has no effect, as in the
        original: byte-level tokens add no spaces that could be cleaned up."""
        if kwargs:
            raise TypeError(f"decode got unexpected keyword arguments: {', '.join(sorted(kwargs))}")
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.core.decode(ids, skip_special=skip_special_tokens, errors=errors or self.errors)

    # -- writing -------------------------------------------------------------------------------------

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the rank file, tokens of an extra vocabulary included. Returns its path."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ((f"{filename_prefix}-" if filename_prefix else "") + VOCABULARY_FILE)
        self.core.save_tiktoken(path)
        return (str(path),)
