"""What a person must know about a converted checkpoint: what is lost, and the note beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from qwenkit.model import ModelConfig

NO_TOKENIZER = (
    "There is no tokenizer: the source has none. Copy the tokenizer files of the model it was made from."
)
NO_NORMALIZER = (
    "llama.cpp does not normalise text to NFC: text with combining marks may get other token ids there."
)


def long_context(config: ModelConfig, key: str) -> str:
    """For a model whose long texts need dynamic NTK or LogN; `key`: the field that others go by."""
    means = " and ".join(
        name for name, on in (("dynamic NTK", config.dynamic_ntk), ("LogN", config.logn)) if on
    )
    return (
        f"Beyond {config.seq_length} tokens, the training length, other engines lack {means}: "
        f"{key} is {config.plain_length}. "
        f"qwenkit reads what was kept for it and still goes to {config.context_length}."
    )


def heads_repeated(config: ModelConfig) -> str:
    """For grouped heads in the v1 layout."""
    return (
        f"Each of the {config.num_kv_heads} KV heads is written {config.num_heads // config.num_kv_heads} "
        "times, as v1 has no groups: same logits, larger weights and KV cache."
    )


def narrowed(kinds: Sequence[str], to: str) -> str:
    """For float weights in a narrower format."""
    return f"Weights stored as {', '.join(kinds)} are written as {to}: digits it cannot hold are rounded."


def rows_changed(old: int, new: int) -> str:
    """For another number of rows in embedding and output."""
    if new < old:
        return f"Rows {new} to {old - 1} of embedding and output are cut; no token has them."
    return f"Rows {old} to {new - 1} of embedding and output are new and hold the mean of the others."


def readme(name: str, what: str, losses: Sequence[str]) -> str:
    """The note that is written with the weights."""
    lines = [f"{name} in the {what}, written by qwenkit {version('qwenkit')}.", ""]
    if losses:
        lines += ["What differs from the source:", *(f"- {loss}" for loss in losses)]
    else:
        lines += ["Every value of the source is kept."]
    return "\n".join(lines) + "\n"
