"""The first example of the original README, on today's transformers and without remote code.

usage: python examples/transformers_chat.py FOLDER      (a v1 chat checkpoint, e.g. Qwen-7B-Chat)
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import qwenkit.hf


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto").eval()
    assert isinstance(model, qwenkit.hf.QWenLMHeadModel)  # ours, whatever code the folder brings along

    response, history = model.chat(tokenizer, "你好", history=None)
    print(response)
    response, history = model.chat(tokenizer, "给我讲一个年轻人奋斗创业最终取得成功的故事。", history=history)
    print(response)
    for response in model.chat_stream(tokenizer, "给这个故事起一个标题", history=history):
        print(response, end="\r")
    print()


if __name__ == "__main__":
    main(sys.argv[1])
