"""Many prompts at once: no padding to think of, and each answer is what its prompt would get alone.

usage: python examples/batch.py [MODEL]
"""

from __future__ import annotations

import sys

from qwenkit import Message, Qwen, SamplingParams
from qwenkit.text import chatml

QUESTIONS = ["What is the capital of Iceland?", "蒙古国的首都是哪里？", "Name the capital of Ethiopia."]


def main(model_name: str | None) -> None:
    model = Qwen.load(model_name)
    system = model.generation.default_system
    prompts = [
        chatml.encode(model.tokenizer, [Message("user", question)], default_system=system)
        for question in QUESTIONS
    ]
    params = SamplingParams(temperature=0, max_tokens=40)
    for question, completion in zip(QUESTIONS, model.generate_ids(prompts, params), strict=True):
        print(f"{question}\n  {completion.text.strip()}  [{completion.finish_reason}]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
