"""Models that start from their packed form: equal to packing anew, sound whatever happens to the cache."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf_files import write_model

from qwenkit.checkpoint import open_checkpoint
from qwenkit.checkpoint.loading import Loader
from qwenkit.checkpoint.packed_file import PackedWriter
from qwenkit.core import RequestError
from qwenkit.kernels import native
from qwenkit.model import Batch, CausalLM
from qwenkit.quant import FusedLinear, PackedBf16Linear, PackedLinear, Packing
from qwenkit.quant.records import layout_fingerprint, rebuild_layer, record_layer

pytest_plugins = ["isolation"]
pytestmark = pytest.mark.skipif(not native.ready(), reason=native.explain())

DATA = Path(__file__).parents[1] / "data"


def source(kind: str, folder: Path) -> Path:
    if kind == "gguf":
        return write_model(folder / "model.gguf", kind="Q8_0", tied=True)[0]
    shutil.copytree(DATA / kind, folder / kind, ignore=shutil.ignore_patterns("golden.*"))
    return folder / kind


def load(
    path: Path, weights: str = "auto", head: str = "auto", dtype: torch.dtype = torch.bfloat16
) -> CausalLM:
    return open_checkpoint(path).load_packed(Packing.parse(weights, head), device="cpu", dtype=dtype).model


@torch.inference_mode()
def logits(model: CausalLM) -> torch.Tensor:
    return model(torch.arange(12)[None], Batch.make(1, 12))[0].float()


def entries(cache: Path) -> list[Path]:
    return sorted(p for p in (cache / "cache" / "derived").iterdir() if p.name.startswith("packed-"))


@pytest.mark.parametrize("weights", ["auto", "int4"])  # packed anew, kept
def test_loading_says_when_it_leaves_python_alone(alone, weights):
    checkpoint = open_checkpoint(source("tiny_v1", alone))
    said = []
    for _ in range(2):
        checkpoint.load_packed(
            Packing.parse(weights, "auto"), device="cpu", dtype=torch.bfloat16, idle=lambda: said.append(1)
        )
    assert len(said) == 2


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on nobody may read the checkpoint's own weights."""

    def forbid() -> None:
        def fill(*_: object, **__: object) -> None:
            raise AssertionError("the checkpoint was read again")

        monkeypatch.setattr(Loader, "fill", fill)

    return forbid


@pytest.mark.parametrize(
    ("kind", "weights", "head"),
    [("tiny_v1_int4", "auto", "auto"), ("tiny_v1_int8", "exact", "auto"), ("tiny_v1_int4", "auto", "int8"),
     ("gguf", "auto", "auto"), ("gguf", "bf16", "int8"), ("tiny_v1", "int4", "auto"),
     ("tiny_v1", "int8", "bf16")],
)  # fmt: skip
def test_the_second_start_reads_what_the_first_one_packed(alone, monkeypatch, unread, kind, weights, head):
    path = source(kind, alone)
    if kind != "gguf":  # a numbered set reads its tensors through another class
        (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    monkeypatch.setenv("QWENKIT_CACHE_LIMIT", "0")
    anew = load(path, weights, head)
    assert not (alone / "cache" / "derived").exists()
    monkeypatch.delenv("QWENKIT_CACHE_LIMIT")
    first = load(path, weights, head)
    assert len(entries(alone)) == 1
    unread()
    second = load(path, weights, head)
    assert second.training is False
    wanted = anew.state_dict()
    for model in (first, second):
        found = model.state_dict()
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name
        assert torch.equal(logits(model), logits(anew))
    assert [repr(m) for m in second.modules()] == [repr(m) for m in anew.modules()]


def test_16_bit_models_are_packed_from_their_files_every_time(alone):
    model = load(source("tiny_v1", alone))
    assert isinstance(model.lm_head, PackedBf16Linear)
    assert not (alone / "cache" / "derived").exists()


def test_the_mapped_weights_of_packed_layers_are_given_back(alone, monkeypatch):
    released = []
    monkeypatch.setattr(Loader, "release", lambda self, name: released.append(name))
    model = load(source("tiny_v1", alone))
    assert len(released) > 4
    assert released == [n for n, layer in model.named_modules() if isinstance(layer, PackedBf16Linear)]


def test_blocks_run_as_they_are_stored(alone):
    path, stored = write_model(alone / "model.gguf", kind="Q8_0")
    model = load(path, dtype=torch.float32)
    for name, module in stored.named_modules():
        if isinstance(module, torch.nn.Linear):
            ours = model.get_submodule(name)
            assert isinstance(ours, PackedLinear), name
            assert torch.equal(ours.dequantize(), module.weight), name
    assert torch.equal(model.transformer.wte.weight, stored.transformer.wte.weight)
    difference = (logits(model) - logits(stored)).norm() / logits(stored).norm()
    assert difference < 0.02  # activations in 8 bits


def test_queries_keys_and_values_of_different_kinds_run_as_one_layer(alone):
    path, stored = write_model(alone / "model.gguf", kind="Q4_0", others={"attn_v": "Q8_0"})
    model = load(path)
    layer, wanted = model.transformer.h[1].attn.c_attn, stored.transformer.h[1].attn.c_attn
    assert isinstance(layer, PackedLinear)
    assert layer.shape.bits == 8
    assert torch.equal(layer.bias, wanted.bias.bfloat16())
    ours = layer.dequantize()
    assert torch.equal(ours[-32:], wanted.weight[-32:])  # v
    assert (ours - wanted.weight).norm() < 0.006 * wanted.weight.norm()
    assert model.transformer.h[1].mlp.w1.shape.bits == 4


def test_the_codes_of_a_llama_come_in_our_order_too(alone):
    path, _ = write_model(alone / "model.gguf", arch="llama", kind="Q8_0", biases=False)
    wanted = open_checkpoint(path).load_model(dtype=torch.float32)
    model = load(path, dtype=torch.float32)
    for ours, theirs in zip(model.transformer.h, wanted.transformer.h, strict=True):
        assert isinstance(ours.attn.c_attn, PackedLinear)
        assert torch.equal(ours.attn.c_attn.dequantize(), theirs.attn.c_attn.weight)


def test_a_tied_output_takes_the_codes_of_the_embedding(alone):
    path, stored = write_model(alone / "model.gguf", kind="Q8_0", tied=True)
    model = load(path)
    assert isinstance(model.lm_head, PackedLinear)
    assert torch.equal(model.lm_head.dequantize(), stored.transformer.wte.weight)
    assert model.transformer.wte.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "foreign"])
def test_a_spoiled_entry_is_noticed_and_made_again(alone, capfd, damage):
    path = source("tiny_v1", alone)
    wanted = logits(load(path, "int4"))
    (entry,) = entries(alone)
    content = bytearray(entry.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "foreign":
        load(path, "int8")
        (other,) = (p for p in entries(alone) if p != entry)
        content = bytearray(other.read_bytes())
    entry.write_bytes({"truncated": content[:-1000], "empty": b""}.get(damage, content))
    capfd.readouterr()
    assert torch.equal(logits(load(path, "int4")), wanted)
    said = capfd.readouterr().err
    assert str(entry) in said
    assert "made again" in said
    assert torch.equal(logits(load(path, "int4")), wanted)
    assert "made again" not in capfd.readouterr().err


def test_a_full_disk_costs_the_cache_and_nothing_else(alone, capfd, monkeypatch):
    path = source("tiny_v1", alone)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(PackedWriter, "_write", full)
        model = load(path, "int4")
    assert "No space left on device" in capfd.readouterr().err
    assert entries(alone) == []
    assert torch.equal(logits(model), logits(load(path, "int4")))


def test_another_content_or_another_wish_is_another_entry(alone):
    path = source("tiny_v1", alone)
    load(path, "int4")
    load(path, "int8")
    load(path, "int4", "int4")
    load(path, "int4", dtype=torch.float32)
    assert len(entries(alone)) == 4
    copied = source("tiny_v1", alone / "elsewhere")
    load(copied, "int4")  # the same content in another folder
    assert len(entries(alone)) == 4
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    load(copied, "int4")
    assert len(entries(alone)) == 5


def _start(path: Path, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(float(load(path, "int4").lm_head.dequantize().double().sum()))


def test_processes_that_start_at_once_agree(alone):
    path = source("tiny_v1", alone)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    running = [context.Process(target=_start, args=(path, answers)) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        assert process.exitcode == 0
    assert answers.get() == answers.get()
    assert len(entries(alone)) == 1
    assert not [p for p in (alone / "cache" / "derived").iterdir() if p.name.startswith(".")]


def test_rounding_a_rounded_checkpoint_is_refused(alone):
    with pytest.raises(RequestError, match="GPTQ int4 g32"):
        load(source("tiny_v1_int4", alone), "int8")


def test_the_packed_bytes_are_the_same_on_every_instruction_set():
    before = native.isa()
    try:
        for isa in native.available_isas():
            native.set_isa(isa)
            assert layout_fingerprint.__wrapped__() == layout_fingerprint()
    finally:
        native.set_isa(before)


def test_layers_of_several_parts_come_back():
    generator = torch.Generator().manual_seed(0)
    linears = [torch.nn.Linear(64, n).bfloat16() for n in (16, 32)]
    whole = FusedLinear([Packing("int4").pack("a", linears[0]), PackedBf16Linear.from_linear(linears[1])])
    again = rebuild_layer(record_layer(whole), dict(whole.state_dict()))
    x = torch.randn(3, 64, generator=generator).bfloat16()
    with torch.inference_mode():
        assert torch.equal(again(x), whole(x))
