"""transformers' own Qwen2 model on what was converted from v1: the same logits and the same greedy text."""

from __future__ import annotations

import pytest
import torch
from conversions import chat_folder, convert
from small_checkpoints import DATA

from qwenkit.checkpoint import open_checkpoint
from qwenkit.core import Message
from qwenkit.model import Batch
from qwenkit.text import chatml

transformers = pytest.importorskip("transformers")

QUESTIONS = ("你好", "Count to five.", "def fib(n):")


@torch.inference_mode()
def test_logits_up_to_the_training_length(tmp_path):
    convert(DATA / "tiny_v1", "qwen2", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    assert theirs.config.max_position_embeddings == 32
    ids = torch.arange(7, 39)[None]
    ours = open_checkpoint(DATA / "tiny_v1").load_model(dtype=torch.float32)
    torch.testing.assert_close(theirs(ids).logits, ours(ids, Batch.make(1, 32)), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_text_is_the_same(tmp_path, dtype):
    """From the prompt's text on: their tokenizer, their template, their model.

    Both compute in float32, as two roundings of bfloat16 products may order two tokens differently.
    """
    v1 = chat_folder(
        tmp_path / "v1", dtype=dtype, vocab_size=262, seq_length=512, max_positions=2048, dynamic_ntk=True
    )
    convert(v1, "qwen2", tmp_path / "out")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    source = open_checkpoint(v1)
    ours, tokenizer = source.load_model(dtype=torch.float32), source.tokenizer()
    for question in QUESTIONS:
        asked = reader.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
        )
        ids = chatml.encode(
            tokenizer, [Message("user", question)], default_system=source.generation.default_system
        )
        assert asked["input_ids"][0].tolist() == ids
        out = theirs.generate(**asked, max_new_tokens=24, do_sample=False, repetition_penalty=1.0)
        for _ in range(24):
            row = torch.tensor([ids])
            ids.append(int(ours(row, Batch.make(*row.shape), last=1)[0, -1].argmax()))
            if ids[-1] in source.generation.stop_token_ids:
                break
        assert reader.decode(out[0]) == tokenizer.decode(ids)
        assert out[0].tolist() == ids


def test_generation_defaults_stop_where_v1_stops(tmp_path):
    convert(chat_folder(tmp_path / "v1"), "qwen2", tmp_path / "out")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert set(theirs.eos_token_id) == {256, 258}
    assert (theirs.do_sample, theirs.top_k, theirs.max_new_tokens, theirs.top_p) == (True, 9, 77, 0.75)


def test_saved_again_by_transformers_it_is_still_what_it_was(tmp_path):
    """A fine-tune in transformers keeps the values that only qwenkit reads."""
    v1 = chat_folder(tmp_path / "v1", seq_length=512, max_positions=2048, dynamic_ntk=True, logn=True)
    convert(v1, "qwen2", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    theirs.save_pretrained(tmp_path / "tuned")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "tuned")
    convert(tmp_path / "tuned", "v1", tmp_path / "again")
    source, again = open_checkpoint(v1), open_checkpoint(tmp_path / "again")
    assert again.config == source.config
    assert again.tokenizer().encode("你好 <|im_end|>") == source.tokenizer().encode("你好 <|im_end|>")
