"""What trainers do: losses with padding, accumulation, recomputation, new embeddings, adapters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.hf import QWenConfig, QWenLMHeadModel


@pytest.fixture
def model(tiny_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_folder)


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_learn_what_they_would_learn_alone(model, golden, side):
    model.train()
    rows = [golden["ids"][0, :40], golden["ids"][0, 50:60], golden["ids"][0, 70:95]]
    ids = torch.zeros(3, 40, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(40 - len(row), 40)
        ids[i, at], mask[i, at], labels[i, at] = row, 1, row
    loss, grads = gradients(model, input_ids=ids, attention_mask=mask, labels=labels)
    model.zero_grad()
    total = sum(
        F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="sum") for row in rows
    ) / sum(len(row) - 1 for row in rows)
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    compare(grads, {name: p.grad for name, p in model.named_parameters()})


def test_a_masked_row_without_labels_gives_no_nan(model, golden):
    ids = golden["ids"][:, :8].repeat(2, 1)
    mask = torch.tensor([[1] * 8, [0] * 8])
    labels = ids.masked_fill(mask == 0, -100)
    _, grads = gradients(model.train(), input_ids=ids, attention_mask=mask, labels=labels)
    assert all(g.isfinite().all() for g in grads.values())


def test_accumulated_steps_equal_one_big_step(model, golden):
    model.train()
    ids = golden["ids"][:, :60].reshape(3, 20)
    labels = ids.clone()
    labels[0, 5:] = -100
    labels[2] = -100  # a step without anything to learn adds nothing
    count = labels[:, 1:].ne(-100).sum()
    _, whole = gradients(model, input_ids=ids, labels=labels)
    model.zero_grad()
    for i in range(3):
        model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss.backward()
    compare({name: p.grad for name, p in model.named_parameters()}, whole)


def test_recomputation_keeps_gradients_and_no_cache(model, golden):
    model.train()
    ids = golden["ids"][:, :30]
    _, plain = gradients(model, input_ids=ids, labels=ids)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    compare(gradients(model, input_ids=ids, labels=ids)[1], plain)
    assert model(ids, use_cache=True).past_key_values is None
    with torch.no_grad():
        cache = model.eval()(ids).past_key_values
    assert cache.get_seq_length() == 30
    with pytest.raises(RequestError, match="checkpointing"):
        model.train()(ids[:, :1], past_key_values=cache)
    model.gradient_checkpointing_disable()
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 30


def test_recomputation_options(model, caplog):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    assert "use_reentrant" in caplog.text
    if hasattr(model, "activation_checkpointing_enable"):
        for options in ({"every_n_layers": 2}, {"offload": True}):
            with pytest.raises(UnsupportedError, match="every_n_layers"):
                model.activation_checkpointing_enable(**options)


def test_recomputation_with_frozen_weights(model, golden):
    """As adapters train: only what hangs on a hook of the embeddings gets gradients."""
    model.train()
    model.requires_grad_(False)
    model.gradient_checkpointing_enable()
    model.transformer.h[1].mlp.w1.weight.requires_grad_(True)
    ids = golden["ids"][:, :30]
    loss, grads = gradients(model, input_ids=ids, labels=ids)
    assert list(grads) == ["transformer.h.1.mlp.w1.weight"]
    assert grads["transformer.h.1.mlp.w1.weight"].abs().sum() > 0
    assert loss > 0


def test_dropout_is_refused_in_training_only(golden, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_dropout_prob=0.1)
    model(golden["ids"][:, :4])
    with pytest.raises(UnsupportedError, match=r"attn_dropout_prob=0\.1"):
        model.train()(golden["ids"][:, :4])


def test_resized_embeddings(model, golden, tmp_path):
    before = model(golden["ids"][:, :9]).logits
    model.resize_token_embeddings(520)
    assert model.config.vocab_size == model.transformer.shape.vocab_size == 520
    after = model(golden["ids"][:, :9]).logits
    assert after.shape[-1] == 520
    torch.testing.assert_close(after[..., :512], before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_only_if_the_config_says_so(tied, tmp_path):
    config = QWenConfig(hidden_size=32, num_attention_heads=2, kv_channels=16, intermediate_size=64,
                        num_hidden_layers=1, vocab_size=50, tie_word_embeddings=tied)  # fmt: skip
    model = QWenLMHeadModel(config)
    assert (model.lm_head.weight is model.transformer.wte.weight) is tied
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.transformer.wte.weight) is tied
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_the_trainer_of_transformers(model, golden, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    rows = golden["ids"][0, :80].reshape(8, 10)
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=20,
        learning_rate=1e-2, report_to=[], gradient_checkpointing=True, logging_steps=1, save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model.eval()
    with torch.no_grad():
        learned = model(rows, labels=rows).loss
    assert losses[0] > 5  # a mean over tokens, whatever the accumulation
    assert learned < 0.5 * losses[0]


def test_lora_of_peft(model, golden, tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "w1", "w2"], task_type="CAUSAL_LM"
    )
    ids = golden["ids"][:, :30]
    with torch.no_grad():
        base = model(ids).logits
    tuned = peft.get_peft_model(model, settings)
    trainable = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 5 * 3  # A and B of five projections in three layers
    tuned.train()
    tuned.gradient_checkpointing_enable()
    tuned.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = tuned(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    tuned.eval()
    with torch.no_grad():
        adapted = tuned(ids).logits
        with tuned.disable_adapter():
            assert torch.equal(tuned(ids).logits, base)
    generated = tuned.generate(input_ids=ids[:, :5], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 10)
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter", device_map="auto", trust_remote_code=True
    ).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, adapted)
    merged = tuned.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert set(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()) == set(
        model.state_dict()
    )
