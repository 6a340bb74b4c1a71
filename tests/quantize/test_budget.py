"""The budget: parsed, never exceeded, shared out best; and the folder it makes, equal to what was chosen."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest
import torch
from gptq_unpacking import one
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_sources import settings

from qwenkit.checkpoint import open_checkpoint
from qwenkit.core import RequestError
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize import Budget, Watch, quantize
from qwenkit.quantize.budget import Option, choose

_OPTION = st.builds(Option, st.integers(1, 60), st.floats(0, 10))


@pytest.mark.parametrize(
    ("text", "bits", "nbytes"),
    [("4.3bits", 4.3, None), (" 4.5 ", 4.5, None), ("5 bit", 5.0, None), ("480MB", None, 480_000_000),
     ("0.48gb", None, 480_000_000), ("2GiB", None, 2 << 30)],
)  # fmt: skip
def test_budgets_in_words(text, bits, nbytes):
    assert Budget.parse(text) == Budget(bits=bits, nbytes=nbytes)


@pytest.mark.parametrize("text", ["", "four", "4.3 bytes", "-4", "4,3", "nan", "inf", "4.3.1bits"])
def test_what_is_no_budget(text):
    with pytest.raises(RequestError, match="budget"):
        Budget.parse(text)


@given(st.lists(st.lists(_OPTION, min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 200))
def test_the_choice_is_the_best_there_is(units, room):
    fitting = [
        sum(option.cost for option in choice)
        for choice in itertools.product(*units)
        if sum(option.bits for option in choice) <= room
    ]
    if not fitting:
        with pytest.raises(RequestError):
            choose(units, room)
        return
    chosen = [options[at] for options, at in zip(units, choose(units, room), strict=True)]
    assert sum(option.bits for option in chosen) <= room
    assert sum(option.cost for option in chosen) == pytest.approx(min(fitting), abs=1e-9)


@example([1000000, 1000000, 1000000, 1000001], 8000002)
@given(st.lists(st.integers(10**6, 10**8), min_size=4, max_size=12), st.integers(0, 10**9))
def test_large_sizes_stay_within_the_room(sizes, extra):
    units = [[Option(size, 1.0), Option(2 * size + 1, 0.0)] for size in sizes]
    chosen = choose(units, sum(sizes) + extra)
    assert sum(unit[at].bits for unit, at in zip(units, chosen, strict=True)) <= sum(sizes) + extra
    if extra >= 2 * sum(sizes):
        assert all(chosen)


def rule(dynamic: dict, module: str) -> dict:
    for key, fields in dynamic.items():
        if re.match(key.removeprefix("+:"), module):
            return fields
    return {}


@pytest.mark.parametrize("which", ["qwen2", "v1"])
def test_the_folder_has_the_bits_that_were_chosen(which, eval_text, tmp_path, request):
    source = request.getfixturevalue(which)
    asked = settings(rounding=Rounding(4, 32), budget=Budget.parse("5.6bits"))
    report = quantize(source, tmp_path / "out", asked, eval_texts=[eval_text], max_increase=1e9)
    written = open_checkpoint(tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    model = written.load_model(dtype=torch.float32)
    kinds, bits, weights = set(), 0, 0
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        own = {**fields, **rule(fields["dynamic"], name)}
        codes, values = one(tensors, name, own["bits"])
        outputs, inputs = codes.shape
        kinds.add((own["bits"], own["group_size"]))
        bits += outputs * (inputs * own["bits"] + inputs // own["group_size"] * (16 + own["bits"]))
        weights += outputs * inputs
        canonical = {"o_proj": "attn.c_proj", "down_proj": "mlp.c_proj", "up_proj": "mlp.w1"}
        layer = name if which == "v1" else canonical.get(name.rpartition(".")[2])
        if layer is not None:
            where = layer if which == "v1" else f"transformer.h.{name.split('.')[2]}.{layer}"
            assert torch.equal(
                model.get_submodule(where).dequantize(torch.float32), torch.from_numpy(values)
            ), name
    assert kinds == {(4, 32), (8, 32)}
    assert bits / weights <= 5.6
    assert report.mixture["bits_a_weight"] == pytest.approx(bits / weights)
    assert written.quantization == f"GPTQ int4/int8 g32, {bits / weights:.2f} bits a weight"
    fused = (
        ("self_attn.qkv_proj", "mlp.gate_up_proj")
        if which == "qwen2"
        else ("attn.c_attn", "mlp.gate_up_proj")
    )
    block = "model.layers.{}." if which == "qwen2" else "transformer.h.{}."
    for unit in report.mixture["units"]:
        name = {"attn.c_attn": fused[0], "mlp.w1": fused[1]}.get(unit["layers"][0])
        if name is not None:  # as vLLM asks
            assert rule(fields["dynamic"], block.format(unit["block"]) + name).get("bits", 4) == unit["bits"]
        assert unit["divergence"] > 0
        assert unit["errors"][0] > 50 * unit["errors"][-1]  # 8 bits: steps a sixteenth as wide


def test_a_size_is_kept(qwen2, eval_text, tmp_path):
    whole = quantize(qwen2, tmp_path / "a", settings(), eval_texts=[eval_text], max_increase=1e9)
    limit = whole.nbytes["result"] + 12_000
    report = quantize(
        qwen2, tmp_path / "b", settings(budget=Budget(nbytes=limit)), eval_texts=[eval_text], max_increase=1e9
    )
    assert whole.nbytes["result"] < report.nbytes["result"] <= limit
    assert report.nbytes["result"] == sum(entry.nbytes for entry in open_checkpoint(tmp_path / "b").entries())


@pytest.mark.parametrize("text", ["4.0bits", "9bits", "1KB", "1GB"])
def test_impossible_budgets_name_the_limits(qwen2, eval_text, tmp_path, text):
    with pytest.raises(RequestError, match=r"this model takes .* with 4 bits everywhere and .* with 8"):
        quantize(qwen2, tmp_path / "out", settings(budget=Budget.parse(text)), eval_texts=[eval_text])
    assert not (tmp_path / "out.unfinished").exists()


def test_the_limits_themselves_are_possible(qwen2, eval_text, tmp_path):
    for bits, kind in ((4 + 20 / 32, 4), (8 + 24 / 32, 8)):
        asked = settings(budget=Budget(bits=bits), method="rtn")
        out = tmp_path / str(kind)
        report = quantize(qwen2, out, asked, eval_texts=[eval_text], max_increase=1e9)
        assert {unit["bits"] for unit in report.mixture["units"]} == {kind}


def test_bits_are_not_given_twice():
    with pytest.raises(RequestError, match="a budget chooses"):
        settings(rounding=Rounding(8, 32), budget=Budget(bits=5.0))


class KilledError(Exception):
    pass


class Killer(Watch):
    """Stops the run in its nth piece of work, after some tokens."""

    def __init__(self, what: str, tokens: int) -> None:
        self.what, self.left, self.begun = what, math.inf, []
        self._tokens = tokens

    def begin(self, what: str, tokens: int) -> None:
        self.begun.append(what)
        if what.startswith(self.what):
            self.left = self._tokens

    def tokens(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise KilledError


@pytest.mark.parametrize(
    ("what", "tokens", "again"), [("Measuring what", 900, True), ("Quantizing", 900, False)]
)
def test_a_killed_run_goes_on_to_the_same_bits(qwen2, eval_text, tmp_path, what, tokens, again):
    asked = settings(budget=Budget(bits=5.5))
    quantize(qwen2, tmp_path / "whole", asked, eval_texts=[eval_text], max_increase=1e9)
    with pytest.raises(KilledError):
        quantize(qwen2, tmp_path / "out", asked, eval_texts=[eval_text], watch=Killer(what, tokens))
    other = settings(budget=Budget(bits=5.0))
    with pytest.raises(RequestError, match="bits was 5"):
        quantize(qwen2, tmp_path / "out", other, eval_texts=[eval_text])
    second = Killer("nothing", 0)
    quantize(qwen2, tmp_path / "out", asked, eval_texts=[eval_text], max_increase=1e9, watch=second)
    assert ("Measuring what each layer is worth" in second.begun) == again
    for name in ("model.safetensors", "quantize_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
