"""Each layer is rounded for what the rounded ones before it produce, and makes up for half of what these
spoiled: restated in float64, state by state."""

from __future__ import annotations

import torch
from gptq_unpacking import unpacked
from safetensors.torch import load_file
from tiny_sources import TEXT, settings

from qwenkit.checkpoint import Checkpoint
from qwenkit.model import ntk_alpha
from qwenkit.quant.gptq_rounding import round_weight
from qwenkit.quantize import quantize


def norm(x, weight, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def attention(c, qkv: torch.Tensor) -> torch.Tensor:
    """[n, rows] -> [n, heads * d]: NTK, rotation, LogN and a causal softmax, one text."""
    n, d = len(qkv), c.head_dim
    alpha = ntk_alpha(n, c.seq_length) if c.dynamic_ntk else 1.0
    base = c.rope_base * alpha ** (d / (d - 2))
    angle = torch.arange(n).double()[:, None] / base ** (torch.arange(0, d, 2).double() / d)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    q, k, v = qkv.view(n, -1, d).split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)

    def rotated(x):
        pairs = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * turn
        return torch.cat((pairs.real, pairs.imag), -1)

    q, k = rotated(q), rotated(k)
    if c.logn and n > c.seq_length:
        place = torch.arange(1, n + 1).double()
        q = q * (place.log() / torch.tensor(float(c.seq_length)).log()).clamp(min=1)[:, None, None]
    out = []
    for head in range(c.num_heads):
        kv = head * c.num_kv_heads // c.num_heads
        scores = q[:, head] @ k[:, kv].t() / d**0.5
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        out.append(scores.softmax(-1) @ v[:, kv])
    return torch.cat(out, -1)


def restated(checkpoint: Checkpoint, texts: list, ours: dict) -> tuple[dict[str, float], dict[str, float]]:
    """For each layer the share of codes that are ours, after rounded layers and after unrounded."""
    c = checkpoint.config
    w = {t.name: t.read().double() for t in checkpoint.planned(torch.float32)}
    how = settings().rounding
    correction = settings().correction
    share: dict[str, list[float]] = {}
    for rounded_before in (True, False):
        embedded = [w["transformer.wte.weight"][torch.tensor(ids)] for ids in texts]
        x = {"then": embedded, "now": embedded}
        for n in range(c.num_layers):
            p = f"transformer.h.{n}."

            def put(name, inputs, p=p, rounded_before=rounded_before):
                then, now = torch.cat(inputs["then"]), torch.cat(inputs["now"])
                weight = w[p + name + ".weight"]
                hessian = now.t() @ now / len(now)
                damped = hessian + 0.2 * hessian.diagonal().mean() * torch.eye(len(hessian))
                drift = (then - now).t() @ now / len(now)
                corrected = weight + correction * weight @ drift @ torch.linalg.inv(damped)
                found = round_weight(corrected.float(), hessian.float(), how)
                same = (found.codes == ours[p + name][0]).double().mean()
                share.setdefault(p + name, []).append(float(same))
                return {"then": weight, "now": ours[p + name][1].double() if rounded_before else weight}

            def each(states, step):
                return {path: [step(path, t) for t in states[path]] for path in ("then", "now")}

            def added(states, inputs, weight):
                return {
                    path: [t + u @ weight[path].t() for t, u in zip(states[path], inputs[path], strict=True)]
                    for path in ("then", "now")
                }

            a = each(x, lambda path, t, p=p: norm(t, w[p + "ln_1.weight"], c.norm_eps))
            qkv, bias = put("attn.c_attn", a), w[p + "attn.c_attn.bias"]
            a = each(a, lambda path, t, qkv=qkv, bias=bias: attention(c, t @ qkv[path].t() + bias))
            x = added(x, a, put("attn.c_proj", a))
            a = each(x, lambda path, t, p=p: norm(t, w[p + "ln_2.weight"], c.norm_eps))
            up, gate = put("mlp.w1", a), put("mlp.w2", a)
            a = each(
                a,
                lambda path, t, up=up, gate=gate: (
                    (t @ up[path].t()) * torch.nn.functional.silu(t @ gate[path].t())
                ),
            )
            x = added(x, a, put("mlp.c_proj", a))
    return {k: v[0] for k, v in share.items()}, {k: v[1] for k, v in share.items()}


def check(checkpoint: Checkpoint, out, eval_text) -> None:
    quantize(checkpoint, out, settings(), eval_texts=[eval_text])
    text, tokenizer = TEXT.read_text(), checkpoint.tokenizer()
    starts = (i * (len(text) // 6) for i in range(6))
    texts = [tokenizer.encode(text[at : at + 512])[:64] for at in starts]  # evenly spread
    ours = unpacked(load_file(out / "model.safetensors"), checkpoint.config, bits=4)
    right, wrong = restated(checkpoint, texts, ours)
    assert min(right.values()) > 0.99, right
    later = [name for name in wrong if not name.endswith("h.0.attn.c_attn")]
    assert max(wrong[name] for name in later) < 0.99  # so the order does decide


def test_in_the_qwen2_layout(qwen2, eval_text, tmp_path):
    check(qwen2, tmp_path / "out", eval_text)


def test_in_the_v1_layout_past_the_training_length(v1, eval_text, tmp_path):
    check(v1, tmp_path / "out", eval_text)
