"""v1 and Qwen2 folders, there and back: every tensor, value and token id; golden logits on the other side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conversions import act_order, chat_folder, convert, copied, same, stored
from safetensors.torch import load_file, save_file
from small_checkpoints import DATA, small_model

from qwenkit.checkpoint import open_checkpoint, plan_conversion, write_checkpoint
from qwenkit.core import CheckpointError, GenerationConfig, RequestError, UnsupportedError
from qwenkit.model import Batch, ntk_alpha
from qwenkit.quant.gptq import pack_zeros, unpack_zeros

TINY = ("tiny_v1", "tiny_v1_int4", "tiny_v1_int8")


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / name / "golden.safetensors")


@torch.inference_mode()
def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    checkpoint = open_checkpoint(folder)
    model = checkpoint.load_model(dtype=torch.float32)
    alpha = ntk_alpha(ids.shape[1], checkpoint.config.seq_length) if checkpoint.config.dynamic_ntk else 1.0
    return model(ids, Batch.make(*ids.shape, ntk_alpha=(alpha,)))[0]


@pytest.mark.parametrize("name", TINY)
def test_v1_to_qwen2_and_back_is_bit_exact(tmp_path, name):
    source = copied(name, tmp_path / "source")
    convert(source, "qwen2", tmp_path / "qwen2")
    convert(tmp_path / "qwen2", "v1", tmp_path / "again")
    before, after = stored(source), stored(tmp_path / "again")
    zero_biases = {key for key in before if key.endswith(".bias") and ".attn.c_attn." not in key}
    assert bool(zero_biases) == ("int" in name)  # the extra ones of 2023, which are not written again
    same(after, {key: value for key, value in before.items() if key not in zero_biases})
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "again", source)
    )
    assert {key: theirs.get(key, value) for key, value in ours.items() if key != "torch_dtype"} == {
        key: value for key, value in ours.items() if key != "torch_dtype"
    }
    assert open_checkpoint(tmp_path / "again").config == open_checkpoint(source).config
    assert open_checkpoint(tmp_path / "again").generation == open_checkpoint(source).generation
    if "int" in name:
        quantized = [
            json.loads((f / "quantize_config.json").read_text()) for f in (tmp_path / "again", source)
        ]
        assert quantized[0] == quantized[1] | {"quant_method": "gptq"}
        assert ours["quantization_config"] == theirs["quantization_config"]


@pytest.mark.parametrize("name", TINY)
def test_golden_logits_come_out_of_the_qwen2_folder(tmp_path, name):
    """Also past the training length: NTK and LogN travel in an object that other readers ignore."""
    convert(copied(name, tmp_path / "source"), "qwen2", tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").layout == "qwen2"
    held = golden(name)
    ids = held["ids"]
    lengths = [int(key.removeprefix("prefill_")) for key in held if key.startswith("prefill_")]
    for n in lengths or [ids.shape[1]]:
        expected = held[f"prefill_{n}"] if lengths else held["logits"][0]
        torch.testing.assert_close(logits(tmp_path / "out", ids[:, :n]), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", TINY)
def test_parts_of_c_attn_are_its_thirds(tmp_path, name):
    """Restated here: rows of a weight, columns of packed words, and one order of inputs for all three."""
    source = copied(name, tmp_path / "source")
    convert(source, "qwen2", tmp_path / "out")
    before, after = stored(source), stored(tmp_path / "out")
    kinds = ("qweight", "qzeros", "scales", "bias", "g_idx") if "int" in name else ("weight", "bias")
    for kind in kinds:
        whole = before[f"transformer.h.1.attn.c_attn.{kind}"]
        parts = [after[f"model.layers.1.self_attn.{part}_proj.{kind}"] for part in "qkv"]
        if kind == "g_idx":
            assert all(torch.equal(part, whole) for part in parts)
        else:
            axis = 1 if kind in ("qweight", "qzeros", "scales") else 0
            assert all(map(torch.equal, parts, whole.chunk(3, dim=axis)))


def test_act_order_is_kept(tmp_path):
    source = copied("tiny_v1_int4", tmp_path / "source")
    act_order(source)
    convert(source, "qwen2", tmp_path / "out")
    order = stored(source)["transformer.h.0.attn.c_attn.g_idx"]
    assert not torch.equal(order, order.sort().values)
    for part in "qkv":
        assert torch.equal(stored(tmp_path / "out")[f"model.layers.0.self_attn.{part}_proj.g_idx"], order)
    ids = golden("tiny_v1_int4")["ids"][:, :40]
    torch.testing.assert_close(logits(tmp_path / "out", ids), logits(source, ids))
    convert(tmp_path / "out", "v1", tmp_path / "again")
    assert torch.equal(stored(tmp_path / "again")["transformer.h.0.attn.c_attn.g_idx"], order)


def changed(folder: Path, **tensors) -> Path:
    """The folder with tensors of layer 0 replaced (dots written as two underscores) or, by None, removed."""
    held = stored(folder)
    for name, value in tensors.items():
        key = f"model.layers.0.{name.replace('__', '.')}"
        if value is None:
            del held[key]
        else:
            held[key] = value
    save_file(held, folder / "model.safetensors")
    return folder


def test_parts_of_different_order_cannot_be_joined(tmp_path):
    convert(copied("tiny_v1_int4", tmp_path / "source"), "qwen2", tmp_path / "qwen2")
    order = stored(tmp_path / "qwen2")["model.layers.0.self_attn.k_proj.g_idx"]
    changed(tmp_path / "qwen2", self_attn__k_proj__g_idx=order.flip(0).contiguous())
    with pytest.raises(UnsupportedError, match=r"self_attn\.k_proj are grouped in another order"):
        convert(tmp_path / "qwen2", "v1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantized_and_plain_parts_cannot_be_joined(tmp_path):
    convert(copied("tiny_v1_int4", tmp_path / "source"), "qwen2", tmp_path / "qwen2")
    removed = {f"self_attn__k_proj__{kind}": None for kind in ("qweight", "qzeros", "scales", "g_idx")}
    changed(tmp_path / "qwen2", **removed, self_attn__k_proj__weight=torch.zeros(96, 96, dtype=torch.float16))
    with pytest.raises((UnsupportedError, CheckpointError), match="k_proj"):
        convert(tmp_path / "qwen2", "v1", tmp_path / "out")


def test_the_later_zero_point_convention_is_written_as_the_first(tmp_path):
    source = copied("tiny_v1_int4", tmp_path / "source")
    before = stored(source)
    later = {
        name: pack_zeros(unpack_zeros(value, 4), 4, stored_minus_one=False)
        if name.endswith("qzeros")
        else value
        for name, value in before.items()
    }
    save_file(later, source / "model.safetensors")
    for name in ("config.json", "quantize_config.json"):
        raw = json.loads((source / name).read_text())
        raw.get("quantization_config", raw)["checkpoint_format"] = "gptq_v2"
        (source / name).write_text(json.dumps(raw))
    convert(source, "v1", tmp_path / "out")
    after = stored(tmp_path / "out")
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text())["checkpoint_format"] == "gptq"


def test_a_bias_that_is_not_zero_is_not_dropped(tmp_path):
    source = copied("tiny_v1_int4", tmp_path / "source")
    tensors = stored(source)
    tensors["transformer.h.1.mlp.w1.bias"][3] = 1.0
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp\.w1\.bias' is not zero"):
        convert(source, "qwen2", tmp_path / "out")


def test_an_order_of_inputs_that_is_not_stored_is_written(tmp_path):
    source = copied("tiny_v1_int8", tmp_path / "source")
    before = stored(source)
    save_file({k: v for k, v in before.items() if not k.endswith("g_idx")}, source / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    del raw["quantization_config"]["desc_act"]
    (source / "config.json").write_text(json.dumps(raw))
    beside = json.loads((source / "quantize_config.json").read_text())
    del beside["desc_act"]
    (source / "quantize_config.json").write_text(json.dumps(beside))
    convert(source, "v1", tmp_path / "out")
    after = stored(tmp_path / "out")
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.endswith("g_idx"))
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["desc_act"] is False
    )


def test_grouped_heads_are_repeated_as_words_too(tmp_path):
    """A quantized model with one KV head for three queries, made of the golden one by forgetting two."""
    convert(copied("tiny_v1_int4", tmp_path / "source"), "qwen2", tmp_path / "grouped")
    held = stored(tmp_path / "grouped")
    for name, value in held.items():
        if "k_proj" in name or "v_proj" in name:
            axis = {"bias": 0, "g_idx": None}.get(name.rpartition(".")[2], 1)
            held[name] = value if axis is None else value.chunk(3, dim=axis)[0].contiguous()
    save_file(held, tmp_path / "grouped" / "model.safetensors")
    config = json.loads((tmp_path / "grouped" / "config.json").read_text())
    config["num_key_value_heads"] = 1
    (tmp_path / "grouped" / "config.json").write_text(json.dumps(config))
    conversion = convert(tmp_path / "grouped", "v1", tmp_path / "v1")
    assert any("written 3 times" in loss for loss in conversion.losses)
    ids = golden("tiny_v1_int4")["ids"][:, :50]
    torch.testing.assert_close(
        logits(tmp_path / "v1", ids), logits(tmp_path / "grouped", ids), atol=1e-4, rtol=1e-4
    )


def test_tensors_keep_their_own_dtypes_unless_told(tmp_path):
    source = copied("tiny_v1", tmp_path / "source")
    tensors = stored(source)
    tensors = {k: v.to(torch.bfloat16) if v.dim() == 2 else v for k, v in tensors.items()}
    save_file(tensors, source / "model.safetensors")
    convert(source, "qwen2", tmp_path / "mixed")
    convert(tmp_path / "mixed", "v1", tmp_path / "again")
    same(stored(tmp_path / "again"), tensors)
    conversion = convert(source, "v1", tmp_path / "half", dtype=torch.bfloat16)
    assert {value.dtype for value in stored(tmp_path / "half").values()} == {torch.bfloat16}
    really = {k for k, v in tensors.items() if not torch.equal(v.bfloat16().to(v.dtype), v)}
    assert set(conversion.rounded) == really
    assert really
    assert any("float32" in loss and "bfloat16" in loss for loss in conversion.losses)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_widening_is_no_loss(tmp_path):
    source = copied("tiny_v1_int4", tmp_path / "source")
    model = small_model()
    write_checkpoint(model, model.shape, None, tmp_path / "half", layout="qwen2", dtype=torch.float16)
    conversion = convert(tmp_path / "half", "qwen2", tmp_path / "wide", dtype=torch.float32)
    assert conversion.rounded == []
    assert not any("rounded" in loss for loss in conversion.losses)
    assert source.exists()


def test_shards_are_cut_at_the_size(tmp_path):
    source = copied("tiny_v1", tmp_path / "source")
    conversion = convert(source, "qwen2", tmp_path / "out", max_shard_bytes=100_000)
    files = sorted(tmp_path.glob("out/*.safetensors"))
    largest = max(tensor.nbytes for tensors in conversion.files.values() for tensor in tensors)
    assert len(files) > 3
    for file in files:
        held = load_file(file)
        assert sum(t.numel() * t.element_size() for t in held.values()) <= max(100_000, largest)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == stored(tmp_path / "out").keys()


def test_files_are_those_that_were_planned(tmp_path):
    for source in (chat_folder(tmp_path / "chat"), copied("tiny_v1_int4", tmp_path / "source")):
        for to in ("v1", "qwen2"):
            out = tmp_path / f"{source.name}-{to}"
            conversion = convert(source, to, out)
            assert set(conversion.files) == {file.name for file in out.iterdir()}
            planned = {t.name: (t.shape, t.form) for ts in conversion.files.values() for t in ts}
            there = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in stored(out).items()}
            assert planned == there
            assert conversion.nbytes == sum(v.numel() * v.element_size() for v in stored(out).values())


def test_tokenizer_template_and_stops_travel(tmp_path, tiny_chat):
    convert(tiny_chat, "qwen2", tmp_path / "qwen2")
    convert(tmp_path / "qwen2", "v1", tmp_path / "again")
    source, middle, end = map(open_checkpoint, (tiny_chat, tmp_path / "qwen2", tmp_path / "again"))
    assert all(set(c.generation.stop_token_ids) == {151643, 151644, 151645} for c in (source, middle, end))
    about = [replace(c.generation, stop_token_ids=()) for c in (source, middle, end)]
    assert about[0] == about[1] == about[2]
    text = "<|im_start|>user\n你好 ﬁ e\u0301 1234<|im_end|> <|extra_7|>"
    for special in (True, False):
        ids = source.tokenizer().encode(text, allow_special=special)
        assert ids == middle.tokenizer().encode(text, allow_special=special)
        assert ids == end.tokenizer().encode(text, allow_special=special)
    assert (tmp_path / "again" / "qwen.tiktoken").read_bytes() == (tiny_chat / "qwen.tiktoken").read_bytes()
    about = json.loads((tmp_path / "qwen2" / "tokenizer_config.json").read_text())
    assert about["eos_token"] == "<|im_end|>"
    assert about["model_max_length"] == 2048
    assert "<|im_start|>" in about["chat_template"]
    assert middle.config.vocab_size == 151936  # the padding rows are kept


def test_a_template_of_its_own_is_not_replaced(tmp_path):
    for chat_format in ("chatml", "raw"):
        generation = GenerationConfig(chat_format=chat_format, stop_token_ids=(256,))
        folder = chat_folder(tmp_path / chat_format, "qwen2", generation=generation)
        about = json.loads((folder / "tokenizer_config.json").read_text())
        about["chat_template"] = "{{ 'mine, with tools' }}"
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        convert(folder, "v1", tmp_path / f"{chat_format}-v1")
        convert(tmp_path / f"{chat_format}-v1", "qwen2", tmp_path / f"{chat_format}-2")
        for out in (f"{chat_format}-v1", f"{chat_format}-2"):
            again = open_checkpoint(tmp_path / out)
            assert again.chat_template == "{{ 'mine, with tools' }}"
            assert again.is_chat == (chat_format == "chatml")
            end = json.loads((tmp_path / out / "tokenizer_config.json").read_text())["eos_token"]
            assert end == ("<|im_end|>" if chat_format == "chatml" else "<|endoftext|>")


def test_what_is_lost_is_said_and_written(tmp_path):
    conversion = convert(copied("tiny_v1", tmp_path / "source"), "qwen2", tmp_path / "out")
    text = (tmp_path / "out" / "README.txt").read_text()
    assert len(conversion.losses) == 2
    assert all(loss in text for loss in conversion.losses)
    assert "Beyond 32 tokens" in text
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 32


@pytest.mark.parametrize(
    ("problem", "error", "match"),
    [
        ({"to": "onnx"}, RequestError, "v1, qwen2, gguf"),
        ({"to": "v1", "form": "q8_0"}, RequestError, "--type is for GGUF"),
        ({"to": "qwen2", "arch": "qwen"}, RequestError, "--arch is for GGUF"),
        ({"to": "v1", "max_shard_bytes": -1}, CheckpointError, "above 0"),
        ({"to": "gguf", "dtype": torch.float16}, RequestError, "--type"),
        ({"to": "gguf", "max_shard_bytes": 10}, RequestError, "one file"),
        ({"to": "gguf"}, UnsupportedError, "has no tokenizer"),
        ({"to": "v1", "vocab_size": 511}, CheckpointError, "has no tokenizer"),
    ],
)
def test_wrong_requests(problem, error, match):
    with pytest.raises(error, match=match):
        plan_conversion(open_checkpoint(DATA / "tiny_v1"), **problem)


def test_a_quantized_source_has_no_other_dtype(tmp_path):
    with pytest.raises(RequestError, match=r"GPTQ int4 g32.*16-bit"):
        plan_conversion(open_checkpoint(DATA / "tiny_v1_int4"), "qwen2", dtype=torch.float16)


def test_partly_rotated_heads_stay_in_v1(tmp_path):
    half = small_model(architecture="qwen", num_kv_heads=4, rotary_dim=8)
    write_checkpoint(half, half.shape, None, tmp_path / "half", layout="qwen-v1", dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="8 of 16 channels"):
        convert(tmp_path / "half", "qwen2", tmp_path / "out")
    convert(tmp_path / "half", "v1", tmp_path / "again")
    same(stored(tmp_path / "again"), stored(tmp_path / "half"))


def test_rules_that_name_modules_of_the_source_are_refused(tmp_path):
    source = copied("tiny_v1_int4", tmp_path / "source")
    raw = json.loads((source / "config.json").read_text())
    raw["quantization_config"]["modules_in_block_to_quantize"] = [["attn.c_attn"]]
    (source / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedError, match="modules_in_block_to_quantize"):
        convert(source, "qwen2", tmp_path / "out")
    convert(source, "v1", tmp_path / "again")


@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_is_cut_and_grown(tmp_path, tied):
    chat_folder(tmp_path / "m", "qwen2", tied_embeddings=tied)
    conversion = convert(tmp_path / "m", "qwen2", tmp_path / "more", vocab_size=317)
    assert any("Rows 300 to 316" in loss for loss in conversion.losses)
    checkpoint = open_checkpoint(tmp_path / "more")
    assert checkpoint.config.vocab_size == 317
    grown, old = stored(tmp_path / "more"), stored(tmp_path / "m")
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        assert torch.equal(grown[name][:300], old[name])
        torch.testing.assert_close(grown[name][300:], old[name].mean(0).expand(17, -1))
    conversion = convert(tmp_path / "more", "qwen2", tmp_path / "cut", vocab_size=262)
    assert any("Rows 262 to 316" in loss and "cut" in loss for loss in conversion.losses)
    assert torch.equal(
        stored(tmp_path / "cut")["model.embed_tokens.weight"], grown["model.embed_tokens.weight"][:262]
    )
    with pytest.raises(CheckpointError, match=r"ids up to 261 are in use.*262 or more"):
        convert(tmp_path / "m", "qwen2", tmp_path / "short", vocab_size=261)
