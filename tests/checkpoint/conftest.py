"""Checkpoint folders that a test may damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoints import Folder


@pytest.fixture
def v1_folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "tiny", "tiny_v1")


@pytest.fixture
def int4_folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "tiny4", "tiny_v1_int4")
