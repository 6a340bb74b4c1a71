"""Outputs of the original modelling code, through transformers' own entry points."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from qwenkit.model import Batch, OriginalInt8Cache, ntk_alpha


@pytest.mark.parametrize("n", [1, 20, 33, 65, 120])
@torch.inference_mode()
def test_prefill(tiny, golden, n, close):
    close(tiny(golden["ids"][:, :n]).logits[0], golden[f"prefill_{n}"])


@pytest.mark.parametrize(("start", "end"), [(20, 32), (20, 50), (40, 80)])
@torch.inference_mode()
def test_decode_keeps_the_ntk_factor_of_its_prompt(tiny, golden, start, end, close):
    ids = golden["ids"]
    cache = tiny(ids[:, :start]).past_key_values
    rows = []
    for at in range(start, end):
        # Another conversation on the same model object, with another factor, must not disturb this one.
        tiny(ids[:, : 10 if start == 40 else 100])
        rows.append(tiny(ids[:, at : at + 1], past_key_values=cache).logits[0, -1])
    close(torch.stack(rows), golden[f"decode_from_{start}_to_{end}"])


@torch.inference_mode()
def test_left_padded_batch(tiny, golden, close):
    keep = golden["batch_mask_short"].bool()
    ours = tiny(golden["batch_ids_short"], attention_mask=golden["batch_mask_short"]).logits
    close(ours[keep], golden["batch_logits_short"][keep])


@torch.inference_mode()
def test_left_padded_batch_past_the_training_length_equals_its_rows_alone(tiny, golden, close):
    ids, mask = golden["batch_ids_long"], golden["batch_mask_long"]
    ours = tiny(ids, attention_mask=mask).logits
    for row, keep in enumerate(mask.bool()):
        close(ours[row][keep], tiny(ids[row][keep][None]).logits[0])
    whole = mask.bool().all(1)
    assert whole.sum() == 1
    close(ours[whole], golden["batch_logits_long"][whole])


def test_greedy(tiny, golden):
    out = tiny.generate(golden["ids"][:, :10], do_sample=False, max_new_tokens=40)
    assert out[0, 10:].tolist() == golden["greedy_40_from_10"].tolist()


def test_loss(tiny, golden, close):
    labels = golden["loss_labels"]
    out = tiny(golden["ids"][:, : labels.shape[1]], labels=labels)
    close(out.loss.detach().reshape(1), golden["loss"])


@pytest.mark.parametrize("recompute", [False, True])
def test_training_loss_and_gradients(tiny_folder, golden, recompute, close):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).train()
    runs = []
    model.transformer.h[0].attn.c_attn.register_forward_hook(lambda *_: runs.append(1))
    if recompute:
        model.gradient_checkpointing_enable()
    ids = golden["ids"][:, :60]
    loss = model(ids, labels=ids).loss
    close(loss.detach().reshape(1), golden["train_loss_60"])
    loss.backward()
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("grad.") for key in golden if key.startswith("grad.")]
    assert len(names) == 5
    for name in names:
        close(parameters[name].grad, golden[f"grad.{name}"])
    assert len(runs) == (2 if recompute else 1)


@torch.inference_mode()
def test_cache_quantization(tiny_folder, golden, close, reference_kernels):
    """Exactly the original's scheme; fused attention may flip a truncated code, hence its tolerance."""
    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder, use_cache_quantization=True, use_cache_kernel=True, use_flash_attn=False
    )
    ids = golden["ids"]
    core = OriginalInt8Cache(3)
    alpha = (ntk_alpha(50, 32),)
    close(model(ids[:, :50], use_cache=False).logits[0], golden["kv8_prefill_50"], 1e-2)
    cache = DynamicCache()
    ours = [model(ids[:, :50], past_key_values=cache).logits[0]]
    expected = [run_core(model, ids[:, :50], Batch.make(1, 50, ntk_alpha=alpha, cache=core))]
    close(ours[0], golden["kv8_prefill_50"], 1e-2)
    assert cache.layers[0].keys.dtype == torch.uint8
    for at in range(50, 60):
        ours.append(model(ids[:, at : at + 1], past_key_values=cache).logits[0])
        batch = Batch.make(1, 1, past=at, ntk_alpha=alpha, cache=core)
        expected.append(run_core(model, ids[:, at : at + 1], batch))
    close(torch.cat(ours[1:]), golden["kv8_decode_50_to_60"], 2e-2)
    close(torch.cat(ours), torch.cat(expected), 1e-5)


def run_core(model, ids, batch):
    return model.lm_head(model.transformer(ids, batch))[0]
