"""GGUF files written by the gguf library, block by block and as whole models."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import VOCABULARY, write_model, write_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.checkpoint import DerivedStore, open_checkpoint
from qwenkit.checkpoint.gguf_file import GGUFFile
from qwenkit.checkpoint.gguf_header import BLOCKS, GGUFHeader
from qwenkit.core import CheckpointError, QwenkitError, UnsupportedError
from qwenkit.model import Batch

QUANTS = [name for name, weights, _ in BLOCKS.values() if weights > 1]


@torch.inference_mode()
def logits(model, ids):
    return model(ids, Batch.make(*ids.shape))[0]


def random_blocks(kind: str, rows: int, columns: int) -> np.ndarray:
    """Weights quantized by the library where it can, else random bytes with finite scales."""
    generator = np.random.default_rng(len(kind) + rows)
    quant = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quantize(generator.normal(size=(rows, columns)).astype(np.float32), quant)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[quant]
        raw = generator.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        # Half-precision scales sit at either end of a K block; 0x2C?? is a small positive number.
        scales = {"Q2_K": (81, 83), "Q3_K": (109,), "Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,)}[kind]
        for at in scales:
            raw[..., at] = 0x2C
        return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", QUANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_become_what_the_library_makes_of_them(tmp_path, kind, dtype, monkeypatch):
    monkeypatch.setattr("qwenkit.checkpoint.gguf_file._CHUNK", 2048)  # several chunks, the last one short
    packed = random_blocks(kind, 11, 512)
    path = write_tensors(tmp_path / "blocks.gguf", {"a": (packed, gguf.GGMLQuantizationType[kind])})
    wanted = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[kind]))
    source = GGUFFile(path)
    entry = source.entries()["a"]
    assert (entry.shape, entry.dtype, entry.nbytes) == ((11, 512), kind, packed.nbytes)
    assert wanted.abs().max() > 0
    assert torch.equal(source.read("a", dtype), wanted.to(dtype))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)
def test_plain_floats_are_read_as_they_are(tmp_path, kind, dtype):
    value = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    raw = value.view(torch.uint8).numpy() if kind == "BF16" else value.numpy()
    quant = gguf.GGMLQuantizationType[kind]
    path = write_tensors(tmp_path / "plain.gguf", {"a": (raw, quant), "b": (raw, quant)})
    source = GGUFFile(path)
    assert source.read("a").dtype == dtype
    assert torch.equal(source.read("a"), value)
    assert torch.equal(source.read("b", torch.float32), value.float())


def test_metadata_of_every_type_is_read_as_the_library_reads_it(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test")
    values = {
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31),
        "f32": 0.5, "u64": 2**64 - 1, "i64": -(2**63), "f64": 0.1, "yes": True, "no": False,
        "text": "Qwen 通义", "empty": "", "words": ["a", "", "千问"],
        "numbers": [1, -2, 3], "floats": [0.5, 2.0],
    }  # fmt: skip
    add = {
        "u8": writer.add_uint8, "i8": writer.add_int8, "u16": writer.add_uint16, "i16": writer.add_int16,
        "u32": writer.add_uint32, "i32": writer.add_int32, "f32": writer.add_float32,
        "u64": writer.add_uint64, "i64": writer.add_int64, "f64": writer.add_float64, "yes": writer.add_bool,
        "no": writer.add_bool, "text": writer.add_string, "empty": writer.add_string,
    }  # fmt: skip
    for key, value in values.items():
        add.get(key, writer.add_array)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = GGUFHeader(tmp_path / "m.gguf")
    assert {key: header.get(key) for key in values if key != "empty"} == {
        key: value for key, value in values.items() if key != "empty"
    }


@pytest.mark.parametrize("arch", ["qwen", "qwen2"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_model_computes_what_its_weights_say(tmp_path, arch, kind):
    path, model = write_model(tmp_path / "model.gguf", arch=arch, kind=kind)
    checkpoint = open_checkpoint(path)
    assert checkpoint.layout == "gguf"
    assert checkpoint.config.architecture == arch
    assert checkpoint.quantization == f"GGUF {kind}"
    ids = torch.arange(20)[None]
    ours = logits(checkpoint.load_model(dtype=torch.float32), ids)
    torch.testing.assert_close(ours, logits(model, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("biases", [False, True])
def test_a_llama_is_the_same_block_in_other_clothes(tmp_path, kind, biases, monkeypatch):
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "cache"))
    path, model = write_model(tmp_path / "model.gguf", arch="llama", kind=kind, biases=biases, tied=True)
    ids = torch.arange(20)[None]
    for known in (None, "ab12"):  # from the file, and by way of the cache
        checkpoint = open_checkpoint(path, content_hash=known)
        ours = logits(checkpoint.load_model(dtype=torch.float32), ids)
        torch.testing.assert_close(ours, logits(model, ids), atol=1e-4, rtol=1e-4)
    assert checkpoint.config.architecture == "qwen2"
    stored = {entry.name for entry in checkpoint.entries() if entry.nbytes}
    assert ("blk.1.attn_q.bias" in stored) == biases


def test_a_llama_says_itself_where_it_ends_and_samples_nothing(tmp_path):
    template = "{{ '<|im_start|>system\nBe brief.<|im_end|>' }}"
    keys = {"tokenizer.ggml.eos_token_id": 259, "tokenizer.chat_template": template}
    path, _ = write_model(tmp_path / "chat.gguf", arch="llama", general=keys, load=False)
    chat = open_checkpoint(path)
    assert chat.is_chat
    assert (chat.generation.stop_token_ids, chat.generation.default_system) == ((259,), "Be brief.")
    path, _ = write_model(
        tmp_path / "base.gguf", arch="llama", general={"tokenizer.ggml.eos_token_id": 257}, load=False
    )
    base = open_checkpoint(path)
    assert not base.is_chat
    assert base.generation.stop_token_ids == (257,)
    assert base.generation.sampling.temperature == 0
    path, _ = write_model(
        tmp_path / "bad.gguf", arch="llama", general={"tokenizer.ggml.eos_token_id": 999}, load=False
    )
    with pytest.raises(CheckpointError, match="eos_token_id is 999, the vocabulary has 260"):
        open_checkpoint(path)


def test_what_a_llama_may_have_and_we_have_not_is_refused(tmp_path):
    path, _ = write_model(tmp_path / "p.gguf", arch="llama", metadata={"rope.dimension_count": 8}, load=False)
    with pytest.raises(UnsupportedError, match="8 of 16 channels"):
        open_checkpoint(path)
    path, _ = write_model(tmp_path / "m.gguf", arch="llama", biases=False)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"blk.1.ffn_norm.weight", b"blk.1.ffn_none.weight"))
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_norm\.weight"):
        open_checkpoint(path).load_model(dtype=torch.float32)


def test_tied_model_has_no_output_tensor(tmp_path):
    path, model = write_model(tmp_path / "model.gguf", tied=True)
    loaded = open_checkpoint(path).load_model(dtype=torch.float32)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    ids = torch.arange(20)[None]
    torch.testing.assert_close(logits(loaded, ids), logits(model, ids), atol=1e-4, rtol=1e-4)


def test_known_content_is_dequantized_once_and_then_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "cache"))
    path, _ = write_model(tmp_path / "model.gguf", kind="Q8_0")
    direct = open_checkpoint(path).load_model(dtype=torch.bfloat16)
    first = open_checkpoint(path, content_hash="ab12").load_model(dtype=torch.bfloat16)
    kept = list(DerivedStore().root.iterdir())
    assert [file.name for file in kept] == ["gguf-ab12-bfloat16-v1.safetensors"]

    def never(*_):
        raise AssertionError("dequantized again")

    monkeypatch.setattr(GGUFFile, "_dequantize", never)
    second = open_checkpoint(path, content_hash="ab12").load_model(dtype=torch.bfloat16)
    for model in (first, second):
        for (name, ours), theirs in zip(model.named_parameters(), direct.parameters(), strict=True):
            assert torch.equal(ours, theirs), name


def test_split_files_are_one_model(tmp_path):
    path, model = write_model(tmp_path / "model.gguf", split=9)
    assert path.name == "model-00001-of-00003.gguf"
    ids = torch.arange(20)[None]
    for given_path in (path, tmp_path):
        ours = logits(open_checkpoint(given_path).load_model(dtype=torch.float32), ids)
        torch.testing.assert_close(ours, logits(model, ids), atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="first part"):
        open_checkpoint(tmp_path / "model-00002-of-00003.gguf")
    (tmp_path / "model-00003-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match="model-00003-of-00003"):
        open_checkpoint(path)


def test_folder_with_one_gguf_is_that_file_and_with_two_an_error(tmp_path):
    write_model(tmp_path / "a.gguf")
    assert open_checkpoint(tmp_path).path.name == "a.gguf"
    write_model(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


def test_published_v1_shape_brings_ntk_and_logn(tmp_path):
    header = {
        "embedding_length": 8192,
        "block_count": 80,
        "attention.head_count": 64,
        "context_length": 32768,
    }
    path, _ = write_model(tmp_path / "72b.gguf", arch="qwen", metadata=header, load=False)
    config = open_checkpoint(path).config
    assert (config.dynamic_ntk, config.logn, config.seq_length) == (False, False, 32768)
    header = {
        "embedding_length": 4096,
        "block_count": 32,
        "attention.head_count": 32,
        "context_length": 32768,
    }
    path, _ = write_model(tmp_path / "7b.gguf", arch="qwen", metadata=header, load=False)
    config = open_checkpoint(path).config
    assert (config.dynamic_ntk, config.logn, config.seq_length) == (True, True, 8192)


def test_tokenizer_and_stops_come_from_the_metadata(tmp_path):
    path, _ = write_model(tmp_path / "model.gguf")
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert len(tokenizer) == len(VOCABULARY)


def test_other_architectures_types_and_tokenizers_are_named(tmp_path):
    path, _ = write_model(tmp_path / "l.gguf", general={"general.architecture": "gemma"}, load=False)
    with pytest.raises(UnsupportedError, match="'gemma'"):
        open_checkpoint(path)
    block = np.zeros((2, 256 // 32 * 18), dtype=np.uint8)
    path = write_tensors(tmp_path / "iq.gguf", {"odd": (block, gguf.GGMLQuantizationType.IQ4_NL)})
    with pytest.raises(UnsupportedError, match=r"'odd' has type IQ4_NL"):
        GGUFFile(path)
    path, _ = write_model(tmp_path / "t.gguf", general={"tokenizer.ggml.model": "llama"})
    with pytest.raises(UnsupportedError, match="kind 'llama'"):
        open_checkpoint(path).tokenizer()
    path, _ = write_model(tmp_path / "y.gguf", metadata={"rope.scaling.type": "yarn"})
    with pytest.raises(UnsupportedError, match="yarn"):
        open_checkpoint(path)


def test_scales_that_are_not_finite_are_found(tmp_path):
    packed = random_blocks("Q8_0", 4, 64)
    packed[2, 34:36] = (0xFF, 0x7E)  # the half-precision scale of one block becomes NaN
    path = write_tensors(tmp_path / "nan.gguf", {"a": (packed, gguf.GGMLQuantizationType.Q8_0)})
    with pytest.raises(CheckpointError, match=r"nan\.gguf: tensor 'a' contains NaN"):
        GGUFFile(path).read("a")


def test_truncated_data_is_found_before_anything_is_read(tmp_path):
    path, _ = write_model(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(path)


# -- headers that lie -------------------------------------------------------------------------------


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pieces(values: list[bytes], tensors: list[bytes], version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values + tensors)


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 2**62
NUMBER = string(b"k") + struct.pack("<II", 4, 7)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"GGU",
        b"GGUF",
        b"NOPE" + b"\0" * 40,
        b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
        pieces([struct.pack("<Q", HUGE)], []),
        pieces([string(b"k" * 70_000) + struct.pack("<II", 4, 1)], []),
        pieces([string(b"k") + struct.pack("<I", 99)], []),
        pieces([string(b"k") + struct.pack("<IQ", 8, HUGE)], []),
        pieces([string(b"k") + struct.pack("<I", 8) + string(b"\xff\xff")], []),
        pieces([string(b"k") + struct.pack("<IIQ", 9, 8, HUGE)], []),
        pieces([string(b"k") + struct.pack("<IIQ", 9, 4, HUGE)], []),
        pieces([string(b"k") + struct.pack("<IIQ", 9, 9, 1)], []),
        pieces([string(b"k") + struct.pack("<IIQQ", 9, 8, 1, HUGE)], []),
        pieces([string(b"k") + struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1)], []),
        pieces([string(b"k") + struct.pack("<IIQ", 9, 0, 5_000_000) + b"\0" * 5_000_000], []),
        pieces([NUMBER, NUMBER], []),
        pieces([string(b"general.alignment") + struct.pack("<II", 4, 3)], []),
        pieces([string(b"general.alignment") + struct.pack("<II", 4, 0)], []),
        pieces([string(b"general.alignment") + struct.pack("<I", 8) + string(b"x")], []),
        pieces([], [string(b"t") + struct.pack("<I", 2**31)]),
        pieces([], [tensor(b"t", (), 0, 0)]),
        pieces([], [tensor(b"t", (0,), 0, 0)]),
        pieces([], [tensor(b"t", (HUGE, HUGE), 0, 0)]),
        pieces([], [tensor(b"t", (4,), 0, HUGE)]),
        pieces([], [tensor(b"t", (4,), 0, 2**64 - 32)]),
        pieces([], [tensor(b"t", (4,), 0, 1)]) + b"\0" * 100,
        pieces([], [tensor(b"t", (33,), 2, 0)]) + b"\0" * 100,
        pieces([], [tensor(b"t", (4,), 0, 0)]),
        pieces([], [tensor(b"t", (4,), 0, 0)] * 2) + b"\0" * 100,
    ],
)
def test_hostile_headers_are_refused_by_name(tmp_path, raw):
    path = tmp_path / "evil.gguf"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"evil\.gguf"):
        open_checkpoint(path)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_other_versions_are_refused(tmp_path, version):
    path = tmp_path / "old.gguf"
    path.write_bytes(pieces([], [], version))
    with pytest.raises(UnsupportedError, match="version"):
        open_checkpoint(path)


FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def survives(path: Path) -> None:
    try:
        checkpoint = open_checkpoint(path)
        for entry in checkpoint.entries():
            assert entry.nbytes <= path.stat().st_size
        checkpoint.load_model(dtype=torch.float32)
    except QwenkitError:
        pass


@FUZZ
@given(raw=st.binary(max_size=400))
def test_random_bytes_after_the_magic(tmp_path, raw):
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + raw)
    survives(path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    made = [write_model(folder / f"{arch}.gguf", arch=arch, kind="Q8_0")[0] for arch in ("qwen2", "llama")]
    return [path.read_bytes() for path in made]


@FUZZ
@given(data=st.data())
def test_damaged_and_truncated_files(tmp_path, whole_files, data):
    raw = bytearray(data.draw(st.sampled_from(whole_files)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, 6000))  # the header
        width = data.draw(st.sampled_from([1, 4, 8]))
        value = data.draw(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1))
        raw[at : at + width] = value.to_bytes(8, "little")[:width]
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(bytes(raw))
    survives(path)
