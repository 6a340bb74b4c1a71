"""Written folders, read back by us, by safetensors and by transformers; the way to the v1 layout."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_checkpoints import small_config, small_model

from qwenkit.checkpoint import PlannedTensor, open_checkpoint, to_v1, write_checkpoint
from qwenkit.checkpoint.safetensors_writer import write_safetensors
from qwenkit.core import CheckpointError, GenerationConfig, SamplingParams, UnsupportedError
from qwenkit.model import Batch
from qwenkit.text import Tokenizer
from qwenkit.text.pretokenize import SMOLLM, pretokenizer_of_pattern

IDS = torch.arange(5, 45)[None]


@torch.inference_mode()
def logits(model):
    return model(IDS, Batch.make(*IDS.shape))[0]


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", ["qwen-v1", "qwen2"])
@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
def test_what_is_written_computes_the_same(tmp_path, tied, layout, shard_bytes):
    model = small_model(tied_embeddings=tied)
    folder = tmp_path / "out"
    write_checkpoint(
        model, model.shape, None, folder, layout=layout, dtype=torch.float32, max_shard_bytes=shard_bytes
    )
    files = list(folder.glob("*.safetensors"))
    assert (len(files) > 2) == (shard_bytes == 50_000)
    for file in files:  # the library's own reader accepts them
        load_file(file)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layout == layout
    if layout == "qwen-v1":
        assert checkpoint.config.num_kv_heads == checkpoint.config.num_heads
        assert checkpoint.config.tied_embeddings is False
    else:
        assert checkpoint.config == model.shape
    close(logits(checkpoint.load_model(dtype=torch.float32)), logits(model))
    assert list(tmp_path.iterdir()) == [folder]


@torch.inference_mode()
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_the_qwen2_layout(tmp_path, tied):
    from transformers import AutoModelForCausalLM

    model = small_model(tied_embeddings=tied)
    write_checkpoint(
        model,
        model.shape,
        None,
        tmp_path / "out",
        layout="qwen2",
        dtype=torch.float32,
        max_shard_bytes=40_000,
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    close(theirs(IDS).logits[0], logits(model))


def test_repeated_kv_heads_follow_their_queries():
    config = small_config(num_heads=4, num_kv_heads=2, head_dim=2, hidden_size=8, rotary_dim=2)
    rows = torch.arange(config.qkv_size).float()
    name = "transformer.h.0.attn.c_attn.bias"
    expanded, (tensor,) = to_v1(config, [PlannedTensor.of(name, rows)])
    q, k, v = [0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]
    wanted = q + k[:2] * 2 + k[2:] * 2 + v[:2] * 2 + v[2:] * 2
    assert tensor.read().tolist() == wanted
    assert tensor.shape == (24,)
    assert (expanded.architecture, expanded.num_kv_heads) == ("qwen", 4)


def test_planned_tensors_rewrite_a_checkpoint_without_building_a_model(v1_folder, tmp_path):
    checkpoint = open_checkpoint(v1_folder.path)
    planned = checkpoint.planned(torch.float16)
    write_checkpoint(
        planned, checkpoint.config, None, tmp_path / "half", layout="qwen-v1", dtype=torch.float16
    )
    again = open_checkpoint(tmp_path / "half")
    assert again.config == checkpoint.config
    assert again.dtype == torch.float16
    held = load_file(tmp_path / "half" / "model.safetensors")
    for name, value in v1_folder.tensors().items():
        assert torch.equal(held[name], value.half()), name


def test_tokenizer_and_generation_defaults_travel_along(tmp_path, vocabulary):
    model = small_model(vocab_size=151936, hidden_size=16, num_layers=1)
    tokenizer = Tokenizer.from_tiktoken(vocabulary)
    generation = GenerationConfig(
        sampling=SamplingParams(
            temperature=0.7, top_p=0.8, top_k=20, min_p=0.0, repetition_penalty=1.05, max_tokens=99
        ),
        stop_token_ids=(151645, 151643),
        default_system='You are "Qwen"\\, it\'s true.\nSay so.',
    )
    for layout in ("qwen-v1", "qwen2"):
        folder = tmp_path / layout
        write_checkpoint(
            model, model.shape, tokenizer, folder, layout=layout, dtype=torch.bfloat16, generation=generation
        )
        again = open_checkpoint(folder)
        assert again.is_chat
        assert again.generation.sampling == generation.sampling
        assert again.generation.default_system == generation.default_system
        assert set(generation.stop_token_ids) <= set(again.generation.stop_token_ids)
        text = "<|im_start|>user\n你好<|im_end|>"
        assert again.tokenizer().encode(text, allow_special=True) == tokenizer.encode(
            text, allow_special=True
        )
        assert (folder / "qwen.tiktoken").exists() == (layout == "qwen-v1")


def test_greedy_base_model_stays_greedy_and_base(tmp_path):
    model = small_model()
    generation = GenerationConfig(
        sampling=SamplingParams(
            temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, max_tokens=7
        ),
        chat_format="raw",
    )
    for layout in ("qwen-v1", "qwen2"):
        folder = tmp_path / layout
        write_checkpoint(
            model, model.shape, None, folder, layout=layout, dtype=torch.float32, generation=generation
        )
        again = open_checkpoint(folder)
        assert not again.is_chat
        assert again.generation.sampling == generation.sampling


def test_existing_folders_are_never_written_over(tmp_path):
    model = small_model()
    folder = tmp_path / "out"
    folder.mkdir()
    write_checkpoint(model, model.shape, None, folder, layout="qwen2", dtype=torch.float32)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="not an empty folder"):
        write_checkpoint(model, model.shape, None, folder, layout="qwen2", dtype=torch.float16)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_failure_leaves_nothing_behind(tmp_path):
    def broken():
        raise OSError("disk on fire")

    config = small_config()
    tensors = [PlannedTensor("transformer.ln_f.weight", (64,), torch.float32, broken)]
    with pytest.raises(OSError, match="on fire"):
        write_checkpoint(tensors, config, None, tmp_path / "out", layout="qwen2", dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_overflow_is_refused(tmp_path):
    model = small_model()
    model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight.*float16"):
        write_checkpoint(model, model.shape, None, tmp_path / "out", layout="qwen2", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_packed_weights_and_partial_rotation_are_refused(tmp_path, int4_folder):
    checkpoint = open_checkpoint(int4_folder.path)
    model = checkpoint.load_model(dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="packed weights"):
        write_checkpoint(model, model.shape, None, tmp_path / "o", layout="qwen-v1", dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="quantized"):
        checkpoint.planned(torch.float32)
    half = small_model(architecture="qwen", num_kv_heads=4, rotary_dim=8)
    with pytest.raises(UnsupportedError, match="8 of 16 channels"):
        write_checkpoint(half, half.shape, None, tmp_path / "o", layout="qwen2", dtype=torch.float32)
    assert not (tmp_path / "o").exists()


def test_writer_mixes_dtypes_and_checks_what_it_is_given(tmp_path):
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.randn(2, 3).t(),
        "c": torch.tensor(7, dtype=torch.int64),
        "d": torch.ones(5).bfloat16(),
        "empty": torch.empty(0, 4),
    }
    file = tmp_path / "x.safetensors"
    write_safetensors(file, [PlannedTensor.of(*item) for item in tensors.items()], {"format": "pt"})
    held = load_file(file)
    assert {name: (held[name].dtype, held[name].tolist()) for name in held} == {
        name: (value.dtype, value.tolist()) for name, value in tensors.items()
    }
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    wrong = PlannedTensor("a", (4,), torch.float32, lambda: torch.ones(3))
    with pytest.raises(CheckpointError, match="as announced"):
        write_safetensors(tmp_path / "y.safetensors", [wrong])
    with pytest.raises(CheckpointError, match="twice"):
        write_safetensors(tmp_path / "y.safetensors", [PlannedTensor.of("a", torch.ones(1))] * 2)
    assert not (tmp_path / "y.safetensors").exists()


def test_index_lists_every_tensor_and_the_total(tmp_path):
    model = small_model()
    write_checkpoint(
        model, model.shape, None, tmp_path / "o", layout="qwen2", dtype=torch.float16, max_shard_bytes=20_000
    )
    index = json.loads((tmp_path / "o" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * model.shape.parameter_count
    assert len(index["weight_map"]) == 2 * 12 + 3


def test_another_way_of_splitting_is_not_written_as_a_rank_file(tmp_path):
    """Whoever reads qwen.tiktoken splits as Qwen does; the ids would be others."""
    ranks = {bytes([b]): b + 3 for b in range(256)} | {b"12": 259}
    specials = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    model = small_model(vocab_size=260)
    for name, pretokenizer in (("smollm", SMOLLM), ("unknown", pretokenizer_of_pattern(r"\s+|\S+"))):
        tokenizer = Tokenizer(ranks, special_tokens=specials, pretokenizer=pretokenizer, nfc=False)
        write_checkpoint(
            model, model.shape, tokenizer, tmp_path / name, layout="qwen-v1", dtype=torch.float32
        )
        again = open_checkpoint(tmp_path / name).tokenizer()
        assert (again.name, again.pretokenizer, again.nfc) == ("tokenizer.json", pretokenizer, False)
        assert again.encode(" 12 e\u0301") == tokenizer.encode(" 12 e\u0301")
    assert tokenizer.encode("12") == [259]
