"""What llama.cpp's server is tested for (tools/server/tests/unit), as far as it concerns an API of this kind,
tried here in our own words.

| there | here |
|---|---|
| basic: health, models | `test_the_model_is_listed`; test_serve_replies, test_serve_server |
| basic: no web page when told | test_page |
| basic: props, slots, split files, aliases and tags | no such thing here; names: test_serve_server |
| chat completion, whole, streamed, by parts | `test_a_chat_*`; test_serve_replies |
| chat completion by OpenAI's library, logprobs, logit bias, n | `test_the_tokens_of_logprobs_*`, `test_tokens_with_*`; test_serve_server |
| templates, prefill, apply-template | the checkpoint's own template: tests/text; `test_an_assistant_at_the_end_*` |
| response format, JSON schema, grammar | `test_a_constant_*`, `test_response_formats_*`; test_serve_server, tests/engine |
| invalid messages | `test_messages_that_are_none` |
| context exceeded, whole and streamed; context shift | `test_a_prompt_too_long_*`; nothing is shifted or cut |
| completion, whole, streamed, by seeds, batches, ids | `test_a_completion_*`, `test_a_seed_*`, `test_prompts_*` |
| stops in a stream | test_serve_server, tests/text |
| parallel slots | test_serve_server, test_load |
| n_probs before and after sampling, response fields, timings, progress | not OpenAI's: refused by name |
| cancelled request | test_serve_server, test_load |
| ignore eos | `test_ignore_eos_goes_on_to_the_limit` |
| tokenize, detokenize, special tokens | `test_tokens_and_back`; test_serve_server |
| metrics of the prompt cache | `test_a_prompt_seen_before_is_counted_as_such` |
| keys, CORS, local files | test_serve_replies; images are refused |
| log injection | test_serve_replies |
| embeddings, tool calls, batches | test_embeddings and the tests of tools |
| infill, rerank, LoRA, slots saved, router, sleep, speculative, vision, audio, MCP | not served, or no API |
"""  # noqa: E501

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from running_server import RunningServer, events

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TALK = [{"role": "system", "content": "Answer in rhymes."}, {"role": "user", "content": "How are you?"}]


def ask(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post(path, json=body)


def reply(server: RunningServer, path: str = CHAT, **body: Any) -> Any:
    answer = ask(server, path, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(server: RunningServer, path: str = CHAT, **body: Any) -> list[Any]:
    answer = ask(server, path, stream=True, **body)
    assert answer.status_code == 200, answer.text
    *parts, done = events(answer.text)
    assert done == "[DONE]"
    return [json.loads(part) for part in parts]


def refusal(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert found["type"] == "invalid_request_error"
    return found


def test_the_model_is_listed(server: RunningServer) -> None:
    with server.client() as client:
        found = client.get("/v1/models").json()
    assert found["object"] == "list"
    assert "Qwen-7B-Chat" in [model["id"] for model in found["data"]]
    assert all(model["max_model_len"] == 8192 for model in found["data"])


def test_a_chat_whole(server: RunningServer) -> None:
    found = reply(server, messages=TALK, max_tokens=8, ignore_eos=True)
    assert found["id"].startswith("chatcmpl-")
    assert found["system_fingerprint"].startswith("qk-")
    assert found["object"] == "chat.completion"
    (choice,) = found["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    usage = found["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8


def test_a_chat_streamed(server: RunningServer) -> None:
    found = chunks(
        server, messages=TALK, max_tokens=8, ignore_eos=True, seed=1, stream_options={"include_usage": True}
    )
    assert len({chunk["id"] for chunk in found}) == 1
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    first, *middle, last, usage = found
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in (*middle, last))
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *middle))
    assert last["choices"][0]["finish_reason"] == "length"
    assert not last["choices"][0]["delta"].get("content")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in found[:-1])
    whole = reply(server, messages=TALK, max_tokens=8, ignore_eos=True, seed=1)
    assert text == whole["choices"][0]["message"]["content"]
    assert usage["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_a_chat_in_parts_is_that_in_one(server: RunningServer) -> None:
    parts = [{"type": "text", "text": "How are"}, {"type": "text", "text": " you?"}]
    found, same = (
        reply(server, messages=[TALK[0], {"role": "user", "content": content}], seed=3)
        for content in (parts, "How are you?")
    )
    assert found["usage"] == same["usage"]
    assert found["choices"] == same["choices"]


def test_an_assistant_at_the_end_has_had_its_turn(server: RunningServer) -> None:
    """Nothing is prefilled: the next turn is a new one."""
    said = [*TALK, {"role": "assistant", "content": "Fine"}]
    with server.client() as client:
        ids = client.post("/tokenize", json={"messages": said}).json()["tokens"]
        text = client.post("/detokenize", json={"tokens": ids}).json()["prompt"]
    assert text.endswith("<|im_start|>assistant\nFine<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "messages",
    [
        None, "text", 1, {}, [], [1], [None], ["text"], [{}], [{"role": 1, "content": "a"}],
        [{"role": "user", "content": 1}], [{"content": "a"}], [{"role": "user"}], [*TALK, {}],
        [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": ["a"]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    ],
)  # fmt: skip
def test_messages_that_are_none(server: RunningServer, messages: Any) -> None:
    found = refusal(ask(server, CHAT, messages=messages))
    assert found["param"].startswith("messages")
    assert "passwd" not in found["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_prompt_too_long_is_refused_and_not_cut(server: RunningServer, path: str, stream: bool) -> None:
    text = "All work and no play. " * 2000
    body = {"prompt": text} if path == TEXT else {"messages": [{"role": "user", "content": text}]}
    found = refusal(ask(server, path, stream=stream, **body))
    assert found["code"] == "context_length_exceeded"
    assert "8192" in found["message"]


@pytest.mark.parametrize(
    ("format", "param"),
    [
        ({"type": "sound"}, "response_format"),
        ({"type": "json_object", "schema": {"const": "42"}}, "response_format"),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "42"}}}, "response_format"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": 123}}, "response_format"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 123}}}, "response_format"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "hiccup"}}},
            "response_format",
        ),
    ],
)
def test_response_formats_that_are_none(server: RunningServer, format: Any, param: str) -> None:
    found = refusal(ask(server, CHAT, messages=TALK, response_format=format))
    assert (found["param"] or param).startswith(param)


@pytest.mark.parametrize(
    "name", ["json_schema", "grammar", "n_probs", "n_predict", "cache_prompt", "slot_id"]
)
def test_what_other_servers_have_is_refused_by_name(server: RunningServer, name: str) -> None:
    found = refusal(ask(server, CHAT, messages=TALK, **{name: 1}))
    assert (found["param"], found["code"]) == (name, "unknown_parameter")


def test_a_constant_is_what_is_said(server: RunningServer) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"const": "42"}}}
    found = reply(server, messages=TALK, response_format=schema, max_tokens=20)
    assert found["choices"][0]["message"]["content"] == '"42"'
    assert found["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_of_logprobs_are_the_text(server: RunningServer, stream: bool) -> None:
    asked = {"messages": TALK, "max_tokens": 5, "logprobs": True, "top_logprobs": 10, "seed": 4}
    if stream:
        choices = [chunk["choices"][0] for chunk in chunks(server, **asked)]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
    else:
        choices = reply(server, **asked)["choices"]
        text = choices[0]["message"]["content"]
    tokens = [one for choice in choices if choice.get("logprobs") for one in choice["logprobs"]["content"]]
    assert b"".join(bytes(one["bytes"]) for one in tokens).decode(errors="replace").startswith(text)
    assert all(one["logprob"] <= 0 for one in tokens)
    assert all(len(one["top_logprobs"]) == 10 for one in tokens)


def test_tokens_with_the_least_bias_are_never_drawn(server: RunningServer) -> None:
    asked = {"messages": TALK, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    bias: dict[str, int] = {}
    said = set()
    with server.client() as client:
        for _ in range(6):
            text = reply(server, **asked, logit_bias=bias)["choices"][0]["message"]["content"]
            assert text not in said
            ids = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
            if len(ids) == 1 and "\ufffd" not in text:
                said.add(text)
                bias[str(ids[0])] = -100
    assert said


def test_a_completion_is_the_same_streamed(server: RunningServer) -> None:
    asked = {"prompt": "Once upon a time", "max_tokens": 12, "seed": 5}
    whole = reply(server, TEXT, **asked)
    assert whole["id"].startswith("cmpl-")
    parts = chunks(server, TEXT, **asked)
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    assert parts[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_a_seed_says_the_same_each_time_and_another_something_else(server: RunningServer) -> None:
    asked = {"prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.0, "ignore_eos": True}
    texts = [reply(server, TEXT, **asked, seed=seed)["choices"][0]["text"] for seed in (1, 2, 3, 1, 2, 3)]
    assert texts[:3] == texts[3:]
    assert len(set(texts)) == 3


def test_prompts_as_ids_are_those_as_texts(server: RunningServer) -> None:
    text = "Once upon a time"
    with server.client() as client:
        ids = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    asked = {"max_tokens": 6, "seed": 2}
    said = reply(server, TEXT, prompt=text, **asked)["choices"][0]["text"]
    for prompt in (ids, [ids], [ids, ids], [text, text]):
        found = reply(server, TEXT, prompt=prompt, **asked)
        assert {choice["text"] for choice in found["choices"]} == {said}
    for mixed in ([ids, text], [*ids, text]):
        assert refusal(ask(server, TEXT, prompt=mixed))["param"] == "prompt"


def test_ignore_eos_goes_on_to_the_limit(server: RunningServer) -> None:
    end = {str(token): 100 for token in (151643, 151645)}
    for seed in range(3):
        stopped = reply(server, messages=TALK, max_tokens=10, seed=seed, logit_bias=end)
        assert stopped["choices"][0]["finish_reason"] == "stop"
        went_on = reply(server, messages=TALK, max_tokens=10, seed=seed, ignore_eos=True)
        assert went_on["choices"][0]["finish_reason"] == "length"
        assert went_on["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("text", ["What is the capital of France ?", "媽 and 🤗\r\n\t", "\u0000\ufeff"])
def test_tokens_and_back(server: RunningServer, text: str) -> None:
    with server.client() as client:
        found = client.post("/tokenize", json={"prompt": text}).json()
        back = client.post("/detokenize", json={"tokens": found["tokens"]}).json()
    assert found["count"] == len(found["tokens"])
    assert back["prompt"] == text


def test_a_prompt_seen_before_is_counted_as_such(server: RunningServer) -> None:
    said = {"prompt": "The same long beginning, " * 40, "max_tokens": 2}
    first = reply(server, TEXT, **said)["usage"]
    second = reply(server, TEXT, **said)["usage"]
    assert second["prompt_tokens"] == first["prompt_tokens"]
    assert second["prompt_tokens_details"]["cached_tokens"] > 0
    with server.client() as client:
        metrics = client.get("/metrics").text
    (line,) = (line for line in metrics.splitlines() if line.startswith("qwenkit_prompt_tokens_cached_total"))
    assert float(line.split()[1]) > 0
