"""A model without memory: shapes only, to be filled from files."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from qwenkit.model import CausalLM, ModelConfig


def empty_model(config: ModelConfig) -> CausalLM:
    """A CausalLM on the meta device, never initialized."""
    with _NoInitialization(), torch.device("meta"):
        return CausalLM(config)


class _NoInitialization(TorchFunctionMode):
    """Leaves tensors as they are: drawing numbers for the meta device imports 800 modules, over a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
