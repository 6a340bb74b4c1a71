"""What cannot be quantized, or calibrated on, and how that is said."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sources import make, settings

from qwenkit.checkpoint import open_checkpoint
from qwenkit.core import CheckpointError, Message, RequestError, UnsupportedError
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize import quantize
from qwenkit.quantize.block_pass import BlockPass
from qwenkit.quantize.builtin_texts import calibration_passages, held_out_texts
from qwenkit.quantize.calibration import read_calibration
from qwenkit.quantize.hidden import HiddenStates
from qwenkit.quantize.layers import LAYERS, round_block
from qwenkit.quantize.source import Source
from qwenkit.text import chatml


def test_a_group_that_does_not_divide_names_the_layer(qwen2, tmp_path):
    with pytest.raises(UnsupportedError, match=r"mlp.c_proj: Groups of 64 do not divide the 96 inputs"):
        quantize(qwen2, tmp_path / "out", settings(rounding=Rounding(4, 64)))
    with pytest.raises(UnsupportedError, match="3 bits"):
        quantize(qwen2, tmp_path / "out", settings(rounding=Rounding(3, 32)))


def test_a_quantized_source_is_refused(qwen2, eval_text, tmp_path):
    quantize(qwen2, tmp_path / "out", settings(method="rtn"), eval_texts=[eval_text])
    with pytest.raises(RequestError, match="quantized already: GPTQ int4 g32"):
        quantize(open_checkpoint(tmp_path / "out"), tmp_path / "twice", settings())


def test_too_little_calibration_is_refused_with_the_numbers(qwen2, eval_text, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    with pytest.raises(RequestError, match=r"1 texts with \d tokens; a layer of this model has 96 inputs"):
        quantize(qwen2, tmp_path / "out", settings(calibration=str(short)), eval_texts=[eval_text])
    with pytest.raises(RequestError, match="no calibration file"):
        quantize(qwen2, tmp_path / "out", settings(calibration="nowhere"), eval_texts=[eval_text])
    with pytest.raises(RequestError, match="to measure with have"):
        quantize(qwen2, tmp_path / "out", settings(), eval_texts=[short])


def test_a_full_disk_is_known_before_anything_is_computed(qwen2, eval_text, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 5, 5))
    with pytest.raises(CheckpointError, match=r"out needs .* while it is made; 5 bytes are free"):
        quantize(qwen2, tmp_path / "out", settings(), eval_texts=[eval_text])
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_not_finite_name_the_layer(vocabulary, eval_text, tmp_path):
    make(tmp_path / "source", vocabulary, "qwen2", torch.bfloat16)
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.post_attention_layernorm.weight"][:] = 3e38
    save_file(tensors, file, metadata={"format": "pt"})
    source = open_checkpoint(tmp_path / "source")
    with pytest.raises(UnsupportedError, match=r"transformer.h.1 has outputs that are not finite"):
        quantize(source, tmp_path / "out", settings(dtype="bfloat16"), eval_texts=[eval_text])
    assert not (tmp_path / "out").exists()
    opened = Source(source, torch.bfloat16)
    hidden = HiddenStates.embed([list(range(200))], opened.tensor("transformer.wte.weight"), opened.config)
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match=r"transformer.h.1.mlp.w1 has inputs that are not"),
    ):
        round_block(BlockPass(opened.block(1), hidden), dict.fromkeys(LAYERS, settings().rounding))


RECORDS = [
    {
        "messages": [
            {"role": "user", "content": f"Question {i}"},
            {"role": "assistant", "content": "Answer. " * 30},
        ]
    }
    for i in range(20)
]


@pytest.mark.parametrize("form", ["json", "jsonl", "original"])
def test_conversations_of_every_form_are_laid_out_alike(qwen2, eval_text, tmp_path, form):
    from qwenkit.quantize.calibration import read_calibration
    from qwenkit.quantize.source import Source

    file = tmp_path / ("data.jsonl" if form == "jsonl" else "data.json")
    records = RECORDS
    if form == "original":
        turns = [[{"from": m["role"], "value": m["content"]} for m in r["messages"]] for r in RECORDS]
        records = [{"id": str(i), "conversations": t} for i, t in enumerate(turns)]
    lines = [json.dumps(record) for record in records]
    file.write_text("\n".join(lines) if form == "jsonl" else "[" + ",\n".join(lines) + "]")
    found = read_calibration(
        Source(qwen2, torch.float32), settings(calibration=str(file), samples=5, length=40)
    )
    assert len(found.texts) == 5
    messages = [Message("user", "Question 4"), Message("assistant", "Answer. " * 30)]
    assert list(found.texts[1]) == chatml.encode_training(qwen2.tokenizer(), messages)[0][:40]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}\n{"text": 1}', r"data.jsonl:2: .*neither"),
        ('[{"messages": []}]', r":1: 'messages' is not a list with turns"),
        ('[\n{"conversations": [{"from": "robot", "value": "x"}]}]', r":2: turn 1 has from 'robot'"),
        ('{"messages": [{"role": "user", "content": [1]}]}', r":1: turn 1 has no text in 'content'"),
        ('\n\n{"messages": [}', r":3: not valid JSON"),
        ('[{"messages": [{"role": "user", "content": "a"}]}', "ends before its list does"),
        ('[{"messages": [{"role": "user", "content": "a"}]} {}]', ":1: a comma is missing"),
    ],
)
def test_malformed_records_are_named_by_line(qwen2, eval_text, tmp_path, text, message):
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(RequestError, match=message):
        quantize(qwen2, tmp_path / "out", settings(calibration=str(file)), eval_texts=[eval_text])


def test_a_folder_of_texts_and_the_built_in_ones(qwen2, tmp_path):
    source = Source(qwen2, torch.float32)
    (tmp_path / "a.txt").write_text("One two three. " * 200)
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    mixed = read_calibration(source, settings(calibration=str(tmp_path), samples=8, length=64))
    assert len(mixed.texts) == 8
    assert {ids[0] for ids in mixed.texts} > {4001}  # <|im_start|>: both kinds are there
    built_in = read_calibration(source, settings(calibration="builtin", samples=4, length=256))
    assert [len(ids) for ids in built_in.texts] == [256] * 4
    assert built_in == read_calibration(source, settings(calibration="builtin", samples=4, length=256))
    calibrated = {passage.answer for passage in calibration_passages()}
    for text in held_out_texts().values():
        assert not any(answer in text for answer in calibrated)
