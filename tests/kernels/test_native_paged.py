"""Compiled paged attention: right against torch and written-out sums, the same bits however it is cut."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from paged_texts import Text, key_form, native_layer, rotated, run, torch_layer, written_out
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native, paged_layer, reference
from qwenkit.kernels.native_paged import UNIT, NativePagedLayer
from qwenkit.kernels.paged import KVFormat, PagedShape, RaggedRows, TorchPagedLayer, quantize_kv

FORMATS: list[KVFormat] = ["float", "int8", "int8-affine", "int4"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPE = PagedShape(blocks=48, block_size=32, heads=4, kv_heads=2, head_dim=16, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    before = native.threads()
    yield
    native.set_threads(before)


def texts(shape: PagedShape, lengths: list[int], seed: int = 0) -> list[Text]:
    """Texts on blocks taken at random."""
    free = list(range(shape.blocks))
    random.Random(seed).shuffle(free)
    return [
        Text(n, [free.pop() for _ in range(-(-n // shape.block_size))], seed * 100 + i, shape)
        for i, n in enumerate(lengths)
    ]


def whole(layer: NativePagedLayer | TorchPagedLayer, text: Text, window: int | None = None) -> Tensor:
    """All tokens of a text in one step."""
    rows = RaggedRows.make([0], [text.length], [text.blocks])
    return layer.attend(text.qkv, (text.cos, text.sin), text.logn, rows, window)


def stored(layer: NativePagedLayer, head: int, text: Text) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer holds of a text: cells [2][n][d] of keys and values, scales and minima [2][n].

    Restates the layout: tiles of 32 rows by 16 columns, of bf16 two rows side by side, of codes four; keys by
    16 tokens; each unit starts with another head.
    """
    s = layer.shape
    channels = -(-s.head_dim // 32) * 32
    kind = s.dtype if s.format == "float" else torch.int8
    side = channels * UNIT * kind.itemsize
    units = layer.memory.view(s.blocks * s.block_size // UNIT, s.kv_heads, -1)
    places = torch.arange(len(units))
    units = units[places, (head + places) % s.kv_heads]
    per = s.block_size // UNIT
    units = units[[b * per + i for b in text.blocks for i in range(per)]]
    cells = units[:, : 2 * side].contiguous().view(kind).view(len(units), 2, -1, 512)
    together = {torch.bfloat16: 2, torch.int8: 4}.get(kind, 1)
    tiles = cells.view(*cells.shape[:3], 32 // together, 16, together)
    tiles = tiles.transpose(-1, -2).reshape(*cells.shape[:3], 32, 16)
    keys, values = tiles[:, 0], tiles[:, 1]
    keys = keys.view(-1, 2, channels, 16).transpose(2, 3).reshape(-1, channels)
    values = values.permute(0, 2, 1, 3).reshape(-1, channels)
    n = text.length
    both = torch.stack((keys[:n, : s.head_dim], values[:n, : s.head_dim]))
    planes = units[:, 2 * side :].contiguous().view(torch.float32).view(len(units), -1, 2, UNIT)
    planes = planes.permute(1, 2, 0, 3).flatten(2)[:, :, :n]
    return both, planes[0] if len(planes) else planes, planes[1] if len(planes) > 1 else planes


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(4, 4, 64), (6, 2, 8), (5, 1, 80), (14, 2, 128)])
def test_pieces_of_many_texts_give_attention_over_each_whole_text(isa, dtype, heads, kv_heads, d, window):
    shape = PagedShape(24, 32, heads, kv_heads, d, dtype)
    some = texts(shape, [1, 33, 70], seed=heads)
    run(native_layer(shape), some, random.Random(heads), window)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for t in some:
        exact = written_out(t.qkv, t.cos, t.sin, t.logn, shape, window)
        torch.testing.assert_close(t.out.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [None, 400])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_texts_agree_with_torch(isa, dtype, format, window):
    shape = PagedShape(48, 64, 6, 2, 96, dtype, format)
    (text,) = texts(shape, [800])
    got, want = whole(native_layer(shape), text, window), whole(torch_layer(shape), text, window)
    # Torch dequantizes to its type before it multiplies, the kernels after.
    tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}[dtype]
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("spread", [1, 6])
@pytest.mark.parametrize("format", ["int8", "int8-affine"])
def test_attention_of_codes_adds_little_error_to_rounding_its_result(isa, format, spread):
    """Against float64 over the very codes that are kept; some tokens have far larger keys and values."""
    shape = PagedShape(32, 32, 4, 2, 128, torch.bfloat16, format)
    (text,) = texts(shape, [700])
    text.qkv[:, :4] *= spread
    text.qkv[::50, 4:] *= 8
    layer = native_layer(shape)
    got = whole(layer, text).double()
    q = reference.apply_rotary(text.qkv[None, :, :4], text.cos[None], text.sin[None])[0]
    q = (q * text.logn.to(q.dtype)[:, None, None]).double()
    later = torch.ones(700, 700, dtype=torch.bool).triu(1)
    want = torch.empty_like(got)
    for head in range(4):
        cells, scales, minima = (t.double() for t in stored(layer, head // 2, text))
        keys, values = (
            cells * scales[..., None]
            if format == "int8"
            else (cells + 128) * scales[..., None] + minima[..., None]
        )
        keys = keys * key_form(shape).step[head // 2]
        scores = (q[:, head] @ keys.T / 128**0.5).masked_fill(later, -torch.inf)
        want[:, head] = scores.softmax(-1) @ values
    rounding = want.bfloat16().double() - want
    assert (got - want).square().mean() < 1.01 * rounding.square().mean()


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_cuts_neighbours_or_threads(isa, threads, dtype, format, window):
    shape = replace(SHAPE, dtype=dtype, format=format)
    lengths = [1, 31, 32, 65, 700]
    expected = []
    for count in (1, 2):
        native.set_threads(count)
        layer = native_layer(shape)
        outs = [whole(layer, t, window) for t in texts(shape, lengths)]
        expected = expected or outs
        assert all(map(torch.equal, outs, expected))
        again = texts(shape, lengths)
        run(native_layer(shape), again, random.Random(count), window)
        for text, want in zip(again, expected, strict=True):
            assert torch.equal(text.out, want), f"{text.length} tokens, {count} threads"


@pytest.mark.parametrize("format", FORMATS)
def test_one_token_at_a_time_gives_the_bits_of_the_whole(isa, format):
    """Decoding after a prefill, in the form of a model: many heads sharing few keys, whole tiles."""
    shape = PagedShape(20, 32, 12, 2, 128, torch.bfloat16, format)
    (text,) = texts(shape, [560])
    expected = whole(native_layer(shape), text)
    layer = native_layer(shape)
    for begin, end in [(0, 500), *((i, i + 1) for i in range(500, 560))]:
        rows = RaggedRows.make([begin], [end - begin], [text.blocks])
        angles = text.cos[begin:end], text.sin[begin:end]
        out = layer.attend(text.qkv[begin:end], angles, text.logn[begin:end], rows)
        assert torch.equal(out, expected[begin:end]), f"tokens {begin} to {end}"


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [8, 80, 128])
def test_what_is_kept_is_what_torch_keeps(isa, dtype, d, format):
    shape = PagedShape(12, 64, 4, 2, d, dtype, format)
    (text,) = texts(shape, [150])
    text.qkv[3] = 0
    text.qkv[5, :, 1:] = 0
    text.qkv[7] *= 1e-3 if dtype == torch.float16 else 1e-30
    layer = native_layer(shape)
    run(layer, [text], random.Random(d))
    _, k, v = text.qkv.split([4, 2, 2], dim=1)
    half = text.cos.shape[1] // 2
    first, second = k[..., :half].float(), k[..., half:].float()
    cos, sin = text.cos[:, None, :half], text.sin[:, None, :half]
    k = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(dtype)
    for head in range(2):
        cells, scales, minima = stored(layer, head, text)
        for x, cell, i in ((k, cells[0], 0), (v, cells[1], 1)):
            if format == "float":
                assert torch.equal(cell, x[:, head])
                continue
            parts = x.float() / key_form(shape).step if i == 0 else x
            codes, scale, minimum = (t[:, head] for t in quantize_kv(parts, format))
            assert torch.equal(scales[i], scale[:, 0])
            assert torch.equal(cell.int() + 128, codes.int())
            if format == "int8-affine":
                assert torch.equal(minima[i], minimum[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [8, 80, 128])
def test_nibbles_are_those_of_rounding_written_out(isa, dtype, d):
    """Restates the layout and the rounding of cpu/nibbles.h, a unit and a head at a time."""
    shape = PagedShape(12, 64, 4, 2, d, dtype, "int4")
    (text,) = texts(shape, [150])
    text.qkv[3] = 0
    text.qkv[5, :, 1:] = 0
    layer, form = native_layer(shape), key_form(shape)
    run(layer, [text], random.Random(d))
    groups = -(-d // 32)
    units = layer.memory.view(24, 2, 2, -1)
    hadamard = torch.ones(1, 1)
    for _ in range(5):
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)), 0)
    for head in range(2):
        for token in range(0, 150):
            place = text.blocks[token // 64] * 2 + token % 64 // 32
            at = token % 32
            for side in range(2):
                x = text.qkv[token, 4 + 2 * side + head].float()
                if side == 0:
                    x = x - form.center[head]
                    x = rotated(x[None, None], text.cos[token, None], text.sin[token, None])[0, 0]
                    x = torch.nn.functional.pad(x / form.step[head], (0, groups * 32 - d))
                    x = (x.view(groups, 32).double() @ hadamard.double()).flatten()
                unit = units[place, (head + place) % 2, side]
                planes = unit[groups * 512 :].clone().view(torch.bfloat16).float().view(2, groups, 32)
                for group in range(groups):
                    codes = unit[group * 512 : group * 512 + 512]
                    codes = (
                        codes.view(2, 16, 16)[at // 16, :, at % 16] if side == 0 else codes.view(32, 16)[at]
                    )
                    codes = torch.cat((codes & 15, codes >> 4))
                    scale, minimum = planes[:, group, at]
                    part = x[group * 32 : group * 32 + 32]
                    n = len(part)
                    assert minimum == pytest.approx(float(part.min()), rel=2**-8, abs=1e-5)
                    span = float(part.max() - part.min()) / 15
                    assert scale == pytest.approx(span, rel=2**-8, abs=1e-5)
                    error = (codes[:n] * scale + minimum - part).abs().max()
                    assert error <= 0.51 * scale + 2**-7 * part.abs().max() + 1e-5


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_leaks_from_slots_that_a_text_has_not_reached(isa, dtype, format):
    shape = replace(SHAPE, dtype=dtype, format=format, head_dim=32)
    for length in (45, 46):
        (text,) = texts(shape, [length])
        layer = native_layer(shape)
        expected = whole(layer, text)
        layer.memory.fill_(255)  # NaN in every type, and of the scales
        assert torch.equal(whole(layer, text), expected)


def test_long_steps_read_nothing_that_they_keep_later(isa):
    shape = replace(SHAPE, head_dim=32)
    (text,) = texts(shape, [1200])
    layer = native_layer(shape)
    expected = whole(layer, text)
    layer.memory.fill_(255)
    for begin, end in ((0, 5), (5, 1200)):
        rows = RaggedRows.make([begin], [end - begin], [text.blocks])
        angles = text.cos[begin:end], text.sin[begin:end]
        out = layer.attend(text.qkv[begin:end], angles, text.logn[begin:end], rows)
        assert torch.equal(out, expected[begin:end]), f"tokens {begin} to {end}"


def test_a_later_layer_takes_the_angles_of_the_first(isa):
    shape = replace(SHAPE, format="int4")
    (text,) = texts(shape, [150])
    expected = whole(native_layer(shape), text)
    first = native_layer(shape)
    later = NativePagedLayer(shape, key_form(shape), first)
    assert later.nbytes < first.nbytes
    whole(first, text)
    assert torch.equal(whole(later, text), expected)
    free = [b for b in range(shape.blocks) if b not in text.blocks][:5]
    pairs = list(zip(text.blocks, free, strict=True))
    first.copy(pairs)
    later.copy(pairs)
    rows = RaggedRows.make([149], [1], [free])
    last = text.qkv[149:], (text.cos[149:], text.sin[149:]), text.logn[149:]
    for layer in (first, later):
        assert torch.equal(layer.attend(*last, rows), expected[149:])


def test_copied_blocks_hold_the_same(isa):
    shape = replace(SHAPE, format="int8")
    layer = native_layer(shape)
    (text,) = texts(shape, [70])
    whole(layer, text)
    free = [b for b in range(shape.blocks) if b not in text.blocks][:3]
    layer.copy(list(zip(text.blocks, free, strict=True)))
    copied = Text(70, free, 0, shape)
    for a, b in zip(stored(layer, 1, text), stored(layer, 1, copied), strict=True):
        assert torch.equal(a, b)
    layer.copy([])
    with pytest.raises(UnsupportedError, match="no block 48"):
        layer.copy([(0, 48)])


@pytest.mark.parametrize(
    ("starts", "counts", "table", "says"),
    [
        ([0], [3], [48], "block 48 of 48"),
        ([0], [3], [-1], "block -1"),
        ([-1], [3], [0], "starts at -1"),
        ([30], [3], [0], "needs 2 blocks"),
        ([0], [4], [0], "do not cover the 3 tokens"),
        ([0, 0], [4, -1], [0], "has -1 tokens"),
    ],
)
def test_rows_that_lead_outside_are_refused(isa, starts, counts, table, says):
    layer = native_layer(SHAPE)
    (text,) = texts(SHAPE, [3])
    rows = RaggedRows(
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32),
        torch.tensor([table] * len(starts), dtype=torch.int32),
        torch.arange(3),
    )
    with pytest.raises(UnsupportedError, match=says):
        layer.attend(text.qkv, (text.cos, text.sin), None, rows)
    assert not layer.memory.any()


def test_tensors_that_do_not_fit_are_refused(isa):
    layer = native_layer(SHAPE)
    (text,) = texts(SHAPE, [3])
    rows = RaggedRows.make([0], [3], [text.blocks])
    angles = text.cos, text.sin
    for qkv, (cos, sin), logn in (
        (text.qkv[:2], angles, None),
        (text.qkv.float(), angles, None),
        (text.qkv, (text.cos[:, :3], text.sin[:, :3]), None),
        (text.qkv, (text.cos.double(), text.sin), None),
        (text.qkv, angles, text.logn[:2]),
    ):
        with pytest.raises(UnsupportedError):
            layer.attend(qkv, (cos, sin), logn, rows)


def test_tokens_and_angles_need_not_lie_together(isa):
    (text,) = texts(SHAPE, [40])
    expected = whole(native_layer(SHAPE), text)
    text.qkv = text.qkv.transpose(0, 1).contiguous().transpose(0, 1)
    text.cos = text.cos.t().contiguous().t()
    assert torch.equal(whole(native_layer(SHAPE), text), expected)


def test_the_factory_takes_compiled_layers_where_they_exist(isa):
    layer = paged_layer(SHAPE)
    assert isinstance(layer, NativePagedLayer)
    assert layer.kernel == f"native {isa}"
    assert layer.nbytes == 48 * 32 * 2 * 2 * 32 * 2  # 16 channels are kept as 32
    for other in (
        replace(SHAPE, block_size=16),
        replace(SHAPE, format="int8-original"),
        replace(SHAPE, dtype=torch.float64),
    ):
        assert paged_layer(other).kernel == "torch"
        with pytest.raises(UnsupportedError):
            NativePagedLayer(other)
    assert paged_layer(SHAPE, "meta").kernel == "torch"


def test_a_text_of_no_tokens_beside_another_changes_nothing(isa):
    layer = native_layer(SHAPE)
    (text,) = texts(SHAPE, [40])
    expected = whole(native_layer(SHAPE), text)
    rows = RaggedRows.make([0, 0], [0, 40], [[], text.blocks])
    assert torch.equal(layer.attend(text.qkv, (text.cos, text.sin), text.logn, rows), expected)
