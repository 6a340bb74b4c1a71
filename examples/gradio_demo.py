"""The original's web demo as a thin client: Gradio talks to a running `qwenkit serve` through openai-python.

The server has a page of its own (`qwenkit web`); this is for those who build on Gradio.

usage: pip install gradio openai
       qwenkit serve ./Qwen-7B-Chat --port 8000
       python examples/gradio_demo.py --server-port 8001
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio
    from openai import OpenAI

Turns = list[dict[str, Any]]

NOTICE = "The model's licence holds for what is made with it. Replies may be wrong: check what matters."


def ask(client: OpenAI, model: str, turns: Turns) -> Iterator[Turns]:
    """The turns with the assistant's reply, again and again while it grows."""
    asked: Any = [{"role": turn["role"], "content": text(turn["content"])} for turn in turns]
    reply = {"role": "assistant", "content": ""}
    for chunk in client.chat.completions.create(model=model, messages=asked, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            reply["content"] += chunk.choices[0].delta.content
            yield [*turns, reply]


def text(content: Any) -> str:
    """The words of a turn, which Gradio hands back as a text or in parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content)


def without_last_reply(turns: Turns) -> Turns:
    """Up to the last question: what is asked again to regenerate."""
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    return turns[: last + 1]


def build(client: OpenAI, model: str) -> gradio.Blocks:
    """The page. Each visitor's history lives in the visitor's session, and in no other."""
    import gradio as gr

    def submit(question: str, turns: Turns) -> Iterator[tuple[str, Turns]]:
        if not question.strip():
            yield question, turns
            return
        turns = [*turns, {"role": "user", "content": question}]
        yield "", turns
        for grown in answered(turns):
            yield "", grown

    def regenerate(turns: Turns) -> Iterator[Turns]:
        turns = without_last_reply(turns)
        yield turns
        if turns:
            yield from answered(turns)

    def answered(turns: Turns) -> Iterator[Turns]:
        import openai

        try:
            yield from ask(client, model, turns)
        except openai.OpenAIError as error:
            raise gr.Error(str(error)) from error

    with gr.Blocks(title=model) as page:
        gr.Markdown(f"# {model}")
        chat = gr.Chatbot(label=model, height=520)
        question = gr.Textbox(lines=2, label="Input", placeholder="Shift+Enter sends")
        with gr.Row():
            clear = gr.Button("🧹 Clear history (清除历史)")
            send = gr.Button("🚀 Submit (发送)", variant="primary")
            again = gr.Button("🤔 Regenerate (重试)")
        gr.Markdown(f"<small>{NOTICE}</small>")
        for happens in (send.click, question.submit):
            happens(submit, [question, chat], [question, chat])
        again.click(regenerate, [chat], [chat])
        clear.click(list, None, [chat])
    return page


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A Gradio page over a running qwenkit serve.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="where the server's API is")
    parser.add_argument("--model", help="its name there (default: the server's first)")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", "none"))
    parser.add_argument("--server-name", default="127.0.0.1", help="address this page listens on")
    parser.add_argument("--server-port", type=int, default=8001)
    parser.add_argument("--inbrowser", action="store_true", help="open it in a browser")
    parser.add_argument("--share", action="store_true", help="ask Gradio for a public address")
    given = parser.parse_args(arguments)
    from openai import OpenAI

    client = OpenAI(base_url=given.base_url, api_key=given.api_key)
    model = given.model or client.models.list().data[0].id
    build(client, model).queue().launch(
        server_name=given.server_name, server_port=given.server_port, inbrowser=given.inbrowser,
        share=given.share,
    )  # fmt: skip


if __name__ == "__main__":
    main()
