"""`import qwenkit` is light: no torch, no transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qwenkit


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, qwenkit; qwenkit.SamplingParams(temperature=0); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'tiktoken', 'typer') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", qwenkit.__all__)
def test_every_public_name_resolves(name):
    assert getattr(qwenkit, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = qwenkit.nonsense
