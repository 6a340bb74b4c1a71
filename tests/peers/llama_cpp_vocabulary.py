"""How llama.cpp understands a GGUF file's text side; run by the Python that has llama-cpp-python.

usage: llama_cpp_vocabulary.py MODEL.gguf < texts.json > answer.json; the first two are also a chat
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp


def main(path: str) -> None:
    texts = json.load(sys.stdin)
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    template = llama_cpp.llama_model_chat_template(model.model, None)
    chat = (llama_cpp.llama_chat_message * 2)()  # its templates know no default system prompt
    chat[0] = llama_cpp.llama_chat_message(role=b"system", content=texts[0].encode())
    chat[1] = llama_cpp.llama_chat_message(role=b"user", content=texts[1].encode())
    room = ctypes.create_string_buffer(4096)
    length = llama_cpp.llama_chat_apply_template(template, chat, 2, True, room, 4096)
    answer = {
        "ids": [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts],
        "eos": model.token_eos(),
        "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocabulary)),
        "ends": [i for i in range(151600, 151700) if llama_cpp.llama_vocab_is_eog(vocabulary, i)],
        "metadata": model.metadata,
        "template": None if template is None else template.decode(),
        "chat": room.raw[:length].decode(),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
