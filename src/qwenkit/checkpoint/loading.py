"""From stored tensors to a model, one tensor at a time.

Knows module names and shapes; does not know which files the tensors are in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.checkpoint.gptq_config import GPTQConfig
from qwenkit.checkpoint.gptq_rules import rule_of
from qwenkit.checkpoint.names import is_inert
from qwenkit.checkpoint.tensor_source import TensorSource
from qwenkit.checkpoint.verify import DOWNLOAD_AGAIN
from qwenkit.core import CheckpointError
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import AffineLinear, PackedLinear
from qwenkit.quant.stacking import stack_codes

_FLOATS = ("F32", "F16", "BF16")
_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
BELONG_TOGETHER = "config.json, the quantization config and the weights must be of the same checkpoint."
PACKED = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Loader:
    """Assigns the tensors of `source` to a model of shape `config`.

    modules: canonical module name -> stored module names whose rows make it up (names.stored_modules).
    gptq: how packed linears are packed, if any are.
    """

    config: ModelConfig
    source: TensorSource
    modules: Mapping[str, tuple[str, ...]]
    gptq: GPTQConfig | None = None

    def load(self, *, device: torch.device | str, dtype: torch.dtype, progress: bool = False) -> CausalLM:
        """A model in eval mode without gradients, its float weights in `dtype` on `device`.

        On the CPU a weight already stored in `dtype` stays mapped to its file. Raises CheckpointError as
        `check` does, and for a tensor with NaN or infinity.
        """
        model = empty_model(self.config)
        for _ in self.fill(model, device=device, dtype=dtype, progress=progress):
            pass
        return model.eval()

    def fill(
        self,
        model: CausalLM,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        codes: Callable[[str], bool] = lambda name: False,
        progress: bool = False,
    ) -> Iterator[str]:
        """Give the modules of an empty model their stored tensors; yields the name of each when it is whole.

        The caller may put another module in its place before the next is read, which bounds memory.
        codes: of which linear layers the blocks a GGUF stores are taken as integer codes (PackedLinear),
        where they have such a form. Raises CheckpointError as `load`.
        """
        self.check()
        names = [name for name, _ in self.owners(model)]  # names: a list of modules would keep them all
        for name in _with_progress(names, progress):
            module = model.get_submodule(name)
            parts = self.modules["transformer.wte" if self.is_tied(name) else name]
            coded = isinstance(module, nn.Linear) and codes(name) and not self.is_packed(parts)
            packed = self._read_codes(module, parts, dtype) if coded else None
            if packed is not None:
                model.set_submodule(name, packed)
            elif self.is_tied(name):
                self.check_tied_copy(model.transformer.wte.weight, dtype, device)
                model.lm_head.weight = model.transformer.wte.weight
            elif isinstance(module, nn.Linear) and self.is_packed(parts):
                model.set_submodule(name, self._read_packed(module, parts, device, dtype))
            else:
                kinds = _kinds(module)
                for kind in kinds:
                    tensor = self.read_rows([f"{part}.{kind}" for part in parts], dtype, device)
                    setattr(module, kind, nn.Parameter(tensor, requires_grad=False))
                if isinstance(module, nn.Linear) and "bias" not in kinds:
                    self.check_extra_bias(parts)
            del module, packed
            yield name

    def release(self, name: str) -> None:
        """Give back the mapped memory of a module's weight, which nobody uses any more."""
        for part in self.modules[name]:
            if f"{part}.weight" in self.source.entries():
                self.source.release(f"{part}.weight")

    def check(self) -> None:
        """Compare the headers with the configuration: names, shapes and dtypes, before anything is read.

        Raises CheckpointError listing what is missing or unexpected, or naming the first wrong tensor.
        """
        stored = self.source.entries()
        wanted = self._wanted_shapes()
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise CheckpointError(
                f"{_listed(missing)} missing from the checkpoint.",
                "Download its weight files again; config.json must belong to them.",
            )
        unexpected = [
            name for name in stored if name not in wanted and not is_inert(name) and not self._optional(name)
        ]
        if unexpected:
            raise CheckpointError(
                f"{_listed(unexpected)} not part of a {self.config.architecture} model of this shape.",
                "config.json and the weights must be of the same checkpoint.",
            )
        for name, (shape, dtypes) in wanted.items():
            entry = stored[name]
            if entry.shape != shape:
                raise CheckpointError(
                    f"{entry.file}: tensor {name!r} has shape {list(entry.shape)}, expected {list(shape)}.",
                    BELONG_TOGETHER,
                )
            if entry.dtype not in dtypes:
                raise CheckpointError(
                    f"{entry.file}: tensor {name!r} has dtype {entry.dtype}, expected {' or '.join(dtypes)}.",
                    DOWNLOAD_AGAIN,
                )

    def owners(self, model: CausalLM) -> Iterator[tuple[str, nn.Module]]:
        """Every module that has weights of its own, by canonical name."""
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                yield name, module

    def is_tied(self, name: str) -> bool:
        """Whether the module `name` uses the embedding and has nothing stored."""
        return name == "lm_head" and self.config.tied_embeddings

    def is_packed(self, parts: Sequence[str]) -> bool:
        """Whether any of the stored modules `parts` is GPTQ."""
        return any(f"{part}.qweight" in self.source.entries() for part in parts)

    def packing_of(self, part: str) -> GPTQConfig | None:
        """How a stored linear layer is packed, None for floats.

        Raises CheckpointError where the tensors and the quantization config contradict each other.
        """
        stored = self.source.entries()
        found = stored.get(f"{part}.qweight")
        rule = None if self.gptq is None else rule_of(self.gptq.rules, part)
        if found is None:
            floats = stored.get(f"{part}.weight")
            if rule is not None and rule.fields is not None and floats is not None and part != "lm_head":
                raise CheckpointError(
                    f"{floats.file} holds {part} as floats; by the rule {rule.pattern!r} of the quantization "
                    "config it is packed.",
                    BELONG_TOGETHER,
                )
            return None
        if self.gptq is None:
            raise CheckpointError(
                f"{found.file} holds quantized weights, but nothing says how.",
                "Download quantize_config.json, or the config.json with its quantization_config.",
            )
        packing = self.gptq.of(part)
        if packing is None and rule is not None:
            raise CheckpointError(
                f"{found.file} holds {part} packed; by the rule {rule.pattern!r} of the quantization config "
                "it is not.",
                BELONG_TOGETHER,
            )
        return packing

    def rows(self, total: int, parts: int) -> list[int]:
        """Output rows of each stored part of a module."""
        if parts == 1:
            return [total]
        c = self.config
        return [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]

    def _wanted_shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
        """Stored name -> (shape, allowed dtypes) of everything that must be there."""
        model = empty_model(self.config)
        wanted: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        for name, module in self.owners(model):
            if self.is_tied(name):
                continue
            parts = self.modules[name]
            linear = isinstance(module, nn.Linear)
            for kind, parameter in module.named_parameters(recurse=False):
                for part, rows in zip(parts, self.rows(parameter.shape[0], len(parts)), strict=True):
                    packing = self.packing_of(part) if linear and kind == "weight" else None
                    if packing is not None:
                        wanted |= self._packed_shapes(part, rows, parameter.shape[1], packing)
                    else:
                        shape = (rows, *parameter.shape[1:])
                        wanted[f"{part}.{kind}"] = (
                            shape,
                            _FLOATS if parameter.dim() == 1 else _FLOATS + _BLOCKS,
                        )
        return wanted

    def _packed_shapes(
        self, part: str, rows: int, columns: int, gptq: GPTQConfig
    ) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
        groups, per_word = gptq.groups(columns), 32 // gptq.bits
        shapes: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
            f"{part}.qweight": ((columns // per_word, rows), ("I32",)),
            f"{part}.qzeros": ((groups, rows // per_word), ("I32",)),
            f"{part}.scales": ((groups, rows), _FLOATS),
        }
        if f"{part}.g_idx" in self.source.entries() or columns % groups:
            shapes[f"{part}.g_idx"] = ((columns,), ("I32",))
        return shapes

    def _optional(self, name: str) -> bool:
        """Stored beside what is needed and looked at later: old GPTQ biases, the copy of a tied embedding."""
        module, _, kind = name.rpartition(".")
        if self.config.tied_embeddings and name == f"{self.modules['lm_head'][0]}.weight":
            return True
        return kind == "bias" and f"{module}.qweight" in self.source.entries()

    def read_rows(self, names: Sequence[str], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """The stored tensors `names`, one below the other, in `dtype`."""
        if len(names) == 1:
            return self._place(names[0], dtype, device)
        shapes = [self.source.entry(name).shape for name in names]
        out = torch.empty((sum(s[0] for s in shapes), *shapes[0][1:]), dtype=dtype, device=device)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            out[start : start + shape[0]] = self.source.read(name, dtype)
            self.source.release(name)
            start += shape[0]
        return out

    def _place(self, name: str, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
        tensor = self.source.read(name, dtype)
        placed = tensor.to(device)
        if placed is not tensor:
            self.source.release(name)
        return placed

    def _read_packed(
        self, module: nn.Linear, parts: Sequence[str], device: torch.device | str, dtype: torch.dtype
    ) -> nn.Module:
        layers: list[nn.Module] = []
        for part in parts:
            if self.packing_of(part) is None:
                layers.append(self._float_part(module, part, device, dtype))
                continue
            bias = None
            if "bias" in _kinds(module):
                bias = self.source.read(f"{part}.bias").to(dtype, copy=True)
            else:
                self.check_extra_bias([part])
            layers.append(self.packed_part(part, bias).to(device))
            for kind in PACKED:
                if f"{part}.{kind}" in self.source.entries():
                    self.source.release(f"{part}.{kind}")
        return AffineLinear.stack(layers)

    def packed_part(self, part: str, bias: Tensor | None = None) -> AffineLinear:
        """One stored GPTQ module with a bias of its own; all but the codes are copies."""
        packing = self.packing_of(part)
        if packing is None:
            raise CheckpointError(f"{part} is not packed.", BELONG_TOGETHER)
        words = {
            kind: self.source.read(f"{part}.{kind}").clone() if kind != "qweight" else None
            for kind in PACKED
            if f"{part}.{kind}" in self.source.entries()
        }
        return AffineLinear.from_gptq(
            self.source.read(f"{part}.qweight"),
            _present(words["qzeros"]),
            _present(words["scales"]),
            words.get("g_idx"),
            packing.bits,
            bias,
            zeros_minus_one=packing.zeros_minus_one,
        )

    def _float_part(
        self, module: nn.Linear, part: str, device: torch.device | str, dtype: torch.dtype
    ) -> nn.Linear:
        """One stored part of a linear layer whose other parts are packed."""
        weight = self.read_rows([f"{part}.weight"], dtype, device)
        biased = "bias" in _kinds(module)
        layer = nn.Linear(module.in_features, len(weight), bias=biased, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if biased:
            layer.bias = nn.Parameter(self.read_rows([f"{part}.bias"], dtype, device), requires_grad=False)
        else:
            self.check_extra_bias([part])
        return layer

    def _read_codes(self, module: nn.Module, parts: Sequence[str], dtype: torch.dtype) -> nn.Module | None:
        """A layer on the stored codes of all parts, None where one of them has no such form.

        Parts of different forms are rounded to 8 bits together: in one layer they run as one.
        """
        found = []
        for part in parts:
            codes = self.source.read_codes(f"{part}.weight")
            if codes is None:
                return None
            self.source.release(f"{part}.weight")
            found.append(codes)
        bias = None
        if "bias" in _kinds(module):
            bias = self.read_rows([f"{part}.bias" for part in parts], dtype, "cpu")
        return PackedLinear.from_affine(stack_codes(found), bias)

    def check_extra_bias(self, parts: Sequence[str]) -> None:
        """AutoGPTQ of 2023 stored a zero bias for every linear; a real one must not be dropped."""
        for part in parts:
            name = f"{part}.bias"
            entry = self.source.entries().get(name)
            if entry is not None and bool(self.source.read(name).any()):
                raise CheckpointError(
                    f"{entry.file}: {name!r} is not zero, but this architecture has no bias there.",
                    "The checkpoint is of another architecture; qwenkit would compute something else.",
                )

    def check_tied_copy(self, embedding: Tensor, dtype: torch.dtype, device: torch.device | str) -> None:
        name = f"{self.modules['lm_head'][0]}.weight"
        entry = self.source.entries().get(name)
        if entry is None:
            return
        if entry.shape != tuple(embedding.shape) or not torch.equal(
            self._place(name, dtype, device), embedding
        ):
            raise CheckpointError(
                f"{entry.file}: config.json ties the output to the embedding, but {name!r} differs from it.",
                "Set tie_word_embeddings to false to use the stored output, or remove the tensor.",
            )
        self.source.release(name)


def _kinds(module: nn.Module) -> list[str]:
    """Names of the module's own parameters: weight, bias."""
    return [kind for kind, _ in module.named_parameters(recurse=False)]


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise CheckpointError("A packed weight lacks its zero points or scales.", DOWNLOAD_AGAIN)
    return tensor


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'} ({shown})"


def _with_progress(names: list[str], progress: bool) -> Iterator[str]:
    if not progress:
        yield from names
        return
    from tqdm import tqdm

    yield from tqdm(names, desc="Loading weights", unit="layer", leave=False)
