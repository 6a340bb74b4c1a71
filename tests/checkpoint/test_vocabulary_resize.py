from __future__ import annotations

import pytest
import torch
from small_checkpoints import small_model

from qwenkit.checkpoint import open_checkpoint, resize_vocabulary
from qwenkit.core import CheckpointError
from qwenkit.model import Batch


@pytest.mark.parametrize("tied", [False, True])
def test_rows_grow_to_a_multiple_of_128_and_old_tokens_keep_theirs(tied):
    model = small_model(vocab_size=128, tied_embeddings=tied)
    old = (model.transformer.wte.weight.clone(), model.lm_head.weight.clone())
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        before = model(ids, Batch.make(1, 20))
    resize_vocabulary(model, 131, {128: [3, 5], 130: [7]})
    wte, head = model.transformer.wte.weight, model.lm_head.weight
    assert (head is wte) is tied
    assert wte.shape == head.shape == (256, 64)
    assert model.shape.vocab_size == model.transformer.shape.vocab_size == 256
    assert (model.transformer.wte.num_embeddings, model.lm_head.out_features) == (256, 256)
    for now, then in zip((wte, head), old, strict=True):
        assert torch.equal(now[:128], then)
        torch.testing.assert_close(now[128], (then[3] + then[5]) / 2)
        assert torch.equal(now[130], then[7])
        torch.testing.assert_close(now[129], then.mean(0))
        torch.testing.assert_close(now[255], then.mean(0))
    with torch.inference_mode():
        after = model(ids, Batch.make(1, 20))
    torch.testing.assert_close(after[..., :128], before)


def test_spare_rows_are_used_first():
    model = small_model(vocab_size=128)
    old = model.lm_head.weight.clone()
    resize_vocabulary(model, 121, {120: [1, 2, 4]})
    assert model.lm_head.weight.shape == (128, 64)
    torch.testing.assert_close(model.lm_head.weight[120], old[[1, 2, 4]].mean(0))
    assert torch.equal(model.lm_head.weight[:120], old[:120])


def test_new_tokens_made_of_each_other_use_the_old_rows():
    model = small_model(vocab_size=128)
    old = model.transformer.wte.weight.clone()
    resize_vocabulary(model, 128, {126: [127], 127: [126]})
    assert torch.equal(model.transformer.wte.weight[126], old[127])
    assert torch.equal(model.transformer.wte.weight[127], old[126])


def test_mapped_file_and_half_precision(v1_folder):
    model = open_checkpoint(v1_folder.path).load_model(dtype=torch.float32).half()
    resize_vocabulary(model, 513, {512: [0, 1]})
    wte = model.transformer.wte.weight
    assert (wte.dtype, wte.shape[0], wte.requires_grad) == (torch.float16, 640, False)
    stored = v1_folder.tensors()["transformer.wte.weight"].half()
    assert torch.equal(wte[512], stored[:2].float().mean(0).half())


def test_gradients_stay_wanted():
    model = small_model(vocab_size=128).requires_grad_(True)
    resize_vocabulary(model, 129)
    assert model.transformer.wte.weight.requires_grad
    assert model.lm_head.weight.requires_grad


@pytest.mark.parametrize("init", [{200: [1]}, {-1: [1]}, {128: [128]}, {128: [-1]}, {128: []}])
def test_ids_out_of_range_change_nothing(init):
    model = small_model(vocab_size=128)
    with pytest.raises(CheckpointError):
        resize_vocabulary(model, 129, init)
    assert model.lm_head.weight.shape[0] == 128
