"""Learning new tokens."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import TokenizerError
from qwenkit.text import Tokenizer
from qwenkit.text.extend import learn_merges, made_of, read_words

CATS = "我是一只猫\t20\n你是一只猫\t10\n他是一只猫\t5\n一只\t200\n一只猫\t100\n"
LEARNED = ["一只猫", "只猫", "是一只猫", "我是一只猫", "你是一只猫", "他是一只猫"]


@pytest.fixture
def cats(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(CATS, encoding="utf-8")
    return path


def test_the_example_of_the_original(qwen, cats, vocabulary, tmp_path):
    new = learn_merges(qwen, read_words(cats))
    assert list(new.tokens.items()) == [(word.encode(), 151851 + i) for i, word in enumerate(LEARNED)]
    assert new.skipped == {"一只": "it is a token already"}
    new.save(tmp_path / "extra.tiktoken")
    grown = Tokenizer.from_tiktoken(vocabulary, extra_vocab=tmp_path / "extra.tiktoken")
    assert len(grown) == 151857
    assert grown.encode("我是一只猫") == [151854]
    assert grown.ranks == qwen.with_tokens(new.tokens).ranks
    assert grown.encode("<|extra_204|>一只猫", allow_special=True) == [151850, 151851]
    # Tokens past the special ones are ordinary text: skipping special tokens must not remove them.
    assert grown.decode([151854, 151645], skip_special=True) == "我是一只猫"


def test_the_saved_file_can_also_be_appended(qwen, cats, vocabulary, tmp_path):
    new = learn_merges(qwen, read_words(cats))
    new.save(tmp_path / "extra.tiktoken")
    whole = tmp_path / "qwen.tiktoken"
    whole.write_bytes(vocabulary.read_bytes() + (tmp_path / "extra.tiktoken").read_bytes())
    assert Tokenizer.from_tiktoken(whole).encode("我是一只猫") == [151854]
    qwen.with_tokens(new.tokens).save_tiktoken(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == whole.read_bytes()


def test_a_folder_with_extra_tokens(qwen, cats, vocabulary, tmp_path):
    (tmp_path / "qwen.tiktoken").write_bytes(vocabulary.read_bytes())
    learn_merges(qwen, read_words(cats)).save(tmp_path / "qwen_extra.tiktoken")
    assert Tokenizer.from_folder(tmp_path).encode("我是一只猫") == [151854]


def test_made_of_names_the_old_tokens(qwen, cats):
    new = learn_merges(qwen, read_words(cats))
    assert made_of(qwen, new.tokens)[151854] == qwen.encode("我是一只猫") == [35946, 99639, 91680, 100472]
    for i, old in made_of(qwen, new.tokens).items():
        assert b"".join(map(qwen.token_bytes, old)) == LEARNED[i - 151851].encode()


def test_taken_tokens_and_ids_are_reported(qwen, vocabulary, tmp_path):
    path = tmp_path / "extra.tiktoken"
    qwen.with_tokens({}).save_tiktoken(path)
    path.write_bytes(b"IQ== 151851\nAAAAAAAAAAAA 151645\n5LiA5Y+q54yr 151852\n")
    with pytest.warns(UserWarning, match=r"left out b'!' \(already token 0\), .* \(id 151645 is taken\)\."):
        grown = Tokenizer.from_tiktoken(vocabulary, extra_vocab=path)
    assert len(grown) == 151853
    assert grown.encode("一只猫!") == [151852, 0]
    with pytest.raises(TokenizerError, match="151851 has no text"):
        grown.token_bytes(151851)


def test_words_that_splitting_cuts_are_skipped(qwen):
    new = learn_merges(qwen, {"two words": 5, "x1": 5, "中文，": 5, "": 3, "qwenkit": 1})
    assert set(new.skipped) == {"two words", "x1", "中文，"}
    assert all("split" in reason for reason in new.skipped.values())
    assert list(new.tokens)[-1] == b"qwenkit"


def test_words_are_normalised_and_added_up(qwen):
    new = learn_merges(qwen, {"zzé": 1, "zze\u0301": 1})
    assert list(new.tokens)[-1] == "zzé".encode()


@pytest.mark.parametrize("start_id", [0, -1, 151643, 151850])
def test_used_ids_are_refused(qwen, start_id):
    with pytest.raises(TokenizerError, match=f"start_id={start_id} is in use.*Use 151851"):
        learn_merges(qwen, {"qwenkit": 1}, start_id=start_id)
    assert min(learn_merges(qwen, {"qwenk": 1}, start_id=151900).tokens.values()) == 151900


def test_nothing_learned_is_not_saved(qwen, tmp_path):
    with pytest.raises(TokenizerError, match="No new token"):
        learn_merges(qwen, {"一只": 1}).save(tmp_path / "extra")


def test_known_tokens_cannot_be_added(qwen):
    with pytest.raises(TokenizerError, match="already has b'!'"):
        qwen.with_tokens({b"!": 151851})
    with pytest.raises(TokenizerError, match="shares id"):
        qwen.with_tokens({b"qwenkit": 151850})


def test_word_files(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffa\t2\r\n\n  \nb\nb\t3\ne\u0301\t1\n".encode())
    assert read_words(path) == {"a": 2, "b": 4, "é": 1}
    for wrong in ("x\t1.5", "x\tmany", "x\t0", "x\t-1", "x\t"):
        path.write_text(f"a\t1\n{wrong}\n")
        with pytest.raises(TokenizerError, match=r"words.txt:2: the count of 'x'"):
            read_words(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(TokenizerError, match=r"words.txt:2: byte 0xff"):
        read_words(path)


def naive(words: dict[str, int]) -> list[bytes]:
    """The rule of the original, restated: recount everything for each merge."""
    pieces = {word: [bytes([b]) for b in word.encode()] for word in words}
    learned = []
    while True:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, split in pieces.items():
            for pair in pairwise(split):
                counts[pair] += words[word]
        if not counts:
            return learned

        def key(pair, counts=counts):
            token = pair[0] + pair[1]
            text = token.decode("utf-8", "replace")
            return -counts[pair], len(text), len(token), text, token

        best = min(counts, key=key)
        learned.append(best[0] + best[1])
        for split in pieces.values():
            i = 0
            while i + 1 < len(split):
                if split[i] + split[i + 1] == learned[-1]:
                    split[i : i + 2] = [learned[-1]]
                i += 1


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text("abé", min_size=1, max_size=7), st.integers(1, 4), max_size=6))
def test_the_queue_equals_counting_anew(words):
    bytes_only = Tokenizer({bytes([b]): b for b in range(256)}, special_tokens={})
    new = learn_merges(bytes_only, words)
    expected = list(dict.fromkeys(naive({w: c for w, c in words.items() if len(w.encode()) > 1})))
    assert list(new.tokens) == expected
    grown = bytes_only.with_tokens(new.tokens)
    for word in words:
        assert len(grown.encode(word)) == 1
