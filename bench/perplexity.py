"""Perplexity of a model in several number formats on the same texts.

    python bench/perplexity.py --text english.txt chinese.txt --windows 2 --forms auto bf16 int4 int4/bf16

A form is what --weights takes, with "/HEAD" for another output layer, "+16bit" for products that keep their
inputs in 16 bits, and "+float32" for the weights it stands for multiplied in float32 by torch: the reference
that tells rounding of inputs from rounding of weights. int8 and int4 round the bfloat16 values of the file,
also those of a GGUF, whose weights were rounded once before.

Texts are cut into windows of 2048 tokens, each predicted from its own start; the first half of a text is
skipped (prefaces and tables of contents). Nothing is compared with numbers of other programs.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from qwenkit.checkpoint import Checkpoint, locate, open_checkpoint
from qwenkit.model import Batch, CausalLM
from qwenkit.quant import PackedBf16Linear, PackedLinear, Packing, pack_model

ROWS = 128  # of the output at once


def load(checkpoint: Checkpoint, form: str, dtype: torch.dtype) -> CausalLM:
    form, *modes = form.split("+")
    weights, _, head = form.partition("/")
    packing = Packing.parse(weights, head or "auto")
    if weights in ("int8", "int4"):
        model = checkpoint.load_model(dtype=dtype)
        pack_model(model, packing)
    else:
        model = checkpoint.load_packed(packing, device="cpu", dtype=dtype).model
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear) and "16bit" in modes:
            module.activations = "16bit"
        if isinstance(module, (PackedLinear, PackedBf16Linear)) and "float32" in modes:
            linear = nn.Linear(
                module.in_features, module.out_features, bias=module.bias is not None, device="meta"
            )
            linear.weight = nn.Parameter(module.dequantize(torch.float32), requires_grad=False)
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias.float(), requires_grad=False)
            model.set_submodule(name, linear)
    return model.float() if "float32" in modes else model


@torch.inference_mode()
def window_loss(model: CausalLM, ids: Tensor) -> float:
    """Sum of -log p of all tokens but the first. ids: [n]."""
    hidden = model.transformer(ids[None], Batch.make(1, len(ids)))[0]
    loss = 0.0
    for start in range(0, len(ids) - 1, ROWS):
        targets = ids[start + 1 : start + 1 + ROWS]
        logits = model.lm_head(hidden[start : start + len(targets)]).float()
        loss += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
    return loss


def windows(checkpoint: Checkpoint, path: Path, count: int, length: int) -> list[Tensor]:
    text = path.read_text(encoding="utf-8", errors="replace")
    ids = checkpoint.tokenizer().encode(text[len(text) // 2 :][: count * length * 8])
    found = [torch.tensor(ids[i * length : (i + 1) * length]) for i in range(count)]
    if len(found[-1]) < length:
        raise SystemExit(f"{path} holds fewer than {count} windows of {length} tokens in its second half.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as of qwenkit chat; the demo model if left out")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--forms", nargs="+", default=["auto+float32", "auto", "bf16"])
    parser.add_argument("--windows", type=int, default=2, help="of each text")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    chosen = parser.parse_args()
    found = locate(chosen.model)
    checkpoint = open_checkpoint(found.path, content_hash=found.content_hash)
    texts = {path: windows(checkpoint, path, chosen.windows, chosen.length) for path in chosen.text}
    print(
        f"{found.display_name}, {chosen.windows} x {chosen.length} tokens a text; changes from the first form"
    )
    print("| form |" + "".join(f" {path.stem} |" for path in texts) + " tok/s |")
    print("|---|" + "---|" * (len(texts) + 1))
    first: dict[Path, float] = {}
    for form in chosen.forms:
        model = load(checkpoint, form, getattr(torch, chosen.dtype))
        cells, tokens, start = [], 0, time.perf_counter()
        for path, parts in texts.items():
            loss = sum(window_loss(model, ids) for ids in parts) / sum(len(ids) - 1 for ids in parts)
            tokens += sum(len(ids) for ids in parts)
            first.setdefault(path, loss)
            change = math.expm1(loss - first[path])
            cells.append(
                f" {math.exp(loss):.3f} |"
                if form == chosen.forms[0]
                else f" {math.exp(loss):.3f} ({change:+.2%}) |"
            )
        print(f"| {form} |{''.join(cells)} {tokens / (time.perf_counter() - start):.0f} |", flush=True)
        del model


if __name__ == "__main__":
    main()
