"""GGUF out and in: read back by us and by the gguf library; GPTQ codes taken over exactly."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conversions import act_order, chat_folder, convert, copied, same, small_tokenizer, stored
from safetensors.torch import load_file, save_file

from qwenkit.checkpoint import open_checkpoint, plan_conversion
from qwenkit.core import RequestError, TokenizerError, UnsupportedError
from qwenkit.model import Batch
from qwenkit.quant.gptq import pack_zeros

IDS = torch.arange(3, 43)[None]


@torch.inference_mode()
def logits(path: Path) -> torch.Tensor:
    return open_checkpoint(path).load_model(dtype=torch.float32)(IDS, Batch.make(*IDS.shape))[0]


@pytest.mark.parametrize("arch", ["qwen", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float_types_come_back_bit_by_bit(tmp_path, arch, dtype):
    source = chat_folder(
        tmp_path / "source", dtype=dtype, dynamic_ntk=True, logn=True, seq_length=32, max_positions=128
    )
    conversion = convert(source, "gguf", tmp_path / "m.gguf", arch=arch)
    assert conversion.rounded == []
    assert not any("rounded" in loss for loss in conversion.losses)
    convert(tmp_path / "m.gguf", "v1", tmp_path / "again", dtype=dtype)
    same(stored(tmp_path / "again"), stored(source))
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "again")
    assert after.config == before.config
    assert set(after.generation.stop_token_ids) == set(before.generation.stop_token_ids)
    assert after.generation.sampling == before.generation.sampling
    assert (after.generation.max_window_size, after.generation.default_system) == (99, "Be brief.")
    text = "hello <tool> <|im_end|> 你好 1234"
    for special in (True, False):
        ids = before.tokenizer().encode(text, allow_special=special)
        assert after.tokenizer().encode(text, allow_special=special) == ids
    assert after.tokenizer().visible == {"<tool>"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ["qwen", "qwen2"])
def test_grouped_heads_and_tied_embeddings(tmp_path, tied, arch):
    source = chat_folder(tmp_path / "source", "qwen2", tied_embeddings=tied)
    convert(source, "gguf", tmp_path / "m.gguf", arch=arch)
    names = {t.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert ("output.weight" in names) == (not tied or arch == "qwen")
    torch.testing.assert_close(logits(tmp_path / "m.gguf"), logits(source), atol=1e-4, rtol=1e-4)
    if arch == "qwen2":
        convert(tmp_path / "m.gguf", "qwen2", tmp_path / "again")
        same(stored(tmp_path / "again"), stored(source))


def test_what_other_programs_read(tmp_path):
    source = chat_folder(
        tmp_path / "source", dynamic_ntk=True, logn=True, seq_length=32, max_positions=128, rope_base=5e5
    )
    conversion = convert(source, "gguf", tmp_path / "m.gguf", form="q8_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    held = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        "general.architecture": "qwen", "general.file_type": 7, "qwen.block_count": 2,
        "qwen.context_length": 32, "qwen.embedding_length": 64, "qwen.feed_forward_length": 192,
        "qwen.attention.head_count": 4, "qwen.attention.head_count_kv": 4, "qwen.rope.dimension_count": 16,
        "qwen.rope.freq_base": 5e5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 258, "tokenizer.ggml.eot_token_id": 258,
        "tokenizer.ggml.padding_token_id": 256, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.merges": ["h e", "he l"], "general.sampling.top_k": 9,
    }  # fmt: skip
    assert {key: held.get(key) for key in expected} == expected
    assert held["general.sampling.temp"] == pytest.approx(0.5)
    assert "Be brief." in held["tokenizer.chat_template"]
    assert len(held["tokenizer.ggml.tokens"]) == len(held["tokenizer.ggml.token_type"]) == 300
    assert held["tokenizer.ggml.tokens"][256:263] == [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "he", "hel", "[PAD262]"
    ]  # fmt: skip
    assert held["tokenizer.ggml.token_type"][256:263] == [3, 3, 3, 4, 1, 1, 5]
    assert "Beyond 32 tokens" in held["general.description"]
    assert all(loss in held["general.description"] for loss in conversion.losses)
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert {kinds[name] for name in kinds if kinds[name] != "F32"} == {"Q8_0"}
    assert kinds["blk.0.attn_qkv.weight"] == "Q8_0"
    assert kinds["blk.0.attn_qkv.bias"] == kinds["output_norm.weight"] == "F32"


@pytest.mark.parametrize("form", ["q8_0", "q4_0", "q4_1"])
def test_blocks_are_those_of_the_library(tmp_path, form):
    source = chat_folder(tmp_path / "source")
    conversion = convert(source, "gguf", tmp_path / "m.gguf", form=form)
    kind = gguf.GGMLQuantizationType[form.upper()]
    held = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    before = stored(source)
    names = {"token_embd": "transformer.wte", "output": "lm_head", "blk.1.ffn_up": "transformer.h.1.mlp.w1",
             "blk.0.attn_qkv": "transformer.h.0.attn.c_attn"}  # fmt: skip
    for ours, canonical in names.items():
        wanted = gguf.GGMLQuantizationType.Q8_0 if ours in ("token_embd", "output") else kind
        tensor = held[f"{ours}.weight"]
        assert tensor.tensor_type == wanted
        theirs = gguf.quantize(before[f"{canonical}.weight"].numpy(), wanted)
        assert np.array_equal(np.asarray(tensor.data).reshape(theirs.shape), theirs)
    assert any(form.upper() in loss and "rounded" in loss for loss in conversion.losses)
    assert open_checkpoint(tmp_path / "m.gguf").quantization == f"GGUF {form.upper()}"


def gptq_folder(path: Path, name: str) -> Path:
    """The golden checkpoint with the small tokenizer beside it, and scales that float16 can hold."""
    copied(name, path)
    small_tokenizer().save_tokenizer_json(path, chat_template="chatml")
    tensors = load_file(path / "model.safetensors")
    tensors = {k: v.half() if k.endswith("scales") else v for k, v in tensors.items()}
    save_file(tensors, path / "model.safetensors")
    return path


def all_weights(path: Path) -> dict[str, torch.Tensor]:
    """Every linear layer of the model as float32."""
    model = open_checkpoint(path).load_model(dtype=torch.float32)
    return {
        name: module.dequantize(torch.float32) if hasattr(module, "dequantize") else module.weight
        for name, module in model.named_modules()
        if name.endswith(("c_attn", "c_proj", "w1", "w2"))
    }


def asymmetric(source: Path) -> None:
    tensors = stored(source)
    generator = torch.Generator().manual_seed(1)
    for name, value in tensors.items():
        if name.endswith("qzeros"):
            zeros = torch.randint(1, 16, (value.shape[0], value.shape[1] * 8), generator=generator)
            tensors[name] = pack_zeros(zeros.to(torch.uint8), 4)
    save_file(tensors, source / "model.safetensors")


@pytest.mark.parametrize("arch", ["qwen", "qwen2"])
@pytest.mark.parametrize(
    ("name", "change", "form", "exact"),
    [
        ("tiny_v1_int4", None, None, True),  # Q4_0
        ("tiny_v1_int8", None, None, True),  # Q8_0
        ("tiny_v1_int4", asymmetric, "q8_0", True),
        ("tiny_v1_int4", asymmetric, "q4_0", False),
        ("tiny_v1_int4", act_order, "q4_0", False),
        ("tiny_v1_int4", act_order, "f32", True),
        ("tiny_v1_int8", None, "q4_1", False),
    ],
)
def test_gptq_codes_are_taken_over_where_a_block_can_say_the_same(tmp_path, arch, name, change, form, exact):
    source = gptq_folder(tmp_path / "source", name)
    if change:
        change(source)
    conversion = convert(source, "gguf", tmp_path / "m.gguf", form=form, arch=arch)
    before, after = all_weights(source), all_weights(tmp_path / "m.gguf")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before) == exact
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=0.2 * float(value.abs().max()), rtol=0)
    assert any("GPTQ layers are dequantized" in loss for loss in conversion.losses) == (not exact)


def test_scales_that_float16_cannot_hold_are_counted(tmp_path):
    source = gptq_folder(tmp_path / "source", "tiny_v1_int4")
    tensors = stored(source)
    key = "transformer.h.0.mlp.w1.scales"
    tensors[key] = tensors[key].float() * 1.0001
    save_file(tensors, source / "model.safetensors")
    conversion = convert(source, "gguf", tmp_path / "m.gguf")
    assert conversion.rounded == ["blk.0.ffn_up.scales"]


def test_narrow_rows_stay_f16_and_that_is_said(tmp_path):
    source = chat_folder(tmp_path / "source", ffn_size=80)
    conversion = convert(source, "gguf", tmp_path / "m.gguf", form="q4_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert {n for n, kind in kinds.items() if kind == "F16"} == {
        "blk.0.ffn_down.weight",
        "blk.1.ffn_down.weight",
    }
    assert any(loss.startswith("2 matrices stay F16") for loss in conversion.losses)


def test_block_files_of_others_become_folders(tmp_path):
    """From the gguf library's own writer: dequantized, rounded once to the dtype asked for."""
    from gguf_files import write_model

    path, model = write_model(tmp_path / "m.gguf", kind="Q8_0")
    conversion = convert(path, "qwen2", tmp_path / "wide", dtype=torch.float32)
    assert conversion.rounded == []
    held = stored(tmp_path / "wide")
    assert torch.equal(held["model.layers.1.mlp.up_proj.weight"], model.transformer.h[1].mlp.w1.weight)
    conversion = convert(path, "qwen2", tmp_path / "out")
    assert {v.dtype for v in stored(tmp_path / "out").values()} == {torch.bfloat16}
    assert any("GGUF Q8_0 is dequantized" in loss for loss in conversion.losses)
    assert len(conversion.rounded) > 10
    again = open_checkpoint(tmp_path / "out").tokenizer()
    assert again.encode("hello") == open_checkpoint(path).tokenizer().encode("hello")


def test_real_vocabulary(tmp_path, tiny_chat):
    convert(tiny_chat, "gguf", tmp_path / "m.gguf")
    source, there = open_checkpoint(tiny_chat), open_checkpoint(tmp_path / "m.gguf")
    assert there.config == source.config
    text = "<|im_start|>user\n你好 ﬁ e\u0301 1234\r\n\n<|im_end|> <|extra_7|>"
    for special in (True, False):
        ids = source.tokenizer().encode(text, allow_special=special)
        assert there.tokenizer().encode(text, allow_special=special) == ids
    assert set(there.generation.stop_token_ids) == {151643, 151644, 151645}
    assert there.is_chat


def test_wrong_requests(tmp_path):
    source = chat_folder(tmp_path / "source")
    checkpoint = open_checkpoint(source)
    with pytest.raises(RequestError, match=r"q5_k.*f32, f16, bf16, q8_0, q4_0, q4_1"):
        plan_conversion(checkpoint, "gguf", form="q5_k")
    with pytest.raises(RequestError, match="--arch 'llama'"):
        plan_conversion(checkpoint, "gguf", arch="llama")
    with pytest.raises(RequestError, match=r"ends in \.gguf"):
        convert(source, "gguf", tmp_path / "m.bin")
    half = chat_folder(tmp_path / "half", rotary_dim=8)
    with pytest.raises(UnsupportedError, match="8 of 16 channels"):
        convert(half, "gguf", tmp_path / "m.gguf")
    short = chat_folder(tmp_path / "short", vocab_size=261)
    with pytest.raises(TokenizerError, match=r"ids up to 261.*261 rows"):
        convert(short, "gguf", tmp_path / "m.gguf")
    large = stored(source)
    large["lm_head.weight"][0, 0] = 1e6
    save_file(large, source / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"output\.weight.*float16"):
        convert(source, "gguf", tmp_path / "m.gguf", form="f16")
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*"))


def test_values_of_ours_that_are_damaged(tmp_path):
    from gguf_files import write_model

    from qwenkit.core import CheckpointError, ConfigError

    for key, value in (("qwenkit.qwen_v1", "{"), ("qwenkit.generation_config", "[1]"),
                       ("qwenkit.qwen_v1", json.dumps({"seq_length": "long"}))):  # fmt: skip
        path, _ = write_model(tmp_path / "m.gguf", general={key: value}, load=False)
        with pytest.raises((CheckpointError, ConfigError)):
            open_checkpoint(path)
