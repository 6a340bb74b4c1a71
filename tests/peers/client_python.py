"""Where other engines and clients are installed."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest


def client_python(module: str, install: str) -> str:
    """The Python that has `module`: the one that QWENKIT_PEER_<MODULE>_PYTHON names, else this one. Skips the
    test, saying what to install, where there is none."""
    variable = f"QWENKIT_PEER_{module.upper()}_PYTHON"
    if named := os.environ.get(variable):
        return named
    if find_spec(module) is None:
        pytest.skip(f"peer tier: pip install {install}, or name a Python that has it in {variable}")
    return sys.executable
