"""Text <-> token ids by byte-level BPE, with tiktoken underneath.

Whether the surface form of a special token in a text becomes that token is always the caller's explicit
choice, and "no" by default. Knows nothing about chat formats (chatml) or file formats (the readers).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from qwenkit.core import TokenizerError
from qwenkit.text.normalize import replace_surrogates, to_nfc
from qwenkit.text.pretokenize import LONG_RUN, QWEN, Pretokenizer
from qwenkit.text.vocabulary import (
    check_no_gap,
    read_ranks,
    v1_special_tokens,
    write_ranks,
)

_OWN_ID = "Give each token an id of its own."


class Tokenizer:
    """A vocabulary, ready to encode and decode. Immutable, picklable, safe to share between threads.

    ranks: bytes of each regular token -> its id; the id is also the merge priority (lower merges first).
        Ids need not start at 0.
    special_tokens: surface form -> id; they may lie anywhere.
    visible: those of `special_tokens` whose text stays when a reply is decoded with skip_special
        (`<tool_call>` of Qwen2.5 is one).
    pretokenizer: how text is split before merging. nfc: whether text is normalised to NFC first.
    name: where the vocabulary came from, for people to read.

    Raises TokenizerError when two tokens share an id.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        *,
        special_tokens: Mapping[str, int],
        visible: Collection[str] = (),
        pretokenizer: Pretokenizer = QWEN,
        nfc: bool = True,
        name: str = "custom",
    ) -> None:
        self.name = name
        self.nfc = nfc
        self.pretokenizer = pretokenizer
        self.visible = frozenset(visible)
        self._ranks = dict(ranks)
        self._special_tokens = dict(special_tokens)
        self._bytes_of_id = _invert(self._ranks, self._special_tokens)
        self._skipped = frozenset(i for form, i in special_tokens.items() if form not in self.visible)
        # tiktoken needs all 256 bytes. A vocabulary without some gets ids past its end for them, which
        # `encode` then refuses: they have no row in any embedding.
        bytes_missing = [bytes([b]) for b in range(256) if bytes([b]) not in self._ranks]
        self._longest = max((len(token) for token in self._bytes_of_id if token), default=1)
        self._past_end = len(self._bytes_of_id)
        self._missing = {self._past_end + i: byte for i, byte in enumerate(bytes_missing)}
        import tiktoken  # here: the server's HTTP process reads calls with this package, and no tokens

        self._encoding = tiktoken.Encoding(
            f"qwenkit:{name}",
            pat_str=pretokenizer.pattern,
            mergeable_ranks=self._ranks | {byte: i for i, byte in self._missing.items()},
            special_tokens={},
        )

    # -- reading -------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint folder: qwen.tiktoken, else tokenizer.json, else vocab.json.

        Raises TokenizerError if none is there or the first of them is damaged.
        """
        from qwenkit.text.tokenizer_folder import read_folder

        return read_folder(Path(folder))

    @classmethod
    def from_tiktoken(
        cls,
        path: Path,
        *,
        extra_vocab: Path | None = None,
        special_tokens: Mapping[str, int] | None = None,
        nfc: bool = True,
    ) -> Tokenizer:
        """Read a rank file; `special_tokens` defaults to the 208 of the 2023 models.

        `extra_vocab` adds the tokens of a second rank file; a line whose token or id is already taken is
        left out, with a warning that names it. Raises TokenizerError for a damaged or cut-off file.
        """
        path = Path(path)
        ranks = read_ranks(path)
        specials = v1_special_tokens() if special_tokens is None else dict(special_tokens)
        check_no_gap(path, ranks, specials)
        if extra_vocab is not None:
            from qwenkit.text.extend import read_extra_vocab

            ranks |= read_extra_vocab(Path(extra_vocab), ranks, specials)
        return cls(ranks, special_tokens=specials, nfc=nfc, name=path.name)

    @classmethod
    def from_tokenizer_json(cls, path: Path) -> Tokenizer:
        """Read a byte-level BPE `tokenizer.json`; TokenizerError if it cannot be followed exactly."""
        from qwenkit.text.tokenizer_json import read_tokenizer_json

        return read_tokenizer_json(Path(path))

    @classmethod
    def from_vocab_merges(
        cls, vocab: Path, merges: Path, special_tokens: Mapping[str, int], *, visible: Collection[str] = ()
    ) -> Tokenizer:
        """Read `vocab.json` + `merges.txt` of a Qwen model, whose special tokens stand elsewhere."""
        from qwenkit.text.tokenizer_folder import read_vocab_merges

        return read_vocab_merges(Path(vocab), Path(merges), special_tokens, visible)

    @classmethod
    def from_gguf(
        cls, tokens: Sequence[str], token_types: Sequence[int], merges: Sequence[str] | None, pre: str
    ) -> Tokenizer:
        """Build from GGUF's `tokenizer.ggml.{tokens,token_type,merges,pre}` (model "gpt2").

        merges None: they were proven before to agree with the order of ids, which takes most of the time.
        """
        from qwenkit.text.gguf_vocabulary import read_gguf

        return read_gguf(tokens, token_types, merges, pre)

    # -- what it holds -------------------------------------------------------------------------------

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Surface form -> id."""
        return MappingProxyType(self._special_tokens)

    @property
    def ranks(self) -> Mapping[bytes, int]:
        """Bytes of every regular token -> id."""
        return MappingProxyType(self._ranks)

    def __len__(self) -> int:
        """The highest id with text, plus one."""
        return len(self._bytes_of_id)

    def ids_without_text(self, rows: int) -> list[int]:
        """Ids below `rows` that stand for nothing: gaps, and the padding rows of an embedding that tall."""
        table = self._bytes_of_id[:rows]
        gaps = [i for i, token in enumerate(table) if token is None] if None in table else []
        return [*gaps, *range(len(self), rows)]

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {len(self._ranks)} tokens, {len(self._special_tokens)} special)"

    @property
    def end_of_text_id(self) -> int:
        """Id of `<|endoftext|>`: separates documents in pretraining."""
        return self.special_id("<|endoftext|>")

    @property
    def im_start_id(self) -> int:
        """Id of `<|im_start|>`: opens a chat turn."""
        return self.special_id("<|im_start|>")

    @property
    def im_end_id(self) -> int:
        """Id of `<|im_end|>`: closes a chat turn."""
        return self.special_id("<|im_end|>")

    def special_id(self, form: str) -> int:
        """Id of the special token `form`; TokenizerError if this vocabulary has no such token."""
        try:
            return self._special_tokens[form]
        except KeyError:
            raise TokenizerError(
                f"{self.name} has no special token {form!r}.", f"It has {_some(self._special_tokens)}."
            ) from None

    def with_special_names(self, names: Mapping[str, str]) -> Tokenizer:
        """A copy with new surface forms, old -> new: {"<|extra_0|>": "<|think|>"} names a spare slot.

        Raises TokenizerError for an unknown old form, or a new one that is empty or taken.
        """
        renamed = {names.get(form, form): i for form, i in self._special_tokens.items()}
        for old, new in names.items():
            self.special_id(old)
            if not new or (new in self._special_tokens and new not in names):
                raise TokenizerError(f"{new!r} cannot be the name of {old!r}.", "Choose a form not in use.")
        if len(renamed) != len(self._special_tokens):
            raise TokenizerError(
                f"Two special tokens would share a name in {dict(names)}.", "Name each once."
            )
        return self._copy(renamed, [names.get(form, form) for form in self.visible])

    def with_visible(self, forms: Collection[str]) -> Tokenizer:
        """A copy whose special tokens `forms`, and no others, stay in text decoded with skip_special."""
        for form in forms:
            self.special_id(form)
        return self._copy(self._special_tokens, forms)

    def with_tokens(self, tokens: Mapping[bytes, int]) -> Tokenizer:
        """A copy with more regular tokens, bytes -> id (see `extend.learn_merges`).

        Raises TokenizerError if one of the tokens is there already or an id is taken.
        """
        known = [token for token in tokens if token in self._ranks]
        if known:
            raise TokenizerError(
                f"{self.name} already has {_some(list(map(repr, known)))}.", "Leave them out."
            )
        return self._copy(self._special_tokens, self.visible, tokens)

    def _copy(
        self,
        special_tokens: Mapping[str, int],
        visible: Collection[str],
        more_tokens: Mapping[bytes, int] = MappingProxyType({}),
    ) -> Tokenizer:
        return Tokenizer(
            self._ranks | dict(more_tokens),
            special_tokens=special_tokens,
            visible=visible,
            pretokenizer=self.pretokenizer,
            nfc=self.nfc,
            name=self.name,
        )

    # -- text to ids ---------------------------------------------------------------------------------

    def encode(self, text: str, *, allow_special: bool | Collection[str] = False) -> list[int]:
        """Token ids of `text`; nothing is added at either end.

        allow_special: False (default) treats surface forms of special tokens as ordinary text, so that
        what a user types can never become control; True turns all of them into their tokens, a
        collection only those it names. Lone surrogates count as U+FFFD.

        Raises TokenizerError for an unknown name in `allow_special`, or text with a byte that the
        vocabulary has no token for (never the case for Qwen's).
        """
        text = replace_surrogates(text)
        if self.nfc:
            text = to_nfc(text)
        forms = self._allowed(allow_special)
        if not forms:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for i, part in enumerate(_special_splitter(forms).split(text)):
            if i % 2:
                ids.append(self._special_tokens[part])
            elif part:
                ids.extend(self._encode_ordinary(part))
        return ids

    def fewest_tokens(self, text: str) -> int:
        """No more than `encode` would give, found at the cost of counting bytes: none of its tokens is longer
        than the longest."""
        size = len(text.encode("utf-8", "replace"))
        if self.nfc and not text.isascii():
            size = len(to_nfc(replace_surrogates(text)).encode())
        return -(-size // self._longest)

    def _allowed(self, allow_special: bool | Collection[str]) -> frozenset[str]:
        if allow_special is False:
            return frozenset()
        if allow_special is True:
            return frozenset(self._special_tokens)
        forms = frozenset([allow_special] if isinstance(allow_special, str) else allow_special)
        for form in forms:
            self.special_id(form)
        return forms

    def _encode_ordinary(self, text: str) -> list[int]:
        if len(text) < LONG_RUN:
            ids = self._encoding.encode_ordinary(text)
        else:
            ids = []
            for part, whole in self.pretokenizer.divide(text):
                encode = self._encoding._encode_single_piece if whole else self._encoding.encode_ordinary
                ids.extend(encode(part))
        return self._checked(ids)

    def _checked(self, ids: list[int]) -> list[int]:
        if self._missing:
            for i in ids:
                if i >= self._past_end:
                    raise TokenizerError(
                        f"The text has byte {self._missing[i]!r}, for which {self.name} has no token.",
                        "Remove the character it belongs to.",
                    )
        return ids

    def encode_piece(self, piece: bytes) -> list[int]:
        """Ids of `piece` merged as one, without normalising or splitting it first; it may be any bytes."""
        return self._checked(self._encoding._encode_single_piece(piece))

    # -- ids to text ---------------------------------------------------------------------------------

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a regular token, or the surface form of a special one in UTF-8.

        Raises TokenizerError for an id that has no text, such as the padding rows of the embedding.
        """
        try:
            i = operator.index(token_id)
            found = self._bytes_of_id[i] if i >= 0 else None
        except IndexError:
            found = None
        if found is None:
            raise TokenizerError(
                f"Token id {token_id} has no text.", f"Valid ids of {self.name} are 0 to {len(self) - 1}."
            )
        return found

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, errors: str = "replace") -> str:
        """The text of `ids`; bytes that are not UTF-8 are treated as `errors` says, as in bytes.decode.

        skip_special leaves out special tokens, and only those. Raises TokenizerError for ids without text.
        """
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The bytes of `ids`, which need not be whole characters."""
        return b"".join(self.token_bytes(i) for i in ids if not (skip_special and i in self._skipped))

    def is_skipped(self, token_id: int) -> bool:
        """True for the special tokens that skip_special leaves out."""
        return token_id in self._skipped

    # -- writing -------------------------------------------------------------------------------------

    def save_tiktoken(self, path: Path) -> None:
        """Write the regular tokens as a rank file; Qwen's own comes out byte for byte."""
        write_ranks(Path(path), self._ranks)

    def save_tokenizer_json(
        self,
        folder: Path,
        *,
        chat_template: str | None = None,
        model_max_length: int | None = None,
        default_system: str | None = None,
        ends_turns: bool | None = None,
    ) -> list[Path]:
        """Write tokenizer.json and tokenizer_config.json, which `tokenizers` and transformers read.

        chat_template: Jinja source, "chatml" for this package's own format (with `default_system`), or None
        for a base model. ends_turns: whether a turn's end or a document's is the eos_token; by default a
        turn's where there is a template. Returns the files written. They give the same ids.
        """
        from qwenkit.text.tokenizer_json import write_tokenizer_json

        return write_tokenizer_json(
            self,
            Path(folder),
            chat_template=chat_template,
            model_max_length=model_max_length,
            default_system=default_system,
            ends_turns=chat_template is not None if ends_turns is None else ends_turns,
        )


def _invert(ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> list[bytes | None]:
    ids = [*ranks.values(), *special_tokens.values()]
    if not ids or min(ids) < 0:
        raise TokenizerError(
            f"A vocabulary of {len(ids)} tokens with lowest id {min(ids, default='none')}.",
            "It needs tokens, with ids from 0 up.",
        )
    table: list[bytes | None] = [None] * (max(ids) + 1)
    for token, i in ranks.items():
        if table[i] is not None:
            raise TokenizerError(
                f"Tokens {table[i]!r} and {token!r} share id {i}.", "Give each token its own."
            )
        table[i] = token
    for form, i in special_tokens.items():
        if table[i] is not None:
            raise TokenizerError(
                f"Special token {form!r} shares id {i} with {table[i]!r}.", "Give each its own."
            )
        table[i] = form.encode()
    return table


@lru_cache(maxsize=64)
def _special_splitter(forms: frozenset[str]) -> re.Pattern[str]:
    # Longest first, so that a form which begins with another one is not cut short.
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")")


def _some(forms: Collection[str], most: int = 8) -> str:
    shown = ", ".join(list(forms)[:most])
    return f"{shown} and {len(forms) - most} more" if len(forms) > most else shown or "none"
