"""Every native test runs on every instruction set of this machine; without the extension it says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwenkit.kernels import native

ISAS = ["avx2", "avx512", "amx"]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one instruction set for a test."""
    if not native.built():
        pytest.skip("the native kernels are not built in this installation")
    if request.param not in native.available_isas():
        pytest.skip(f"this machine has no {request.param}")
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)
