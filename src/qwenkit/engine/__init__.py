"""From requests to text: sampling, stopping, batching, and the public `Qwen`."""

from qwenkit.engine.qwen import Qwen

__all__ = ["Qwen"]
