"""`qwenkit vocab`: the recorded example, through to a checkpoint that reads its new words as one token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwenkit.checkpoint import open_checkpoint
from qwenkit.cli.main import main
from qwenkit.text import Tokenizer

WORDS = "我是一只猫\t20\n你是一只猫\t10\n他是一只猫\t5\n一只\t200\n一只猫\t100\n"


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)


def test_new_words_become_tokens_of_a_new_checkpoint(tiny_chat: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "words.txt").write_text(WORDS)
    run("vocab", str(tmp_path / "words.txt"), "--model", str(tiny_chat),
        "--to", str(tmp_path / "new"), "--ranks", str(tmp_path / "extra.tiktoken"))  # fmt: skip
    shown = capsys.readouterr()
    assert [line.split("\t") for line in shown.out.splitlines()] == [
        ["151851", "一只猫"], ["151852", "只猫"], ["151853", "是一只猫"],
        ["151854", "我是一只猫"], ["151855", "你是一只猫"], ["151856", "他是一只猫"],
    ]  # fmt: skip
    assert "'一只'" in shown.err
    assert "spare rows sufficed" in shown.err

    old, new = open_checkpoint(tiny_chat), open_checkpoint(tmp_path / "new")
    assert new.tokenizer().encode("我是一只猫") == [151854]
    assert new.tokenizer().decode([151854]) == "我是一只猫"
    pieces = old.tokenizer().encode("我是一只猫")
    before = old.load_model(dtype=torch.bfloat16).transformer.wte.weight
    after = new.load_model(dtype=torch.bfloat16).transformer.wte.weight
    assert torch.equal(after[:151851], before[:151851])
    assert torch.equal(after[151854], before[pieces].float().mean(0).bfloat16())

    extended = Tokenizer.from_tiktoken(tiny_chat / "qwen.tiktoken", extra_vocab=tmp_path / "extra.tiktoken")
    assert extended.encode("我是一只猫") == [151854]
