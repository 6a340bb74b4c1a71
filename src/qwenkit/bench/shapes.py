"""A model of a published size with random weights, made where the kernels want them.

Speed and memory are those of a real checkpoint of that size and format; what it says is noise. Layers of one
shape start from the same numbers and are packed into memory of their own each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.core import GenerationConfig, RequestError
from qwenkit.engine import Qwen
from qwenkit.engine.device import Placement
from qwenkit.kernels import native
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import AffineCodes, PackedLinear, pack_model
from qwenkit.text import Tokenizer
from qwenkit.text.vocabulary import v1_special_tokens

GROUP = 128  # columns that share a scale
_STD = 0.02
_BLOCK = 1 << 20  # random numbers drawn; repeated to fill a tensor


def random_qwen(name: str, weights: str, **options: Any) -> Qwen:
    """The size called `name` (of SIZES) in bf16, int8 or int4; options go to `Qwen`.

    int8 and int4: in the form that `Qwen.load` rounds a checkpoint to, groups of 128 columns, the output
    layer in int8; the embedding stays bfloat16. Raises ConfigError for an unknown name.
    """
    config = ModelConfig.from_name(name)
    model = random_model(config, weights)
    unpacked = pack_model(model)
    words = {"bf16": "random bfloat16"}.get(
        weights, f"random {weights}, groups of {GROUP}, int8 output layer"
    )
    return Qwen(
        model,
        byte_tokenizer(config.vocab_size),
        generation=GenerationConfig(),
        name=name,
        is_chat=False,
        placement=Placement(torch.device("cpu"), torch.bfloat16, "as asked", "as asked"),
        quantization=words,
        unpacked=unpacked,
        **options,
    )


def random_model(config: ModelConfig, weights: str) -> CausalLM:
    """Not yet packed for the kernels; layers of one shape share their tensors where packing copies them."""
    if weights not in ("bf16", "int8", "int4"):
        raise RequestError(f"weights={weights!r}.", "Choose bf16, int8 or int4.")
    model = empty_model(config)
    made: dict[tuple[object, ...], Any] = {}

    def once(key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if not native.ready():
            return make()  # torch would multiply by the very same memory: caches would flatter it
        if key not in made:
            made[key] = make()
        return made[key]

    embedding = random_floats((config.vocab_size, config.hidden_size))
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            module.weight = frozen(embedding)
        elif isinstance(module, nn.Linear):
            out, columns = module.out_features, module.in_features
            bits = {"bf16": 16, "int8": 8, "int4": 8 if path == "lm_head" else 4}[weights]
            bias = torch.zeros(out, dtype=torch.bfloat16) if module.bias is not None else None
            if bits < 16:
                codes = once((out, columns, bits), partial(random_codes, out, columns, bits))
                if native.ready():
                    model.set_submodule(path, PackedLinear.from_affine(codes, bias).eval())
                    continue
                weight = codes.dequantize(torch.bfloat16)  # what a rounded checkpoint is without the kernels
            elif path == "lm_head" and config.tied_embeddings:
                weight = embedding
            else:
                weight = once((out, columns), partial(random_floats, (out, columns)))
            module.weight = frozen(weight)
            module.bias = None if bias is None else frozen(bias)
        elif isinstance(getattr(module, "weight", None), Tensor):  # a norm
            module.weight = frozen(torch.ones(module.weight.shape, dtype=torch.bfloat16))
    return model.eval()


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def random_floats(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Normal numbers; a million are drawn and repeated, for the bytes to vary and yet come quickly."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(_BLOCK, generator=generator).mul_(_STD).to(dtype)
    count = torch.Size(shape).numel()
    return block.repeat(-(-count // _BLOCK))[:count].view(shape)


def random_codes(rows: int, columns: int, bits: int) -> AffineCodes:
    """In the form that rounding a checkpoint gives: 4 bits with a zero a group, 8 bits around the middle."""
    generator = torch.Generator().manual_seed(bits)
    block = torch.randint(0, 1 << bits, (_BLOCK,), generator=generator, dtype=torch.uint8)
    count = rows * columns
    codes = block.repeat(-(-count // _BLOCK))[:count].view(rows, columns)
    half = 1 << (bits - 1)
    scale = _STD * 2 / half
    scales = torch.full((-(-columns // GROUP), rows), scale, dtype=torch.float16)
    eighths = torch.full(scales.shape, 60, dtype=torch.uint8) if bits == 4 else None
    return AffineCodes(codes, scales, None, bits, GROUP, eighths)


def byte_tokenizer(rows: int) -> Tokenizer:
    """A vocabulary of the Qwen size whose tokens are one, two or three arbitrary bytes."""
    specials = v1_special_tokens()
    regular = min(min(specials.values()), rows - len(specials))
    ranks: dict[bytes, int] = {}
    for length in (1, 2, 3):
        for letters in product(range(256), repeat=length):
            if len(ranks) == regular:
                break
            ranks[bytes(letters)] = len(ranks)
    shift = len(ranks) - min(specials.values())
    return Tokenizer(ranks, special_tokens={form: i + shift for form, i in specials.items()}, name="bytes")
