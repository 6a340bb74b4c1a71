"""Who may ask: API keys from a file or the environment, compared in constant time and never shown."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from qwenkit.core import RequestError
from qwenkit.serve.errors import ServeError

VARIABLE = "QWENKIT_API_KEYS"
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Asked by machines that watch over the server and have no key; they tell nothing about anybody."""

WHICH = "qwenkit.key"
"""Of a request's scope: the number of its key."""

_SHORTEST = 8  # characters; less is a slip, as an empty line's remains would be


class Keys:
    """Any of several keys opens the server; none at all leaves it open."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"Keys({len(self._digests)})"

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str]) -> Keys:
        """One key a line of `file` ("#" begins a comment), and those in QWENKIT_API_KEYS, comma separated.

        Raises RequestError for a file that cannot be read or has no key, and for a key too short to be one.
        """
        found = [key.strip() for key in environment.get(VARIABLE, "").split(",") if key.strip()]
        if file is not None:
            try:
                lines = [line.strip() for line in file.read_text().splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise RequestError(
                    f"Cannot read the keys in {file}.", "Give a readable text file."
                ) from error
            in_file = [line for line in lines if line and not line.startswith("#")]
            if not in_file:
                raise RequestError(f"{file} has no keys.", "Write one a line, or leave --api-key-file out.")
            found += in_file
        short = sum(len(key) < _SHORTEST or not key.isascii() for key in found)
        if short:
            raise RequestError(
                f"{short} of {len(found)} API keys are shorter than {_SHORTEST} characters or not ASCII.",
                "Make keys with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
        return cls(found)

    def accept(self, authorization: bytes) -> int | None:
        """Which of the keys the value of an Authorization header, `Bearer KEY`, has; None if it has none."""
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        # Every key is looked at, whichever fits: the time taken tells nothing.
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        return fits.index(True) if any(fits) and scheme.lower() == b"bearer" else None


class KeyCheck:
    """ASGI middleware: 401 for whoever brings no key, except on the `open` paths."""

    def __init__(self, app: ASGIApp, keys: Keys, open: Collection[str] = OPEN_PATHS) -> None:
        self._app = app
        self._keys = keys
        self._open = open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in self._open:
            headers = dict(scope["headers"])
            given = headers.get(b"authorization", b"")
            if not given and b"x-api-key" in headers:  # how Anthropic's clients send it
                given = b"Bearer " + headers[b"x-api-key"]
            which = self._keys.accept(given)
            if which is None:
                problem = "The API key is not known." if given else "There is no API key."
                error = ServeError(
                    problem,
                    "Send it as: Authorization: Bearer KEY, or X-API-Key: KEY.",
                    status=401,
                    code="invalid_api_key",
                )
                await error.send(scope, receive, send)
                return
            scope[WHICH] = which
        await self._app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
