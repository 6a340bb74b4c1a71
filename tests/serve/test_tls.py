"""TLS by the server itself."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from running_server import RunningServer

from qwenkit.core import RequestError
from qwenkit.serve.guard.tls import check_tls
from qwenkit.serve.settings import ServeSettings

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")


def made(folder: Path, *options: str) -> tuple[Path, Path]:
    """A new certificate for 127.0.0.1 and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
         certificate, *options], check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@needs_openssl
def test_a_server_with_a_certificate(
    tiny_chat: Path, tmp_path: Path, start: Callable[..., RunningServer]
) -> None:
    certificate, key = made(tmp_path, "-nodes")
    server = start(tiny_chat, "--tls-cert", str(certificate), "--tls-key", str(key)).ready()
    assert server.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=server.url, verify=trusting) as client:
        said = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
        assert client.post("/v1/chat/completions", json=said).text.endswith("[DONE]\n\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)
    with pytest.raises(httpx.HTTPError):
        httpx.get(server.url.replace("https", "http"))
    with httpx.Client(base_url=server.url, verify=trusting) as client:
        assert client.get("/health").status_code == 200


@needs_openssl
def test_files_that_are_no_certificate_and_key_are_an_error(tmp_path: Path) -> None:
    certificate, key = made(tmp_path, "-passout", "pass:secret")
    for cert, private, words in (
        (certificate, None, "belong together"),
        (None, key, "belong together"),
        (certificate, key, "password"),
        (certificate, certificate, "cannot be used"),
        (tmp_path / "none.pem", key, "No such file"),
    ):
        with pytest.raises(RequestError, match=words):
            check_tls(ServeSettings(tls_cert=cert, tls_key=private))
    check_tls(ServeSettings())
