"""GPTQModel's `dynamic`: every layer by its own bits, in every way a folder is loaded and converted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conversions import convert, same, stored
from gguf import GGUFReader
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from mixed_folders import BASE, QWEN2, V1, decided, mixed, set_quantization

from qwenkit import Qwen
from qwenkit.checkpoint import open_checkpoint
from qwenkit.checkpoint.gptq_config import read_gptq_config
from qwenkit.checkpoint.gptq_rules import dynamic_of
from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.model import Batch

DUMMY = Path(__file__).parent  # has no quantize_config.json
IDS = torch.arange(3, 40)[None]
MIXED = {
    "-:.*\\.1\\.self_attn\\.o_proj": {},
    "+:model\\.layers\\.0\\.self_attn\\.(q|k|v)": {"bits": 8, "group_size": -1},
    "model.layers.1.mlp.(up|gate)_proj$": {"bits": 8},
    ".*down": {"group_size": 16},
    ".*\\.0\\..*": {},
}
MIXED_V1 = {
    "+:transformer\\.h\\.1\\.attn": {"bits": 8, "group_size": 64},
    "-:.*0\\.mlp\\.c_proj": {},
    "transformer.*w[12]": {"bits": 8},
}


@torch.inference_mode()
def logits(checkpoint) -> torch.Tensor:
    return checkpoint.load_model(dtype=torch.float32)(IDS, Batch.make(1, IDS.shape[1]))[0]


def by_floats(folder, values, out) -> torch.Tensor:
    """Logits of the same model with the values as floats, by a loader that knows nothing of packing."""
    from safetensors.torch import save_file

    floats = {k: v for k, v in stored(folder).items() if k.rpartition(".")[2] in ("weight", "bias")}
    out.mkdir()
    for file in folder.glob("*.json"):
        (out / file.name).write_text(file.read_text())
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    save_file(floats | {f"{k}.weight": v.contiguous() for k, v in values.items()}, out / "model.safetensors")
    return logits(open_checkpoint(out))


@pytest.mark.parametrize(("layout", "dynamic"), [("qwen2", MIXED), ("qwen-v1", MIXED_V1)])
def test_each_layer_has_the_values_of_its_own_bits(tmp_path, layout, dynamic):
    values = mixed(tmp_path / "m", dynamic, layout)
    checkpoint = open_checkpoint(tmp_path / "m")
    torch.testing.assert_close(logits(checkpoint), by_floats(tmp_path / "m", values, tmp_path / "floats"))


def test_it_runs_packed_and_exact_and_through_the_cache(tmp_path):
    mixed(tmp_path / "m", MIXED)
    expected = Qwen.load(tmp_path / "m", offline=True, dtype="float32", weights="exact").score([5, 6, 7, 8])
    for options in ({"dtype": "bfloat16"}, {"dtype": "float32"}):
        for _ in range(2):  # packed, then from the kept file
            found = Qwen.load(tmp_path / "m", offline=True, **options).score([5, 6, 7, 8])
            assert found == pytest.approx(expected, abs=0.15)


def test_the_words_for_it_count_scales_and_zeros(tmp_path):
    mixed(tmp_path / "m", {"+:.*mlp.*": {"bits": 8, "group_size": 16}})
    tensors = stored(tmp_path / "m")
    bits = sum(
        tensor.numel() * (16 if name.endswith("scales") else 32)
        for name, tensor in tensors.items()
        if name.endswith(("qweight", "qzeros", "scales"))
    )
    weights = sum(2 * rows * columns for rows, columns in ((128, 64), (64, 64), (192, 64), (64, 96)))
    words = open_checkpoint(tmp_path / "m").quantization
    assert words == f"GPTQ int4/int8 g16/g32, {bits / weights:.2f} bits a weight"
    set_quantization(tmp_path / "m", BASE)
    assert open_checkpoint(tmp_path / "m").quantization == "GPTQ int4 g32"


def test_to_the_other_layout_and_back_is_bit_exact(tmp_path):
    mixed(tmp_path / "v1", MIXED_V1, "qwen-v1")
    convert(tmp_path / "v1", "qwen2", tmp_path / "qwen2")
    convert(tmp_path / "qwen2", "v1", tmp_path / "again")
    same(stored(tmp_path / "again"), stored(tmp_path / "v1"))
    torch.testing.assert_close(
        logits(open_checkpoint(tmp_path / "qwen2")), logits(open_checkpoint(tmp_path / "v1"))
    )
    rules = json.loads((tmp_path / "qwen2" / "quantize_config.json").read_text())["dynamic"]
    names = {
        "attn.c_attn": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
        "attn.c_proj": ("o_proj",),
        "mlp.w1": ("up_proj", "gate_up_proj"),
        "mlp.w2": ("gate_proj",),
        "mlp.c_proj": ("down_proj",),
    }
    for n in range(2):
        for name, parts in names.items():
            for part in parts:
                room = "self_attn" if name.startswith("attn") else "mlp"
                assert decided(rules, f"model.layers.{n}.{room}.{part}") == decided(
                    MIXED_V1, f"transformer.h.{n}.{name}"
                )
    again = json.loads((tmp_path / "again" / "quantize_config.json").read_text())["dynamic"]
    assert decided(again, "transformer.h.1.mlp.gate_up_proj")["bits"] == 8


def test_the_same_layout_keeps_the_rules_as_they_are(tmp_path):
    rules = {key: value for key, value in MIXED.items() if "o_proj" not in key}
    mixed(tmp_path / "m", rules)
    convert(tmp_path / "m", "qwen2", tmp_path / "again")
    assert (
        json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["dynamic"]
        == rules
    )


@pytest.mark.parametrize("key", ["+:.*k_proj", "-:.*k_proj"])
def test_parts_that_differ_load_but_are_not_joined(tmp_path, key):
    values = mixed(tmp_path / "m", {key: {"bits": 8} if key[0] == "+" else {}}, num_kv_heads=4)
    checkpoint = open_checkpoint(tmp_path / "m")
    torch.testing.assert_close(logits(checkpoint), by_floats(tmp_path / "m", values, tmp_path / "floats"))
    with pytest.raises(UnsupportedError, match=r"q_proj.*k_proj.*cannot be one tensor"):
        convert(tmp_path / "m", "v1", tmp_path / "out")


def test_gguf_keeps_the_codes_of_both_widths(tmp_path):
    values = mixed(tmp_path / "m", {"+:.*(q|k|v)_proj": {"bits": 8}, "+:.*down": {"bits": 8}})
    conversion = convert(tmp_path / "m", "gguf", tmp_path / "m.gguf")
    assert not any("dequantized" in loss for loss in conversion.losses)
    held = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(tmp_path / "m.gguf").tensors}
    names = dict(zip(QWEN2, ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"),
                     strict=True))  # fmt: skip
    for module, value in values.items():
        n, name = module.split(".")[2], module.split(".", 3)[3]
        assert torch.equal(torch.from_numpy(held[f"blk.{n}.{names[name]}.weight"]), value)
    ((_, tensors),) = conversion.files.items()
    forms = {tensor.name: tensor.form for tensor in tensors}
    assert forms["blk.0.attn_q.weight"] == "Q8_0"
    assert forms["blk.0.attn_output.weight"] == "Q4_0"


@pytest.mark.parametrize(
    ("dynamic", "match"),
    [
        ({"-:.*o_proj": {}}, r"o_proj packed; by the rule '\.\*o_proj'.* it is not"),
        ({"+:.*o_proj": {"bits": 8}}, r"'model.layers.0.self_attn.o_proj.qweight' has shape"),
        ({"+:.*o_proj": {"group_size": 16}}, "qzeros|scales"),
    ],
)
def test_tensors_that_contradict_the_rules(tmp_path, dynamic, match):
    mixed(tmp_path / "m", {})
    set_quantization(tmp_path / "m", {**BASE, "dynamic": dynamic})
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(tmp_path / "m").load_model(dtype=torch.float32)


def test_floats_that_a_rule_calls_packed(tmp_path):
    mixed(tmp_path / "m", {"-:.*o_proj": {}})
    set_quantization(tmp_path / "m", {**BASE, "dynamic": {".*o_proj": {"bits": 8}}})
    with pytest.raises(CheckpointError, match="o_proj as floats; by the rule"):
        open_checkpoint(tmp_path / "m").load_model(dtype=torch.float32)


@pytest.mark.parametrize(
    ("dynamic", "error", "match"),
    [
        ([1], CheckpointError, "'dynamic' is not an object"),
        ({"a": 8}, CheckpointError, "8 is not an object"),
        ({"+:(": {"bits": 8}}, CheckpointError, "not a regular expression"),
        ({"a": {"bits": 3}}, UnsupportedError, "'a': GPTQ weights of 3 bits"),
        ({"a": {"group_size": 0}}, CheckpointError, "group_size=0"),
        ({"a": {"bits": True}}, CheckpointError, "bits=True"),
    ],
)
def test_bad_rules(tmp_path, dynamic, error, match):
    with pytest.raises(error, match=match):
        read_gptq_config(tmp_path, {"quantization_config": {**BASE, "dynamic": dynamic}})


_MODULES = [f"model.layers.{n}.{name}" for n in (0, 1, 10, 11) for name in QWEN2]
_FIELDS = st.sampled_from([None, {"bits": 8}, {"bits": 8, "group_size": 64}, {}])


@given(
    st.dictionaries(
        st.sampled_from([".*", ".*1", "model.layers.1", "model.layers.1\\.", ".*q_proj", "q_proj", ".*mlp.*",
                         ".*\\.1[01]\\..*", "(?:model)?.*up$"]),
        _FIELDS, max_size=6,
    )
)  # fmt: skip
def test_rules_decide_as_restated(rules):
    dynamic = {("-:" if v is None else "+:") + key: v or {} for key, v in rules.items()}
    config = read_gptq_config(DUMMY, {"quantization_config": {**BASE, "dynamic": dynamic}})
    for module in _MODULES:
        own, expected = config.of(module), decided(dynamic, module)
        assert (own is None) == (expected is None)
        if own is not None:
            assert (own.bits, own.group_size) == (expected["bits"], expected["group_size"])


@given(
    st.dictionaries(st.sampled_from([f"transformer.h.{n}.{name}" for n in range(12) for name in V1]), _FIELDS)
)
def test_written_rules_say_what_was_meant(fields):
    for layout, parts in (
        ("qwen-v1", {name: [f"transformer.h.{{}}.{name}"] for name in V1}),
        (
            "qwen2",
            {
                "attn.c_attn": [f"model.layers.{{}}.self_attn.{p}_proj" for p in ("q", "k", "v", "qkv")],
                "attn.c_proj": ["model.layers.{}.self_attn.o_proj"],
                "mlp.w1": ["model.layers.{}.mlp.up_proj"],
                "mlp.w2": ["model.layers.{}.mlp.gate_proj"],
                "mlp.c_proj": ["model.layers.{}.mlp.down_proj"],
            },
        ),
    ):
        dynamic = json.loads(json.dumps(dynamic_of(layout, fields)))
        for n in range(12):
            for name in V1:
                own = fields.get(f"transformer.h.{n}.{name}", {})
                expected = None if own is None else {**BASE, **own}
                assert all(decided(dynamic, part.format(n)) == expected for part in parts[name])
            both = [fields.get(f"transformer.h.{n}.{w}", {}) for w in ("mlp.w1", "mlp.w2")]
            if both[0] == both[1] and f"transformer.h.{n}.mlp.w1" in fields:
                fused = f"{parts['mlp.w1'][0].format(n).rpartition('.')[0]}.gate_up_proj"
                assert decided(dynamic, fused) == (None if both[0] is None else {**BASE, **both[0]})
