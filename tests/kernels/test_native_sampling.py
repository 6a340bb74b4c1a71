"""The compiled choice against the torch definition: the same token, always."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native, native_sampling, reference_sampling
from qwenkit.kernels.native_sampling import DRAW, LIKELY
from qwenkit.kernels.reference_sampling import Draw

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAST = 1 - 2**-53


@st.composite
def batches(draw: st.DrawFn) -> dict:
    size = draw(st.sampled_from([1, 7, 16, 255, 256, 257, 700, 3000, 9000]))
    rows, padding = draw(st.integers(1, 4)), draw(st.sampled_from([0, 1, 50]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 0.01, 1.0, 3.0, 12.0, 1e3]))
    logits = torch.randn(rows, size + padding, generator=g) * scale
    if draw(st.booleans()):
        logits = logits.round()  # many equals
    logits[:, size:] = torch.nan
    holes = torch.randperm(size, generator=g)[: draw(st.sampled_from([0, 1, size // 3, size - 1]))].int()
    if draw(st.booleans()):
        logits[:, holes.long()] = draw(st.sampled_from([math.nan, -math.inf, math.inf, 1e4]))
        marked = True
    else:
        logits[:, holes.long()], marked = -math.inf, draw(st.booleans())
    draws = []
    for _ in range(draw(st.integers(1, 6))):
        ids = torch.randperm(size, generator=g)[: draw(st.sampled_from([0, 1, 40]))].int().numpy()
        values = torch.randn(len(ids), generator=g).mul(scale).numpy()
        share = draw(st.sampled_from([0.0, 0.003, 0.5, 0.99, 1.0]))
        bits = np.packbits((torch.rand(-(-size // 32) * 32, generator=g) < share).numpy(), bitorder="little")
        draws.append(
            Draw(
                row=draw(st.integers(0, rows - 1)),
                temperature=draw(st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0])),
                top_k=draw(st.sampled_from([0, 0, 1, 5, 40, 800, size, size + 1])),
                top_p=draw(st.sampled_from([1.0, 0.95, 0.8, 0.1, 1e-9, LAST])),
                min_p=draw(st.sampled_from([0.0, 0.0, 0.02, 1.0, 1e-30])),
                uniform=draw(st.one_of(st.sampled_from([0.0, LAST]), st.floats(0, LAST))),
                edits=(ids, values) if draw(st.booleans()) else None,
                allowed=bits.view(np.uint32) if draw(st.booleans()) else None,
            )
        )
    logits = logits.to(draw(st.sampled_from(DTYPES)))
    return {"logits": logits, "draws": draws, "size": size, "holes": holes if marked else None}


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(batches())
def test_every_token_is_the_defined_one(isa, batch):
    """To the last bit: ties, knife edges of nuclei and both ends of the uniform numbers included."""
    assert native_sampling.choose(**batch) == reference_sampling.choose(**batch)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_whole_vocabularies(isa, scale):
    g = torch.Generator().manual_seed(5)
    logits = (torch.randn(2, 151_936, generator=g) * scale).bfloat16()
    kinds = [
        (1.0, 0, 0.8, 0.0),
        (0.7, 20, 0.8, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.3, 2000, 0.99, 0.0),
        (1.0, 0, 1.0, 0.0),
    ]
    draws = [
        Draw(row, *kind, uniform)
        for row in range(2)
        for kind in kinds
        for uniform in torch.rand(1, generator=g, dtype=torch.float64).tolist()
    ]
    draws += [Draw(row) for row in range(2)]
    assert native_sampling.choose(logits, draws) == reference_sampling.choose(logits, draws)


def test_a_token_depends_on_nothing_but_its_draw(isa):
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(12, 5000, generator=g).mul(3).bfloat16()
    draws = [Draw(row, 1.0, top_p=0.9, uniform=row / 12) for row in range(12)]
    alone = [native_sampling.choose(logits, [d]).tokens[0] for d in draws]
    before = native.threads()
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            assert native_sampling.choose(logits, draws).tokens == alone
            assert native_sampling.choose(logits, draws[::-1]).tokens == alone[::-1]
    finally:
        native.set_threads(before)


def test_rows_of_a_larger_tensor_are_read_in_place(isa):
    logits = torch.randn(4, 3, 900, generator=torch.Generator().manual_seed(3))
    draws = [Draw(row, 1.0, uniform=0.5) for row in range(4)]
    for view in (logits[:, 1], logits[:, 2, 100:], logits[:, :, 5:305].transpose(1, 2)[:, :, 0]):
        assert native_sampling.choose(view, draws) == reference_sampling.choose(view, draws)
    assert native_sampling.choose(logits[:, 0], []) == ([], {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_logits_are_counted(isa, dtype, bad):
    logits = torch.zeros(3, 600, dtype=dtype)
    logits[1, [3, 300, 599]] = bad
    draws = [Draw(0), Draw(1, 1.0, top_p=0.5), Draw(2), Draw(1)]
    for holes, count in (((), 3), ((3,), 2), ((3, 300, 599), 0)):
        batch = {"logits": logits, "draws": draws, "holes": torch.tensor(holes, dtype=torch.int32)}
        chosen = native_sampling.choose(**batch)
        assert chosen == reference_sampling.choose(**batch)
        assert chosen.bad == ({1: count} if count else {})
    logits[0] = -math.inf
    chosen = native_sampling.choose(logits, draws)
    assert chosen == reference_sampling.choose(logits, draws)
    assert chosen.bad[0] == 600
    assert chosen.tokens[0] == -1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_log_probabilities(isa, dtype, scale):
    g = torch.Generator().manual_seed(7)
    logits = torch.randn(3, 5000, generator=g).mul(scale).to(dtype)
    holes = torch.tensor([0, 17, 4000], dtype=torch.int32)
    wanted = [(row, 100 * row + 1, top) for row in range(3) for top in (0, 1, 5, 700, 5000)]
    got = native_sampling.log_probabilities(logits, wanted, size=4990, holes=holes)
    want = reference_sampling.log_probabilities(logits, wanted, size=4990, holes=holes)
    exact = logits[:, :4990].double().index_fill(1, holes.long(), -torch.inf).log_softmax(1)
    for (row, token, top), (value, best), (_, other) in zip(wanted, got, want, strict=True):
        assert value == pytest.approx(float(exact[row, token]), abs=2e-6)
        assert [i for i, _ in best] == [i for i, _ in other]
        assert len(best) == min(top, 4987)
        assert [v for _, v in best] == pytest.approx(exact[row, [i for i, _ in best]].tolist(), abs=2e-6)


def test_fewer_candidates_than_wanted(isa):
    logits = torch.full((1, 40), -math.inf)
    logits[0, 5:8] = torch.tensor([1.0, 3.0, 1.0])
    ((_, best),) = native_sampling.log_probabilities(logits, [(0, 5, 10)])
    assert [i for i, _ in best] == [6, 5, 7]
    for draw in (Draw(0, 1.0, top_k=9, uniform=0.99), Draw(0, 1.0, top_k=9, top_p=0.9, uniform=0.5)):
        assert native_sampling.choose(logits, [draw]) == reference_sampling.choose(logits, [draw])


def bits_of(ids: list[int], size: int) -> np.ndarray:
    mask = np.zeros(-(-size // 32), np.uint32)
    for i in ids:
        mask[i // 32] |= np.uint32(1 << i % 32)
    return mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids", [[0], [699], [31, 32, 255, 256], list(range(700)), list(range(256, 512))])
def test_allowed_ids_are_as_if_all_others_were_at_minus_infinity(isa, dtype, ids):
    """Said by the logits themselves; edits of ids that are not allowed bring nothing back."""
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(4)).mul(3).to(dtype)
    alone = torch.full_like(logits, -math.inf)
    alone[0, ids] = logits[0, ids]
    edits = np.array([5, 300, 650], np.int32), np.array([50.0, 60.0, 70.0], np.float32)
    for at, token in enumerate(edits[0]):
        if token in ids:
            alone[0, token] = float(edits[1][at])
    for rules in ({}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}):
        for uniform in (0.0, 0.4, LAST):
            draw = Draw(0, **rules, uniform=uniform, edits=edits, allowed=bits_of(ids, 700))
            plain = Draw(0, **rules, uniform=uniform)
            for kernels in (native_sampling, reference_sampling):
                assert (
                    kernels.choose(logits, [draw, draw]).tokens == kernels.choose(alone, [plain] * 2).tokens
                )


def test_what_does_not_fit_is_refused(isa):
    logits, one = torch.zeros(2, 8), np.ones(1, np.float32)
    for arguments in (
        {"draws": [Draw(2)]},
        {"draws": [Draw(-1)]},
        {"draws": [Draw(0)], "size": 9},
        {"draws": [Draw(0)], "size": 0},
        {"draws": [Draw(0)], "holes": torch.tensor([8])},
        {"draws": [Draw(0, edits=(np.array([8], np.int32), one))]},
        {"draws": [Draw(0, edits=(np.array([-1], np.int32), one))]},
        {"draws": [Draw(0, edits=(np.array([1, 2], np.int32), one))]},
        {"draws": [Draw(0, allowed=np.zeros(2, np.uint32))]},
        {"draws": [Draw(0, allowed=np.zeros(1, np.int64))]},
        {"draws": [Draw(0, allowed=np.zeros((1, 1), np.uint32))]},
    ):
        with pytest.raises(UnsupportedError):
            native_sampling.choose(logits, **arguments)
    for wanted in ((2, 0, 0), (0, 8, 0), (0, -1, 0)):
        with pytest.raises(UnsupportedError):
            native_sampling.log_probabilities(logits, [wanted])
    for wrong in (logits.double(), logits[0], logits.int()):
        with pytest.raises(UnsupportedError, match="Logits are"):
            native_sampling.choose(wrong, [Draw(0)])


def test_kernels_of_another_version_choose_nothing(monkeypatch):
    built = native.extension()
    older = SimpleNamespace(
        draw=built.draw,
        likely=built.likely,
        draw_row_bytes=DRAW.itemsize - 8,
        likely_row_bytes=LIKELY.itemsize,
    )
    native_sampling._extension.cache_clear()
    monkeypatch.setattr(native, "extension", lambda: older)
    try:
        with pytest.raises(UnsupportedError, match="another version"):
            native_sampling.choose(torch.zeros(1, 4), [Draw(row=0)])
    finally:
        native_sampling._extension.cache_clear()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("draw", [{}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}])
def test_an_edit_that_is_no_number_is_found_and_not_drawn_from(isa, bad, draw):
    edits = (np.array([2, 700], np.int32), np.array([bad, 1.0], np.float32))
    draws = [Draw(row=0, **{"temperature": 1.0, "uniform": 0.5} | draw, edits=edits)]
    logits = torch.zeros(1, 1000)
    for choose in (reference_sampling.choose, native_sampling.choose):
        assert choose(logits, draws) == ([-1], {0: 1})
