"""The certificate and key of a server that speaks TLS itself, looked at before anything is started."""

from __future__ import annotations

import ssl
from typing import NoReturn

from qwenkit.core import RequestError
from qwenkit.serve.settings import ServeSettings


def check_tls(settings: ServeSettings) -> None:
    """Raises RequestError when the two files are not a certificate and its key."""
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise RequestError("--tls-cert and --tls-key belong together.", "Give both, or none.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if isinstance(error, FileNotFoundError) else getattr(error, "reason", error)
        raise RequestError(
            f"{certificate} and {key} cannot be used for TLS: {reason}.",
            "Give PEM files: the certificate with its chain, and its key without a password.",
        ) from error


def _no_password() -> NoReturn:
    raise OSError("the key has a password")
