"""Folders in the v1 and Qwen2 layouts, against the original's logits and transformers' own model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenkit.checkpoint import open_checkpoint
from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.model import Batch, CausalLM, ntk_alpha
from qwenkit.quant import AffineLinear, FusedLinear

DATA = Path(__file__).parents[1] / "data"


@torch.inference_mode()
def logits(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    alpha = ntk_alpha(ids.shape[1], model.shape.seq_length) if model.shape.dynamic_ntk else 1.0
    return model(ids, Batch.make(*ids.shape, ntk_alpha=(alpha,)))[0]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny_v1_int4", "tiny_v1_int8"])
def test_gptq_logits_equal_the_original_inside_and_past_the_training_length(name):
    golden = load_file(DATA / name / "golden.safetensors")
    checkpoint = open_checkpoint(DATA / name)
    assert checkpoint.quantization == f"GPTQ {name[8:]} g32"
    assert checkpoint.dtype == torch.float16
    model = checkpoint.load_model(dtype=torch.float32)
    assert isinstance(model.transformer.h[1].mlp.w2, AffineLinear)
    for n in (40, 90):
        close(logits(model, golden["ids"][:, :n]), golden[f"prefill_{n}"])


@pytest.mark.parametrize("how", ["one file", "shards", "shards without index", "bin", "odd name"])
def test_v1_logits_equal_the_original_however_the_file_is_split(v1_folder, how):
    golden = load_file(DATA / "tiny_v1" / "golden.safetensors")
    weights = v1_folder.path / "model.safetensors"
    if how.startswith("shards"):
        v1_folder.shard(3)
        if "without" in how:
            (v1_folder.path / "model.safetensors.index.json").unlink()
    elif how == "bin":
        torch.save(v1_folder.tensors(), v1_folder.path / "pytorch_model.bin")
        weights.unlink()
    elif how == "odd name":
        weights.rename(v1_folder.path / "gptq_model-4bit-128g.safetensors")
    checkpoint = open_checkpoint(v1_folder.path)
    assert checkpoint.layout == "qwen-v1"
    assert checkpoint.quantization == "none (float32)"
    model = checkpoint.load_model(dtype=torch.float32)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    close(logits(model, golden["ids"][:, :65]), golden["prefill_65"])


def test_entries_describe_the_stored_tensors(v1_folder):
    entries = {entry.name: entry for entry in open_checkpoint(v1_folder.path).entries()}
    assert len(entries) == 3 * 8 + 3
    wte = entries["transformer.wte.weight"]
    assert (wte.shape, wte.dtype, wte.nbytes, wte.file.name) == (
        (512, 64),
        "F32",
        512 * 64 * 4,
        "model.safetensors",
    )


def test_weights_of_the_wanted_dtype_stay_mapped_and_others_are_cast(v1_folder):
    checkpoint = open_checkpoint(v1_folder.path)
    path = str(v1_folder.path / "model.safetensors")
    model = checkpoint.load_model(dtype=torch.float32)
    address = model.transformer.wte.weight.data_ptr()
    held = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)]
    assert any(
        int(start, 16) <= address < int(end, 16)
        for start, end in (line.split()[0].split("-") for line in held)
    )
    half = checkpoint.load_model(dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.lm_head.weight, v1_folder.tensors()["lm_head.weight"].bfloat16())


def test_changing_a_mapped_model_leaves_the_file_alone(v1_folder):
    before = (v1_folder.path / "model.safetensors").read_bytes()
    model = open_checkpoint(v1_folder.path).load_model(dtype=torch.float32)
    model.transformer.wte.weight.data.zero_()
    assert (v1_folder.path / "model.safetensors").read_bytes() == before


def test_a_model_outlives_the_name_of_its_file(v1_folder):
    wanted = v1_folder.tensors()["lm_head.weight"]
    model = open_checkpoint(v1_folder.path).load_model(dtype=torch.float32)
    (v1_folder.path / "model.safetensors").unlink()
    assert torch.equal(model.lm_head.weight, wanted)


def test_buffers_of_old_checkpoints_are_ignored(v1_folder):
    extra = {
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.rotary_emb.inv_freq": torch.ones(8),
        "transformer.rotary_emb.inv_freq": torch.ones(8),
    }
    v1_folder.save(v1_folder.tensors() | extra)
    open_checkpoint(v1_folder.path).load_model(dtype=torch.float32)


def test_unaligned_data_of_early_writers_is_read(v1_folder):
    path = v1_folder.path / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip()
    header += b" " * (3 - (8 + len(header)) % 4 + 2)  # now an odd offset
    if (8 + len(header)) % 4 == 0:
        header += b" "
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    wanted = load_file(DATA / "tiny_v1" / "model.safetensors")
    model = open_checkpoint(v1_folder.path).load_model(dtype=torch.float32)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


def test_old_gptq_file_name_and_config_only_in_config_json(int4_folder):
    (int4_folder.path / "model.safetensors").rename(int4_folder.path / "gptq_model-4bit-128g.safetensors")
    (int4_folder.path / "quantize_config.json").unlink()
    assert open_checkpoint(int4_folder.path).quantization == "GPTQ int4 g32"


def test_config_only_in_quantize_config(int4_folder):
    int4_folder.set_config(quantization_config=None)
    checkpoint = open_checkpoint(int4_folder.path)
    assert checkpoint.quantization == "GPTQ int4 g32"
    checkpoint.load_model(dtype=torch.float32)


def test_gptq_v2_stores_zero_points_plainly(int4_folder):
    golden = load_file(DATA / "tiny_v1_int4" / "golden.safetensors")
    tensors = int4_folder.tensors()
    for name, value in tensors.items():
        if name.endswith("qzeros"):
            assert set(value.flatten().tolist()) == {0x77777777}
            tensors[name] = torch.full_like(value, -0x77777778)  # 0x88888888
    int4_folder.save(tensors)
    changed = {**int4_folder.config["quantization_config"], "checkpoint_format": "gptq_v2"}
    int4_folder.set_config(quantization_config=changed)
    (int4_folder.path / "quantize_config.json").unlink()
    model = open_checkpoint(int4_folder.path).load_model(dtype=torch.float32)
    close(logits(model, golden["ids"][:, :40]), golden["prefill_40"])


def test_missing_g_idx_is_derived(int4_folder):
    golden = load_file(DATA / "tiny_v1_int4" / "golden.safetensors")
    int4_folder.save({k: v for k, v in int4_folder.tensors().items() if not k.endswith("g_idx")})
    model = open_checkpoint(int4_folder.path).load_model(dtype=torch.float32)
    close(logits(model, golden["ids"][:, :40]), golden["prefill_40"])


def qwen2(folder: Path, *, tied: bool, heads: int = 4, kv: int = 2, dtype=torch.float32, **save):
    """transformers' own model of a random config, saved by itself."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=160, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=heads,
        num_key_value_heads=kv, max_position_embeddings=128, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    theirs = Qwen2ForCausalLM(config).to(dtype).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data.normal_(0.5, 0.3)
    theirs.save_pretrained(folder, **save)
    return theirs


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("heads", "kv"), [(4, 2), (6, 1), (3, 3)])
@torch.inference_mode()
def test_qwen2_logits_equal_transformers(tmp_path, tied, heads, kv):
    theirs = qwen2(tmp_path, tied=tied, heads=heads, kv=kv)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layout == "qwen2"
    assert checkpoint.config.tied_embeddings is tied
    model = checkpoint.load_model(dtype=torch.float32)
    assert (model.lm_head.weight is model.transformer.wte.weight) is tied
    ids = torch.randint(160, (1, 50), generator=torch.Generator().manual_seed(0))
    close(logits(model, ids), theirs(ids).logits[0])


@torch.inference_mode()
def test_sharded_qwen2_equals_transformers(tmp_path):
    theirs = qwen2(tmp_path, tied=False, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model = open_checkpoint(tmp_path).load_model(dtype=torch.float32)
    ids = torch.arange(40)[None]
    close(logits(model, ids), theirs(ids).logits[0])


def test_tied_checkpoint_may_repeat_the_embedding_but_not_contradict_it(tmp_path):
    qwen2(tmp_path, tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    open_checkpoint(tmp_path).load_model(dtype=torch.bfloat16)
    tensors["lm_head.weight"][3, 3] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="ties the output"):
        open_checkpoint(tmp_path).load_model(dtype=torch.float32)


@pytest.mark.parametrize("same_order", [True, False])
@torch.inference_mode()
def test_gptq_qwen2_fuses_q_k_v_or_keeps_their_own_column_order(tmp_path, same_order):
    theirs = qwen2(tmp_path, tied=False)
    tensors = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        module, out, columns = name.removesuffix(".weight"), *tensors[name].shape
        order = torch.arange(columns) if same_order else torch.randperm(columns, generator=generator)
        layer = AffineLinear(
            torch.randint(256, (out, columns // 2), generator=generator, dtype=torch.uint8),
            torch.rand(columns // 16, out, generator=generator).half() / 16,
            torch.randint(16, (columns // 16, out), generator=generator, dtype=torch.uint8),
            (order // 16).int(),
            bits=4,
        )
        theirs.get_submodule(module).weight.copy_(layer.dequantize(torch.float32))
        del tensors[name]
        tensors |= {f"{module}.{kind}": value.clone() for kind, value in layer.to_gptq().items()}
        tensors.setdefault(f"{module}.bias", torch.zeros(out))
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = open_checkpoint(tmp_path).load_model(dtype=torch.float32)
    kind = AffineLinear if same_order else FusedLinear
    assert isinstance(model.transformer.h[0].attn.c_attn, kind)
    ids = torch.arange(30)[None]
    close(logits(model, ids), theirs(ids).logits[0])


def test_values_too_large_for_float16_are_refused_not_turned_into_infinity(v1_folder):
    tensors = v1_folder.tensors()
    tensors["lm_head.weight"][0, 0] = 1e5
    v1_folder.save(tensors)
    checkpoint = open_checkpoint(v1_folder.path)
    with pytest.raises(UnsupportedError, match=r"lm_head.weight.*100000.*float16"):
        checkpoint.load_model(dtype=torch.float16)
    checkpoint.load_model(dtype=torch.bfloat16)


def test_integer_models_are_refused(v1_folder):
    with pytest.raises(UnsupportedError, match="int8"):
        open_checkpoint(v1_folder.path).load_model(dtype=torch.int8)


def test_progress_goes_to_standard_error(v1_folder, capsys):
    open_checkpoint(v1_folder.path).load_model(dtype=torch.float32, progress=True)
    captured = capsys.readouterr()
    assert "Loading weights" in captured.err
    assert captured.out == ""


def test_tokenizer_comes_from_the_folder(v1_folder, vocabulary):
    (v1_folder.path / "qwen.tiktoken").write_bytes(vocabulary.read_bytes())
    tokenizer = open_checkpoint(v1_folder.path).tokenizer()
    assert tokenizer.decode(tokenizer.encode("你好, world")) == "你好, world"
    assert tokenizer.end_of_text_id == 151643
