"""Merged weights against peft on transformers' Qwen2, and against plain arithmetic in v1 terms."""

from __future__ import annotations

import json
import math

import pytest
import torch
from adapters import PREFIX, change, pair, tensors_of, trained, transformers_model, write_adapter
from conversions import chat_folder, convert, same, stored
from safetensors.torch import save_file
from small_checkpoints import small_config

from qwenkit.checkpoint import MergedCheckpoint, open_checkpoint, plan_merge, read_adapter
from qwenkit.core import UnsupportedError
from qwenkit.model import Batch

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]


def merge(base, adapter, out, **options):
    conversion = plan_merge(open_checkpoint(base), read_adapter(adapter), **options)
    conversion.write(out)
    return stored(out)


@torch.inference_mode()
def logits(folder, ids):
    model = open_checkpoint(folder).load_model(dtype=torch.float32)
    return model(ids, Batch.make(*ids.shape))


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 5, "target_modules": LINEAR, "use_rslora": True},
        {"r": 4, "target_modules": LINEAR, "use_dora": True},
        {"r": 4, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
        {"r": 4, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        {"r": 4, "target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
        {"r": 4, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2, r"1\.mlp\..*": 7},
         "alpha_pattern": {"layers.0.mlp.down_proj": 3, "q_proj": 30}},
        {"r": 4, "target_modules": r".*layers\.0.*_proj", "bias": "all"},
        {"r": 4, "target_modules": LINEAR, "exclude_modules": ["up_proj"], "layers_to_transform": [1]},
        {"r": 4, "target_modules": ["q_proj", "k_proj"], "lora_bias": True},
        {"r": 4, "target_modules": ["k_proj"], "init_lora_weights": "gaussian", "fan_in_fan_out": True},
    ],
    ids=lambda fields: "-".join(key for key in fields if key not in ("r", "lora_alpha", "target_modules")),
)  # fmt: skip
def test_logits_are_those_of_peft(tmp_path, fields):
    pytest.importorskip("peft")
    model = transformers_model(small_config(), tmp_path / "base")
    wrapped = trained(model, tmp_path / "adapter", **fields)
    ids = torch.arange(48).reshape(2, 24)
    with torch.inference_mode():
        before = logits(tmp_path / "base", ids)
        wanted = wrapped(ids).logits  # of base and adapter, unmerged
    merged = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    found = logits(tmp_path / "out", ids)
    assert (before - wanted).abs().max() > 0.02
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    # and peft's own merge, tensor by tensor
    theirs = wrapped.merge_and_unload().state_dict()
    assert merged.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def v1_update(config, seed=0):
    """An adapter for every linear layer of the first block, in v1 terms, and what it adds to each."""
    hidden, ffn = config.hidden_size, config.ffn_size
    shapes = {"attn.c_attn": (config.qkv_size, hidden), "attn.c_proj": (hidden, hidden),
              "mlp.w1": (ffn, hidden), "mlp.w2": (ffn, hidden), "mlp.c_proj": (hidden, ffn)}  # fmt: skip
    tensors, added = {}, {}
    for n, (name, (rows, columns)) in enumerate(shapes.items()):
        one = pair(f"transformer.h.0.{name}", rows, columns, seed=seed + n)
        tensors |= one
        a, b = one.values()
        added[name] = 2.0 * (b.double() @ a.double())
    return tensors, added


QWEN2 = {"attn.c_proj": "self_attn.o_proj", "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj",
         "mlp.c_proj": "mlp.down_proj"}  # fmt: skip


def in_qwen2_terms(tensors, config):
    """The same adapter as one for q, k, v and the others."""
    result = {}
    heads = [config.num_heads * 16, config.num_kv_heads * 16, config.num_kv_heads * 16]
    for name, tensor in tensors.items():
        for old, new in QWEN2.items():
            name = name.replace(f"transformer.h.0.{old}", f"model.layers.0.{new}")
        if ".c_attn." not in name:
            result[name] = tensor
            continue
        parts = tensor.split(heads) if "lora_B" in name or "magnitude" in name else [tensor] * 3
        for letter, part in zip("qkv", parts, strict=True):
            result[name.replace("transformer.h.0.attn.c_attn", f"model.layers.0.self_attn.{letter}_proj")] = (
                part.clone()
            )
    return result


@pytest.mark.parametrize("layout", ["qwen-v1", "qwen2"])
@pytest.mark.parametrize("terms", ["v1", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_fits_either_layout_and_is_rounded_once(tmp_path, layout, terms, dtype):
    base = chat_folder(tmp_path / "base", layout, dtype, num_kv_heads=4)
    config = open_checkpoint(base).config
    tensors, added = v1_update(config)
    if terms == "qwen2":
        tensors = in_qwen2_terms(tensors, config)
    merged = merge(base, write_adapter(tmp_path / "adapter", tensors), tmp_path / "out")
    before = stored(base)
    assert merged.keys() == before.keys()
    changed = 0
    for name, delta in added.items():
        if layout == "qwen-v1":
            pieces = {f"transformer.h.0.{name}.weight": delta}
        elif name == "attn.c_attn":
            parts = zip("qkv", delta.split(64), strict=True)
            pieces = {f"model.layers.0.self_attn.{letter}_proj.weight": part for letter, part in parts}
        else:
            pieces = {f"model.layers.0.{QWEN2[name]}.weight": delta}
        for stored_name, part in pieces.items():
            exact = before.pop(stored_name).double() + part
            if dtype == torch.float32:
                torch.testing.assert_close(merged[stored_name].double(), exact, rtol=0, atol=1e-6)
            else:  # one rounding: half a unit in the last place, and the float32 of the sum
                assert merged[stored_name].dtype == dtype
                limit = exact.abs() * 2.0**-8 * 1.001 + 1e-7
                assert bool(((merged[stored_name].double() - exact).abs() <= limit).all()), stored_name
            changed += 1
    same({name: merged[name] for name in before}, before)  # everything else is untouched
    assert changed == (5 if layout == "qwen-v1" else 7)


def test_dora_in_v1_terms_gives_every_output_its_length(tmp_path):
    base = chat_folder(tmp_path / "base", num_kv_heads=4)
    config = open_checkpoint(base).config
    tensors = pair("transformer.h.1.attn.c_attn", 192, 64)
    lengths = torch.rand(192) + 0.5
    tensors["transformer.h.1.attn.c_attn.lora_magnitude_vector"] = lengths
    adapter = write_adapter(tmp_path / "adapter", tensors, use_dora=True, target_modules=r".*h\.1.*c_attn")
    merged = merge(base, adapter, tmp_path / "out")["transformer.h.1.attn.c_attn.weight"]
    torch.testing.assert_close(merged.norm(dim=1), lengths)
    held = stored(base)["transformer.h.1.attn.c_attn.weight"].double()
    a, b = (tensors[f"transformer.h.1.attn.c_attn.lora_{x}.weight"].double() for x in "AB")
    whole = held + 8 / 4 * b @ a
    cosine = torch.nn.functional.cosine_similarity(merged.double(), whole)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    # the same through a base that keeps q, k and v apart
    convert(base, "qwen2", tmp_path / "apart")
    merge(tmp_path / "apart", adapter, tmp_path / "out2")
    convert(tmp_path / "out2", "v1", tmp_path / "again")
    again = stored(tmp_path / "again")["transformer.h.1.attn.c_attn.weight"]
    torch.testing.assert_close(again, merged, rtol=1e-6, atol=1e-7)
    assert config.num_layers == 2


def test_all_else_is_the_base_s(tmp_path):
    for layout in ("qwen-v1", "qwen2"):
        base = chat_folder(tmp_path / layout, layout, torch.float16)
        about = json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": "{{ 'mine' }}"}
        (base / "tokenizer_config.json").write_text(json.dumps(about))
        tensors = {"lm_head.weight": torch.randn(300, 64)}
        adapter = write_adapter(tmp_path / f"adapter-{layout}", tensors, modules_to_save=["lm_head"])
        out = tmp_path / f"out-{layout}"
        merged = merge(base, adapter, out, max_shard_bytes=100_000)
        before, after = open_checkpoint(base), open_checkpoint(out)
        assert after.layout == before.layout == layout
        assert (after.config, after.generation) == (before.config, before.generation)
        assert after.chat_template == "{{ 'mine' }}"
        assert after.tokenizer().encode("hello <tool>") == before.tokenizer().encode("hello <tool>")
        assert torch.equal(merged["lm_head.weight"], tensors["lm_head.weight"].half())
        assert len(list(out.glob("*.safetensors"))) > 1
        assert f"adapter-{layout} is merged into 1 of" in (out / "README.txt").read_text()


def test_a_tied_output_is_untied_where_only_one_was_trained(tmp_path):
    base = chat_folder(tmp_path / "base", "qwen2", tied_embeddings=True)
    held = stored(base)["model.embed_tokens.weight"]
    new = torch.randn(300, 64)
    for module in ("model.embed_tokens", "lm_head"):
        adapter = write_adapter(
            tmp_path / module, {f"{module}.weight": new}, modules_to_save=[module.split(".")[-1]]
        )
        conversion = plan_merge(open_checkpoint(base), read_adapter(adapter))
        out = tmp_path / f"out-{module}"
        conversion.write(out)
        merged = stored(out)
        other = "lm_head" if module != "lm_head" else "model.embed_tokens"
        assert torch.equal(merged[f"{module}.weight"], new)
        assert torch.equal(merged[f"{other}.weight"], held)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        assert any("are two now" in loss for loss in conversion.losses)
    change(tmp_path / "model.embed_tokens", ensure_weight_tying=True)
    merged = merge(base, tmp_path / "model.embed_tokens", tmp_path / "tied")
    assert torch.equal(merged["model.embed_tokens.weight"], new)
    assert "lm_head.weight" not in merged
    change(tmp_path / "lm_head", ensure_weight_tying=True)
    with pytest.raises(UnsupportedError, match="ensure_weight_tying"):
        merge(base, tmp_path / "lm_head", tmp_path / "no")


def test_old_names_and_bin_files(tmp_path):
    base = chat_folder(tmp_path / "base")
    tensors = pair("transformer.h.0.mlp.w1", 96, 64)
    wanted = merge(base, write_adapter(tmp_path / "new", tensors), tmp_path / "out")
    old = {
        PREFIX + name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): tensor
        for name, tensor in tensors.items()
    }
    (write_adapter(tmp_path / "old", {}) / "adapter_model.safetensors").unlink()
    torch.save(old, tmp_path / "old" / "adapter_model.bin")
    same(merge(base, tmp_path / "old", tmp_path / "again"), wanted)
    half = {name: tensor.half() for name, tensor in tensors_of(tmp_path / "new").items()}
    save_file(half, tmp_path / "new" / "adapter_model.safetensors")
    merged = merge(base, tmp_path / "new", tmp_path / "half")
    name = "transformer.h.0.mlp.w1.weight"
    torch.testing.assert_close(merged[name], wanted[name], rtol=0, atol=1e-3)
    assert not torch.equal(merged[name], wanted[name])


@pytest.mark.parametrize("name", ["f32", "q8_0"])
def test_a_gguf_base_is_dequantized_and_that_is_said(tmp_path, name):
    base = chat_folder(tmp_path / "base", "qwen2")
    convert(base, "gguf", tmp_path / "m.gguf", form=name)
    convert(tmp_path / "m.gguf", "qwen2", tmp_path / "floats", dtype=torch.float32)
    adapter = write_adapter(tmp_path / "adapter", pair("model.layers.1.self_attn.k_proj", 32, 64))
    wanted = merge(tmp_path / "floats", adapter, tmp_path / "wanted")
    conversion = plan_merge(open_checkpoint(tmp_path / "m.gguf"), read_adapter(adapter), dtype=torch.float32)
    conversion.write(tmp_path / "out")
    same(stored(tmp_path / "out"), wanted)
    assert any("is dequantized" in loss for loss in conversion.losses) == (name == "q8_0")


@pytest.mark.parametrize("golden", ["tiny_v1_int4", "tiny_v1_int8"])
@pytest.mark.parametrize("layout", ["v1", "qwen2"])
def test_a_gptq_base_becomes_floats(tmp_path, golden, layout):
    from small_checkpoints import DATA

    convert(DATA / golden, layout, tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    columns = base.config.hidden_size
    rows = base.config.qkv_size
    adapter = write_adapter(tmp_path / "adapter", pair("transformer.h.0.attn.c_attn", rows, columns))
    before = base.load_model(dtype=torch.float32)
    conversion = plan_merge(base, read_adapter(adapter), dtype=torch.float32)
    conversion.write(tmp_path / "out")
    after = open_checkpoint(tmp_path / "out")
    assert after.gptq is None
    a, b = pair("x", rows, columns).values()
    found = after.load_model(dtype=torch.float32)
    for name, layer in before.named_modules():
        if hasattr(layer, "dequantize"):
            wanted = layer.dequantize(torch.float32)
            if name == "transformer.h.0.attn.c_attn":
                wanted = wanted + 2.0 * b @ a
            torch.testing.assert_close(found.get_submodule(name).weight, wanted, rtol=0, atol=1e-6)
    assert any("is dequantized" in loss for loss in conversion.losses)
    ids = torch.arange(16)[None]
    assert (logits(tmp_path / "out", ids) - logits(tmp_path / "base", ids)).abs().max() > 0.01
    by_default = plan_merge(base, read_adapter(adapter))
    assert {t.form for t in by_default.plan.tensors} == {str(base.dtype).removeprefix("torch.")}


def test_it_runs_unwritten(tmp_path):
    base = chat_folder(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", pair("transformer.h.0.mlp.w1", 96, 64))
    merge(base, adapter, tmp_path / "out")
    merged = MergedCheckpoint(open_checkpoint(base), read_adapter(adapter)).load_model(dtype=torch.float32)
    written = open_checkpoint(tmp_path / "out").load_model(dtype=torch.float32)
    for (name, one), other in zip(merged.named_parameters(), written.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert math.isfinite(float(merged.lm_head.weight.sum()))
