"""A GGUF file of random weights, quantized blocks and all, without quantizing anything.

The mix of formats is that of llama.cpp's own quantizer: the output layer of a Q4_0 file is Q6_K.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from qwenkit.checkpoint.gguf_plan import add_shape
from qwenkit.model import ModelConfig

_Q = GGMLQuantizationType
_FORMS = {  # kind -> (matrices, output layer, file type)
    "Q4_0": (_Q.Q4_0, _Q.Q6_K, LlamaFileType.MOSTLY_Q4_0),
    "Q8_0": (_Q.Q8_0, _Q.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "BF16": (_Q.BF16, _Q.BF16, LlamaFileType.MOSTLY_BF16),
}
_LAYOUT = {  # weights of a block, its bytes, where its float16 scale is, the scale
    _Q.Q4_0: (32, 18, 0, 0.004),
    _Q.Q8_0: (32, 34, 0, 0.0003),
    _Q.Q6_K: (256, 210, 208, 0.00001),
}


def write_random_gguf(path: Path, config: ModelConfig, kind: str) -> None:
    """kind: Q4_0, Q8_0 or BF16. The file has no vocabulary: it is asked in token ids."""
    matrix, output, file_type = _FORMS[kind]
    writer = GGUFWriter(path, "qwen2", use_temp_file=False)
    writer.add_name("random")
    writer.add_file_type(file_type)
    add_shape(writer, config, "qwen2", config.max_positions)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    made: dict[tuple[_Q, tuple[int, ...]], np.ndarray] = {}
    for name, shape in _tensors(config):
        form = _Q.F32 if len(shape) == 1 else output if name.startswith("output") else matrix
        if form is _Q.F32:
            writer.add_tensor(name, np.full(shape, float(name.endswith("weight")), dtype=np.float32))
            continue
        if (form, shape) not in made:
            made[form, shape] = random_blocks(form, shape)
        writer.add_tensor(name, made[form, shape], raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    h, f, d = config.hidden_size, config.ffn_size, config.head_dim
    yield "token_embd.weight", (config.vocab_size, h)
    yield "output_norm.weight", (h,)
    if not config.tied_embeddings:
        yield "output.weight", (config.vocab_size, h)
    for layer in range(config.num_layers):
        block = f"blk.{layer}"
        for part, heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads)):
            yield f"{block}.attn_{part}.weight", (heads * d, h)
            yield f"{block}.attn_{part}.bias", (heads * d,)
        yield f"{block}.attn_output.weight", (h, config.num_heads * d)
        yield f"{block}.attn_norm.weight", (h,)
        yield f"{block}.ffn_norm.weight", (h,)
        yield f"{block}.ffn_up.weight", (f, h)
        yield f"{block}.ffn_gate.weight", (f, h)
        yield f"{block}.ffn_down.weight", (h, f)


def random_blocks(form: _Q, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [rows, bytes of a row]: random codes, one small scale."""
    rows, columns = shape
    draw = np.random.default_rng(0)
    if form is _Q.BF16:
        floats = (draw.standard_normal(1 << 20) * 0.02).astype(np.float32).view(np.uint32)
        return np.resize((floats >> 16).astype(np.uint16), (rows, columns)).view(np.uint8)
    weights, nbytes, place, scale = _LAYOUT[form]
    blocks = draw.integers(0, 256, (1 << 12, nbytes), dtype=np.uint8)
    blocks[:, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    return np.resize(blocks, (rows, columns // weights * nbytes))
