"""Texts that must follow a grammar, judged by independent readers: json, jsonschema, re."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_model import SPECIAL

from qwenkit.core import Completion, Grammar, QwenkitError, RequestError, SamplingParams, UnsupportedError
from qwenkit.engine import Qwen, grammar
from qwenkit.engine.grammar import GrammarCompiler
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.text import Tokenizer

jsonschema = pytest.importorskip("jsonschema", reason="the extra dev has it")
pytest.importorskip("llguidance", reason="the extra grammar has it")

WORDS = ["the", '":', '", "', "ab", "aa", " x", "你", "好"[:1], "12", "true", "\\u", "}}", "\n  ", '{"', "no"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Bytes, some longer tokens, halves of characters, and a gap of six ids."""
    ranks = {bytes([i]): i for i in range(256)}
    pieces = [word.encode() for word in WORDS] + ["你".encode()[:2], b"\xf0\x9f", b"\xff\xfe"]
    ranks |= {piece: 266 + i for i, piece in enumerate(pieces)}
    return Tokenizer(ranks, special_tokens=SPECIAL, name="small")


@pytest.fixture(scope="module")
def qwen(tokenizer: Tokenizer) -> Qwen:
    return make(tokenizer)


def make(tokenizer: Tokenizer, **engine: Any) -> Qwen:
    config = ModelConfig(
        architecture="qwen2", vocab_size=304, hidden_size=48, num_layers=1, num_heads=6, num_kv_heads=2,
        head_dim=8, ffn_size=80, rotary_dim=8, rope_base=1e6, seq_length=600, max_positions=600,
        tied_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return Qwen(CausalLM(config).initialize(3), tokenizer, **engine)


def ask(qwen: Qwen, rule: Grammar, **sampling: Any) -> Completion:
    return qwen.generate(
        "Go: ", **{"grammar": rule, "max_tokens": 250, "temperature": 1.0, "seed": 1, **sampling}
    )


# Schemas: everything that is bounded, so that a random model comes to an end

LEAVES = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-1000, 1000),
        st.integers(0, 3000),
    ),
    st.builds(
        lambda low, span: {"type": "number", "exclusiveMinimum": low, "maximum": low + span},
        st.integers(-20, 20),
        st.floats(1, 30).map(lambda x: round(x, 2)),
    ),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.sampled_from(["^a+b$", "[0-9]{2}", "^[äöü你🙂]{1,3}$", '^"\\\\"$']).map(
        lambda p: {"type": "string", "pattern": p, "maxLength": 9}
    ),
    st.lists(
        st.one_of(st.integers(-5, 5), st.sampled_from(["", "a", 'q"uote', "né\n", "🙂"]), st.none()),
        min_size=1, max_size=4,
    ).map(lambda values: {"enum": values}),
    st.sampled_from([{"a": [1, None]}, "const\t", [], 3.5]).map(lambda value: {"const": value}),
    st.sampled_from(["date", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "name", "größe", "键", 'with "quotes"', "a/b~c"])


def grown(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    objects = st.builds(
        lambda properties, needed: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in needed],
            "additionalProperties": False,
        },
        st.dictionaries(NAMES, inner, max_size=3),
        st.sets(NAMES),
    )
    arrays = st.builds(
        lambda items, least, more: {
            "type": "array", "items": items, "minItems": least, "maxItems": least + more,
        },
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    )
    anys = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(objects, arrays, tuples, anys)


SCHEMAS = st.recursive(LEAVES, grown, max_leaves=5)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0, 1.0]))
def test_what_a_random_model_writes_under_a_schema_is_valid(qwen, schema, seed, temperature):
    rule = Grammar.json_schema(schema)
    done = ask(qwen, rule, seed=seed, temperature=temperature)
    if done.finish_reason == "length":
        return
    assert done.finish_reason == "stop"
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(done.text))
    pieces = list(
        qwen.generate_stream("Go: ", grammar=rule, max_tokens=250, temperature=temperature, seed=seed)
    )
    assert "".join(piece.text for piece in pieces) == done.text
    assert pieces[-1].completion.choices == done.choices


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def test_recursion_and_any_object(qwen):
    ends = 0
    for seed in range(12):
        for schema in (TREE, {"type": "object"}):
            done = ask(qwen, Grammar.json_schema(schema), seed=seed)
            if done.finish_reason == "stop":
                ends += 1
                jsonschema.validate(json.loads(done.text), schema)
    assert ends > 6
    assert json.loads(ask(qwen, Grammar.json_object(), seed=3, max_tokens=400).text or "{}") is not None


@pytest.mark.parametrize(
    "pattern", [r"[a-f]{2,5}-\d{3}", r"(yes|no), 你好{1,3}[^\n]{0,4}", "a{5}", r"\w \w", "^x$"]
)
def test_what_a_regex_allows_fullmatches(qwen, pattern):
    for seed in range(8):
        done = ask(qwen, Grammar.regex(pattern), seed=seed)
        assert done.finish_reason == "stop"
        assert re.fullmatch(pattern, done.text), done.text


def test_choices_of_any_characters(qwen):
    texts = ["no", "not", "a.b*c|d", "(", "]^$", "tab\there", "你好🙂", "a/b -#&~", "\\"]
    rule = Grammar.choice(texts)
    seen = {ask(qwen, rule, seed=seed).text for seed in range(60)}
    assert seen <= set(texts)
    assert len(seen) > 4
    assert ask(qwen, Grammar.choice(["only"])).text == "only"


def test_control_tokens_of_a_lark_grammar(qwen, tokenizer):
    form = next(iter(SPECIAL))
    done = ask(qwen, Grammar.lark(f'start: "a" {form} %json {{"type": "null"}}'), ignore_eos=True)
    assert done.token_ids[1] == tokenizer.special_tokens[form]
    assert done.text == "anull"


def test_ends_are_where_the_grammar_may_end(qwen, tokenizer):
    done = ask(qwen, Grammar.regex("ab"), max_tokens=2)
    assert (done.text, done.finish_reason, done.choices[0].stop_reason) == ("ab", "stop", None)
    assert done.usage.completion_tokens <= 2
    ended = {ask(qwen, Grammar.regex("a{1,30}"), seed=seed).choices[0].stop_reason for seed in range(40)}
    assert ended & set(SPECIAL.values())  # a model's own end
    cut = ask(qwen, Grammar.regex("a{9,}"), max_tokens=3)
    assert cut.finish_reason == "length"
    stopped = ask(qwen, Grammar.regex("abcdef"), stop=["cd"])
    assert (stopped.text, stopped.choices[0].stop_reason) == ("ab", "cd")
    long = ask(qwen, Grammar.regex("a{1,30}"), ignore_eos=True)
    assert long.text == "a" * 30
    own = ask(
        qwen, Grammar.regex("a{1,30}"), ignore_eos=True, stop_token_ids=[ord("z")], logit_bias={122: 100}
    )
    assert 1 <= len(own.text) <= 30
    assert own.choices[0].stop_reason == ord("z")


def test_rules_act_on_what_is_allowed(qwen):
    """Bias and penalties hold among the allowed; log probabilities are those of the untouched logits."""
    digits = Grammar.regex("[0-9]")
    assert ask(qwen, digits, temperature=0, logit_bias={ord("7"): 100, ord("x"): 100}).text == "7"
    assert len({ask(qwen, digits, top_k=1, seed=seed).text for seed in range(4)}) == 1
    twice = ask(qwen, Grammar.regex("[ab]{6}"), temperature=0, frequency_penalty=2, presence_penalty=2)
    assert {"a", "b"} <= set(twice.text)
    logged = ask(qwen, digits, logprobs=2).choices[0].logprobs
    free = qwen.generate("Go: ", max_tokens=1, temperature=1.0, seed=1, logprobs=303).choices[0].logprobs
    assert logged[0].logprob == pytest.approx({i: v for i, _, v in free[0].top}[logged[0].token_id])
    assert logged[0].top == free[0].top[:2]


RULES = [None, Grammar.json_schema(TREE), Grammar.regex("[a-z ]{5,60}"), None, Grammar.choice(["ab", "aab"])]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constrained_and_free_rows_of_a_batch_are_as_alone(tokenizer, qwen, temperature):
    def params(i: int) -> SamplingParams:
        return SamplingParams(grammar=RULES[i], temperature=temperature, seed=i, max_tokens=60, top_p=0.9)

    alone = [qwen.generate("Go: ", params(i)).choices for i in range(len(RULES))]
    together: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: qwen.generate("Go: ", params(i)).choices}))
        for i in range(len(RULES))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(RULES))] == alone
    small = make(tokenizer, cache_tokens=128)  # preempted and computed anew
    many = small.generate(["Go: "] * 3, params(1))
    assert [one.choices for one in many] == [alone[1]] * 3


def test_choices_of_one_request_each_have_their_own_place(qwen):
    done = ask(qwen, Grammar.json_schema(TREE), n=6, seed=5)
    assert len({choice.text for choice in done.choices}) > 1
    for i, choice in enumerate(done.choices):
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.text), TREE)
        assert i == 0 or choice.text  # each went its way
    assert done.choices[0] == ask(qwen, Grammar.json_schema(TREE), n=1, seed=5).choices[0]


@pytest.mark.parametrize(
    "rule", [r'(\{"name": "the no the no the no"\}){3}', r"(the no |no the ){5,30}", "[ab]{200}"]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_change_nothing(tokenizer, qwen, rule, temperature):
    guessing, plain = make(tokenizer, speculate="ngram"), make(tokenizer, speculate="off")
    for prompt in ("the no the no the no the no", 'ababab {"name": "the no'):
        asked = {"grammar": Grammar.regex(rule), "temperature": temperature, "seed": 2, "max_tokens": 220}
        assert guessing.generate(prompt, **asked).choices == plain.generate(prompt, **asked).choices


def test_tokens_without_a_choice_share_a_step(tokenizer):
    text = '{"name of it": [1, 2, 3], "kind": "a long one", "more": '
    rule, found = Grammar.regex(re.escape(text).replace('"', r"\"") + "[a-z]{9}"), []
    for speculate in ("ngram", "off"):
        model = make(tokenizer, speculate=speculate)
        found.append((ask(model, rule, ignore_eos=True).choices, model.engine.stats().steps))
    assert found[0][0] == found[1][0]
    assert re.fullmatch(re.escape(text) + "[a-z]{9}", found[0][0][0].text)
    assert found[0][1] < found[1][1] / 2


# The matcher itself


def ids(allowed: np.ndarray, size: int) -> list[int]:
    bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")
    assert not bits[size:].any()
    return bits.nonzero()[0].tolist()


def test_no_id_that_is_none_and_no_control_token_gets_through(tokenizer):
    size = len(tokenizer)
    for rule in (Grammar.regex(r"(.|\n)*"), Grammar.json_object()):
        compiled = GrammarCompiler(tokenizer, size).compile(rule)
        matcher, holes = compiled.matcher(()), set(tokenizer.ids_without_text(size))
        random = np.random.default_rng(1)
        for _ in range(60):
            if matcher.finished:
                break
            allowed = ids(matcher.allowed()[0], size)
            assert not holes & set(allowed)
            assert not set(SPECIAL.values()) & set(allowed)
            matcher.accept(int(random.choice(allowed)))
        assert matcher.error is None


def test_drafts_are_looked_at_and_taken_back(tokenizer):
    size = len(tokenizer)
    compiled = GrammarCompiler(tokenizer, size).compile(Grammar.regex("xy[cd]e?"))
    end = SPECIAL["<|im_end|>"]
    matcher, plain = compiled.matcher([end]), compiled.matcher([end])
    looks = matcher.allowed([ord(c) for c in "xyze"])
    assert [look is None for look in looks] == [False, False, False, True, True]
    after = []
    for letter in "xyde":
        after.append(ids(plain.allowed()[0], size))
        assert after[-1] == ids(matcher.allowed([ord(letter)])[0], size)
        plain.accept(ord(letter))
        matcher.accept(ord(letter))
        assert plain.finished == matcher.finished == (letter == "e")
    assert after[1] == [ord("y")]
    assert after[2] == [ord("c"), ord("d")]
    assert after[3] == [ord("e"), end]


def test_a_text_that_leaves_its_grammar_is_given_up(tokenizer):
    matcher = GrammarCompiler(tokenizer, len(tokenizer)).compile(Grammar.regex("abc")).matcher(())
    matcher.accept(ord("x"))
    assert isinstance(matcher.error, QwenkitError)
    assert not matcher.finished
    assert matcher.allowed([1]) == [None, None]


# What cannot be enforced


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Grammar.json_schema({"properties": {"a": {"items": {"not": {}}}}}), "at #/properties/a/items.*not"),
        (
            Grammar.json_schema({"$defs": {"x": {"type": "objekt"}}, "$ref": "#/$defs/x"}),
            "#/\\$defs/x.*objekt",
        ),
        (Grammar.json_schema({"items": {"$ref": "#/$defs/none"}}), "'/\\$defs/none' does not exist"),
        (Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "5. is greater than maximum"),
        (Grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Grammar.json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (Grammar.json_schema({"type": "string", "format": "colour"}), "Unknown format: colour"),
        (Grammar.json_schema({"x-guidance": {"lenient": True}, "not": {}}), "not"),
        (Grammar.json_schema({"items": {"exclusiveMinimum": 1, "maximum": 1.5}}), "at #/items: .*narrower"),
        (Grammar.json_schema({"exclusiveMaximum": 0, "minimum": -0.5}), "narrower"),
        (Grammar.regex("[a-"), "The regex cannot be enforced: unclosed character class"),
        (Grammar.regex(r"(a)\1"), "backreferences"),
        (Grammar.regex(r"[^\s\S]"), "matches no text"),
        (Grammar.regex("(" * 300 + "a" + ")" * 300), "nest"),
        (Grammar.lark("start: thing"), 'unknown name: "thing"'),
        (Grammar.lark("start: " + "(" * 1000 + '"a"' + ")" * 1000), "too deeply nested"),
        (Grammar.lark("start: <|nothing|>"), "unknown special token"),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_any_work(qwen, rule, words):
    steps = qwen.engine.stats().steps
    with pytest.raises(RequestError, match=words):
        ask(qwen, rule)
    assert qwen.engine.stats().steps == steps


CHAIN = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(400)} | {"d400": {"type": "null"}}


@pytest.mark.parametrize(
    "rule",
    [
        Grammar.regex("(a+)+b"),
        Grammar.regex("(.{1,1000}){1,1000}x"),
        Grammar.regex("(a|b)*a(a|b){200}"),
        Grammar.json_schema({"type": "array", "minItems": 10**7, "items": {"type": "integer"}}),
        Grammar.json_schema({"type": "string", "minLength": 10**9}),
        Grammar.json_schema({"enum": [f"number {i}" for i in range(9000)]}),
        Grammar.choice([f"number {i}" for i in range(9000)]),
        Grammar.json_schema({"$defs": CHAIN, "$ref": "#/$defs/d0"}),
        Grammar.lark("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(600)) + 'r600: "a"'),
        Grammar.lark('start: start start | "a"'),
    ],
)  # fmt: skip
def test_hostile_grammars_are_refused_or_followed(qwen, rule):
    """A text or an error that says so: never a crash, never a stall of other requests."""
    try:
        ended = ask(qwen, rule, max_tokens=12).finish_reason
    except RequestError as error:
        ended = error.problem
    assert re.search("^(stop|length)$|cannot be enforced|followed any further", ended)
    assert ask(qwen, Grammar.choice(["ok"])).text == "ok"


def test_a_grammar_given_up_ends_its_own_request_alone(qwen, monkeypatch):
    monkeypatch.setattr(grammar, "LIMITS", {**grammar.LIMITS, "step_max_items": 60})
    fine = qwen.engine.submit(
        qwen._request(qwen.tokenizer.encode("Go: "), SamplingParams(max_tokens=30, seed=1))
    )
    with pytest.raises(RequestError, match=r"cannot be followed any further|cannot be enforced"):
        ask(qwen, Grammar.lark('start: (a | b | c){40}\na: "a" | a a\nb: "a" b | "b"\nc: "a" c | "c"'))
    assert fine.result().usage.completion_tokens > 0


def test_compiling_has_its_time(tokenizer, monkeypatch):
    compiler, held = GrammarCompiler(tokenizer, len(tokenizer)), threading.Event()
    real = grammar.CompiledGrammar

    def slow(*arguments: Any) -> Any:
        held.wait()
        return real(*arguments)

    monkeypatch.setattr(grammar, "COMPILE_SECONDS", 0.05)
    monkeypatch.setattr(grammar, "CompiledGrammar", slow)
    for letter in "ab":
        with pytest.raises(RequestError, match=r"not be compiled in 0.05 s"):
            compiler.compile(Grammar.regex(letter))
    with pytest.raises(RequestError, match="2 grammars are being compiled"):
        compiler.compile(Grammar.regex("c"))
    held.set()


def test_compiled_grammars_are_kept_and_forgotten(tokenizer):
    compiler = GrammarCompiler(tokenizer, len(tokenizer))
    first = compiler.compile(Grammar.regex("a"))
    assert compiler.compile(Grammar.regex("a")) is first
    for i in range(grammar.KEPT):
        compiler.compile(Grammar.regex(f"b{i}"))
    assert compiler.compile(Grammar.regex("a")) is not first


def test_without_llguidance_the_remedy_is_said(tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'qwenkit\[grammar\]'"):
        GrammarCompiler(tokenizer, len(tokenizer)).compile(Grammar.regex("a"))
