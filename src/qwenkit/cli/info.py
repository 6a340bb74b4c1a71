"""`qwenkit info`: what a checkpoint is and what it needs, read from headers without loading weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import State, chosen_model
from qwenkit.core import QwenkitError

if TYPE_CHECKING:
    from qwenkit.checkpoint import Checkpoint
    from qwenkit.model import ModelConfig

_KILO = 1024  # tokens in "1k"


def info(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    shape: Annotated[
        str | None, typer.Option(help="A published size by name, without any file, for example qwen-7b.")
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Also the memory at this many tokens.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes are bytes.")] = False,
    offline: options.Offline = False,
) -> None:
    """Show what a checkpoint is and what it needs.

    Configuration, memory for weights and KV cache, files; read from headers, without loading the weights.
    """
    name = chosen_model(model, model_option)
    if shape is not None and name is not None:
        raise typer.BadParameter("Give MODEL or --shape, not both.")
    if shape is not None:
        from qwenkit.model import ModelConfig

        facts = {"shape": shape, **config_facts(ModelConfig.from_name(shape), context)}
    else:
        state: State = ctx.obj
        facts = checkpoint_facts(state.open(name, offline=offline), context)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        show(facts)


def config_facts(config: ModelConfig, context: int | None) -> dict[str, Any]:
    """What follows from the configuration alone; sizes in bytes."""
    from dataclasses import asdict

    from qwenkit.cli.memory import cache_bytes, weight_bytes
    from qwenkit.model import ntk_alpha

    facts: dict[str, Any] = {
        "architecture": config.architecture,
        "parameters": config.parameter_count,
        "context_length": config.context_length,
        "config": asdict(config),
        "weight_bytes": {f"{bits}-bit": weight_bytes(config, bits) for bits in (16, 8, 4)},
        "cache_bytes_per_1024_tokens": {f"{bits}-bit": cache_bytes(config, _KILO, bits) for bits in (16, 8)},
    }
    if context is not None:
        facts["at_context"] = {
            "tokens": context,
            "fits": context <= config.context_length,
            "ntk_alpha": ntk_alpha(context, config.seq_length) if config.dynamic_ntk else 1.0,
            "logn": config.logn and context > config.seq_length,
            "cache_bytes": {f"{bits}-bit": cache_bytes(config, context, bits) for bits in (16, 8)},
        }
    return facts


def checkpoint_facts(checkpoint: Checkpoint, context: int | None) -> dict[str, Any]:
    """The same and what the files say. Reads headers and the tokenizer only."""
    entries = checkpoint.entries()
    kinds = Counter(entry.dtype for entry in entries)
    files: dict[str, int] = {}
    for entry in entries:
        files[str(entry.file)] = files.get(str(entry.file), 0) + entry.nbytes
    facts = {
        "path": str(checkpoint.path),
        "layout": checkpoint.layout,
        "quantization": checkpoint.quantization,
        "warning": checkpoint.warning,
        "is_chat": checkpoint.is_chat,
        **config_facts(checkpoint.config, context),
        "stored_bytes": sum(files.values()),
        "tensors": dict(kinds.most_common()),
        "files": files,
        **_generation_facts(checkpoint),
    }
    facts["weight_bytes"] = {"stored": facts["stored_bytes"], **facts["weight_bytes"]}
    return facts


def _generation_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    generation = checkpoint.generation
    sampling = generation.sampling
    facts: dict[str, Any] = {
        "chat_format": generation.chat_format,
        "default_system": generation.default_system,
        "max_window_size": generation.max_window_size,
        "sampling": {
            key: getattr(sampling, key)
            for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
        },
    }
    try:
        tokenizer = checkpoint.tokenizer()
    except QwenkitError as error:  # the rest is worth showing when the vocabulary is broken or absent
        return {
            **facts,
            "tokenizer_problem": str(error),
            "stop_tokens": dict.fromkeys(generation.stop_token_ids),
        }
    return {
        **facts,
        "tokenizer": f"{tokenizer.name}, {len(tokenizer)} ids",
        "stop_tokens": {token: tokenizer.decode([token]) for token in generation.stop_token_ids},
    }


def show(facts: dict[str, Any]) -> None:
    """Print the facts as a table."""
    from rich.text import Text

    from qwenkit.cli.terminal import print_table, printable

    print_table((Text(key, style="cyan"), Text(printable(value))) for key, value in _rows(facts))


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    from qwenkit.cli.memory import GROUP, size

    config = facts["config"]
    rows = []
    if "path" in facts:
        kind = "chat model" if facts["is_chat"] else "base model (completes text, not trained to chat)"
        rows += [
            ("path", facts["path"]),
            ("kind", f"{kind}, {facts['layout']} layout"),
            ("quantization", facts["quantization"]),
        ]
        if facts["warning"]:
            rows.append(("warning", facts["warning"]))
    else:
        rows.append(("shape", facts["shape"]))
    rows += [
        ("parameters", f"{facts['parameters'] / 1e9:.2f} billion"),
        (
            "blocks",
            f"{config['num_layers']} layers of width {config['hidden_size']}, {config['num_heads']} heads of "
            f"{config['head_dim']} sharing {config['num_kv_heads']} KV heads, FFN {config['ffn_size']}",
        ),
        (
            "vocabulary",
            f"{config['vocab_size']} rows, embeddings {'tied' if config['tied_embeddings'] else 'separate'}",
        ),
        ("context", f"{facts['context_length']} tokens, trained on {config['seq_length']}"),
        ("long context", _long_context(config)),
    ]
    weights = facts["weight_bytes"]
    if "stored" in weights:
        rows.append(("weights as stored", size(weights["stored"])))
    rows += [
        ("weights in 16 bits", size(weights["16-bit"])),
        (
            "weights in 8 / 4 bits",
            f"{size(weights['8-bit'])} / {size(weights['4-bit'])} (blocks, groups of {GROUP})",
        ),
        ("KV cache per 1k tokens", _cache(facts["cache_bytes_per_1024_tokens"])),
    ]
    if "at_context" in facts:
        rows += _at_context(facts["at_context"], facts["context_length"])
    if "path" in facts:
        rows += _file_rows(facts)
    return rows


def _cache(by_bits: dict[str, int]) -> str:
    from qwenkit.cli.memory import size

    return f"{size(by_bits['16-bit'])} in 16 bits, {size(by_bits['8-bit'])} in 8 bits"


def _long_context(config: dict[str, Any]) -> str:
    active = [name for name, key in (("dynamic NTK", "dynamic_ntk"), ("LogN", "logn")) if config[key]]
    if not active:
        return "neither dynamic NTK nor LogN"
    return f"{' and '.join(active)} from token {config['seq_length'] + 1} on"


def _at_context(at: dict[str, Any], limit: int) -> list[tuple[str, str]]:
    tokens = at["tokens"]
    rows = [(f"KV cache at {tokens}", _cache(at["cache_bytes"]))]
    if not at["fits"]:
        rows.append((f"at {tokens}", f"too long: the context is {limit} tokens"))
    elif at["ntk_alpha"] != 1 or at["logn"]:
        rows.append(
            (
                f"at {tokens}",
                f"NTK alpha {at['ntk_alpha']:g} for such a prompt, LogN {'on' if at['logn'] else 'off'}",
            )
        )
    return rows


def _file_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    from qwenkit.cli.memory import size

    stops = (f"{token} {name or ''}".strip() for token, name in facts["stop_tokens"].items())
    given = ", ".join(f"{key}={value}" for key, value in facts["sampling"].items())
    rows = [
        ("tokenizer", facts.get("tokenizer") or f"problem: {facts['tokenizer_problem']}"),
        ("chat format", facts["chat_format"]),
        ("stop tokens", ", ".join(stops) or "none"),
        ("default system", facts["default_system"]),
        ("sampling", given),
        (
            "history window",
            f"{facts['max_window_size']} tokens" if facts["max_window_size"] else "all that fits",
        ),
        ("tensors", ", ".join(f"{count} {kind}" for kind, count in facts["tensors"].items())),
    ]
    files = facts["files"]
    shown = [f"{Path(name).name} ({size(count)})" for name, count in list(files.items())[:8]]
    if len(files) > len(shown):
        shown.append(f"and {len(files) - len(shown)} more")
    return [*rows, ("files", "\n".join(shown))]
