"""What is no adapter for this base, each with its own words; and what an interrupted merge leaves."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from adapters import PREFIX, change, pair, tensors_of, write_adapter
from conversions import chat_folder, stored
from safetensors.torch import save_file

from qwenkit.checkpoint import open_checkpoint, plan_merge, read_adapter
from qwenkit.core import CheckpointError, QwenkitError, UnsupportedError

W1 = "transformer.h.0.mlp.w1"


@pytest.fixture
def base(tmp_path):
    return open_checkpoint(chat_folder(tmp_path / "base"))


def refused(base, adapter, error: type[QwenkitError], match: str) -> None:
    with pytest.raises(error, match=match):
        plan_merge(base, read_adapter(adapter))


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, "peft_type is 'IA3'"),
        ({"peft_type": None}, UnsupportedError, "peft_type is None"),
        ({"layer_replication": [[0, 4], [2, 5]]}, UnsupportedError, "layer_replication is"),
        ({"trainable_token_indices": [5]}, UnsupportedError, "trainable_token_indices is"),
        ({"target_parameters": ["experts"]}, UnsupportedError, "target_parameters is"),
        ({"alora_invocation_tokens": [1]}, UnsupportedError, "alora_invocation_tokens is"),
        ({"of_the_future": 3}, UnsupportedError, "of_the_future is 3"),
        ({"init_lora_weights": "pissa_niter_4"}, UnsupportedError, "pissa_niter_4.*before training"),
        ({"init_lora_weights": "loftq"}, UnsupportedError, "'loftq'"),
        ({"r": 0}, CheckpointError, "r is 0"),
        ({"r": "8"}, CheckpointError, "r is '8'"),
        ({"lora_alpha": None}, CheckpointError, "lora_alpha is None"),
        ({"rank_pattern": {"w1": -1}}, CheckpointError, "rank_pattern"),
        ({"rank_pattern": {"(": 4}}, CheckpointError, "rank_pattern has the pattern"),
        ({"target_modules": 3}, CheckpointError, "target_modules is 3"),
        ({"target_modules": "*"}, CheckpointError, "target_modules has the pattern"),
        ({"r": 8}, CheckpointError, r"w1.lora_A.weight' has shape \[4, 64\], expected \[8, 64\].*rank 8"),
        ({"use_dora": True}, CheckpointError, "lacks the lora_magnitude_vector of transformer.h.0.mlp.w1"),
        ({"target_modules": ["w1"]}, CheckpointError, "should change transformer.h.1.mlp.w1 by its target"),
        ({"modules_to_save": ["wte", "lm_head"]}, CheckpointError, "'wte' as a whole.*finetune.py.*check"),
    ],
)
def test_configurations(base, tmp_path, fields, error, match):
    adapter = write_adapter(tmp_path / "adapter", pair(W1, 96, 64))
    plan_merge(base, read_adapter(adapter))
    change(adapter, **fields)
    refused(base, adapter, error, match)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (pair(W1, 95, 64), r"lora_B.weight' has shape \[95, 4\], expected \[96, 4\]. .*Qwen/Base"),
        (pair(W1, 96, 63), r"lora_A.weight' has shape \[4, 63\], expected \[4, 64\]"),
        (pair("transformer.h.7.mlp.w1", 96, 64), r"another model: .* no 'transformer.h.7.mlp.w1' \(tensor"),
        (pair("model.layers.0.mlp.experts.1.up_proj", 9, 9), "another model"),
        (pair(W1, 96, 64) | pair("model.layers.0.mlp.up_proj", 96, 64), "another model"),
        ({f"{W1}.lora_A.weight": torch.ones(4, 64)}, "no lora B beside it"),
        ({f"{W1}.lora_B.weight": torch.ones(96, 4)}, "no lora A beside it"),
        ({f"{W1}.lora_B.bias": torch.ones(96)}, "no lora A beside it"),
        ({f"{W1}.lora_magnitude_vector": torch.ones(96)}, "no lora A beside it"),
        (pair(W1, 96, 64) | {f"{W1}.lora_magnitude_vector": torch.ones(96)}, "use_dora false"),
        (pair(W1, 96, 64) | {f"{W1}.lora_B.bias": torch.ones(96)}, "has no bias to add it to"),
        (pair(W1, 96, 64) | {f"{W1}.lora_E.weight": torch.ones(4, 1)}, r"another model.*w1.lora_E"),
        (pair("transformer.wte", 300, 64), "does not go with transformer.wte, a Embedding"),
        ({f"{W1}.lora_embedding_A": torch.ones(4, 64)}, "does not go with .*, a Linear"),
        ({f"{W1}.bias": torch.ones(96)}, "has no bias here"),
        ({"score.weight": torch.ones(2, 64)}, "no 'score'"),
        ({"mask": torch.ones(2)}, "'base_model.model.mask' is no part of a LoRA adapter"),
        ({f"{W1}.weight": torch.ones(96, 64).int()}, "dtype I32"),
        ({"transformer.wte.weight": torch.ones(310, 64)}, "qwenkit convert --vocab-size 310"),
        ({"lm_head.weight": torch.ones(300, 63)}, r"shape \[300, 63\], expected \[300, 64\]"),
        ({f"{W1}.weight": torch.ones(9), f"{W1}.base_layer.weight": torch.ones(9)}, "the same tensor"),
        ({}, "holds no tensors"),
    ],
)  # fmt: skip
def test_tensors(base, tmp_path, tensors, match):
    refused(base, write_adapter(tmp_path / "adapter", tensors), QwenkitError, match)


def test_folders(base, tmp_path):
    refused(base, tmp_path, CheckpointError, "is no LoRA adapter: it has no adapter_config.json")
    adapter = write_adapter(tmp_path / "adapter", pair(W1, 96, 64))
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter, not a model.*qwenkit merge BASE"):
        open_checkpoint(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    refused(base, adapter, CheckpointError, "JSON list, not an object")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    raw = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(raw[:-9])
    refused(base, adapter, CheckpointError, "truncated")
    (adapter / "adapter_model.safetensors").unlink()
    refused(base, adapter, CheckpointError, r"no adapter_model.safetensors and no adapter_model.bin")
    torch.save({"a": shutil.rmtree}, adapter / "adapter_model.bin")
    refused(base, adapter, CheckpointError, "could run code")


def test_values(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pair(W1, 96, 64))
    tensors = tensors_of(adapter)
    name = f"{PREFIX}{W1}.lora_A.weight"
    for value, error, match in (
        (float("nan"), CheckpointError, "contains NaN"),
        (1e38, CheckpointError, "merged, contains NaN or infinity"),
        (1e8, UnsupportedError, "merged, has values that float16 cannot hold"),
    ):
        tensors[name][0, 0] = value
        tensors[name.replace("_A.", "_B.")][0, 0] = 10.0
        save_file(tensors, adapter / "adapter_model.safetensors")
        dtype = torch.float16 if error is UnsupportedError else None
        half = open_checkpoint(chat_folder(tmp_path / f"half{value}", dtype=torch.float16))
        with pytest.raises(error, match=match):
            plan_merge(half if dtype else base, read_adapter(adapter)).write(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing_and_a_finished_folder_is_not_written_over(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", pair(W1, 96, 64))

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    conversion = plan_merge(base, read_adapter(adapter))
    conversion.meter.advance = stop
    with pytest.raises(KeyboardInterrupt):
        conversion.write(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    before = stored(tmp_path / "base")
    plan_merge(base, read_adapter(adapter)).write(tmp_path / "out")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        plan_merge(base, read_adapter(adapter)).write(tmp_path / "base")
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored(tmp_path / "base").items())
