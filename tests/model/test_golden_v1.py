"""Outputs of the original modelling code on a random checkpoint (tests/data/tiny_v1)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwenkit.model import (
    Batch,
    CausalLM,
    DenseCache,
    ModelConfig,
    OriginalInt8Cache,
    causal_loss,
    ntk_alpha,
)

TINY = Path(__file__).parents[1] / "data" / "tiny_v1"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(TINY / "golden.safetensors")


@pytest.fixture
def model() -> CausalLM:
    config = ModelConfig.from_dict(json.loads((TINY / "config.json").read_text()))
    model = CausalLM(config)
    model.load_state_dict(load_file(TINY / "model.safetensors"))
    return model.eval()


def prefill(model: CausalLM, ids: Tensor, chunk: int, cache: DenseCache | None = None) -> Tensor:
    """All logits of `ids` [1, n], read `chunk` tokens at a time."""
    cache = cache or DenseCache(model.shape.num_layers)
    alpha = (ntk_alpha(ids.shape[1], model.shape.seq_length),)
    parts = []
    for start in range(0, ids.shape[1], chunk):
        part = ids[:, start : start + chunk]
        batch = Batch.make(1, part.shape[1], past=start, ntk_alpha=alpha, cache=cache)
        parts.append(model(part, batch))
    return torch.cat(parts, dim=1)[0]


def decode(model: CausalLM, ids: Tensor, start: int, end: int, alpha: float, cache) -> Tensor:
    rows = []
    for at in range(start, end):
        batch = Batch.make(1, 1, past=at, ntk_alpha=(alpha,), cache=cache)
        rows.append(model(ids[:, at : at + 1], batch)[0, 0])
    return torch.stack(rows)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7, 32, 1000])
@pytest.mark.parametrize("n", [1, 20, 32, 33, 64, 65, 100, 120])
@torch.inference_mode()
def test_prefill_equals_the_original_whole_and_in_chunks(model, golden, n, chunk):
    close(prefill(model, golden["ids"][:, :n], chunk), golden[f"prefill_{n}"])


@pytest.mark.parametrize(("start", "end"), [(20, 32), (20, 50), (40, 80)])
@torch.inference_mode()
def test_decode_keeps_the_alpha_of_its_prompt(model, golden, start, end):
    cache = DenseCache(model.shape.num_layers)
    prefill(model, golden["ids"][:, :start], 1000, cache)
    alpha = ntk_alpha(start, model.shape.seq_length)
    close(decode(model, golden["ids"], start, end, alpha, cache), golden[f"decode_from_{start}_to_{end}"])


def padded_logits(model: CausalLM, ids: Tensor, keep: Tensor) -> Tensor:
    lengths = keep.sum(1).tolist()
    width = ids.shape[1]
    batch = Batch.make(
        len(lengths),
        width,
        pads=[width - int(n) for n in lengths],
        ntk_alpha=tuple(ntk_alpha(int(n), model.shape.seq_length) for n in lengths),
        cache=DenseCache(model.shape.num_layers),
    )
    return model(ids, batch)


@torch.inference_mode()
def test_left_padded_batch_equals_the_original_inside_the_training_length(model, golden):
    keep = golden["batch_mask_short"].bool()
    ours = padded_logits(model, golden["batch_ids_short"], keep)
    close(ours[keep], golden["batch_logits_short"][keep])


@torch.inference_mode()
def test_left_padded_batch_past_the_training_length_equals_the_single_run(model, golden):
    """docs/differences.md, "LogN in padded batches": the original indexes LogN by padded slot."""
    ids, keep = golden["batch_ids_long"], golden["batch_mask_long"].bool()
    ours = padded_logits(model, ids, keep)
    theirs = golden["batch_logits_long"]
    unpadded_rows = 0
    for row in range(ids.shape[0]):
        own = keep[row]
        close(ours[row][own], prefill(model, ids[row][own][None], 1000))
        if own.all():
            close(ours[row], theirs[row])
            unpadded_rows += 1
        else:
            assert not torch.allclose(ours[row][own], theirs[row][own], atol=1e-3)
    assert unpadded_rows == 1


@torch.inference_mode()
def test_greedy_tokens_equal_the_original(model, golden):
    cache = DenseCache(model.shape.num_layers)
    tokens = golden["ids"][:, :10]
    logits = prefill(model, tokens, 1000, cache)[-1]
    ours = []
    for at in range(10, 50):
        ours.append(int(logits.argmax()))
        batch = Batch.make(1, 1, past=at, cache=cache)
        logits = model(torch.tensor([[ours[-1]]]), batch)[0, 0]
    assert ours == golden["greedy_40_from_10"].tolist()


def test_loss_equals_the_original(model, golden):
    labels = golden["loss_labels"]
    ids = golden["ids"][:, : labels.shape[1]]
    loss = causal_loss(model(ids, Batch.make(1, ids.shape[1])), labels)
    close(loss.detach().reshape(1), golden["loss"])


@pytest.mark.parametrize("recompute", [False, True])
def test_training_loss_and_gradients_equal_the_original(model, golden, recompute):
    model.train()
    model.transformer.gradient_checkpointing = recompute
    ids = golden["ids"][:, :60]
    # Training ignores NTK: a wrong alpha must not matter.
    loss = causal_loss(model(ids, Batch.make(1, 60, ntk_alpha=(7.0,))), ids)
    close(loss.detach().reshape(1), golden["train_loss_60"])
    loss.backward()
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("grad.") for key in golden if key.startswith("grad.")]
    assert len(names) == 5
    for name in names:
        close(parameters[name].grad, golden[f"grad.{name}"])


class ExplicitBatch(Batch):
    """Attention written out as the original does without its fused kernel, so that rounding agrees too.

    The int8 codes are truncated: a difference of one rounding can flip a code of a later layer and move
    a logit by 0.004, which would hide a real mistake behind a loose tolerance.
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = self.cache.update(layer, k, v)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if q.shape[2] > 1:
            past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~past, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) @ v


@torch.inference_mode()
def test_original_int8_cache_equals_the_original(model, golden, reference_kernels):
    cache = OriginalInt8Cache(model.shape.num_layers)
    ids = golden["ids"]
    alpha = (ntk_alpha(50, model.shape.seq_length),)
    logits = model(ids[:, :50], ExplicitBatch.make(1, 50, ntk_alpha=alpha, cache=cache))[0]
    close(logits, golden["kv8_prefill_50"])
    for slot, name in enumerate("kv"):
        codes, scale, zero = cache._layers[slot][0]
        assert torch.equal(codes, golden[f"kv8_layer0_{name}_q"])
        close(scale.expand(-1, -1, 50, -1), golden[f"kv8_layer0_{name}_scale"])
        close(zero.expand(-1, -1, 50, -1), golden[f"kv8_layer0_{name}_zero"])
    rows = []
    for at in range(50, 60):
        batch = ExplicitBatch.make(1, 1, past=at, ntk_alpha=alpha, cache=cache)
        rows.append(model(ids[:, at : at + 1], batch)[0, 0])
    # The sixth step rounds one cosine the other way, which truncation turns into a flipped code.
    close(torch.stack(rows[:5]), golden["kv8_decode_50_to_60"][:5])
    torch.testing.assert_close(torch.stack(rows), golden["kv8_decode_50_to_60"], atol=1e-2, rtol=1e-2)


@torch.inference_mode()
def test_original_int8_cache_with_fused_attention_stays_close(model, golden, reference_kernels):
    cache = OriginalInt8Cache(model.shape.num_layers)
    batch = Batch.make(1, 50, ntk_alpha=(ntk_alpha(50, model.shape.seq_length),), cache=cache)
    logits = model(golden["ids"][:, :50], batch)[0]
    torch.testing.assert_close(logits, golden["kv8_prefill_50"], atol=1e-2, rtol=1e-2)
