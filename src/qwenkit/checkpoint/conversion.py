"""From any layout to any other: first what would be written and what is lost, then the writing.

`plan_conversion` reads headers, configuration, tokenizer and the small tensors that decide what is possible;
`Conversion.write` reads the weights, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from qwenkit.checkpoint import conversion_notes as notes
from qwenkit.checkpoint.checkpoint_base import Checkpoint
from qwenkit.checkpoint.conversion_gguf import Arch, gguf_tensors
from qwenkit.checkpoint.folder_plan import MAX_SHARD_BYTES, FolderPlan
from qwenkit.checkpoint.gguf_forms import PlannedBlocks
from qwenkit.checkpoint.gguf_plan import GGUFPlan
from qwenkit.checkpoint.gptq_rules import rewritten
from qwenkit.checkpoint.layout import cast
from qwenkit.checkpoint.output import appearing
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.checkpoint.vocabulary_resize import with_rows
from qwenkit.checkpoint.write import in_layout
from qwenkit.core import CheckpointError, RequestError, UnsupportedError
from qwenkit.model import ModelConfig

Target = Literal["v1", "qwen2", "gguf"]
Planned = PlannedTensor | PlannedBlocks
_T = TypeVar("_T", PlannedTensor, PlannedBlocks)


@dataclass
class Meter:
    """Tells `advance` how many bytes each tensor has, once it was read."""

    advance: Callable[[int], Any] | None = None

    def over(self, tensors: Sequence[_T]) -> list[_T]:
        """The same tensors, counted."""
        return [replace(tensor, read=partial(self._read, tensor)) for tensor in tensors]

    def _read(self, tensor: Planned) -> Any:
        held = tensor.read()
        if self.advance is not None:
            self.advance(tensor.nbytes)
        return held


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What can be written. losses: how it differs from the source, one sentence each.

    rounded: names of the float tensors that lost digits; filled by `write`. A tensor rounded to a block
    form is not counted: there, the loss is in `losses`. doing: what the progress bar says.
    """

    target: Target
    plan: FolderPlan | GGUFPlan
    losses: tuple[str, ...]
    rounded: list[str]
    meter: Meter = field(default_factory=Meter)
    doing: str = "Converting"

    @property
    def files(self) -> Mapping[str, Sequence[Planned]]:
        """Name of each file ("" for a GGUF, named by the caller) -> tensors: name, shape, form, nbytes."""
        return self.plan.files

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.plan.tensors)

    def check_name(self, destination: Path) -> None:
        """Raise RequestError for a folder that is named as a GGUF file or the other way round."""
        if (destination.suffix == ".gguf") != (self.target == "gguf"):
            kind = "a file whose name ends in .gguf" if self.target == "gguf" else "a folder, no .gguf file"
            raise RequestError(f"The output is named {destination}.", f"--to {self.target} writes {kind}.")

    def write(self, destination: Path, *, progress: bool = False) -> None:
        """Write to `destination`, which appears whole or not at all.

        progress: a bar on standard error. Raises RequestError as `check_name`, CheckpointError if something
        is there, for a full disk, and for NaN or infinity in a weight; UnsupportedError for values that
        the wanted dtype cannot hold.
        """
        self.check_name(destination)
        self.rounded.clear()
        with appearing(destination, folder=self.target != "gguf", nbytes=self.nbytes) as fresh:
            if not progress:
                self.plan.write(fresh)
                return
            from tqdm import tqdm

            with tqdm(
                total=self.nbytes, desc=self.doing, unit="B", unit_scale=True, leave=False, disable=None
            ) as bar:
                self.meter.advance = bar.update
                self.plan.write(fresh)


def plan_conversion(
    source: Checkpoint,
    to: Target,
    *,
    dtype: torch.dtype | None = None,
    form: str | None = None,
    arch: Arch | None = None,
    max_shard_bytes: int | None = None,
    vocab_size: int | None = None,
) -> Conversion:
    """Find out how `source` would be written as `to`: "v1" or "qwen2", folders, or "gguf", a file.

    dtype: of float weights in a folder; by default that of the source. form: of the matrices of a GGUF file:
    F32, F16, BF16, Q8_0, Q4_0 or Q4_1; by default what keeps the source's values best. arch: that of the
    GGUF file, by default the source's. max_shard_bytes: of a weight file in a folder. vocab_size: rows of
    embedding and output.

    Raises RequestError for options that do not go together, UnsupportedError for what the target cannot
    express, CheckpointError and TokenizerError for a source that is damaged or lacks a part.
    """
    if to not in get_args(Target):
        raise RequestError(f"There is no target {to!r}.", f"Choose one of {', '.join(get_args(Target))}.")
    _check_options(source, to, dtype, form, arch, max_shard_bytes)
    config, tensors, losses = source.config, list(source.planned()), list(source.notes)
    if vocab_size is not None and vocab_size != config.vocab_size:
        _check_rows(source, vocab_size)
        losses.append(notes.rows_changed(config.vocab_size, vocab_size))
        config, tensors = replace(config, vocab_size=vocab_size), with_rows(tensors, vocab_size)
    if to == "gguf":
        return _to_gguf(source, config, tensors, losses, form, arch)
    shard_bytes = MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes
    return _to_folder(source, to, config, tensors, losses, dtype, shard_bytes)


def _to_folder(
    source: Checkpoint,
    to: Target,
    config: ModelConfig,
    tensors: list[PlannedTensor],
    losses: list[str],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> Conversion:
    rounded: list[str] = []
    layout: Literal["qwen-v1", "qwen2"] = "qwen-v1" if to == "v1" else "qwen2"
    if to == "v1" and config.num_kv_heads != config.num_heads:
        losses.append(notes.heads_repeated(config))
    if to == "qwen2" and config.beyond_training:
        losses.append(notes.long_context(config, "max_position_embeddings"))
    shape, tensors = in_layout(layout, config, tensors)
    if dtype is None and (source.layout == "gguf" or source.dequantized):  # norms of a GGUF are float32
        dtype = source.dtype
    if dtype is not None:
        kinds = {t.form for t in tensors if torch.promote_types(t.dtype, dtype) != dtype}
        if source.dequantized:
            losses.append(
                f"{source.quantization} is dequantized; {dtype_words(dtype)} may not hold all digits."
            )
        elif kinds:
            losses.append(notes.narrowed(sorted(kinds), dtype_words(dtype)))
        tensors = cast(tensors, dtype, rounded)
    if not source.has_tokenizer:
        losses.append(notes.NO_TOKENIZER)
    meter = Meter()
    plan = FolderPlan(
        layout=layout,
        config=shape,
        tensors=meter.over(tensors),
        dtype=dtype or source.dtype,
        tokenizer=source.tokenizer() if source.has_tokenizer else None,
        chat_template=source.chat_template,
        generation=source.generation,
        quantization=_quantization(source, layout, tensors),
        note=notes.readme(source.path.name, f"{to} layout", losses),
        max_shard_bytes=max_shard_bytes,
    )
    return Conversion(target=to, plan=plan, losses=tuple(losses), rounded=rounded, meter=meter)


def _to_gguf(
    source: Checkpoint,
    config: ModelConfig,
    tensors: list[PlannedTensor],
    losses: list[str],
    form: str | None,
    arch: Arch | None,
) -> Conversion:
    if not source.has_tokenizer:
        raise UnsupportedError(
            f"{source.path} has no tokenizer, and a GGUF file needs one.",
            "Copy the tokenizer files of the model it was made from into the folder.",
        )
    rounded: list[str] = []
    chosen = arch or config.architecture
    found = gguf_tensors(config, tensors, chosen, form, rounded)
    losses += found.losses
    if chosen == "qwen" and config.num_kv_heads != config.num_heads:
        losses.append(notes.heads_repeated(config))
    if config.beyond_training:
        losses.append(notes.long_context(config, f"{chosen}.context_length"))
    tokenizer = source.tokenizer()
    if tokenizer.nfc:
        losses.append(notes.NO_NORMALIZER)
    meter = Meter()
    plan = GGUFPlan(
        arch=chosen,
        config=found.config,
        tensors=meter.over(found.tensors),
        form=found.form,
        tokenizer=tokenizer,
        generation=source.generation,
        chat_template=source.chat_template,
        name=source.path.stem if source.path.suffix == ".gguf" else source.path.name,
        note=notes.readme(source.path.name, "GGUF format", losses),
    )
    return Conversion(target="gguf", plan=plan, losses=tuple(losses), rounded=rounded, meter=meter)


def _check_options(
    source: Checkpoint,
    to: Target,
    dtype: torch.dtype | None,
    form: str | None,
    arch: str | None,
    max_shard_bytes: int | None,
) -> None:
    if to == "gguf":
        given = [name for name, value in (("dtype", dtype), ("max-shard-size", max_shard_bytes)) if value]
        if given:
            raise RequestError(
                f"--{given[0]} is for folders; a GGUF is one file.", "Choose its number format with --type."
            )
        return
    given = [name for name, value in (("type", form), ("arch", arch)) if value]
    if given:
        raise RequestError(
            f"--{given[0]} is for GGUF files, not for --to {to}.", "Choose the number format with --dtype."
        )
    if source.gptq is not None and dtype is not None:
        raise RequestError(
            f"{source.path} is quantized ({source.quantization}), so --dtype does not apply.",
            "Leave --dtype out to keep the codes, or start from the 16-bit checkpoint.",
        )


def _check_rows(source: Checkpoint, rows: int) -> None:
    if source.has_tokenizer:
        used = max([len(source.tokenizer()), *(stop + 1 for stop in source.generation.stop_token_ids)])
        why = f"ids up to {used - 1} are in use"
    else:
        used, why = source.config.vocab_size, "it has no tokenizer, which would tell the ids in use"
    if rows < used:
        raise CheckpointError(
            f"{source.path} cannot have {rows} rows: {why}.", f"Give --vocab-size {used} or more."
        )


def _quantization(
    source: Checkpoint, layout: Literal["qwen-v1", "qwen2"], tensors: Sequence[PlannedTensor]
) -> dict[str, Any] | None:
    if source.gptq is None:
        return None
    fields = source.gptq.to_dict()
    if layout != source.layout:
        if fields.get("modules_in_block_to_quantize"):
            raise UnsupportedError(
                f"{source.path}: 'modules_in_block_to_quantize' of its quantization config names modules of "
                "the source layout.",
                "Remove it, if all linear layers of a block are quantized alike.",
            )
        if source.gptq.rules:
            fields["dynamic"] = rewritten(source.gptq.rules, source.layout, layout, source.config.num_layers)
    if "desc_act" not in fields:  # vLLM asks for it, and passes over g_idx where it is false
        orders = (tensor.read() for tensor in tensors if tensor.name.endswith(".g_idx"))
        fields["desc_act"] = any(bool((order.diff() < 0).any()) for order in orders)
    return fields


def dtype_words(dtype: torch.dtype) -> str:
    """torch.float16 -> "float16"."""
    return str(dtype).removeprefix("torch.")
