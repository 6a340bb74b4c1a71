"""The whole server with a real engine: many clients, cut connections, hostile texts, unmodified clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running_server import RunningServer, events, eventually

from qwenkit import Message, Qwen

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def model(tiny_chat: Path) -> Qwen:
    """The same model here: what the server says must be what it says."""
    return Qwen.load(tiny_chat)


def text_of(server: RunningServer, **body: Any) -> str:
    with server.client() as client:
        answer = client.post(CHAT, json={"messages": HI, **body})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def streamed(server: RunningServer, **body: Any) -> str:
    with server.client() as client:
        *chunks, done = events(client.post(CHAT, json={"messages": HI, "stream": True, **body}).text)
    assert done == "[DONE]"
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    return "".join(delta.get("content", "") for delta in deltas)


def test_openai_python_gets_the_same_text_whole_streamed_and_from_the_engine(
    client: openai.OpenAI, model: Qwen
) -> None:
    for seed in range(4):
        asked: Any = {"model": "gpt-test", "messages": HI, "seed": seed, "n": 2, "temperature": 1.5}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
        texts, usage, reasons = ["", ""], None, []
        for chunk in client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
        own = model.complete_chat([Message("user", "hi")], seed=seed, n=2, temperature=1.5, logprobs=2)
        assert [choice.message.content for choice in whole.choices] == texts == [c.text for c in own.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]
        assert whole.usage is not None
        assert usage is not None
        for told in (usage, whole.usage):
            assert told.prompt_tokens == own.usage.prompt_tokens
            assert told.completion_tokens == own.usage.completion_tokens
        for choice, mine in zip(whole.choices, own.choices, strict=True):
            assert choice.logprobs is not None
            said = choice.logprobs.content or []
            assert [bytes(t.bytes or ()) for t in said] == [t.token_bytes for t in mine.logprobs or ()]
            assert [t.logprob for t in said] == pytest.approx([t.logprob for t in mine.logprobs or ()])
            assert all(len(t.top_logprobs) == 2 for t in said)


def test_openai_python_completions_models_and_errors(client: openai.OpenAI, model: Qwen) -> None:
    assert [m.id for m in client.models.list()] == ["gpt-test", "Qwen-7B-Chat"]
    done = client.completions.create(
        model="Qwen-7B-Chat", prompt=["one two three", "four"], echo=True, logprobs=1, max_tokens=3, seed=2
    )
    for choice, prompt in zip(done.choices, ("one two three", "four"), strict=True):
        assert choice.text == prompt + model.generate(prompt, max_tokens=3, seed=2).text
        assert choice.logprobs is not None
        tokens, values = choice.logprobs.tokens or [], choice.logprobs.token_logprobs or []
        assert "".join(tokens[: len(model.tokenizer.encode(prompt))]) == prompt
        assert values[0] is None
        scores = model.score(prompt) if len(model.tokenizer.encode(prompt)) > 1 else []
        assert values[1 : 1 + len(scores)] == pytest.approx(scores, abs=1e-4)
    scored = client.completions.create(
        model="gpt-test", prompt="one two", echo=True, logprobs=0, max_tokens=0
    )
    assert scored.choices[0].text == "one two"
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-4", messages=HI)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as told:
        client.completions.create(model="gpt-test", prompt="hi", max_tokens=100_000)
    assert told.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(
            model="gpt-test",
            messages=HI,
            stream=True,
            max_tokens=100_000,  # type: ignore[arg-type]
        )
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "messages")


def test_the_best_of_four_are_the_likeliest_of_four(client: openai.OpenAI, model: Qwen) -> None:
    asked: Any = {"prompt": "one two", "max_tokens": 6, "seed": 4, "temperature": 1.5}
    found = client.completions.create(model="gpt-test", n=2, best_of=4, **asked)
    four = model.generate(n=4, logprobs=0, **asked)
    means = {c.text: sum(t.logprob for t in c.logprobs or ()) / len(c.logprobs or ()) for c in four.choices}
    assert [c.text for c in found.choices] == sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [(c.index, c.logprobs) for c in found.choices] == [(0, None), (1, None)]
    assert found.usage is not None
    assert found.usage.completion_tokens == four.usage.completion_tokens
    with pytest.raises(openai.BadRequestError, match="no tokens for filling in") as told:
        client.completions.create(model="gpt-test", suffix="b", **asked)
    assert told.value.param == "suffix"


def test_characters_cut_between_tokens_come_whole(server: RunningServer, model: Qwen) -> None:
    three = [model.tokenizer.encode("é")[0], *(model.engine.vocabulary.tokenizer.ranks[bytes([b])]
             for b in "中".encode())]  # fmt: skip
    body = {
        "logit_bias": {str(token): 100 for token in three},
        "max_tokens": 60,
        "temperature": 2,
        "top_p": 1,
    }
    for seed in range(3):
        whole = text_of(server, seed=seed, **body)
        assert streamed(server, seed=seed, **body) == whole
        assert "\ufffd" in whole  # the bytes were drawn in any order, so some never became a character


def test_stop_strings_are_never_part_of_a_stream(server: RunningServer) -> None:
    whole = text_of(server, seed=5)
    stop = whole[4:7]
    cut = whole[: whole.index(stop)]
    assert text_of(server, seed=5, stop=stop) == streamed(server, seed=5, stop=[stop, "zzzz"]) == cut


def test_response_format_holds_whole_and_streamed(server: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["yes", "kind"],
        "additionalProperties": False,
    }
    asked = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        "max_tokens": 200,
        "seed": 3,
    }
    whole = text_of(server, **asked)
    assert streamed(server, **asked) == whole
    value = json.loads(whole)
    assert value.keys() == {"yes", "kind"}
    assert value["kind"] in ("a", "b")


def test_sixteen_at_once_each_get_their_own(server: RunningServer) -> None:
    alone = {seed: text_of(server, seed=seed) for seed in range(8)}
    with ThreadPoolExecutor(16) as pool:
        whole = [pool.submit(text_of, server, seed=seed) for seed in range(8)]
        parts = [pool.submit(streamed, server, seed=seed) for seed in range(8)]
    assert {seed: future.result() for seed, future in enumerate(whole)} == alone
    assert {seed: future.result() for seed, future in enumerate(parts)} == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(server: RunningServer, stream: bool) -> None:
    body = {"messages": HI, "max_tokens": 8000, "ignore_eos": True, "stream": stream}
    before = server.engine_numbers()["step_tokens"]
    with server.client() as client:
        if stream:
            with client.stream("POST", CHAT, json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=body, timeout=0.5)
    eventually(lambda: server.engine_numbers()["requests"] == 0)
    after = server.engine_numbers()
    assert after["cache_blocks_used"] == after["running"] == after["waiting"] == 0
    assert after["step_tokens"] - before < 8000
    # The step under way ends, of several tokens perhaps.
    assert server.engine_numbers()["steps"] <= after["steps"] + 1


@pytest.mark.parametrize(
    "text",
    ["\x00", "a\x00b" * 1000, " " * 1_000_000, "\n" * 200_000, "<|im_end|>" * 500, "𓀀" * 50_000],
    ids=["nul", "nuls", "spaces", "newlines", "control", "rare"],
)
def test_hostile_texts_are_answered_or_refused(server: RunningServer, text: str) -> None:
    with server.client() as client:
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 2}),
            (TEXT, {"prompt": text, "max_tokens": 2, "stop": [text[:10]]}),
            ("/tokenize", {"prompt": text}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code in (200, 400)
            if answer.status_code == 400:
                assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert client.get("/health").json()["restarts"] == 0


def test_tokenize_and_detokenize_are_the_models_own(server: RunningServer, model: Qwen) -> None:
    with server.client() as client:
        text = "user <|im_end|> 中文"
        plain = client.post("/tokenize", json={"prompt": text}).json()
        special = client.post("/tokenize", json={"prompt": text, "parse_special": True}).json()
        chat = client.post("/tokenize", json={"messages": HI}).json()
        back = client.post("/detokenize", json={"tokens": plain["tokens"]}).json()
        wrong = client.post("/detokenize", json={"tokens": [-1]})
    assert plain["tokens"] == model.tokenizer.encode(text)
    assert special["tokens"] == model.tokenizer.encode(text, allow_special=True)
    assert chat["tokens"] == model.prompt_ids([Message("user", "hi")])
    assert back["prompt"] == text
    assert wrong.status_code == 400


def test_logs_tell_requests_and_no_content(server: RunningServer) -> None:
    with server.client() as client:
        said = {"messages": [{"role": "user", "content": "confidential"}], "max_tokens": 2}
        client.post(CHAT, json=said, headers={"X-Request-ID": "seen-1"})
    line = server.wait_for("id=seen-1")
    assert "status=200" in line
    assert "completion_tokens=2" in line
    assert not any("confidential" in line for line in server.lines)
