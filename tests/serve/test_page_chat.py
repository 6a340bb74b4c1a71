"""The page in Chromium, over an engine that says what a test wrote: talking, branches, keeping, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_page import ChatPage
from page_server import BREAK, HOLD, PageServer, ScriptedEngine
from running_server import eventually

from qwenkit.core import Message
from qwenkit.serve.engine.supervisor import Health
from qwenkit.serve.errors import ServeError
from qwenkit.serve.guard.keys import Keys

pytestmark = pytest.mark.browser

Open = Callable[..., ChatPage]
Serve = Callable[..., PageServer]
GENERATE = "**/v1/chat/completions"


def asked(server: PageServer) -> tuple[Message, ...]:
    """The messages of the last request."""
    prompt = server.engine.wishes[-1].prompt
    assert isinstance(prompt, tuple)
    assert all(isinstance(message, Message) for message in prompt)
    return prompt  # type: ignore[return-value]


def test_reply_is_shown_while_it_comes_and_its_speed_after(serve: Serve, open_page: Open) -> None:
    server = serve(ScriptedEngine(scripts={"hi": [["Hello", " there", HOLD, ", friend."]]}))
    chat = open_page(server)
    chat.say("hi", ended=False)
    chat.wait(chat.last, "Hello there")
    assert chat.last.get_attribute("aria-busy") == "true"
    assert "friend" not in chat.last.inner_text()
    server.engine.go_on.set()
    chat.wait(chat.last, "Hello there, friend.")
    chat.wait(chat.last.locator(".speed"), re.compile(r"3 tokens.*tokens/s.*first after \d\.\d\d s"))
    assert chat.page.locator(".context-words").inner_text() == "15 / 1,000"
    assert chat.texts() == ["hi", "Hello there, friend."]
    assert chat.page.locator(".row.here").inner_text() == "hi"


def test_second_question_carries_the_first_and_its_reply(serve: Serve, open_page: Open) -> None:
    server = serve()
    chat = open_page(server)
    chat.say("one")
    chat.say("two")
    assert asked(server) == (
        Message("user", "one"),
        Message("assistant", "You said: one"),
        Message("user", "two"),
    )


def test_stopping_tells_the_server_and_going_on_continues_the_same_reply(
    serve: Serve, open_page: Open
) -> None:
    scripts = {"count": [["One two", HOLD, " never"]], "(continue)": [[" three", " four."]]}
    server = serve(ScriptedEngine(scripts=scripts))
    chat = open_page(server)
    chat.say("count", ended=False)
    chat.wait(chat.last, "One two")
    chat.button("Stop").click()
    chat.wait(chat.last, "Stopped.")
    eventually(lambda: server.engine.cancelled == 1)
    chat.wait(chat.last.locator(".speed"), "2 tokens")  # counted by the server afterwards
    chat.button("Continue").click()
    chat.wait(chat.last, "One two three four.")
    chat.wait_for_end()
    assert chat.texts() == ["count", "One two three four."]
    wish = server.engine.wishes[-1]
    assert wish.prompt == (0, 0, 1)  # the tokens of "count", then those of "One two"
    assert wish.params.stop_token_ids == (7,)


def test_other_replies_are_kept_beside_the_first(serve: Serve, open_page: Open) -> None:
    server = serve(ScriptedEngine(scripts={"hi": [["First."], ["Second."], ["Third."]]}))
    chat = open_page(server)
    chat.say("hi")
    for _ in range(2):
        chat.button("Regenerate").click()
        chat.wait_for_end()
    chat.wait(chat.last, "3/3")
    assert asked(server) == (Message("user", "hi"),)
    assert chat.texts() == ["hi", "Third."]
    chat.button("Previous version").click()
    assert chat.texts() == ["hi", "Second."]
    chat.say("and then?")
    assert asked(server)[1] == Message("assistant", "Second.")
    chat.page.locator(".reply").first.get_by_label("Previous version").click()
    assert chat.texts() == ["hi", "First."]
    chat.reload()
    chat.wait(chat.last, "1/3")
    chat.button("Next version").click()
    assert chat.texts() == ["hi", "Second.", "and then?", "You said: and then?"]


def test_editing_a_question_makes_a_branch_and_loses_nothing(serve: Serve, open_page: Open) -> None:
    chat = open_page(serve())
    chat.say("cats")
    chat.say("more")
    first = chat.page.locator(".question").first
    first.hover()
    first.get_by_role("button", name="Edit").click()
    box = chat.page.get_by_label("Edit the message")
    assert box.input_value() == "cats"
    box.fill("dogs")
    box.press("Enter")
    chat.wait(chat.last, "You said: dogs")
    chat.wait_for_end()
    assert chat.texts() == ["dogs", "You said: dogs"]
    first.get_by_role("button", name="Previous version").click()
    assert chat.texts() == ["cats", "You said: cats", "more", "You said: more"]


def test_conversations_survive_a_reload_also_in_mid_sentence(serve: Serve, open_page: Open) -> None:
    server = serve(ScriptedEngine(scripts={"long": [["It begins", HOLD]]}))
    chat = open_page(server)
    chat.say("short")
    chat.button("New chat Ctrl K").click()
    chat.say("long", ended=False)
    chat.wait(chat.last, "It begins")
    chat.kept()
    chat.reload()
    chat.wait(chat.last, "Interrupted.")
    assert chat.texts() == ["long", "It begins"]
    eventually(lambda: server.engine.cancelled == 1)
    chat.page.get_by_role("button", name="short", exact=True).click()
    assert chat.texts() == ["short", "You said: short"]


def test_list_of_conversations(serve: Serve, open_page: Open) -> None:
    chat = open_page(serve())
    for name in ("apples", "pears"):
        chat.page.keyboard.press("Control+k")
        chat.say(name)
    rows = chat.page.locator(".row-title")
    assert rows.all_inner_texts() == ["pears", "apples"]
    chat.page.get_by_label("Search").fill("said: apple")
    assert rows.all_inner_texts() == ["apples"]
    chat.page.get_by_label("Search").fill("")
    rows.last.hover()
    chat.page.get_by_role("button", name="Rename").last.click()
    chat.page.get_by_label("Title").fill("Fruit")
    chat.page.get_by_label("Title").press("Enter")
    assert sorted(rows.all_inner_texts()) == ["Fruit", "pears"]
    rows.filter(has_text="pears").hover()
    chat.page.locator(".row", has_text="pears").get_by_label("Delete").click()
    chat.page.locator(".empty").wait_for()
    assert [one["title"] for one in chat.kept()] == ["Fruit"]
    chat.button("Undo").click()
    assert chat.texts() == ["pears", "You said: pears"]
    assert sorted(one["title"] for one in chat.kept()) == ["Fruit", "pears"]


def test_export_and_import(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    server = serve()
    chat = open_page(server)
    chat.say("keep me")
    with chat.page.expect_download() as download:
        chat.button("Export all").click()
    path = tmp_path / "file.json"
    download.value.save_as(path)
    other = open_page(server)
    other.page.set_input_files("input[type=file]", path)
    other.page.get_by_role("button", name="keep me", exact=True).click()
    assert other.texts() == ["keep me", "You said: keep me"]
    kept = json.loads(path.read_text())
    message = next(iter(kept["conversations"][0]["messages"].values()))
    for spoil in ({"role": "pope"}, {"parent": "nobody"}, {"text": 5}):
        bad = tmp_path / "bad.json"
        bad.write_text(json.dumps(kept).replace(json.dumps(message), json.dumps(message | spoil)))
        other.page.set_input_files("input[type=file]", bad)
        other.wait(other.page.locator(".toast").last, "no conversations to import (conversations[0].messages")
    assert other.page.locator(".row").count() == 1


def test_settings_go_with_the_request_and_stay_with_the_chat(serve: Serve, open_page: Open) -> None:
    server = serve()
    chat = open_page(server)
    chat.button("Settings").click()
    chat.page.get_by_label("System prompt").fill("Be brief.")
    chat.page.get_by_label("Temperature", exact=True).fill("0.25")
    chat.page.get_by_label("Top k", exact=True).fill("40")
    chat.page.get_by_label("Max tokens", exact=True).fill("99")
    chat.page.get_by_label("Seed", exact=True).fill("7")
    chat.page.get_by_label(re.compile("^Stop")).fill("END\nFIN")
    chat.say("hi")
    assert asked(server)[0] == Message("system", "Be brief.")
    params = server.engine.wishes[-1].params
    assert (params.temperature, params.top_k, params.max_tokens, params.seed) == (0.25, 40, 99, 7)
    assert params.stop == ("END", "FIN")
    assert params.top_p is None
    chat.button("Reset Top k").click()
    chat.reload()
    chat.button("Settings").click()
    assert chat.page.get_by_label("Temperature", exact=True).input_value() == "0.25"
    assert chat.page.get_by_label("Top k", exact=True).input_value() == ""
    chat.page.keyboard.press("Control+k")
    assert chat.page.get_by_label("Temperature", exact=True).input_value() == ""
    chat.say("plain")
    assert asked(server) == (Message("user", "plain"),)
    assert server.engine.wishes[-1].params.temperature is None


def test_failures_say_what_the_server_said_and_can_be_tried_again(serve: Serve, open_page: Open) -> None:
    engine = ScriptedEngine(scripts={"odd": [["Half a"]], "broken": [["Some words", BREAK], ["Whole."]]})
    server = serve(engine)
    chat = open_page(server)
    engine.break_with = ServeError(
        "Nine requests are waiting.", "Try again later.", status=429, code="queue_full"
    )
    chat.say("full")
    chat.wait(chat.last.get_by_role("alert"), "Nine requests are waiting. Try again later.")
    engine.break_with = None
    chat.button("Try again").click()
    chat.wait(chat.last, "You said: full")
    assert chat.page.locator(".branches").count() == 0  # the failure said nothing worth a branch
    chat.say("broken")
    chat.wait(chat.last.get_by_role("alert"), "The model produced NaN.")
    assert chat.texts()[-1] == "Some words"
    chat.button("Try again").click()
    chat.wait(chat.last, "Whole.")
    chat.wait(chat.last, "2/2")
    chat.button("Settings").click()
    chat.page.get_by_label("Temperature", exact=True).fill("-3")
    chat.say("wrong")
    chat.wait(chat.last.get_by_role("alert"), "temperature")


def test_lost_connection_keeps_what_came(serve: Serve, open_page: Open) -> None:
    server = serve(ScriptedEngine(scripts={"hi": [["It came this far", HOLD]]}))
    chat = open_page(server)
    chat.say("hi", ended=False)
    chat.wait(chat.last, "It came this far")
    server.stop()
    chat.wait(chat.last.get_by_role("alert"), "The connection was lost. What had come is kept.")
    assert chat.texts() == ["hi", "It came this far"]
    chat.wait(chat.page.get_by_role("status"), "The server cannot be reached.")
    assert any(m["text"] == "It came this far" for m in chat.kept()[0]["messages"].values())


def test_key_is_asked_for_kept_for_the_tab_and_asked_again_when_wrong(serve: Serve, open_page: Open) -> None:
    chat = open_page(serve(keys=Keys(["the-right-key"])))
    dialog = chat.page.get_by_role("dialog", name="This server asks for a key")
    dialog.get_by_label("API key").fill("the-wrong-key")
    chat.button("Continue").click()
    chat.wait(dialog, "The server does not know this key.")
    dialog.get_by_label("API key").fill("the-right-key")
    dialog.get_by_label("API key").press("Enter")
    dialog.wait_for(state="detached")
    chat.wait(chat.page.locator(".model"), "tiny")
    chat.say("hi")
    chat.reload()
    chat.say("again")
    assert chat.texts()[-1] == "You said: again"
    assert chat.page.evaluate("[...Object.values(localStorage)].join()").count("the-right-key") == 0
    chat.button("Settings").click()
    chat.button("Forget the key").click()
    chat.say("who?", ended=False)
    dialog.get_by_label("API key").fill("the-right-key")
    chat.button("Continue").click()
    chat.wait(chat.last, "You said: who?")


def test_page_waits_for_the_model(serve: Serve, open_page: Open) -> None:
    engine = ScriptedEngine()
    engine.now = Health("loading", "the model is being loaded")
    chat = open_page(serve(engine))
    chat.wait(chat.page.get_by_role("status"), "The model is loading")
    chat.page.fill("#composer", "too early")
    assert chat.button("Send").is_disabled()
    engine.now = Health("alive")
    chat.wait(chat.page.locator(".model"), "tiny")
    assert chat.button("Send").is_enabled()


def stream(*deltas: dict[str, Any], finish: str) -> str:
    """The events of a reply, as OpenAI's API writes them."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def call(index: int, arguments: str, **first: str) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": first.pop("name")} if "name" in first else {})
    return {"tool_calls": [{"index": index, "function": function, **first}]}


def test_tool_calls_are_shown_and_answered_by_hand(serve: Serve, open_page: Open) -> None:
    chat = open_page(serve())
    bodies: list[Any] = []
    answers = [
        stream({"role": "assistant", "content": "Let me look."},
               call(0, "", id="call_a", type="function", name="get_weather"),
               call(0, '{"city": '), call(0, '"Beijing"}'),
               call(1, '{"city": "Paris"}', id="call_b", type="function", name="get_weather"),
               finish="tool_calls"),
        stream({"content": "Sunny in both."}, finish="stop"),
    ]  # fmt: skip

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(body=answers[len(bodies) - 1], content_type="text/event-stream")

    chat.page.route(GENERATE, answer)
    chat.button("Settings").click()
    tools = chat.page.get_by_label(re.compile("^Tools"))
    tools.fill("[{]")
    chat.wait(chat.page.locator(".wrong"), "Not valid")
    tools.fill('{"name": "get_weather", "parameters": {"type": "object"}}')
    chat.wait(chat.page.locator(".settings"), "1 defined")
    chat.button("Close settings").first.click()
    chat.say("Weather?")
    cards = chat.page.locator(".call")
    assert cards.locator("h3").all_inner_texts() == ["get_weather", "get_weather"]
    assert cards.first.locator("pre").inner_text() == '{\n  "city": "Beijing"\n}'
    boxes = chat.page.get_by_label("Result of get_weather")
    boxes.first.fill("sun")
    boxes.last.fill("more sun")
    chat.button("Send the results").click()
    chat.wait(chat.last, "Sunny in both.")
    assert cards.locator(".call-result pre").all_inner_texts() == ["sun", "more sun"]
    assert bodies[0]["tools"] == [
        {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    ]
    question, calls, *results = bodies[1]["messages"]
    assert question == {"role": "user", "content": "Weather?"}
    assert calls["content"] == "Let me look."
    assert [c["id"] for c in calls["tool_calls"]] == ["call_a", "call_b"]
    assert calls["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Beijing"}'}
    assert results == [
        {"role": "tool", "tool_call_id": "call_a", "content": "sun"},
        {"role": "tool", "tool_call_id": "call_b", "content": "more sun"},
    ]
