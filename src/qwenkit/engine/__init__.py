"""From requests to text: sampling, stopping, batching, and the public `Qwen`.

Qwen is imported when first used: how much memory there is can be asked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenkit.engine.qwen import Qwen

__all__ = ["Qwen"]


def __getattr__(name: str) -> Any:
    if name != "Qwen":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwenkit.engine.qwen import Qwen

    return Qwen
