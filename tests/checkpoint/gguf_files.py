"""Small GGUF files, written by the gguf library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from small_checkpoints import small_model

from qwenkit.model import CausalLM

_LETTERS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
VOCABULARY = [*_LETTERS, *(chr(256 + n) for n in range(256 - len(_LETTERS))), "he", "<|endoftext|>",
              "<|im_start|>", "<|im_end|>"]  # fmt: skip
"""The 256 byte letters, one merge, and the control tokens."""


def write_tensors(path: Path, tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]) -> Path:
    writer = gguf.GGUFWriter(path, "test")
    for name, (value, kind) in tensors.items():
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(
    path: Path,
    *,
    arch: str = "qwen2",
    kind: str = "F32",
    others: dict[str, str] | None = None,
    tied: bool = False,
    metadata: dict[str, Any] | None = None,
    general: dict[str, Any] | None = None,
    split: int = 0,
    biases: bool = True,
    load: bool = True,
) -> tuple[Path, CausalLM]:
    """A random model as a GGUF file, and the same model with the weights the file stands for.

    others: the block kind of tensors whose name has this part.
    metadata overrides keys of the architecture, general any others; split: tensors a part. Of arch
    "llama" queries and keys are stored as the converter of llama.cpp orders them; biases: False leaves
    them out and sets them to zero in the model.
    load=False: the caller only opens the file, so tensors may contradict the metadata.
    """
    shared = {"num_kv_heads": 4} if arch == "qwen" else {}
    ours = "qwen2" if arch == "llama" else arch
    model = small_model(architecture=ours, tied_embeddings=tied, vocab_size=320, **shared)
    config = model.shape
    orders: dict[str, np.ndarray] = {}  # of rows, where the file has its own
    parts: dict[str, torch.Tensor] = {"token_embd.weight": model.transformer.wte.weight}
    if not tied:
        parts["output.weight"] = model.lm_head.weight
    parts["output_norm.weight"] = model.transformer.ln_f.weight
    for n, block in enumerate(model.transformer.h):
        sizes = [config.num_heads * 16, config.num_kv_heads * 16, config.num_kv_heads * 16]
        if not biases:
            block.attn.c_attn.bias.zero_()
        for suffix in ("weight", "bias") if biases else ("weight",):
            fused = getattr(block.attn.c_attn, suffix)
            if arch == "qwen":
                parts[f"blk.{n}.attn_qkv.{suffix}"] = fused
            else:
                for letter, rows in zip("qkv", fused.split(sizes), strict=True):
                    parts[f"blk.{n}.attn_{letter}.{suffix}"] = rows
                    if arch == "llama" and letter in "qk":
                        order = np.arange(len(rows)).reshape(-1, 2, 8).swapaxes(1, 2).ravel()
                        orders[f"blk.{n}.attn_{letter}.{suffix}"] = order
        parts[f"blk.{n}.attn_output.weight"] = block.attn.c_proj.weight
        parts[f"blk.{n}.attn_norm.weight"] = block.ln_1.weight
        parts[f"blk.{n}.ffn_norm.weight"] = block.ln_2.weight
        parts[f"blk.{n}.ffn_up.weight"] = block.mlp.w1.weight
        parts[f"blk.{n}.ffn_gate.weight"] = block.mlp.w2.weight
        parts[f"blk.{n}.ffn_down.weight"] = block.mlp.c_proj.weight
    values: dict[str, Any] = {
        "context_length": 64, "embedding_length": 64, "block_count": 2, "attention.head_count": 4,
        "attention.head_count_kv": config.num_kv_heads, "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-6, **(metadata or {}),
    }  # fmt: skip
    keys: dict[str, Any] = {
        "general.file_type": {"F32": 0, "Q4_0": 2, "Q8_0": 7}[kind],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": [1] * 257 + [3] * 3,
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": 259,
        **{f"{arch}.{key}": value for key, value in values.items()},
        **(general or {}),
    }
    writer = gguf.GGUFWriter(
        path,
        keys.pop("general.architecture", arch),
        split_max_tensors=split,
    )
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, value in parts.items():
        array = value.detach().numpy()
        order = orders.get(name, np.arange(len(array)))
        array = array[order]
        own = next((other for part, other in (others or {}).items() if part in name), kind)
        if array.ndim == 2 and own != "F32":
            quant = gguf.GGMLQuantizationType[own]
            packed = gguf.quantize(array, quant)
            value.data[order] = torch.from_numpy(gguf.dequantize(packed, quant))
            writer.add_tensor(name, packed, raw_dtype=quant)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if split:
        path = sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]
    return path, model
