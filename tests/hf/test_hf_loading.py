"""from_pretrained and save_pretrained: whose code runs, which precision, which files."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPTQConfig,
)

from qwenkit.core import CheckpointError, ConfigError, UnsupportedError
from qwenkit.hf import QWenConfig, QWenLMHeadModel, QWenTokenizer
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import AffineLinear


@pytest.mark.parametrize("trust", [None, False, True])
def test_no_code_of_the_folder_ever_runs(new_folder, tiny_folder, trust):
    folder, marker = new_folder(tiny_folder)
    kwargs = {} if trust is None else {"trust_remote_code": trust}
    assert type(AutoConfig.from_pretrained(folder, **kwargs)) is QWenConfig
    assert type(AutoTokenizer.from_pretrained(folder, **kwargs)) is QWenTokenizer
    assert type(AutoTokenizer.from_pretrained(folder, use_fast=False, **kwargs)) is QWenTokenizer
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", **kwargs).eval()
    assert type(model) is QWenLMHeadModel
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False)
    assert not marker.exists()


def test_the_marker_would_be_made_by_a_model_type_that_is_not_ours(new_folder, tiny_folder, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tiny_folder / "modules"))
    folder, marker = new_folder(tiny_folder, model_type="qwen_of_someone_else")
    with pytest.raises(Exception, match="remote code ran"):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()


def test_saving_leaves_no_reference_to_remote_code_for_the_tokenizer(tiny_folder, tmp_path):
    AutoTokenizer.from_pretrained(tiny_folder, trust_remote_code=True).save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_state_dict_has_the_checkpoint_names_and_values(tiny, tiny_folder):
    stored = load_file(tiny_folder / "model.safetensors")
    ours = tiny.state_dict()
    assert set(ours) == set(stored)
    assert all(torch.equal(ours[name], stored[name]) for name in stored)


# -- precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "dtype"),
    [
        ({}, torch.float32),
        ({"bf16": True}, torch.bfloat16),
        ({"fp16": True}, torch.float16),
        ({"fp32": True, "bf16": False}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"torch_dtype": "auto"}, torch.float32),
        ({"bf16": True, "dtype": torch.bfloat16}, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("loader", [AutoModelForCausalLM, QWenLMHeadModel])
def test_precision_flags(tiny_folder, loader, kwargs, dtype, tmp_path):
    """The file says fp32: what the caller says wins, and is what is saved."""
    model = loader.from_pretrained(tiny_folder, **kwargs)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.config.precision in (None, dtype)
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == dtype


@pytest.mark.parametrize(
    "kwargs", [{"bf16": True, "fp16": True}, {"bf16": True, "dtype": torch.float16}, {"dtype": "float17"}]
)
@pytest.mark.parametrize("loader", [AutoModelForCausalLM, QWenLMHeadModel])
def test_contradicting_precisions_are_refused(tiny_folder, loader, kwargs):
    with pytest.raises((ConfigError, AttributeError), match=r"bf16|float17"):
        loader.from_pretrained(tiny_folder, **kwargs)


def test_flags_with_a_configuration_object(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, config=config, bf16=True, use_logn_attn=False)
    assert model.dtype == torch.bfloat16
    assert model.config.use_logn_attn is False
    assert config.use_logn_attn is True
    with pytest.raises(ConfigError, match="all true"):
        AutoModelForCausalLM.from_pretrained(tiny_folder, config=config, bf16=True, fp16=True)


def test_random_model_in_the_flag_precision():
    config = QWenConfig(hidden_size=32, num_attention_heads=2, kv_channels=16, intermediate_size=64,
                        num_hidden_layers=2, vocab_size=50, bf16=True)  # fmt: skip
    assert AutoModelForCausalLM.from_config(config).dtype == torch.bfloat16
    assert QWenLMHeadModel(config).dtype == torch.bfloat16


def test_random_weights_are_drawn_as_the_original_drew_them():
    config = QWenConfig(hidden_size=256, num_attention_heads=2, intermediate_size=1024, num_hidden_layers=8,
                        vocab_size=500)  # fmt: skip
    torch.manual_seed(0)
    model = QWenLMHeadModel(config)
    block = model.transformer.h[3]
    for weight in (model.lm_head.weight, model.transformer.wte.weight, block.mlp.w1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    for weight in (block.attn.c_proj.weight, block.mlp.c_proj.weight):
        assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert not block.attn.c_attn.bias.any()
    assert (block.ln_1.weight == 1).all()


# -- other keywords ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, False, "auto"])
def test_use_flash_attn_is_accepted_and_says_what_it_does(tiny_folder, value, caplog):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, use_flash_attn=value)
    assert model.config.use_flash_attn == value
    assert ("select nothing here" in caplog.text) == (value is True)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"use_flash_attn": "maybe"}, ConfigError),
        ({"attn_implementation": "eager"}, UnsupportedError),
        ({"attn_implementation": "flash_attention_2"}, Exception),
        ({"scale_attn_weights": False}, UnsupportedError),
        ({"use_flash_attention": True}, TypeError),
        ({"bf_16": True}, TypeError),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tiny_folder, kwargs, error):
    with pytest.raises(error, match=r"use_flash_attn|attn_implementation|[Ff]lash|scale_attn_weights|bf_16"):
        QWenLMHeadModel.from_pretrained(tiny_folder, **kwargs)


def test_old_key_names_mean_the_same(tiny_folder):
    raw = json.loads((tiny_folder / "config.json").read_text())
    old = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
           "max_position_embeddings": "n_positions", "intermediate_size": "ffn_hidden_size",
           "vocab_size": "padded_vocab_size"}  # fmt: skip
    renamed = {old.get(key, key): value for key, value in raw.items()}
    assert QWenConfig.from_dict(renamed).shape == ModelConfig.from_dict(raw)
    assert QWenConfig.from_dict(raw).shape == ModelConfig.from_dict(raw)
    minimal = {
        key: raw[key] for key in (*old, "model_type", "kv_channels") if key != "max_position_embeddings"
    }
    assert QWenConfig.from_dict(minimal).shape == ModelConfig.from_dict(minimal)


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharded_round_trip_is_bit_exact(tiny_folder, tmp_path, dtype):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == dtype
    ours, theirs = again.state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    core = CausalLM(ModelConfig.from_dict(json.loads((tmp_path / "config.json").read_text())))
    for shard in tmp_path.glob("*.safetensors"):
        core.load_state_dict(load_file(shard), strict=False)
    assert all(torch.equal(core.state_dict()[name].to(dtype), theirs[name]) for name in theirs)


def test_bin_files_and_buffers_of_2023(tiny, new_folder, tiny_folder):
    folder, _ = new_folder(tiny_folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    extra = {
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.rotary_emb.inv_freq": torch.ones(8),
    }
    torch.save({**tensors, **extra}, folder / "pytorch_model.bin")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors)


def test_missing_tensors_are_an_error_not_random_numbers(new_folder, tiny_folder):
    folder, _ = new_folder(tiny_folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.w2.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.mlp\.w2\.weight"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_generation_config_of_a_chat_model_is_kept(chat_model, tmp_path):
    ours = chat_model.generation_config
    assert (ours.chat_format, ours.max_window_size, ours.top_k) == ("chatml", 6144, 0)
    ours.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).chat_format == "chatml"


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_layers_compute_the_same(tiny, tiny_folder, golden, tmp_path, close, place):
    pytest.importorskip("accelerate")
    device_map = {"transformer.wte": "cpu", "transformer.h.0": "cpu", "transformer.h.1": place,
                  "transformer.h.2": "disk", "transformer.ln_f": "cpu", "lm_head": "cpu"}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, device_map=device_map, offload_folder=tmp_path)
    assert model.hf_device_map["transformer.h.2"] == "disk"
    assert model.transformer.h[2].mlp.w1.weight.device.type == "meta"
    close(model(golden["ids"][:, :65]).logits[0], golden["prefill_65"])
    out = model.generate(golden["ids"][:, :10], do_sample=False, max_new_tokens=8)
    assert out[0, 10:].tolist() == golden["greedy_40_from_10"][:8].tolist()


def test_automatic_map_never_splits_a_block(tiny_folder, golden, tmp_path, close):
    pytest.importorskip("accelerate")
    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder, device_map="auto", max_memory={"cpu": 600_000}, offload_folder=tmp_path
    )
    places = model.hf_device_map
    assert set(map(str, places.values())) == {"cpu", "disk"}
    assert not [name for name in places if name.startswith("transformer.h.") and name.count(".") > 2]
    close(model(golden["ids"][:, :33]).logits[0], golden["prefill_33"])


# -- GPTQ --------------------------------------------------------------------------------------------


@pytest.fixture(params=[4, 8])
def gptq_folder(request):
    return Path(__file__).parents[1] / "data" / f"tiny_v1_int{request.param}"


@torch.inference_mode()
def test_gptq_checkpoint_without_other_packages(gptq_folder, close, caplog):
    golden = load_file(gptq_folder / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(gptq_folder, device_map="auto", trust_remote_code=True)
    assert "float32 on cpu" in caplog.text
    assert isinstance(model.transformer.h[0].attn.c_attn, AffineLinear)
    for n in (40, 90):
        close(model(golden["ids"][:, :n]).logits[0], golden[f"prefill_{n}"])
    out = model.generate(golden["ids"][:, :40], do_sample=False, max_new_tokens=1)
    assert out[0, -1] == golden["prefill_40"][-1].argmax()


def test_gptq_arguments(gptq_folder, tmp_path):
    bits = int(gptq_folder.name[-1])
    same = GPTQConfig(bits=bits)
    model = AutoModelForCausalLM.from_pretrained(gptq_folder, bf16=True, quantization_config=same)
    assert model.lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=f"int{bits}"):
        AutoModelForCausalLM.from_pretrained(gptq_folder, quantization_config=GPTQConfig(bits=12 - bits))
    with pytest.raises(UnsupportedError, match="disk"):
        AutoModelForCausalLM.from_pretrained(
            gptq_folder, device_map={"transformer": "cpu", "lm_head": "disk"}
        )
    with pytest.raises(TypeError, match="max_memory"):
        AutoModelForCausalLM.from_pretrained(gptq_folder, max_memory={"cpu": 1})
    with pytest.raises(UnsupportedError, match="packed"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# -- without transformers ----------------------------------------------------------------------------


def test_import_without_transformers_names_the_extra():
    code = """
        import sys
        sys.modules["transformers"] = None
        try:
            import qwenkit.hf
        except ImportError as error:
            print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "pip install 'qwenkit[hf]'" in out.stdout


def test_import_with_an_old_transformers_names_the_version():
    code = """
        import sys, types
        sys.modules["transformers"] = types.ModuleType("transformers")
        sys.modules["transformers"].__version__ = "4.57.6"
        try:
            import qwenkit.hf
        except ImportError as error:
            print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "4.57.6" in out.stdout
