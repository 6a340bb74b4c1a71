"""Damaged, incomplete and hostile checkpoints: a clear error naming file and remedy, never a crash."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qwenkit.checkpoint import open_checkpoint
from qwenkit.checkpoint.safetensors_file import SafetensorsFile
from qwenkit.core import CheckpointError, ConfigError, QwenkitError, UnsupportedError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1234\n"


def load(path: Path, dtype: torch.dtype = torch.float32):
    return open_checkpoint(path).load_model(dtype=dtype)


def fails(path: Path, *words: str, kind: type[QwenkitError] = CheckpointError) -> None:
    """Loading fails with all `words` in the message, and with a remedy."""
    with pytest.raises(kind) as caught:
        load(path)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.remedy


def test_no_such_folder(tmp_path):
    fails(tmp_path / "nowhere", "nowhere")


def test_folder_without_config(v1_folder):
    (v1_folder.path / "config.json").unlink()
    fails(v1_folder.path, "config.json")


def test_folder_without_weights(v1_folder):
    (v1_folder.path / "model.safetensors").unlink()
    fails(v1_folder.path, "no weights", "qwenkit pull")


def test_adapter_is_not_a_model(v1_folder):
    (v1_folder.path / "model.safetensors").rename(v1_folder.path / "adapter_model.safetensors")
    fails(v1_folder.path, "LoRA adapter")


def test_missing_shard(v1_folder):
    names = v1_folder.shard()
    (v1_folder.path / names[1]).unlink()
    fails(v1_folder.path, names[1])


def test_missing_shard_without_index(v1_folder):
    names = v1_folder.shard(3)
    (v1_folder.path / names[1]).unlink()
    (v1_folder.path / "model.safetensors.index.json").unlink()
    fails(v1_folder.path, names[1], "2 of 3")


def test_several_files_and_no_index(v1_folder):
    (v1_folder.path / "model.safetensors").rename(v1_folder.path / "a.safetensors")
    v1_folder.save({"x": torch.zeros(1)}, "b.safetensors")
    fails(v1_folder.path, "a.safetensors", "b.safetensors", "no index")


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_shard(v1_folder, keep):
    name = v1_folder.shard()[0]
    file = v1_folder.path / name
    raw = file.read_bytes()
    file.write_bytes(raw[:keep])
    fails(v1_folder.path, name, "download it again")


def test_bytes_after_the_data(v1_folder):
    file = v1_folder.path / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    fails(v1_folder.path, "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_git_lfs_pointer(v1_folder, name):
    (v1_folder.path / name).write_bytes(LFS)
    fails(v1_folder.path, name, "git-lfs pointer", "git lfs pull")


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tokenizer.json", "tokenizer_config.json"])
def test_git_lfs_pointer_in_place_of_the_tokenizer(v1_folder, name):
    (v1_folder.path / name).write_bytes(LFS)
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        open_checkpoint(v1_folder.path).tokenizer()


def test_git_lfs_pointer_in_place_of_a_bin_or_gguf(v1_folder, tmp_path):
    (v1_folder.path / "model.safetensors").unlink()
    (v1_folder.path / "pytorch_model.bin").write_bytes(LFS)
    fails(v1_folder.path, "pytorch_model.bin", "git-lfs pointer")
    (tmp_path / "model.gguf").write_bytes(LFS)
    fails(tmp_path / "model.gguf", "model.gguf", "git-lfs pointer")


def test_dangling_link(v1_folder):
    """A hub cache whose blobs were deleted."""
    file = v1_folder.path / "model.safetensors"
    file.unlink()
    file.symlink_to(v1_folder.path / "gone")
    fails(v1_folder.path, "model.safetensors")


def test_index_names_an_absent_tensor(v1_folder):
    v1_folder.shard()
    index = v1_folder.path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.bias"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    fails(v1_folder.path, "lm_head.bias", "index.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\udcff"]
)
def test_corrupt_index(v1_folder, text):
    v1_folder.shard()
    index = v1_folder.path / "model.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    fails(v1_folder.path, "index.json")


def test_index_that_leaves_its_folder(v1_folder):
    v1_folder.shard()
    index = v1_folder.path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    fails(v1_folder.path, "outside its folder")


def test_tensor_in_two_shards(v1_folder):
    names = v1_folder.shard()
    first = SafetensorsFile(v1_folder.path / names[0])
    name = next(iter(first.entries()))
    second = SafetensorsFile(v1_folder.path / names[1])
    tensors = {key: second.read(key).clone() for key in second.entries()} | {name: first.read(name).clone()}
    save_file(tensors, v1_folder.path / names[1])
    fails(v1_folder.path, name, "again")


def test_missing_and_unexpected_tensors_are_listed(v1_folder):
    tensors = v1_folder.tensors()
    kept = {key: value for key, value in tensors.items() if "h.1.mlp" not in key}
    v1_folder.save(kept)
    fails(v1_folder.path, "3 tensors are", "transformer.h.1.mlp.w2.weight", "missing")
    v1_folder.save(tensors | {"transformer.h.0.attn.q_norm.weight": torch.ones(16)})
    fails(v1_folder.path, "transformer.h.0.attn.q_norm.weight", "not part of")


def test_wrong_shape(v1_folder):
    tensors = v1_folder.tensors()
    tensors["transformer.h.2.mlp.c_proj.weight"] = (
        tensors["transformer.h.2.mlp.c_proj.weight"].t().contiguous()
    )
    v1_folder.save(tensors)
    fails(v1_folder.path, "model.safetensors", "h.2.mlp.c_proj.weight", "[176, 64]", "[64, 176]")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool])
def test_wrong_dtype(v1_folder, dtype):
    tensors = v1_folder.tensors()
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].to(dtype)
    v1_folder.save(tensors)
    fails(v1_folder.path, "transformer.wte.weight", "dtype", "F32 or F16 or BF16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.attn.c_attn.bias"])
def test_weights_that_are_not_finite(v1_folder, value, name):
    tensors = v1_folder.tensors()
    tensors[name].view(-1)[7] = value
    v1_folder.save(tensors)
    fails(v1_folder.path, "model.safetensors", name, "NaN or infinity")


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"model_type": "qwen"', "\0\0", "[" * 100_000, "1" * 10_000]
)
def test_config_that_is_not_json(v1_folder, text):
    (v1_folder.path / "config.json").write_text(text)
    fails(v1_folder.path, "config.json")


def test_config_without_a_needed_key(v1_folder):
    v1_folder.set_config(hidden_size=None)
    fails(v1_folder.path, "config.json", "hidden_size", kind=ConfigError)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "64"},
        {"num_attention_heads": 0},
        {"kv_channels": "x"},
        {"rotary_pct": []},
        {"layer_norm_epsilon": {}},
        {"intermediate_size": 3.5},
        {"seq_length": -1},
        {"num_hidden_layers": True},
    ],
)
def test_config_values_of_the_wrong_type(v1_folder, changes):
    v1_folder.set_config(**changes)
    fails(v1_folder.path, "config.json", kind=QwenkitError)


def test_unknown_architecture(v1_folder):
    v1_folder.set_config(model_type="llama")
    fails(v1_folder.path, "config.json", "llama", "qwen2", kind=ConfigError)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["QWENKIT_TEST_EXPLOIT"],)


def test_pickle_with_code_is_refused_and_does_not_run(v1_folder, tmp_path, monkeypatch):
    target = tmp_path / "exploited"
    monkeypatch.setenv("QWENKIT_TEST_EXPLOIT", str(target))
    (v1_folder.path / "model.safetensors").unlink()
    file = v1_folder.path / "pytorch_model.bin"
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))):
        save({"transformer.wte.weight": Malicious()}, file)
        fails(v1_folder.path, "pytorch_model.bin", "run code", "safetensors")
    assert not target.exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], {"step": 3}, {4: torch.ones(2)}, torch.ones(2)])
def test_bin_that_is_no_state_dict(v1_folder, content):
    (v1_folder.path / "model.safetensors").unlink()
    torch.save(content, v1_folder.path / "pytorch_model.bin")
    fails(v1_folder.path, "pytorch_model.bin")


@pytest.mark.parametrize("keep", [0, 3, 100, 5000])
def test_truncated_bin(v1_folder, keep):
    file = v1_folder.path / "pytorch_model.bin"
    torch.save(v1_folder.tensors(), file)
    (v1_folder.path / "model.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:keep])
    fails(v1_folder.path, "pytorch_model.bin")


def test_nan_in_a_bin(v1_folder):
    tensors = v1_folder.tensors()
    tensors["lm_head.weight"][5, 5] = float("nan")
    (v1_folder.path / "model.safetensors").unlink()
    torch.save(tensors, v1_folder.path / "pytorch_model.bin")
    fails(v1_folder.path, "pytorch_model.bin", "lm_head.weight", "NaN")


# -- GPTQ -------------------------------------------------------------------------------------------


def requantize_config(folder, **changes) -> None:
    (folder.path / "quantize_config.json").unlink(missing_ok=True)
    folder.set_config(quantization_config={**folder.config["quantization_config"], **changes})


@pytest.mark.parametrize("group_size", [16, 64, 128, -1])
def test_gptq_group_size_that_does_not_fit(int4_folder, group_size):
    requantize_config(int4_folder, group_size=group_size)
    fails(int4_folder.path, "transformer.h.0.attn.c_attn.qzeros", "quantization config")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bits": 3}, "3 bits"),
        ({"bits": 2}, "2 bits"),
        ({"quant_method": "awq"}, "awq"),
        ({"checkpoint_format": "marlin"}, "marlin"),
    ],
)
def test_gptq_variants_that_are_not_read(int4_folder, changes, word):
    requantize_config(int4_folder, **changes)
    fails(int4_folder.path, "config.json", word, kind=UnsupportedError)


@pytest.mark.parametrize("changes", [{"bits": "4"}, {"bits": None}, {"group_size": 0}, {"group_size": "x"}])
def test_gptq_config_values_of_the_wrong_type(int4_folder, changes):
    requantize_config(int4_folder, **changes)
    fails(int4_folder.path, "config.json", "bits")


def test_gptq_configs_that_disagree(int4_folder):
    file = int4_folder.path / "quantize_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bits": 8}))
    fails(int4_folder.path, "int4", "int8")


def test_gptq_weights_without_any_config(int4_folder):
    (int4_folder.path / "quantize_config.json").unlink()
    int4_folder.set_config(quantization_config=None)
    fails(int4_folder.path, "quantize_config.json")


def test_gptq_extra_bias_that_is_not_zero(int4_folder):
    tensors = int4_folder.tensors()
    name = "transformer.h.1.mlp.w2.bias"
    assert not tensors[name].any()
    tensors[name][3] = 0.25
    int4_folder.save(tensors)
    fails(int4_folder.path, name, "not zero")


@pytest.mark.parametrize("value", [-1, 3])
def test_gptq_column_in_no_group(int4_folder, value):
    tensors = int4_folder.tensors()
    tensors["transformer.h.0.mlp.w1.g_idx"][5] = value
    int4_folder.save(tensors)
    fails(int4_folder.path, "outside 0...2")


def test_gptq_scales_that_are_not_finite(int4_folder):
    tensors = int4_folder.tensors()
    tensors["transformer.h.0.mlp.w1.scales"][0, 0] = float("nan")
    int4_folder.save(tensors)
    fails(int4_folder.path, "transformer.h.0.mlp.w1.scales", "NaN")


def test_gptq_qweight_of_wrong_dtype(int4_folder):
    tensors = int4_folder.tensors()
    name = "transformer.h.0.mlp.w1.qweight"
    tensors[name] = tensors[name].long()
    int4_folder.save(tensors)
    fails(int4_folder.path, name, "I64", "I32")


# -- safetensors headers ----------------------------------------------------------------------------


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 7,
        (2**63).to_bytes(8, "little"),
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        header(b""),
        header(b"[]"),
        header(b"{"),
        header(b"\xff\xfe"),
        header(b"[" * 200_000),
        header(b'{"a": 1}'),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'),
        header(b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, '
               b'"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}', b"12"),
        header(b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, '
               b'"b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}', b"123"),
    ],
)  # fmt: skip
def test_hostile_safetensors_headers(tmp_path, raw):
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        SafetensorsFile(file)


def test_header_larger_than_the_format_allows(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as out:  # sparse: nothing is written but the length
        out.write((200 * 2**20).to_bytes(8, "little"))
        out.truncate(300 * 2**20)
    with pytest.raises(CheckpointError, match="over the limit"):
        SafetensorsFile(file)


def test_unreadable_dtype_names_the_tensor(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(header(b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}', b"1"))
    with pytest.raises(UnsupportedError, match=r"'a' has dtype F4"):
        SafetensorsFile(file).read("a")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_damage_to_a_safetensors_file_never_crashes(tmp_path, data):
    """Whatever the bytes, the answer is an error of ours or finite tensors of the promised shape."""
    file = tmp_path / "fuzz.safetensors"
    save_file({"a": torch.ones(3, 5), "b": torch.arange(4, dtype=torch.int32)}, file)
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw))
    try:
        source = SafetensorsFile(file)
        for name, entry in source.entries().items():
            assert tuple(source.read(name).shape) == entry.shape
    except QwenkitError:
        pass
