"""Generation defaults: published files word for word (reference: chat section 7), gaps, templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenkit.checkpoint import open_checkpoint
from qwenkit.checkpoint.generation_config import (
    is_qwen2_chat,
    qwen2_generation,
    template_system,
    v1_generation,
)
from qwenkit.core import DEFAULT_SYSTEM, CheckpointError
from qwenkit.text import chatml

FILE = Path("generation_config.json")
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

V1_CHAT_7B = {
    "chat_format": "chatml", "eos_token_id": 151643, "pad_token_id": 151643, "max_window_size": 24000,
    "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.1,
}  # fmt: skip
V1_BASE = {
    "chat_format": "raw", "eos_token_id": 151643, "pad_token_id": 151643, "stop_words_ids": [[151643]],
    "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8,
}  # fmt: skip
V1_FIRST_CHAT = {
    "chat_format": "chatml", "eos_token_id": 151643, "pad_token_id": 151643, "max_context_size": 1024,
    "max_generate_size": 300, "decay_bound": 0.0, "decay_factor": 1.0, "factual_nucleus_sampling": False,
    "stop_words_ids": [[151643]], "do_sample": True, "top_k": 0, "top_p": 0.8,
}  # fmt: skip
QWEN25_INSTRUCT = {
    "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
}  # fmt: skip
QWEN25_BASE = {"bos_token_id": 151643, "do_sample": False, "eos_token_id": 151643, "max_new_tokens": 2048}
QWEN25_TEMPLATE = (
    "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {{- messages[0]['content'] }}\n{%- else %}\n"
    "    {%- if messages[0]['role'] == 'system' %}\n"
    "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n"
    "        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
)


def v1(raw):
    return v1_generation(raw, 151936, FILE)


def qwen2(raw, chat=True, template=QWEN25_TEMPLATE):
    return qwen2_generation(raw, chat=chat, template=template, vocab_size=151936, file=FILE)


def test_v1_chat():
    found = v1(V1_CHAT_7B)
    assert set(found.stop_token_ids) == {151643, 151644, 151645}
    assert (found.chat_format, found.max_window_size, found.default_system) == (
        "chatml",
        24000,
        DEFAULT_SYSTEM,
    )
    s = found.sampling
    assert (s.temperature, s.top_p, s.top_k, s.repetition_penalty, s.max_tokens) == (1.0, 0.8, 0, 1.1, 512)


def test_v1_base():
    found = v1(V1_BASE)
    assert (found.chat_format, found.stop_token_ids, found.max_window_size) == ("raw", (151643,), None)
    assert found.sampling.repetition_penalty == 1.0


def test_v1_first_release():
    found = v1(V1_FIRST_CHAT)
    assert found.max_window_size == 6144
    assert found.sampling.max_tokens == 300


def test_v1_without_the_file_is_taken_for_chat():
    found = v1(None)
    assert (found.chat_format, found.max_window_size) == ("chatml", 6144)
    s = found.sampling
    assert (s.temperature, s.top_p, s.top_k, s.repetition_penalty, s.max_tokens) == (1.0, 0.8, 0, 1.1, 512)


def test_qwen2_instruct_and_base():
    found = qwen2(QWEN25_INSTRUCT)
    s = found.sampling
    assert (s.temperature, s.top_p, s.top_k, s.repetition_penalty, s.max_tokens) == (0.7, 0.8, 20, 1.05, 2048)
    assert (found.stop_token_ids, found.default_system) == ((151645, 151643), SYSTEM)
    base = qwen2(QWEN25_BASE, chat=False)
    assert (base.sampling.temperature, base.stop_token_ids, base.chat_format) == (0.0, (151643,), "raw")


@pytest.mark.parametrize("raw", [{"do_sample": False, "temperature": 0.7, "top_p": 0.5}, {"top_p": 0.5}, {}])
def test_no_sampling_means_greedy(raw):
    sampling = qwen2(raw).sampling
    assert sampling.temperature == 0
    assert sampling.top_p == raw.get("top_p", 1.0)  # for a request that sets a temperature


def test_every_optional_field_is_set():
    for found in (v1(None), v1({}), qwen2(None), qwen2({}), qwen2(None, chat=False)):
        s = found.sampling
        assert None not in (s.temperature, s.top_p, s.top_k, s.min_p, s.repetition_penalty, s.max_tokens)


@pytest.mark.parametrize(
    "raw",
    [
        {"temperature": "hot", "do_sample": True},
        {"top_p": 2, "do_sample": True},
        {"eos_token_id": "x"},
        {"eos_token_id": [1, None]},
        {"max_new_tokens": 0},
    ],
)
def test_values_out_of_range_name_the_file(raw):
    for read in (v1, qwen2):
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            read(raw)


@pytest.mark.parametrize("raw", [{"chat_format": "alpaca"}, {"max_window_size": "x"}, {"max_window_size": 0}])
def test_v1_values_out_of_range_name_the_file(raw):
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        v1(raw)


def test_stops_outside_a_small_vocabulary_are_left_out():
    assert v1_generation(None, 512, FILE).stop_token_ids == ()


@pytest.mark.parametrize(
    ("generation", "tokenizer", "chat"),
    [
        (QWEN25_INSTRUCT, {"eos_token": "<|im_end|>"}, True),
        (QWEN25_BASE, {"eos_token": "<|endoftext|>", "chat_template": QWEN25_TEMPLATE}, False),
        (None, {"eos_token": "<|im_end|>"}, True),
        (None, {"eos_token": {"content": "<|im_end|>"}}, True),
        (None, {"eos_token": "<|endoftext|>"}, False),
        ({"top_p": 0.8}, {"eos_token": "<|im_end|>"}, True),
        (None, None, False),
    ],
)
def test_chat_models_are_told_by_how_they_end(generation, tokenizer, chat):
    assert is_qwen2_chat(generation, tokenizer) is chat


@pytest.mark.parametrize(
    "system", [SYSTEM, DEFAULT_SYSTEM, "", 'it\'s "so"', "a\nb\\n", "{{ x }} <b>", "你好。"]
)
def test_the_system_prompt_of_our_own_template_is_found_again(system):
    assert template_system(chatml.jinja_template(system)) == system


def test_the_system_prompt_of_other_templates():
    assert template_system(QWEN25_TEMPLATE) == SYSTEM
    newline = '{% if loop.first %}{{ "<|im_start|>system\nBe kind, it\'s free.<|im_end|>\n" }}{% endif %}'
    assert template_system(newline) == "Be kind, it's free."
    assert template_system("{{ messages[0].content }}") == DEFAULT_SYSTEM
    assert template_system(None) == DEFAULT_SYSTEM


@pytest.mark.parametrize("where", ["tokenizer_config.json", "named", "chat_template.jinja"])
def test_the_template_is_found_in_every_place(v1_folder, where):
    about = {"chat_template": QWEN25_TEMPLATE}
    if where == "named":
        about = {
            "chat_template": [
                {"name": "tool_use", "template": "x"},
                {"name": "default", **{"template": QWEN25_TEMPLATE}},
            ]
        }
    if where == "chat_template.jinja":
        (v1_folder.path / where).write_text(QWEN25_TEMPLATE)
    else:
        (v1_folder.path / "tokenizer_config.json").write_text(json.dumps(about))
    assert open_checkpoint(v1_folder.path).generation.default_system == SYSTEM
