"""What a loaded model runs on, in words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from qwenkit import kernels
from qwenkit.engine.request import NEUTRAL

if TYPE_CHECKING:
    from qwenkit.engine.qwen import Qwen


def describe(qwen: Qwen) -> str:
    """One line a subject, "subject: value", reasons in parentheses."""
    config, place = qwen.config, qwen.placement
    device = str(place.device)
    if place.device.type == "cuda":
        device += f" {torch.cuda.get_device_name(place.device)}"
    elif place.device.type == "cpu":
        device += f", {torch.get_num_threads()} threads"
    dtype = str(place.dtype).removeprefix("torch.")
    linears: Counter[str] = Counter()
    for name, module in qwen.model.named_modules():
        if isinstance(module, nn.Linear) or "Linear" in type(module).__name__:
            where = " (output)" if name == "lm_head" else ""
            linears[f"{type(module).__name__}{_form(module)}{where}"] += 1
    held = {t.data_ptr(): t.nbytes for t in (*qwen.model.parameters(), *qwen.model.buffers())}
    long = [name for name, on in (("dynamic NTK", config.dynamic_ntk), ("LogN", config.logn)) if on]
    sampling = qwen.generation.sampling.with_defaults(NEUTRAL)
    lines = {
        "model": f"{qwen.name} ({'chat' if qwen.is_chat else 'base'})",
        "architecture": f"{config.architecture}, {config.parameter_count / 1e9:.2f} billion parameters",
        "weights": f"{_stored(qwen)}; {sum(held.values()) / 2**20:.0f} MiB in memory",
        "device": f"{device} ({place.device_reason})",
        "dtype": f"{dtype} ({place.dtype_reason})",
        "linear layers": ", ".join(f"{count} x {name}" for name, count in sorted(linears.items())),
        "kernels": _kernels(qwen),
        "context": f"{config.context_length} tokens, trained at {config.seq_length}"
        + (f" ({' and '.join(long)} beyond)" if long else ""),
        "KV cache": _cache(qwen),
        "requests": _requests(qwen),
        "sampling": f"temperature {sampling.temperature}, top_p {sampling.top_p}, top_k {sampling.top_k}, "
        f"repetition_penalty {sampling.repetition_penalty}, max_tokens {sampling.max_tokens}",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _cache(qwen: Qwen) -> str:
    cache, shape = qwen.engine.cache, qwen.engine.cache.shape
    kept = str(shape.dtype).removeprefix("torch.") if shape.format == "float" else shape.format
    windows = sorted({f"{window}" for window in cache.windows if window is not None})
    return (
        f"{kept}, {cache.nbytes / cache.tokens / 1024:.0f} KiB a token, {cache.tokens} tokens "
        f"({cache.nbytes / 2**20:.0f} MiB when full), attention by {cache.layers[0].kernel}"
        + (f", windows of {', '.join(windows)} tokens" if windows else "")
    )


def _requests(qwen: Qwen) -> str:
    options = qwen.options
    guess = "guesses no tokens"
    if qwen.engine.speculates:
        guess = f"guesses tokens by {'n-grams' if qwen.draft is None else qwen.draft.name}"
    return f"{options.max_running} at once, {options.step_tokens} tokens a step, {guess}"


def _kernels(qwen: Qwen) -> str:
    if qwen.device.type != "cpu":
        return f"torch {torch.__version__} operators"
    text = kernels.explain().removeprefix("kernels: ")
    return text if qwen.unpacked is None else f"{text}\n  {qwen.unpacked}"


def _stored(qwen: Qwen) -> str:
    """How the checkpoint stores its weights, and what that became where it is not the same."""
    if not qwen.quantization.startswith("GGUF") or not any("int" in _form(m) for m in qwen.model.modules()):
        return qwen.quantization
    return (
        f"{qwen.quantization}, run as integer codes (Q5_1, and q, k, v of different kinds, rounded to int8; "
        "weights='exact' takes them as floats)"
    )


def _form(module: nn.Module) -> str:
    form = getattr(module, "form", None)
    return "" if form is None else f" {form}"
