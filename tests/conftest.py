"""Shared data and the rule that a skipped tier says so."""

from __future__ import annotations

import lzma
import os
import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real qwen.tiktoken, unpacked."""
    path = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    with lzma.open(DATA / "qwen.tiktoken.xz") as packed, path.open("wb") as out:
        shutil.copyfileobj(packed, out)
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    closed = {
        "model": None
        if os.environ.get("QWENKIT_TEST_MODEL")
        else "set QWENKIT_TEST_MODEL=1 to run on real weights",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "peer": None
        if os.environ.get("QWENKIT_TEST_PEER")
        else "set QWENKIT_TEST_PEER=1 to compare with other engines",
    }
    for item in items:
        for tier, reason in closed.items():
            if reason and item.get_closest_marker(tier):
                item.add_marker(pytest.mark.skip(reason=f"{tier} tier: {reason}"))
